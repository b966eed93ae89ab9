"""Who is told how a run goes: a bar on a terminal, lines in a log, nobody; and always the run's own log. Home of tqdm."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from pipeline.ground.visible import visible
from pipeline.ground.wording import outage
from pipeline.progress import Snapshot

LINE_EVERY_S = 30.0
LASTING_S = 5.0  # an outage is told of
LOG_FILE = "run.log"
MOMENT = "%Y-%m-%d %H:%M:%S"
BAR = "{percentage:3.0f}%|{bar:16}| {desc}"
BAR_COLUMNS = 24  # those of BAR, without what it says, and the last, which stays free


class Display(Protocol):
    """Shows snapshots and says sentences."""

    def show(self, snapshot: Snapshot) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


class Silent:
    """Shows nothing: for use as a library, and ``-q``."""

    def show(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Lines:
    """One plain line every 30 s: for logs and cron."""

    def __init__(self, stream: TextIO = sys.stderr, *, every_s: float = LINE_EVERY_S) -> None:
        self._stream = stream
        self._every_s = every_s
        self._last = time.monotonic()

    def show(self, snapshot: Snapshot) -> None:
        """Print when the last line is old enough."""
        now = time.monotonic()
        if now - self._last >= self._every_s:
            self._last = now
            self.say(snapshot.line)

    def say(self, text: str) -> None:
        """Print a sentence with date and time: a log may have many nights."""
        print(f"{time.strftime(MOMENT)} {visible(text)}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing is open."""


class Bar:
    """A live bar on a terminal."""

    def __init__(self, stream: TextIO = sys.stderr) -> None:
        from tqdm import tqdm

        self._stream = stream
        self._tqdm = tqdm
        self._bar: tqdm[Any] | None = None

    def show(self, snapshot: Snapshot) -> None:
        """Redraw."""
        if self._bar is None:
            self._bar = self._tqdm(
                total=snapshot.total,
                file=self._stream,
                bar_format=BAR,
                nrows=2,  # else a terminal that does not tell its size is taken for one without lines, and gets nothing
                leave=False,
            )
        columns = self._columns
        self._bar.ncols = columns - 1
        self._bar.n = snapshot.completed + snapshot.failed
        self._bar.set_description_str(visible(snapshot.fitting(columns - BAR_COLUMNS)), refresh=True)

    @property
    def _columns(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):  # ValueError: a stream without a number, as in a test
            return 80

    def say(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._tqdm.write(visible(text), file=self._stream)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Steady:
    """A display that falls silent when it cannot be written any more (a closed pipe, a full log disk): the run goes on."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def show(self, snapshot: Snapshot) -> None:
        """Show it, if that is still possible."""
        self._try(lambda: self._display.show(snapshot))

    def say(self, text: str) -> None:
        """Say it, if that is still possible."""
        self._try(lambda: self._display.say(text))

    def close(self) -> None:
        """Close it, if that is still possible."""
        self._try(self._display.close)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError:
            self._display = Silent()  # status.json and the summary still tell


def display_for(stream: TextIO, *, quiet: bool) -> Display:
    """A bar on a terminal, lines elsewhere, nothing when quiet."""
    if quiet:
        return Silent()
    return Steady(Bar(stream) if stream.isatty() else Lines(stream))


class Logged:
    """A display whose sentences also go to ``run.log`` in the run folder, with those that only that log is told (``note``)."""

    def __init__(self, display: Display, folder: Path) -> None:
        self._display = display
        self._path = folder / LOG_FILE
        self._told_of: set[tuple[float, str]] = set()  # outages that last; several models may be away at once

    def show(self, snapshot: Snapshot) -> None:
        """Show it; an outage that lasts is also said, once, and so is its end: a bar has no room for its cause."""
        for started_at, ended_at, cause in snapshot.outages:  # one may end and the next begin between two snapshots
            which = (started_at, cause)
            is_told = which in self._told_of
            if is_told if ended_at is not None else not is_told and time.time() - started_at >= LASTING_S:
                self._told_of ^= {which}
                self.say(outage(started_at, ended_at, cause))
        self._display.show(snapshot)

    def say(self, text: str) -> None:
        """Say it, and write it down."""
        self._display.say(text)
        self.note(text)

    def note(self, text: str) -> None:
        """Write it down. A log that cannot be written is no reason to stop; a full disk shows at the journal."""
        try:
            with open(
                self._path, "a", opener=lambda name, flags: os.open(name, flags, 0o600), encoding="utf-8"
            ) as file:
                file.write(f"{time.strftime(MOMENT)} {visible(text)}\n")
        except OSError:
            pass

    def close(self) -> None:
        """Close the display."""
        self._display.close()

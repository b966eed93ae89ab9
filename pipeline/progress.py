"""What a run shows of itself: one read-only snapshot feeds the bar, the log line and ``status.json``. Home of tqdm."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import orjson

from pipeline.errors import IncompleteError
from pipeline.records import Attempt, Outcome

LINE_EVERY_S = 30.0
RATE_WINDOW_S = 30.0
STATUS_FILE = "status.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run stands. Only rows that are durable are counted. ``eta_s`` None: not known yet."""

    state: str
    total: int
    completed: int
    failed: int
    pending: int
    sent: int
    elapsed_s: float
    rows_per_s: float
    tokens: int
    tokens_per_s: float
    cost: dict[str, float]
    cost_unknown: int
    slots: int
    busy: int
    waiting: int
    eta_s: float | None
    doing: str

    @property
    def line(self) -> str:
        """The snapshot in one line."""
        parts = [f"{self.completed + self.failed:,}/{self.total:,} rows"]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        parts += [
            f"{self.rows_per_s:,.1f} rows/s",
            f"{self.tokens:,} tokens",
            f"cost {money(self.cost, self.cost_unknown)}",
        ]
        if self.eta_s is not None and self.pending:
            parts.append(f"{duration(self.eta_s)} left")
        if self.doing:
            parts.append(self.doing)
        return ", ".join(parts)


def money(cost: dict[str, float], unknown: int = 0) -> str:
    """Amounts by unit, and that some are unknown: ``$0.0123``, ``3.5 coins``, ``unknown``."""
    known = [f"${_amount(amount)}" if unit == "USD" else f"{_amount(amount)} {unit}" for unit, amount in cost.items()]
    if not known:
        return "unknown" if unknown else "$0"
    return " + ".join(known) + (f" + {unknown:,} rows of unknown cost" if unknown else "")


def _amount(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 100 or amount == 0 else f"{amount:,.4f}" if amount >= 0.01 else f"{amount:.7f}"


def duration(seconds: float) -> str:
    """``45 s``, ``12 min 5 s``, ``3 h 20 min``, ``2 d 4 h``."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    if s < 86_400:
        return f"{s // 3600} h {s % 3600 // 60} min"
    return f"{s // 86_400} d {s % 86_400 // 3600} h"


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts what became durable in this run, on top of what the journal held when it began."""

    total: int
    completed: int
    failed: int
    slots: int
    tokens: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    cost_unknown: int = 0
    sent: int = 0
    new_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)

    def kept(self, records: Sequence[Outcome | Attempt]) -> None:
        """These are on disk."""
        for record in records:
            if isinstance(record, Attempt):
                continue
            self.sent += record.sent
            if record.status == "succeeded":
                self.completed += 1
            else:
                self.failed += 1
            self._book(record)

    def _book(self, outcome: Outcome) -> None:
        if outcome.completion is not None:
            self.new_tokens += outcome.completion.usage.total_tokens or 0
        cost = outcome.cost
        if cost.amount is not None:
            self.cost[cost.unit] = self.cost.get(cost.unit, 0.0) + cost.amount
        elif outcome.status == "succeeded":
            self.cost_unknown += 1

    def snapshot(
        self, *, state: str, busy: int, waiting: int, trouble: str | None, away_since: float | None = None
    ) -> Snapshot:
        """Where the run stands now; rates are those of the last half minute."""
        now = time.monotonic()
        self._marks.append((now, self.sent, self.new_tokens))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.popleft()
        then, sent, tokens = self._marks[0]
        span = now - then
        rate = (self.sent - sent) / span if span > 0 else 0.0
        pending = max(self.total - self.completed - self.failed, 0)
        return Snapshot(
            state=state,
            total=self.total,
            completed=self.completed,
            failed=self.failed,
            pending=pending,
            sent=self.sent,
            elapsed_s=now - self.started,
            rows_per_s=rate,
            tokens=self.tokens + self.new_tokens,
            tokens_per_s=(self.new_tokens - tokens) / span if span > 0 else 0.0,
            cost=dict(self.cost),
            cost_unknown=self.cost_unknown,
            slots=self.slots,
            busy=busy,
            waiting=waiting,
            eta_s=pending / rate if rate > 0 and away_since is None else None,
            doing=_doing(pending, busy, waiting, trouble, away_since),
        )


def _doing(pending: int, busy: int, waiting: int, trouble: str | None, away_since: float | None) -> str:
    if away_since is not None:
        clock = time.strftime("%H:%M:%S", time.localtime(away_since))
        return f"the gateway is away since {clock}, waiting for it ({(trouble or '')[:240]})"
    if waiting:
        return f"{waiting} rows wait to try again ({(trouble or '')[:240]})"
    if 0 < pending <= busy:
        return f"waiting for the last {pending}"
    return ""


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
        """Print a sentence with the time."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._stream, flush=True)

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
                bar_format="{l_bar}{bar:20}| {desc}",
                dynamic_ncols=True,
                leave=False,
            )
        self._bar.n = snapshot.completed + snapshot.failed
        self._bar.bar_format = "{percentage:3.0f}%|{bar:16}| {desc}"
        self._bar.set_description_str(snapshot.line, refresh=True)

    def say(self, text: str) -> None:
        """Print a sentence above the bar."""
        self._tqdm.write(text, file=self._stream)

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


class StatusFile:
    """``status.json`` in the run folder, replaced atomically: what ``pipeline status`` reads, also after a kill."""

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self._path = folder / STATUS_FILE
        self._facts = facts

    def write(self, snapshot: Snapshot | None, **more: Any) -> None:
        """Replace the file's text. Raises ``IncompleteError`` when there is no room for it."""
        status = {**self._facts, **(asdict(snapshot) if snapshot else {}), **more, "written_at": time.time()}
        try:
            self._replace(orjson.dumps(status, option=orjson.OPT_INDENT_2))
        except OSError as exc:
            raise IncompleteError(
                f"cannot write {self._path}: {exc.strerror}; make room on that disk, then run the same command again"
            ) from exc

    def _replace(self, text: bytes) -> None:
        partial = self._path.with_suffix(".partial")
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(text)
        partial.replace(self._path)

"""Kills a command with kill -9 at seeded random moments of each of its phases, and looks after each kill at what is there.

The phases are seen from outside, in the files of the run folder; a moment is a phase's first sign and a random part of the
time that the phase took in a run that was left alone. What counts is where a kill has hit, not where it was aimed.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
from aged import VERSION_1, columns_of
from conftest import clean_environment

from pipeline.errors import RunFolderError
from pipeline.journal import store
from pipeline.status import status_of
from pipeline.verify import verify

PHASES = ("start", "index", "sending", "draining", "export", "end")
POLL_S = 0.0004
SIGN_S = 60.0
GROWN = "the file was changed since the last run"  # what verify says of input that a kill left unread: no damage


@dataclass(slots=True, kw_only=True)
class Durations:
    """How long the phases of a run that was left alone took, in seconds."""

    start: float = 0.4
    index: float = 0.05
    sending: float = 0.6
    draining: float = 0.1
    export: float = 0.05
    end: float = 0.02

    def of(self, phase: str) -> float:
        """Those of one phase, and a little more: the next one will not be the same."""
        return max(float(getattr(self, phase)), 0.002) * 1.2

    def shorten(self, phase: str) -> None:
        """A kill came too late: the machine was busier when this was measured than it is now."""
        setattr(self, phase, getattr(self, phase) * 0.7)


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a sequence of kills came to. ``versions``: which version the journal had, where an old one was being opened."""

    hit: Counter[str] = field(default_factory=Counter)
    versions: Counter[int] = field(default_factory=Counter)
    late: int = 0
    named: int = 0
    most_named: int = 0
    bought_twice: int = 0
    rows: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """All of them."""
        return self.hit.total()

    def add(self, other: Tally) -> None:
        """Sum up."""
        self.hit += other.hit
        self.versions += other.versions
        for name in ("late", "named", "bought_twice", "rows", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.most_named = max(self.most_named, other.most_named)

    @property
    def line(self) -> str:
        """All of it."""
        hits = ", ".join(f"{phase} {self.hit[phase]}" for phase in PHASES if self.hit[phase])
        old = ", ".join(f"version {version}: {count}" for version, count in sorted(self.versions.items()))
        return (
            f"{self.kills} kills ({hits}; {self.late} came too late){f' [{old}]' if old else ''}, {self.rows} rows, "
            f"{self.named} requests named, at most {self.most_named} by one start, {self.bought_twice} bought twice, {self.seconds:.0f} s"
        )


Mark = tuple[int, int, int] | None


def mark_of(path: Path) -> Mark:
    """What tells one state of a file from another; None when it is not there."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class Child:
    """A command in a process of its own that writes ``output``, and the signs of where it is."""

    def __init__(self, words: Sequence[str], folder: Path, output: Path, run_folder: Path | None) -> None:
        self._output, self._run_folder = output, run_folder
        self._partial = output.with_name(f".{output.name}.partial")
        self._before = mark_of(output), mark_of(self._partial)
        self._errors = folder / "errors.txt"
        self.drained = False
        self.started = time.monotonic()
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "pipeline", *words],
                cwd=folder, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=clean_environment(),
            )  # fmt: skip
        self._call_ids = re.compile(b"p[0-9a-f]+%04x-" % (self._process.pid & 0xFFFF))

    @property
    def errors(self) -> str:
        """What it has said."""
        return self._errors.read_text(encoding="utf-8")

    def is_at_work(self) -> bool:
        """It holds the run folder; an export does without, and shows first when it writes."""
        if self._run_folder is None:
            return self.is_exporting()
        return b'"pid":%d,' % self._process.pid in _bytes(self._run_folder / "lock")

    def has_sent(self) -> bool:
        """The in-flight table has, or had, a request of this process."""
        if self._run_folder is None:
            return self.is_exporting()
        return self._call_ids.search(_bytes(self._run_folder / "inflight")) is not None

    def is_exporting(self) -> bool:
        """The results are being written."""
        return self.has_published() or mark_of(self._partial) not in (None, self._before[1])

    def has_published(self) -> bool:
        """The results stand under their name."""
        return mark_of(self._output) not in (None, self._before[0])

    def reaches(self, sign: Callable[[], bool]) -> bool:
        """Wait for a sign; False when it ends without giving it."""
        until = time.monotonic() + SIGN_S
        while not sign():
            if self._process.poll() is not None:
                return sign()
            assert time.monotonic() < until, f"no {sign.__name__} within {SIGN_S:.0f} s: {self.errors}"
            time.sleep(POLL_S)
        return True

    def drain(self) -> None:
        """Ask it to end in good order."""
        self._process.send_signal(signal.SIGTERM)
        self.drained = True

    def end(self, timeout: float = 120) -> int:
        """Let it end by itself; returns its exit code."""
        try:
            return self._process.wait(timeout)
        finally:
            self._process.kill()
            self._process.wait()

    def kill(self) -> str | None:
        """kill -9; returns the phase it was in, or None when it had ended before."""
        self._process.send_signal(signal.SIGKILL)
        return self._phase() if self._process.wait() == -signal.SIGKILL else None

    @property
    def code(self) -> int:
        """How it ended."""
        return int(self._process.returncode)

    def _phase(self) -> str:
        signs = (
            ("end", self.has_published()),
            ("export", self.is_exporting()),
            ("draining", self.drained),
            ("sending", self.has_sent()),
            ("index", self.is_at_work()),
        )
        return next((phase for phase, seen in signs if seen), "start")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def measured(child: Child) -> Durations:
    """The phases' lengths in a run that is left alone to its end."""
    moments = [child.started]
    for sign in (child.is_at_work, child.has_sent, child.is_exporting, child.has_published):
        child.reaches(sign)
        moments.append(time.monotonic())
    child.end()
    moments.append(time.monotonic())
    start, index, _, export, end = (after - before for before, after in pairwise(moments))
    return Durations(start=start, index=index, export=export, end=end)


def kill_in(child: Child, phase: str, durations: Durations, chance: random.Random) -> str | None:
    """Kill it at a random moment of a phase; returns the one that was hit, or None when it ended before the kill."""
    sign = {
        "start": None, "index": child.is_at_work, "sending": child.has_sent, "draining": child.has_sent,
        "export": child.is_exporting, "end": child.has_published,
    }[phase]  # fmt: skip
    if sign is not None:
        child.reaches(sign)
    if phase == "draining":
        time.sleep(chance.uniform(0, durations.of("sending")) / 2)
        child.drain()
    time.sleep(chance.uniform(0, durations.of(phase)))
    return child.kill()


def deck(phases: Sequence[Any], kills: int, chance: random.Random) -> Iterator[Any]:
    """So many phases, each as often as the others, in random order; then on and on for kills that came too late."""
    while True:
        cards = [*phases] * -(-kills // len(phases))
        chance.shuffle(cards)
        yield from cards


# What is there after a kill


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A journal as it was left. ``outcomes``: the id of the reply that each row has."""

    version: int
    outcomes: dict[str, str | None]
    named: int
    replaced: int


@contextmanager
def left_behind(run_folder: Path, scratch: Path) -> Iterator[sqlite3.Connection]:
    """A copy of the journal: the next start must find the real one as the kill left it."""
    scratch.mkdir(exist_ok=True)
    for name in ("journal.sqlite", "journal.sqlite-wal"):
        (scratch / name).unlink(missing_ok=True)
        if (run_folder / name).exists():
            shutil.copyfile(run_folder / name, scratch / name)
    (scratch / "journal.sqlite-shm").unlink(missing_ok=True)
    db = sqlite3.connect(scratch / "journal.sqlite")
    try:
        yield db
    finally:
        db.close()


def found_in(run_folder: Path, scratch: Path) -> Found | None:
    """What the journal holds; None where there is none yet."""
    with left_behind(run_folder, scratch) as db:
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version == 0:
            assert db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0, "half a schema"
            return None
        assert db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        outcomes = dict(db.execute("SELECT custom_id, ifnull(request_id, call_id) FROM outcome"))
        counts = db.execute(
            "SELECT count(*) FILTER (WHERE code = 'killed'), count(*) FILTER (WHERE code = 'replaced') FROM attempt"
        ).fetchone()
    assert columns_of(scratch / "journal.sqlite") == _columns_of_version(version)
    return Found(version=version, outcomes=outcomes, named=counts[0], replaced=counts[1])


def _columns_of_version(version: int) -> list[tuple[object, ...]]:
    schema = {1: VERSION_1, store.VERSION: store.SCHEMA}[version]
    db = sqlite3.connect(":memory:")
    db.executescript(schema)
    found = db.execute(
        "SELECT m.type, m.name, c.* FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c ORDER BY m.type, m.name, c.cid"
    ).fetchall()
    db.close()
    return found


def shown_is_kept(run_folder: Path, kept: int) -> None:
    """Promise 2: what a status ever said was done is on disk; ``pipeline status`` has an answer after any kill."""
    path = run_folder / "status.json"
    if path.exists():
        status = orjson.loads(path.read_bytes())
        assert int(status.get("completed") or 0) + int(status.get("failed") or 0) <= kept
    try:
        assert status_of(run_folder)["state"] in ("killed", "ended")
    except RunFolderError as error:
        assert not path.exists(), error


def nothing_is_damaged(run_folder: Path) -> None:
    """What ``pipeline verify`` says of a run that was killed: that it is not over, and no more."""
    try:
        findings = verify(run_folder).findings
    except RunFolderError as error:
        assert re.search("nothing has been run there|holds no run yet", str(error)), error
        return
    assert {finding.check for finding in findings} <= {"input"}, findings
    assert not findings or GROWN in findings[0].what, findings


def rows_in(path: Path) -> int:
    """How many rows a whole results file has. Raises for half of one."""
    if path.suffix == ".parquet":
        return int(pq.read_table(path).num_rows)
    data = path.read_bytes()
    assert data.endswith(b"\n"), f"{path} ends in the middle of a row"
    lines = data.splitlines()
    if path.suffix == ".csv":
        return len(lines) - 1
    for line in lines:
        orjson.loads(line)
    return len(lines)


def whole(path: Path) -> dict[str, Any]:
    """A JSON object that is there whole; empty where there is no such file."""
    if not path.exists():
        return {}
    found = orjson.loads(path.read_bytes())
    assert isinstance(found, dict)
    return found


def nothing_else(folder: Path, names: set[str]) -> None:
    """Only these files, and unfinished ones under names that say so."""
    there = [path.name for path in folder.iterdir()]
    odd = [name for name in there if name not in names and not re.fullmatch(r"\..*\.partial", name)]
    assert not odd, odd

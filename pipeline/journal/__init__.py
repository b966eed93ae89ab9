"""The only durable truth while a run lives: index of the input, outcomes, in-flight table, lock.

``Journal.open`` gives all of it over one SQLite connection; results are a projection of it and can be made again.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import PipelineError, RunFolderError
from pipeline.ground import folders
from pipeline.ground.boot import boot_id
from pipeline.ground.wording import plural
from pipeline.journal import copies, lost, reader, reserve, store, whole
from pipeline.journal.index import Counts, Duplicate, Index
from pipeline.journal.inflight import InFlight, InFlightTable, left_in
from pipeline.journal.lock import Lock
from pipeline.journal.reader import Projected, Projection, Totals
from pipeline.journal.reserve import Reserve
from pipeline.journal.room import Room
from pipeline.journal.store import roll_back, sentences, wants_room
from pipeline.journal.tight import Tight
from pipeline.journal.writer import Record, Writer

__all__ = [
    "FILE_NAME", "Counts", "Duplicate", "Index", "Journal", "Lock", "Projected", "Projection", "Record", "Recovered", "Reserve",
    "Totals", "Writer", "copies", "is_booked", "left_in", "lost", "reader", "sentences", "whole",
]  # fmt: skip

FILE_NAME = "journal.sqlite"
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """What a run that did not end cleanly left behind; ``may_be_incomplete`` after a power cut or restart."""

    in_flight: list[str]
    may_be_incomplete: bool


class Journal:
    """One run folder's journal. The caller holds the folder's ``Lock`` unless it opened it for reading."""

    def __init__(self, db: sqlite3.Connection, path: Path, table: InFlightTable | None) -> None:
        self.db = db
        self.path = path
        self._table = table
        self.reserve = Reserve(path.parent)
        self.room = Room(db, path, self.reserve)
        self.run = 0
        self.name = ""

    @classmethod
    def open(cls, folder: Path, *, slots: int) -> Journal:
        """Open, or make, the journal of a run folder for writing. Raises ``RunFolderError``, ``IncompleteError``."""
        path = folder / FILE_NAME
        db = store.connect(path, create=True)
        try:
            with suppress(OSError):  # what a killed run held is room for this one
                (folder / reserve.FILE_NAME).unlink()
            return cls(db, path, InFlightTable(folder / "inflight", slots=slots))
        except BaseException:
            db.close()
            raise

    @classmethod
    def read(cls, folder: Path) -> Journal:
        """Open the journal of a run folder for reading."""
        path = folder / FILE_NAME
        return cls(store.connect(path, create=False), path, None)

    def close(self) -> None:
        """Close the connection and the in-flight table."""
        self.reserve.close()
        self.db.close()
        if self._table is not None:
            self._table.close()

    def into_reserve(self, write: Callable[[], T]) -> T:
        """Write one of the last words of a run: on a full disk, into what is left of the reserve.

        Raises the ``PipelineError`` that it means where it cannot be written all the same.
        """
        with sentences(self.path):
            while True:
                try:
                    return write()
                except sqlite3.OperationalError as exc:
                    if not wants_room(exc) or not (self.reserve.release() or self.reserve.release_last()):
                        raise
                    roll_back(self.db)

    def save_to(self, folder: Path) -> None:
        """Write all of the journal into a new folder, also when its own file has no name any more; or leave no folder."""
        if folder.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))
        folders.make_folder(folder, mode=0o700)
        try:
            with closing(store.connect(folder / FILE_NAME, create=True)) as copy:
                self.db.backup(copy)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    @property
    def table(self) -> InFlightTable:
        """The in-flight table (of a journal opened for writing)."""
        if self._table is None:
            raise RuntimeError("this journal was opened for reading")
        return self._table

    def get(self, key: str) -> str | None:
        """One fact about the journal as a whole."""
        return store.get(self.db, key)

    def put(self, key: str, value: str) -> None:
        """Write one fact about the journal as a whole; durable on return."""
        store.put(self.db, key, value)

    def input_moved(self, files: Sequence[tuple[str, str]]) -> None:
        """See the indexed files under these paths and marks, in their order; for this connection only.

        Whether they still are what they were is for the caller to check. Raises ``RunFolderError`` for another number of files.
        """
        known = self.db.execute("SELECT count(*) FROM file").fetchone()[0]
        if known != len(files):
            raise RunFolderError(
                f"the last run read {plural(known, 'input file')}, here {'is' if len(files) == 1 else 'are'} {len(files)}: name the same ones with -i"
            )
        self.db.execute("CREATE TEMP TABLE file AS SELECT * FROM main.file")  # its name hides the other's
        self.db.executemany(
            "UPDATE temp.file SET path = ?, mark = ? WHERE place = ?",
            [(path, mark, place) for place, (path, mark) in enumerate(files)],
        )

    def all_or_nothing(self) -> AbstractContextManager[None]:
        """A transaction over whatever is done to the journal in its block."""
        return store.transaction(self.db)

    def put_back(self) -> AbstractContextManager[None]:
        """A transaction that leaves nothing behind of what is done to the journal in its block."""
        return store.undone(self.db)

    def index(self) -> Index:
        """The index of the input."""
        return Index(self.db)

    def recover(self, tell: Callable[[Recovered], None] = lambda _: None) -> Recovered | None:
        """Name and book what was left in flight: by a run that was killed, or by this one when it was cut off.

        Each request whose end is not in the journal becomes a lost attempt of its row: it may have been billed. None when
        there is nothing to tell. ``tell`` names them before they are booked: whoever is killed in between names them again,
        where the other way round nobody ever would.
        """
        last = self.db.execute("SELECT run, boot_id, ended_at FROM run ORDER BY run DESC LIMIT 1").fetchone()
        left = self.table.left
        if last is None or (not left and (last[2] is not None or last[0] == self.run)):
            return None
        with store.transaction(self.db):
            cut_off = self.cut_off()
            found = Recovered(in_flight=[entry.custom_id for entry in cut_off], may_be_incomplete=last[1] != boot_id())
            tell(found)
            self.db.executemany(
                "INSERT INTO attempt VALUES (?, ?, ?, 'killed', 1, NULL, NULL, 'USD', 'unknown', ?, "
                "coalesce((SELECT run FROM run WHERE name = ?), ?))",  # a power cut may bring back what an earlier run had cleared
                [
                    (*entry.identity, entry.call_id, time.time(), entry.call_id.partition("-")[0], last[0])
                    for entry in cut_off
                ],
            )
            self.db.execute(
                "UPDATE run SET ended_at = ?, how = 'killed' WHERE ended_at IS NULL AND run <> ?",
                (time.time(), self.run),
            )
        self.table.forget_left()
        return found

    def cut_off(self) -> list[InFlight]:
        """What is in flight and has no end in the journal."""
        return [self._full_name(entry) for entry in self.table.left if not is_booked(self.db, entry)]

    def _full_name(self, entry: InFlight) -> InFlight:
        known = self.db.execute("SELECT custom_id FROM input WHERE no = ?", (entry.index,)).fetchone()
        if known is None:
            return entry
        return InFlight(custom_id=known[0], index=entry.index, fingerprint=entry.fingerprint, call_id=entry.call_id)

    def start_run(self) -> None:
        """Note that a run begins; until ``end_run`` the journal knows it as one that may have been killed."""
        self.name = f"p{time.time_ns() // 1_000_000:x}{os.getpid() & 0xFFFF:04x}"
        cursor = self.db.execute(
            "INSERT INTO run (name, started_at, host, pid, boot_id) VALUES (?, ?, ?, ?, ?)",
            (self.name, time.time(), socket.gethostname(), os.getpid(), boot_id()),
        )
        self.run = int(cursor.lastrowid or 0)

    def end_run(self, how: str) -> None:
        """Note how the run ended."""
        self.db.execute("UPDATE run SET ended_at = ?, how = ? WHERE run = ?", (time.time(), how, self.run))

    def keep_outage(self, started_at: float, ended_at: float | None, cause: str) -> None:
        """Note one outage of this run; ``ended_at`` None: it lasted when the run ended."""
        self.db.execute("INSERT INTO outage VALUES (?, ?, ?, ?)", (started_at, ended_at, cause, self.run))

    def writer(
        self,
        *,
        slots: int,
        kept: Callable[[Sequence[Record]], None],
        full: Callable[[PipelineError], None] = lambda _: None,
        needed: Callable[[], float | None] = lambda: None,
    ) -> Writer:
        """The group-committing writer of this run; to be made inside the event loop.

        ``full`` hears, once, that the disk is full; ``needed`` says about how many bytes are wanted.
        """
        tight = Tight(self.db, self.path, self.reserve, full=full, needed=needed)
        return Writer(self.db, self.path, self.table, run=self.run, slots=slots, kept=kept, tight=tight)

    def mark_redo(self, numbers: Sequence[int]) -> None:
        """Have these outcomes made anew, by the next run to start or a later one; durable, so that an interrupted one goes on."""
        with store.transaction(self.db):
            self.db.executemany(
                "UPDATE outcome SET redo = (SELECT ifnull(max(run), 0) + 1 FROM run), accepted = 0 WHERE no = ?",
                [(no,) for no in numbers],
            )

    def number_of(self, custom_id: str) -> int | None:
        """The number of an input row by its id."""
        found = self.db.execute("SELECT no FROM input WHERE custom_id = ?", (custom_id,)).fetchone()
        return None if found is None else int(found[0])

    def sent_last(self, most: int) -> set[int]:
        """Numbers of rows that ended in the last run, without those that were given the answer of another."""
        rows = self.db.execute(
            "SELECT no FROM outcome WHERE run = (SELECT max(run) FROM run) AND cost_source <> 'reused' LIMIT ?", (most,)
        )
        return {no for (no,) in rows}

    def failed_numbers(self, code: str | None) -> list[int]:
        """Numbers of the failed rows of the present input, all or those of one code."""
        rows = self.db.execute(
            "SELECT o.no FROM input i JOIN outcome o ON o.no = i.no WHERE o.status = 'failed' AND (? IS NULL OR o.error_code = ?)",
            (code, code),
        )
        return [int(no) for (no,) in rows]

    def failed_codes(self) -> list[str]:
        """What rows of the present input failed with."""
        rows = self.db.execute(
            "SELECT DISTINCT o.error_code FROM input i JOIN outcome o ON o.no = i.no WHERE o.status = 'failed' ORDER BY 1"
        )
        return [str(code) for (code,) in rows]

    def accept_failed(self) -> int:
        """The failures are known and fine: later runs end with 0. Returns how many were newly accepted."""
        cursor = self.db.execute(
            "UPDATE outcome SET accepted = 1 WHERE status = 'failed' AND NOT accepted AND NOT redo "
            "AND no IN (SELECT no FROM input)"
        )
        return cursor.rowcount


def is_booked(db: sqlite3.Connection, entry: InFlight) -> bool:
    """Whether the end of a request that stands in the in-flight table is in the journal all the same."""
    outcome = db.execute(
        "SELECT 1 FROM outcome WHERE no = ? AND fingerprint = ? AND NOT redo", (entry.index, entry.fingerprint)
    ).fetchone()
    attempt = db.execute(
        "SELECT 1 FROM attempt WHERE fingerprint = ? AND call_id = ?", (entry.fingerprint, entry.call_id)
    ).fetchone()
    return bool(outcome or attempt)

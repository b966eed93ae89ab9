"""The room that a run needs on its disk: what must be held for answers in flight, and about how much the rest will take."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.journal import history, store
from pipeline.journal.reserve import Reserve, bytes_for
from pipeline.journal.store import sentences

TELLING_BYTES = 4 << 20  # the journal has grown by more than its log: from then on it tells what a row takes
LOG_BYTES = 5 << 20  # what the log grows to before it begins anew, and a group of answers more
REPLY_BYTES = 1_200  # as kept, where none is there to weigh
ROW_BYTES = 400  # of a row in the journal besides its reply


def results_bytes(rows: int, row_bytes: float, input_bytes: int) -> float:
    """What a results file of so many rows takes: half of what the journal has of them, and what the input says."""
    return rows * row_bytes / 2 + input_bytes


class Room:
    """``hold`` before sending, ``keep_up`` while answers come in; ``needed`` is for whoever has to make room."""

    def __init__(self, db: sqlite3.Connection, path: Path, reserve: Reserve) -> None:
        self._db = db
        self._path = path
        self._reserve = reserve
        self._began: int | None = None
        self._rows, self._input_bytes = 0, 0  # of the results, where they come to lie on the journal's disk

    def hold(self, *, rows_at_once: int, to_send: int, results: bool) -> None:
        """Make the reserve, before anything is paid for; ``results``: they will be written, too. Raises ``IncompleteError`` where
        there is no room for it."""
        self._began = self._size_without_log()
        if results:
            self._weigh_results()
        reply = history.reply_bytes(self._db)
        wanted = bytes_for(min(2 * rows_at_once, to_send), reply)
        rest = self._rest(to_send, (REPLY_BYTES if reply is None else reply) + ROW_BYTES)
        self._reserve.hold(wanted, needed=wanted + rest)

    def keep_up(self, *, rows_at_once: int, kept: int) -> None:
        """Have a larger reserve where rows turn out to be larger than was thought."""
        if (row := self._grown_by(kept)) is not None:  # no question to the journal: that would wait for its commits
            self._reserve.try_to_hold(bytes_for(2 * rows_at_once, row))

    def needed(self, *, left: int, kept: int) -> float | None:
        """About how many bytes the rest of the rows, their log and the results will take; None while nobody can know."""
        row = self._grown_by(kept)
        if row is None:
            with suppress(PipelineError), sentences(self._path):  # asked where the disk is in trouble already
                reply = history.reply_bytes(self._db)
                row = None if reply is None else reply + ROW_BYTES
        return None if row is None else self._rest(left, row)

    def _rest(self, left: int, row: float) -> float:
        return left * row + LOG_BYTES + results_bytes(self._rows, row, self._input_bytes)

    def _weigh_results(self) -> None:
        """They are written beside those that are there, so all of them count."""
        output = store.get(self._db, "output")
        if output is None or _device(Path(output).parent) != _device(self._path.parent):
            return
        for path, rows in self._db.execute("SELECT path, rows FROM file"):
            self._rows += rows
            with suppress(OSError):
                self._input_bytes += Path(path).stat().st_size

    def _grown_by(self, kept: int) -> float | None:
        """Bytes a row of this run; None until the journal tells."""
        if self._began is None or not kept:
            return None
        grown = self._size() - self._began
        return grown / kept if grown > TELLING_BYTES else None

    def _size_without_log(self) -> int:
        """What the index pass wrote is in the journal by then, not in its log: it is none of what the answers take."""
        with suppress(PipelineError), sentences(self._path):  # the log has all, whatever the checkpoint meets
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return self._size()

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


def _device(folder: Path) -> int | None:
    """The disk of a folder, or of the one above it in which it will be made."""
    for there in (folder, *folder.parents):
        with suppress(OSError):
            return there.stat().st_dev
    return None

"""The room that a run needs on its disk: what must be held for answers in flight, and about how much the rest will take."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.journal import history
from pipeline.journal.reserve import Reserve, bytes_for
from pipeline.journal.store import sentences

TELLING_BYTES = 4 << 20  # the journal has grown by more than its log: from then on it tells what a row takes


class Room:
    """``hold`` before sending, ``keep_up`` while answers come in; ``needed`` is for whoever has to make room."""

    def __init__(self, db: sqlite3.Connection, path: Path, reserve: Reserve) -> None:
        self._db = db
        self._path = path
        self._reserve = reserve
        self._began: int | None = None

    def hold(self, *, rows_at_once: int, to_send: int) -> None:
        """Make the reserve, before anything is paid for. Raises ``IncompleteError`` where there is no room for it."""
        self._began = self._size_without_log()
        rows = min(2 * rows_at_once, to_send)
        self._reserve.hold(bytes_for(rows, history.reply_bytes(self._db)))

    def keep_up(self, *, rows_at_once: int, kept: int) -> None:
        """Have a larger reserve where rows turn out to be larger than was thought."""
        if (row := self._grown_by(kept)) is not None:  # no question to the journal: that would wait for its commits
            self._reserve.try_to_hold(bytes_for(2 * rows_at_once, row))

    def needed(self, *, left: int, kept: int) -> float | None:
        """About how many bytes the rest of the rows will take; None while nobody can know."""
        row = self._grown_by(kept)
        if row is None:
            with suppress(PipelineError), sentences(self._path):  # asked where the disk is in trouble already
                row = history.reply_bytes(self._db)
        return None if row is None else left * row

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

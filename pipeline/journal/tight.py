"""What the writer does when the disk is full: save what is paid for into the reserve, and let what does not fit be named.

A transaction that found no room has been rolled back whole. The reserve is given back and the same records are written again;
after that each call is tried alone, for one may fit where all do not. What is left over is tried once more at the end, in
the last of the reserve; then its in-flight entries stay set, and the run names them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path

from pipeline.errors import PipelineError
from pipeline.journal.reserve import Reserve
from pipeline.journal.store import meaning, roll_back, wants_room
from pipeline.records import Attempt, Outcome

Handed = tuple[Outcome | Attempt, int | None]
Write = Callable[[Sequence[Handed]], Awaitable[None]]


class Tight:
    """``full`` hears, once, that the disk is; ``needed`` says about how many bytes are wanted."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        reserve: Reserve,
        *,
        full: Callable[[PipelineError], None],
        needed: Callable[[], float | None],
    ) -> None:
        self._db = db
        self._path = path
        self._reserve = reserve
        self._unsaved: list[Handed] = []
        self._why: PipelineError | None = None
        self._full = full
        self._needed = needed

    async def save(self, group: Sequence[Handed], write: Write, exc: sqlite3.OperationalError) -> list[Handed]:
        """As much of the group as fits; ``exc`` is how writing it failed. Raises that if room would not help."""
        if not wants_room(exc):
            raise exc
        roll_back(self._db)
        if self._why is None:
            self._why = meaning(self._path, exc, needed=self._needed())
            self._full(self._why)
        if self._reserve.release() and await self._fits(group, write):
            return list(group)
        return await self._one_by_one(group, write)

    async def last_try(self, write: Write) -> list[Handed]:
        """What fits after all, when nothing more will come."""
        left, self._unsaved = self._unsaved, []
        if not left:
            return []
        self._reserve.release_last()
        return await self._one_by_one(left, write)

    def check(self) -> None:
        """Raises why something could not be saved, if so."""
        if self._unsaved and self._why is not None:
            raise self._why

    async def _one_by_one(self, group: Sequence[Handed], write: Write) -> list[Handed]:
        self._checkpoint()
        saved: list[Handed] = []
        for call in _calls(group):
            (saved if await self._fits(call, write) else self._unsaved).extend(call)
        return saved

    async def _fits(self, group: Sequence[Handed], write: Write) -> bool:
        try:
            await write(group)
        except sqlite3.OperationalError as exc:
            if not wants_room(exc):
                raise
            roll_back(self._db)
            return False
        return True

    def _checkpoint(self) -> None:
        """What stands in the log goes into the journal, if it fits there: then the log begins anew in the room it has."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        except sqlite3.OperationalError as exc:
            if not wants_room(exc):
                raise


def _calls(group: Sequence[Handed]) -> Iterator[list[Handed]]:
    """The rows of one call are saved together: they share its cost."""
    for _, call in groupby(group, key=lambda handed: handed[0].call_id):
        yield list(call)

"""The journal's one writer: outcomes become durable in groups, and are counted only then.

Natural group commit: while one COMMIT (an fsync) runs in a thread, the next outcomes gather; they are inserted on the
loop in one go and committed together. Inserting on the loop costs it a few microseconds a row; a step per row in the
thread would fight the loop for the interpreter at every one of them. Whoever hands over more than ``slots`` that are not
yet durable waits, and does not send meanwhile: what is out and what is not on disk is never more than 2 x slots.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path

from pipeline.journal.inflight import InFlightTable
from pipeline.journal.store import sentences
from pipeline.journal.tight import Handed, Tight
from pipeline.records import Attempt, Outcome, Request, Usage

Record = Outcome | Attempt
NO_USAGE = Usage()

_INSERT_OUTCOME = """
INSERT OR REPLACE INTO outcome (no, custom_id, fingerprint, status, error_code, error_message, model, served_model,
    finish_reason, remark, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, usage_estimated, cost,
    cost_unit, cost_source, sent, lost, call_id, latency_s, request_id, completed_at, run)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT_ATTEMPT = "INSERT INTO attempt VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
# A row done again keeps what its earlier outcome cost.
KEEP_REPLACED = """
INSERT INTO attempt SELECT custom_id, fingerprint, ifnull(call_id, ''), 'replaced', lost, model, cost, cost_unit,
    cost_source, completed_at, run
FROM outcome WHERE no = ? AND sent
"""


class Writer:
    """``await keep(...)`` hands a record over; ``kept`` is called with each group once it is on disk."""

    def __init__(
        self,
        db: sqlite3.Connection,
        path: Path,
        table: InFlightTable,
        *,
        run: int,
        slots: int,
        kept: Callable[[Sequence[Record]], None],
        tight: Tight,
    ) -> None:
        self._db = db
        self._path = path
        self._table = table
        self._run = run
        self._slots = slots
        self._kept = kept
        self._tight = tight
        self._gathered: list[Handed] = []
        self._committing: list[Handed] = []
        self._work = asyncio.Event()
        self._handed = 0
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()  # each with what had been handed over by then
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal-commit")
        self._redone = db.execute("SELECT 1 FROM outcome WHERE redo LIMIT 1").fetchone() is not None

    def enter(self, request: Request, call_id: str) -> int:
        """Note a request as in flight, before it is sent; returns its entry in the table."""
        return self._table.enter(request.custom_id, request.index, request.fingerprint, call_id)

    def clear(self, entry: int) -> None:
        """The request ended without anything to keep: it was refused before any work was done for it."""
        self._table.clear(entry)

    @property
    def undurable(self) -> int:
        """Records handed over that are not on disk yet."""
        return len(self._gathered) + len(self._committing)

    async def keep(self, records: Sequence[Record], entries: Sequence[int] = ()) -> None:
        """Hand over the records of one call, pairwise with the in-flight entries that their durability clears, if they have
        any; one transaction holds all of them. Waits then until all but the last ``slots`` are on disk: so long nothing
        more is sent in this one's place."""
        self._gathered.extend(zip(records, entries or repeat(None, len(records)), strict=True))
        self._handed += len(records)
        self._work.set()
        if self.undurable > self._slots:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append((self._handed, waiter))
            await waiter

    def close(self) -> None:
        """Write what is left, then let ``write`` return."""
        self._closing = True
        self._work.set()

    async def write(self) -> None:
        """The writer's life; ends after ``close``. A journal that cannot be written raises and so ends the run; a full disk
        ends it when what is in flight is over."""
        try:
            while not (self._closing and not self._gathered):
                await self._work.wait()
                self._work.clear()
                if not self._gathered:
                    continue
                self._committing, self._gathered = self._gathered, []
                with sentences(self._path):
                    await self._commit()
                self._done()
            with sentences(self._path):
                self._committing = await self._tight.last_try(self._transaction)
            self._done()
            self._tight.check()
        finally:
            self._thread.shutdown(wait=True)
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")  # could not be written; the in-flight table still names what was in it

    async def _commit(self) -> None:
        try:
            await self._transaction(self._committing)
        except sqlite3.OperationalError as exc:
            self._committing = await self._tight.save(self._committing, self._transaction, exc)

    async def _transaction(self, group: Sequence[Handed]) -> None:
        self._insert([record for record, _ in group])
        await asyncio.get_running_loop().run_in_executor(self._thread, self._db.execute, "COMMIT")

    def _insert(self, records: list[Record]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        outcomes = [record for record in records if isinstance(record, Outcome)]
        attempts = [record for record in records if isinstance(record, Attempt)]
        if attempts:
            self._db.executemany(_INSERT_ATTEMPT, [_attempt_values(attempt, self._run) for attempt in attempts])
        if outcomes:
            if self._redone:
                self._db.executemany(KEEP_REPLACED, [(outcome.index,) for outcome in outcomes])
                self._db.executemany("DELETE FROM reply WHERE no = ?", [(outcome.index,) for outcome in outcomes])
            self._db.executemany(_INSERT_OUTCOME, [_outcome_values(outcome, self._run) for outcome in outcomes])
            self._db.executemany(
                "INSERT INTO reply (no, body, form, crc) VALUES (?, ?, ?, ?)",
                [
                    (outcome.index, outcome.completion.raw, outcome.completion.form, zlib.crc32(outcome.completion.raw))
                    for outcome in outcomes
                    if outcome.completion is not None
                ],
            )

    def _done(self) -> None:
        for _, entry in self._committing:
            if entry is not None:
                self._table.clear(entry)
        records = [record for record, _ in self._committing]
        self._committing = []
        self._let_go()
        if records:
            self._kept(records)

    def _let_go(self) -> None:
        """Those behind whose records no more than ``slots`` are left."""
        dealt_with = self._handed - len(self._gathered)
        while self._waiters and self._waiters[0][0] - dealt_with <= self._slots:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _attempt_values(attempt: Attempt, run: int) -> tuple[object, ...]:
    return (
        attempt.custom_id,
        attempt.fingerprint,
        attempt.call_id,
        attempt.code,
        attempt.lost,
        attempt.model,
        attempt.cost.amount,
        attempt.cost.unit,
        attempt.cost.source,
        attempt.at,
        run,
    )


def _outcome_values(outcome: Outcome, run: int) -> tuple[object, ...]:
    completion = outcome.completion
    usage = completion.usage if completion else NO_USAGE
    return (
        outcome.index,
        outcome.custom_id,
        outcome.fingerprint,
        outcome.status,
        outcome.error_code,
        outcome.error_message,
        outcome.model,
        completion.model if completion else None,
        completion.finish_reason if completion else None,
        completion.remark if completion else None,
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.cached_tokens,
        usage.reasoning_tokens,
        usage.estimated,
        outcome.cost.amount,
        outcome.cost.unit,
        outcome.cost.source,
        outcome.sent,
        outcome.lost,
        outcome.call_id,
        outcome.latency_s,
        outcome.request_id,
        outcome.completed_at,
        run,
    )

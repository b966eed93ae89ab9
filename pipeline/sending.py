"""The part of a run that sends: ask what is free, then pool, writer and display at work until one of them ends it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace

from pipeline.client import Client, Connection
from pipeline.display import Logged
from pipeline.errors import IncompleteError, PipelineError
from pipeline.flow import Lasting, rates_of, share_of, slots_of
from pipeline.guards import budget_of, drift_of
from pipeline.job import Job
from pipeline.journal import Counts, Index, Writer, reader
from pipeline.judge import Controls, Rulings
from pipeline.outage import Spell
from pipeline.patience import Patience
from pipeline.poison import Poison
from pipeline.pool import Pool, Terms
from pipeline.preflight import Preflight, accounting_of, connection_to, preflight_of
from pipeline.progress import StatusFile, Tally
from pipeline.reckoning import ledger_since, total
from pipeline.records import KeyInfo
from pipeline.signals import Signals, ending, to_the_end
from pipeline.wishes import Wishes
from pipeline.workspace import Workspace

SHOW_EVERY_S = 0.5
STATUS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What came of sending: ``rows`` that ended, and ``why`` it stopped early, if it did.

    ``in_flight`` names the requests that were cut off, ``trouble`` is the last that went wrong; ``spent`` and ``ledger`` are
    as in a ``Summary``.
    """

    rows: int = 0
    why: PipelineError | None = None
    in_flight: list[str] = field(default_factory=list)
    trouble: str | None = None
    outages: list[Spell] = field(default_factory=list)
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    ledger: float | None = None


class Sending:
    """``await Sending(...).all_pending(index)`` works off what is pending."""

    def __init__(
        self,
        job: Job,
        wishes: Wishes,
        space: Workspace,
        counts: Counts,
        *,
        display: Logged,
        signals: Signals,
        status: StatusFile,
        key: str | None,
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._space = space
        self._counts = counts
        self._display = display
        self._signals = signals
        self._status = status
        self._key = key
        self._tally = self._new_tally()

    async def all_pending(self, index: Index) -> Sent:
        """Send until all is done or something stops it. Raises only for a defect of ours."""
        space = self._space
        space.journal.put("results", "stale")
        async with AsyncExitStack() as stack:
            connection = await self._connection(stack)
            known = await self._preflight(connection)
            if (stopped := known.error or self._signals.error) is not None:
                return Sent(why=stopped)
            client = await stack.enter_async_context(Client(connection))
            writer = space.journal.writer(slots=self._job.rows_at_once, kept=self._tally.kept)
            share = stack.enter_context(closing(share_of(self._job, self._key, say=self._display.say)))
            try:
                pool = self._pool(client, writer, known, share)
            except PipelineError as exc:
                return Sent(why=exc)
            failure = await self._work(index, pool, writer)
        self._display.close()
        came = self._what_came(pool, failure)
        return replace(came, ledger=await self._ledger(connection, known, total(came.spent)))

    # before

    async def _connection(self, stack: AsyncExitStack) -> Connection:
        base_url = self._job.base_url
        if base_url is None:
            from pipeline.simulator import Settings, Simulator

            simulator = await stack.enter_async_context(Simulator(Settings(latency_s=0.05, jitter=0.4)))
            base_url = simulator.base_url
        return connection_to(self._job, base_url, self._space.dialect, self._key)

    async def _preflight(self, connection: Connection) -> Preflight:
        """What cannot work must not begin; a gateway whose list of models binds nobody is not asked, the first row tells."""
        if not self._space.dialect.lists_all:
            return Preflight()
        known = await preflight_of(self._space, connection, reached=self._counts.bought > 0)
        if self._job.limits.on_budget == "wait":
            known = known.waiting_for_budget
        for text in known.warnings:
            self._display.say(text)
        return known

    def _new_tally(self) -> Tally:
        counts, most = self._counts, self._wishes.most
        totals = reader.totals(self._space.journal.db)
        return Tally(
            total=counts.rows if most is None else counts.succeeded + counts.failed + most,
            completed=counts.succeeded,
            failed=counts.failed,
            pack=self._job.pack,
            tokens=totals.prompt_tokens + totals.completion_tokens,
            cost=totals.cost,
            cost_unknown=totals.cost_unknown,
        )

    def _pool(self, client: Client, writer: Writer, known: Preflight, share: Lasting) -> Pool:
        """Raises ``PipelineError`` when the budget cannot be kept, or is spent."""
        job, space, note = self._job, self._space, self._display.note
        accounting, key = accounting_of(job, known), known.key or KeyInfo()
        accepted = self._wishes.allow_model_change
        return Pool(
            self._terms(),
            sender=client,
            dialect=space.dialect,
            accounting=accounting,
            keeper=writer,
            wall_clock=time.time,
            controls=Controls(
                slots=slots_of(job, share, key, note=note),
                rates=rates_of(job, share, key, note=note),
                poison=self._poison(),
                budget=budget_of(job, space.journal, accounting, known.models.get(job.model or "")),
                drift=drift_of(job, space.journal, accepted=accepted, say=self._display.say),
            ),
        )

    def _terms(self) -> Terms:
        job = self._job
        return Terms(
            slots=job.concurrency,
            run_name=self._space.journal.name,
            rulings=Rulings(
                max_attempts=job.limits.max_attempts,
                budget_wait_s=job.limits.max_budget_wait if job.limits.on_budget == "wait" else None,
            ),
            fail_on_length=job.request.on_length == "fail",
            stream=job.gateway.stream,
            reached=self._counts.bought > 0,
            patience=self._patience,
            pack=job.pack,
            pack_tokens=job.request.pack_tokens,
        )

    @property
    def _patience(self) -> Patience:
        return Patience(wait=self._wishes.wait, max_outage_s=self._job.limits.max_outage)

    def _poison(self) -> Poison:
        counts = self._counts
        fresh = counts.bought == 0 and not self._wishes.keep_going
        return Poison(rows=counts.pending, most=self._job.limits.most_failures(counts.rows), watches_first=fresh)

    # at work

    async def _work(self, index: Index, pool: Pool, writer: Writer) -> PipelineError | None:
        """The pool works, the writer keeps, the display shows; the writer outlives the pool, whatever ends that."""
        items = self._space.feed.items(index, most=self._wishes.most, sample=self._wishes.sample)
        working = asyncio.create_task(pool.work(items), name="pool")
        writing = asyncio.create_task(writer.write(), name="journal")
        showing = asyncio.create_task(self._show(pool), name="progress")
        writing.add_done_callback(lambda _: working.cancel())  # it failed: then nothing more can be kept
        self._signals.on_first(lambda: self._drain(pool))
        self._signals.on_second(working.cancel)
        try:
            await asyncio.wait([working])
        finally:
            working.cancel()  # if we are cancelled ourselves; what is finished is kept all the same
            await to_the_end(ending(working))
            showing.cancel()
            writer.close()
            await to_the_end(ending(writing))
        for task in (showing, working):
            if not task.cancelled() and task.exception() is not None:
                task.result()  # a defect of ours shows here, after all that is finished was kept
        failure = writing.exception()
        if failure is not None and not isinstance(failure, PipelineError):
            raise failure
        return failure

    def _drain(self, pool: Pool) -> None:
        pool.drain()
        busy = pool.activity.busy
        self._display.say(f"Stopping: {busy} requests in flight are finished first; once more (Ctrl-C) cuts them off.")

    async def _show(self, pool: Pool) -> None:
        written = 0.0
        while True:
            snapshot = self._tally.snapshot(pool.activity)
            self._display.show(snapshot)
            if time.monotonic() - written >= STATUS_EVERY_S:
                written = time.monotonic()
                try:
                    self._status.write(snapshot)
                except IncompleteError as exc:  # a full disk: finish what is in flight while the journal still can
                    pool.stop(exc)
                    return
            await asyncio.sleep(SHOW_EVERY_S)

    # after

    def _what_came(self, pool: Pool, failure: PipelineError | None) -> Sent:
        journal = self._space.journal
        for spell in pool.outages:
            journal.keep_outage(spell.started_at, spell.ended_at, spell.cause)
        cut_off = journal.recover()
        return Sent(
            rows=self._tally.sent,
            why=failure or pool.stopped or self._signals.error,
            in_flight=cut_off.in_flight if cut_off is not None else [],
            trouble=pool.activity.trouble,
            outages=pool.outages,
            spent=reader.spent_in(journal.db, journal.run),
        )

    async def _ledger(self, connection: Connection, known: Preflight, ours: float) -> float | None:
        """What the gateway says the key has spent since the preflight; nobody who wants to leave waits for it."""
        if known.key is None or known.key.spend is None or not self._wishes.publish:
            return None
        return await ledger_since(
            connection,
            self._space.dialect,
            before=known.key.spend,
            ours=ours,
            over=lambda: self._signals.error is not None,
            say=self._display.say,
        )

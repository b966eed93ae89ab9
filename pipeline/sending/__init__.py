"""The part of a run that sends: ask what is free, then pool, writer and display at work until one of them ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.billing.reckoning import ledger_since, total
from pipeline.client import Client, Connection
from pipeline.errors import IncompleteError, PipelineError
from pipeline.ground.wording import plural
from pipeline.job import Job
from pipeline.journal import Counts, Index, Record, Recovered, Writer, history, reader
from pipeline.limits.hours import Hours, Lead, opened, over
from pipeline.pool import Pool
from pipeline.pool.outage import Spell
from pipeline.pool.patience import Patience
from pipeline.preflight import Preflight, connection_to
from pipeline.preflight.clearing import Cleared, Clearing
from pipeline.progress import Activity, Snapshot, Tally
from pipeline.progress.display import Logged
from pipeline.progress.status_file import StatusFile
from pipeline.sending.flow import Lasting, share_of
from pipeline.sending.reuse import give_copies
from pipeline.sending.terms import controls_of, terms_of
from pipeline.signals import Signals, to_the_end
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
        hours: Hours,
        wall_clock: Callable[[], float],
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._space = space
        self._counts = counts
        self._display = display
        self._signals = signals
        self._status = status
        self._key = key
        self._hours = hours
        self._wall_clock = wall_clock
        self._stopping = False
        self._tally = self._new_tally()
        self._lead = self._new_lead()
        self._patience = Patience(wait=wishes.wait, max_outage_s=job.limits.max_outage)
        self._clearing = Clearing(
            job, wishes, space, patience=self._patience, reached=counts.bought > 0, hours=hours, wall_clock=wall_clock,
            say=display.say, show=self._show_activity,
        )  # fmt: skip

    async def all_pending(self, index: Index) -> Sent:
        """Send until all is done or something stops it, then see to the copies. Raises only for a defect of ours."""
        journal, wishes, to_send = self._space.journal, self._wishes, self._counts.to_send
        try:
            if to_send:
                self._check_hours()
                most = to_send if wishes.most is None else min(wishes.most, to_send)
                journal.room.hold(rows_at_once=self._job.rows_at_once, to_send=most, results=wishes.publish)
            journal.into_reserve(partial(journal.put, "results", "stale"))  # before anything is kept, of copies, too
        except PipelineError as exc:
            return Sent(why=exc)
        sent = await self._sent(index) if to_send else Sent()
        if not self._counts.copies:
            return sent
        failure = await give_copies(journal, self._tally, self._signals, show=self._show_activity)
        self._display.close()
        return replace(sent, why=sent.why or failure)  # whatever ended the sending

    async def _sent(self, index: Index) -> Sent:
        async with AsyncExitStack() as stack:
            stack.callback(self._display.close)
            try:
                connection = await self._connection(stack)
                cleared = await self._signals.heard_in(self._clearing.cleared(connection))
                if await self._waited() or cleared.known.away is not None:  # hours later: key and prices may be others
                    cleared = await self._signals.heard_in(self._clearing.cleared(connection))
            except PipelineError as exc:
                return Sent(why=exc, outages=self._keep_outages([]))
            client = await stack.enter_async_context(Client(connection))
            writer = self._space.journal.writer(
                slots=self._job.rows_at_once, kept=self._kept, needed=self._needed, full=lambda why: self._stop(pool, why)
            )  # fmt: skip
            share = stack.enter_context(closing(share_of(self._job, self._key, say=self._display.say)))
            pool = self._pool(client, writer, share, cleared)
            failure = await self._work(index, pool, writer)
        came = self._what_came(pool, failure)
        return replace(came, ledger=await self._ledger(connection, cleared.known, total(came.spent)))

    # before: what would stop the run is found out before it waits for its hours, while a person may be there

    def _check_hours(self) -> None:
        """Raises ``IncompleteError`` where the window is closed and nobody wants to wait."""
        now = self._wall_clock()
        if self._wishes.no_wait and self._hours.opens_in_s(now) > 0:
            raise IncompleteError(self._hours.opens(now))

    async def _waited(self) -> bool:
        """Whether the window was closed; it is open now. Raises what a signal means."""
        now = self._wall_clock()
        if self._hours.opens_in_s(now) <= 0:
            return False
        self._display.say(f"Waiting: {self._hours.opens(now)}.")
        await self._signals.heard_in(opened(self._hours, self._wall_clock, self._show_waiting))
        return True

    def _show_waiting(self, what: str) -> None:
        self._show_activity(Activity(), doing=f"waiting: {what}")

    def _show_activity(self, activity: Activity, *, doing: str | None = None) -> None:
        snapshot = self._snapshot(activity)
        snapshot = snapshot if doing is None else replace(snapshot, doing=doing)
        self._display.show(snapshot)
        self._status.write(snapshot)

    async def _connection(self, stack: AsyncExitStack) -> Connection:
        base_url = self._job.base_url
        if base_url is None:
            from pipeline.simulator import Settings, Simulator

            simulator = await stack.enter_async_context(Simulator(Settings(latency_s=0.05, jitter=0.4)))
            base_url = simulator.base_url
        return connection_to(self._job, base_url, self._space.dialect, self._key)

    def _new_lead(self) -> Lead:
        pace = None if self._hours == Hours() else history.pace(self._space.journal.db)
        return Lead() if pace is None else Lead(pace.p95_s)

    def _new_tally(self) -> Tally:
        counts, most = self._counts, self._wishes.most
        totals = reader.totals(self._space.journal.db)
        return Tally(
            total=counts.rows if most is None else counts.succeeded + counts.failed + most,
            completed=counts.succeeded,
            failed=counts.failed,
            pack=self._job.pack,
            copies=counts.copies if most is None else 0,
            tokens=totals.prompt_tokens + totals.completion_tokens,
            cost=totals.cost,
            cost_unknown=totals.cost_unknown,
        )

    def _pool(self, client: Client, writer: Writer, share: Lasting, cleared: Cleared) -> Pool:
        job, counts = self._job, self._counts
        return Pool(
            terms_of(job, counts, run_name=self._space.journal.name, patience=self._patience),
            sender=client,
            dialect=self._space.dialect,
            accounting=cleared.accounting,
            keeper=writer,
            wall_clock=self._wall_clock,
            controls=controls_of(job, self._wishes, counts, cleared, share, note=self._display.note),
        )

    # at work

    async def _work(self, index: Index, pool: Pool, writer: Writer) -> PipelineError | None:
        """The pool works, the writer keeps, the display shows; the writer outlives the pool, whatever ends that."""
        items = self._space.feed.items(index, most=self._wishes.most, sample=self._wishes.sample)
        timing = asyncio.create_task(self._close(pool), name="hours")  # first: where there is no time, nothing starts
        working = asyncio.create_task(pool.work(items), name="pool")
        writing = asyncio.create_task(writer.write(), name="journal")
        showing = asyncio.create_task(self._show(pool), name="progress")
        writing.add_done_callback(lambda _: working.cancel())  # it failed: then nothing more can be kept
        working.add_done_callback(lambda _: timing.cancel())
        working.add_done_callback(lambda _: showing.cancel())
        working.add_done_callback(lambda _: writer.close())
        for watch in (
            timing,
            showing,
        ):  # without them there is no deadline, and nobody sees that the run folder is gone
            watch.add_done_callback(lambda done: pool.drain() if _is_defect(done) else None)
        self._signals.on_first(lambda: self._drain(pool))
        self._signals.on_second(working.cancel)
        # If we are cancelled ourselves, however often, what is finished is kept all the same.
        ended = asyncio.create_task(asyncio.wait([timing, working, writing, showing]), name="ended")
        await to_the_end(ended, on_cancel=working.cancel)
        for task in (showing, timing, working):
            if _is_defect(task):
                task.result()  # it shows here, after all that is finished was kept
        failure = writing.exception()
        if failure is not None and not isinstance(failure, PipelineError):
            raise failure
        return failure

    def _drain(self, pool: Pool) -> None:
        pool.drain()
        self._display.say(f"Stopping: {_in_flight(pool)} finished first; once more (Ctrl-C) cuts them off.")

    def _stop(self, pool: Pool, why: PipelineError) -> None:
        # Status and journal may both find no room; where nothing has to be waited for the last words say it in a moment.
        tell = self._display.note if self._stopping or not pool.activity.busy else self._display.say
        tell(f"Stopping: {why}. {_in_flight(pool)} finished first.")
        self._stopping = True
        pool.stop(why)

    def _needed(self) -> float | None:
        left = self._tally.total - self._tally.completed - self._tally.failed
        return self._space.journal.room.needed(left=left, kept=self._tally.sent)

    def _snapshot(self, activity: Activity) -> Snapshot:
        """As the tally has it, and what is left laid into the hours: the closed ones count."""
        before = [spell.told for spell in self._clearing.outages]
        snapshot = self._tally.snapshot(replace(activity, outages=[*before, *activity.outages]))
        now = self._wall_clock()
        if snapshot.eta_s is None:
            return snapshot
        return replace(snapshot, eta_s=self._hours.finish(now, snapshot.eta_s)[0] - now)

    async def _close(self, pool: Pool) -> None:
        why = await over(self._hours, self._wall_clock, self._lead)
        self._stop(pool, IncompleteError(why))

    def _kept(self, records: Sequence[Record]) -> None:
        self._tally.kept(records)
        self._lead.kept(records)

    async def _show(self, pool: Pool) -> None:
        written = 0.0
        while True:
            snapshot = self._snapshot(pool.activity)
            self._display.show(snapshot)
            if time.monotonic() - written >= STATUS_EVERY_S:
                written = time.monotonic()
                if (why := self._space.footing.gone() or self._status.unwritten(snapshot)) is not None:
                    self._stop(pool, why)  # finish what is in flight while the journal still can
                    return
                self._space.journal.room.keep_up(rows_at_once=self._job.rows_at_once, kept=self._tally.sent)
            await asyncio.sleep(SHOW_EVERY_S)

    # after

    def _what_came(self, pool: Pool, failure: PipelineError | None) -> Sent:
        journal = self._space.journal
        return Sent(
            rows=self._tally.sent,
            why=failure or pool.stopped or self._signals.error,
            in_flight=self._cut_off(),
            trouble=pool.activity.trouble,
            outages=self._keep_outages(pool.outages),
            spent=reader.spent_in(journal.db, journal.run),
        )

    def _cut_off(self) -> list[str]:
        """Where even booking them finds no room they stay in the in-flight table, for the next run to book."""
        journal = self._space.journal
        try:
            found = journal.into_reserve(partial(journal.recover, self._note_cut_off))
        except PipelineError:
            return [left.custom_id for left in journal.cut_off()]
        return found.in_flight if found is not None else []

    def _note_cut_off(self, left: Recovered) -> None:
        """The last words name them, too; this is for whoever is killed before those."""
        if left.in_flight:
            self._display.note(
                f"cut off with {plural(len(left.in_flight), 'request')} in flight: {', '.join(left.in_flight)}"
            )

    def _keep_outages(self, later: list[Spell]) -> list[Spell]:
        journal = self._space.journal
        spells = [*self._clearing.outages, *later]
        try:
            for spell in spells:
                journal.into_reserve(partial(journal.keep_outage, spell.started_at, spell.ended_at, spell.cause))
        except PipelineError as exc:  # the summary tells of them all the same
            self._display.note(f"the outages of this run are not all in its journal: {exc}")
        return spells

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


def _is_defect(task: asyncio.Task[None]) -> bool:
    """Whether it ended as none of ours should: by an error."""
    return not task.cancelled() and task.exception() is not None


def _in_flight(pool: Pool) -> str:
    return plural(pool.activity.busy, "request in flight is", "requests in flight are")

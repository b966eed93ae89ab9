"""One run: lock, open, recover, index, guard, send, export, sum up. Read ``Run.live`` top to bottom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field

import orjson

from pipeline.client import Client, Connection
from pipeline.ending import how_it_ended
from pipeline.errors import IncompleteError, PipelineError
from pipeline.guards import budget_of, check_rebuying, drift_of
from pipeline.job import Job
from pipeline.journal import Counts, Index, Lock, Recovered, Writer, reader
from pipeline.outage import Spell
from pipeline.pool import Pool, Terms
from pipeline.preflight import Preflight, accounting_of, connection_to, preflight_of
from pipeline.progress import Display, Silent, StatusFile, Tally
from pipeline.records import Summary
from pipeline.results import export
from pipeline.selection import Redo, mark
from pipeline.signals import Signals, ending, to_the_end
from pipeline.workspace import Workspace, claim, make_folder, opened

SHOW_EVERY_S = 0.5
STATUS_EVERY_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What this one call asks for besides the job. ``most`` stops after so many rows, the first ones or
    with ``sample`` some at random; ``publish`` False leaves the output alone."""

    redo: Redo = field(default_factory=Redo)
    accept_changes: bool = False
    accept_failed: bool = False
    allow_model_change: bool = False
    most: int | None = None
    sample: bool = False
    publish: bool = True


class Run:
    """One run of one job. ``confirm`` asks a person a yes-or-no question; None means that nobody is there to ask."""

    def __init__(
        self,
        job: Job,
        wishes: Wishes,
        *,
        display: Display | None = None,
        confirm: Callable[[str], bool] | None = None,
        signals: Signals | None = None,
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._display = display or Silent()
        self._confirm = confirm
        self._signals = signals or Signals()
        self._started = time.monotonic()
        self._in_flight: list[str] = []
        self._recovered: list[str] = []
        self._sent = 0
        self._trouble: str | None = None
        self._outages: list[Spell] = []

    async def live(self) -> Summary:
        """The life of a run. Raises ``PipelineError`` for what stops it before anything is sent."""
        key = self._job.api_key()
        folder = make_folder(self._job)
        with Lock(folder), opened(self._job, slots=self._job.rows_at_once, adopt=self._wishes.accept_changes) as space:
            status = StatusFile(folder, self._facts(space))
            self._recover(space.journal.recover())
            with space.journal.all_or_nothing():  # a run that is refused leaves everything as it was
                index, counts = await self._find_out(space)
            space.journal.start_run()
            why = await self._send(space, index, counts, status, key.get_secret_value() if key else None)
            summary = await self._finish(space, counts, why)
            status.write(None, state="ended", **asdict(summary))
            return summary

    async def _find_out(self, space: Workspace) -> tuple[Index, Counts]:
        """Index the input and see what there is to do, before anything is sent."""
        reading = asyncio.to_thread(space.feed.index, space.spec, tick=self._tick_index)
        index = await to_the_end(asyncio.ensure_future(reading), on_cancel=self._signals.abort)
        space.layout()  # a clash of columns must show now
        if (again := mark(space, self._wishes.redo)) is not None:
            self._display.say(f"{again:,} done rows match and are done again." if again else "No done row matches.")
        if self._wishes.accept_failed:
            self._display.say(f"{space.journal.accept_failed():,} failed rows are accepted.")
        counts = index.counts(has_ids=space.id_column is not None)
        check_rebuying(counts, accepted=self._wishes.accept_changes, confirm=self._confirm)
        if counts.changed:
            index.supersede(has_ids=space.id_column is not None)
        claim(space.journal, self._job)
        self._announce(counts)
        return index, counts

    def _facts(self, space: Workspace) -> dict[str, object]:
        return {
            "run_folder": str(space.folder),
            "output": str(self._job.output.path),
            "model": self._job.model,
            "gateway": self._job.gateway.preset,
            "started_at": time.time(),
        }

    # before anything is sent

    def _recover(self, left: Recovered | None) -> None:
        if left is None:
            return
        self._recovered = left.in_flight
        if left.in_flight:
            names = ", ".join(left.in_flight[:10]) + (", ..." if len(left.in_flight) > 10 else "")
            self._display.say(
                f"The last run was cut off with {len(left.in_flight)} requests in flight; the gateway may bill them without "
                f"our having the answers. They are sent again, and counted in lost_attempts: {names}"
            )
        if left.may_be_incomplete:
            self._display.say("The machine was restarted since: that list may be incomplete.")

    def _tick_index(self, rows: int) -> None:
        self._signals.check()
        if rows % 200_000 < 1024 and rows >= 200_000:
            self._display.say(f"reading the input: {rows:,} rows")

    def _announce(self, counts: Counts) -> None:
        done = counts.succeeded + counts.failed
        if (gone := counts.bought - counts.succeeded - counts.changed) > 0:
            self._display.say(f"{gone:,} done rows are not in the input any more; their answers stay in the journal.")
        if counts.pending == 0:
            self._display.say(f"All {counts.rows:,} rows are done; nothing is sent.")
        elif done or counts.changed or counts.redo:
            again = f", {counts.redo:,} to do again" if counts.redo else ""
            self._display.say(f"{counts.new:,} new, {counts.changed:,} changed, {done:,} kept{again}.")

    # sending

    async def _send(
        self, space: Workspace, index: Index, counts: Counts, status: StatusFile, key: str | None
    ) -> PipelineError | None:
        """Work off what is pending; returns why it stopped early, if it did."""
        if counts.pending == 0:
            return None
        space.journal.put("results", "stale")
        tally = self._tally(space, counts)
        async with AsyncExitStack() as stack:
            connection = await self._connection(space, stack, key)
            known = await self._preflight(connection, space, counts)
            if (stopped := known.error or self._signals.error) is not None:
                return stopped
            accounting = accounting_of(self._job, known)
            try:
                budget = budget_of(self._job, space.journal, accounting, known.models.get(self._job.model or ""))
                drift = drift_of(
                    self._job, space.journal, accepted=self._wishes.allow_model_change, say=self._display.say
                )
            except PipelineError as exc:
                return exc
            client = await stack.enter_async_context(Client(connection))
            writer = space.journal.writer(slots=self._job.rows_at_once, kept=tally.kept)
            pool = Pool(
                self._terms(space, counts),
                sender=client,
                dialect=space.dialect,
                accounting=accounting,
                keeper=writer,
                wall_clock=time.time,
                budget=budget,
                drift=drift,
            )
            failure = await self._work(space, index, pool, writer, tally, status)
        self._display.close()
        self._sent, self._trouble = tally.sent, pool.activity.last_trouble
        self._outages = pool.outages + ([pool.activity.outage] if pool.activity.outage else [])
        for spell in self._outages:
            space.journal.keep_outage(spell.started_at, spell.ended_at, spell.cause)
        if (cut_off := space.journal.recover()) is not None:
            self._in_flight = cut_off.in_flight
        return failure or pool.stopped or self._signals.error

    async def _work(
        self, space: Workspace, index: Index, pool: Pool, writer: Writer, tally: Tally, status: StatusFile
    ) -> PipelineError | None:
        """The pool works, the writer keeps, the display shows; the writer outlives the pool, whatever ends that."""
        items = space.feed.items(index, most=self._wishes.most, sample=self._wishes.sample)
        working = asyncio.create_task(pool.work(items), name="pool")
        writing = asyncio.create_task(writer.write(), name="journal")
        showing = asyncio.create_task(self._show(pool, tally, status), name="progress")
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

    def _terms(self, space: Workspace, counts: Counts) -> Terms:
        return Terms(
            slots=self._job.concurrency,
            run_name=space.journal.name,
            max_attempts=self._job.limits.max_attempts,
            fail_on_length=self._job.request.on_length == "fail",
            stream=self._job.gateway.stream,
            reached=counts.bought > 0,
            pack=self._job.pack,
            pack_tokens=self._job.request.pack_tokens,
        )

    def _tally(self, space: Workspace, counts: Counts) -> Tally:
        totals = reader.totals(space.journal.db)
        return Tally(
            total=counts.rows if self._wishes.most is None else counts.succeeded + counts.failed + self._wishes.most,
            completed=counts.succeeded,
            failed=counts.failed,
            slots=self._job.concurrency,
            tokens=totals.prompt_tokens + totals.completion_tokens,
            cost=totals.cost,
            cost_unknown=totals.cost_unknown,
        )

    async def _connection(self, space: Workspace, stack: AsyncExitStack, key: str | None) -> Connection:
        base_url = self._job.base_url
        if base_url is None:
            from pipeline.simulator import Settings, Simulator

            simulator = await stack.enter_async_context(Simulator(Settings(latency_s=0.05, jitter=0.4)))
            base_url = simulator.base_url
        return connection_to(self._job, base_url, space.dialect, key)

    async def _preflight(self, connection: Connection, space: Workspace, counts: Counts) -> Preflight:
        """What cannot work must not begin; a gateway whose list of models binds nobody is not asked, the first row tells."""
        if not space.dialect.lists_all:
            return Preflight()
        known = await preflight_of(space, connection, reached=counts.bought > 0)
        for text in known.warnings:
            self._display.say(text)
        return known

    async def _show(self, pool: Pool, tally: Tally, status: StatusFile) -> None:
        written = 0.0
        while True:
            snapshot = tally.snapshot(
                state="running",
                busy=pool.activity.busy,
                waiting=pool.waiting,
                trouble=pool.activity.last_trouble,
                away_since=pool.activity.outage.started_at if pool.activity.outage else None,
            )
            self._display.show(snapshot)
            if time.monotonic() - written >= STATUS_EVERY_S:
                written = time.monotonic()
                try:
                    status.write(snapshot)
                except IncompleteError as exc:  # a full disk: finish what is in flight while the journal still can
                    pool.stop(exc)
                    return
            await asyncio.sleep(SHOW_EVERY_S)

    # the end

    async def _finish(self, space: Workspace, counts: Counts, why: PipelineError | None) -> Summary:
        index = space.journal.index()
        after = index.counts(has_ids=space.id_column is not None)
        if after.pending == 0 and self._wishes.publish and why is None:
            why = await self._publish(space)
        totals = reader.totals(space.journal.db)
        code, reason = how_it_ended(after, totals, why, sent=self._sent)
        space.journal.end_run(reason)
        complete = after.pending == 0 and why is None and self._wishes.publish
        return Summary(
            exit_code=code,
            reason=reason,
            total=after.rows,
            completed=after.succeeded,
            failed=after.failed,
            pending=after.pending,
            accepted=totals.accepted,
            new=counts.new,
            changed=counts.changed,
            kept=counts.succeeded + counts.failed,
            sent=self._sent,
            prompt_tokens=totals.prompt_tokens,
            completion_tokens=totals.completion_tokens,
            cost=totals.cost,
            cost_unknown=totals.cost_unknown,
            empty=totals.empty,
            cut_off=totals.cut_off,
            refusals=totals.refusals,
            attempts=totals.attempts,
            lost_attempts=totals.lost_attempts,
            elapsed_s=time.monotonic() - self._started,
            run_folder=str(space.folder),
            results=str(self._job.output.path) if complete else None,
            in_flight=self._in_flight,
            recovered=self._recovered,
            trouble=self._trouble,
            outages=[(spell.started_at, spell.ended_at, spell.cause) for spell in self._outages],
            failures=reader.failures(space.journal.db) if totals.failed else [],
            served_models=reader.served_models(space.journal.db),
        )

    async def _publish(self, space: Workspace) -> PipelineError | None:
        """Write the results file, unless the one there is of this journal as it is now."""
        output = self._job.output
        settings = orjson.dumps([str(output.path), self._job.output_format, output.keep, output.prefix]).decode()
        if output.path.exists() and space.journal.get("results") == f"{settings} {output.path.stat().st_mtime_ns}":
            return None
        try:
            writing = asyncio.to_thread(
                export, space, path=output.path, output_format=self._job.output_format, tick=self._signals.check
            )
            await to_the_end(asyncio.ensure_future(writing), on_cancel=self._signals.abort)
        except PipelineError as exc:
            return exc
        space.journal.put("results", f"{settings} {output.path.stat().st_mtime_ns}")
        return None

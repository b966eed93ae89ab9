"""One run: lock, open, recover, index, guard, send, export, sum up. Read ``Run.live`` top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, replace
from functools import partial

from pipeline.display import Display, Logged, Silent
from pipeline.ending import how_it_ended
from pipeline.errors import IncompleteError, LookError, PipelineError
from pipeline.footing import Footing
from pipeline.guards import check_rebuying
from pipeline.hours import Hours
from pipeline.job import Job
from pipeline.journal import Counts, Index, Recovered, reader, sentences
from pipeline.progress import StatusFile
from pipeline.records import Summary
from pipeline.results import export, stamp_of
from pipeline.selection import mark
from pipeline.sending import Sending, Sent
from pipeline.signals import Signals
from pipeline.wishes import Wishes
from pipeline.workspace import Workspace, claim, make_folder, opened


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
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._display = Logged(display or Silent(), job.run_folder)
        self._confirm = confirm
        self._signals = signals or Signals()
        self._wall_clock = wall_clock
        self._hours = Hours() if wishes.any_hour else job.limits.hours(wall_clock())
        self._started = time.monotonic()
        self._recovered: list[str] = []

    async def live(self) -> Summary:
        """The life of a run. Raises ``PipelineError`` for what stops it before anything is sent."""
        self._job.api_key()  # a key that is missing must show before anything is made
        make_folder(self._job)
        slots, adopt = self._job.rows_at_once, self._wishes.accept_changes
        with (
            opened(self._job, slots=slots, adopt=adopt) as space,
            closing(Footing(space.journal)) as footing,
        ):
            return await self._on(space, footing)

    async def _on(self, space: Workspace, footing: Footing) -> Summary:
        status = StatusFile(space.folder, self._facts(space))
        space.journal.recover(tell=self._tell)
        with space.journal.all_or_nothing():  # a run that is refused leaves everything as it was
            index, counts = await self._find_out(space)
        space.journal.start_run()
        sent = await self._send(space, index, counts, status, footing)
        summary = await self._finish(space, counts, sent, footing)
        self._note(status, summary)
        return summary

    async def _find_out(self, space: Workspace) -> tuple[Index, Counts]:
        """Index the input and see what there is to do, before anything is sent."""
        index = await self._signals.in_thread(space.feed.index, space.spec, tick=self._tick_index)
        space.layout()  # a clash of columns must show now
        if (again := mark(space, self._wishes.redo)) is not None:
            self._display.say(f"{again:,} done rows match and are done again." if again else "No done row matches.")
        if self._wishes.accept_failed:
            self._display.say(f"{space.journal.accept_failed():,} failed rows are accepted.")
        counts = index.counts(has_ids=space.id_column is not None)
        if self._job.request.dedupe and counts.pending:
            counts = replace(counts, copies=await self._signals.in_thread(index.find_copies, hold=True))
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

    def _tell(self, left: Recovered) -> None:
        self._recovered = left.in_flight
        if left.in_flight:
            names = ", ".join(left.in_flight[:10]) + (", ..." if len(left.in_flight) > 10 else "")
            self._display.say(
                f"The last run was cut off with {len(left.in_flight)} requests in flight; the gateway may bill them without "
                f"our having the answers. They are sent again, and counted in lost_attempts: {names}"
            )
        if left.may_be_incomplete:
            self._display.say(
                "The machine was restarted since: that list may be incomplete."
                if left.in_flight
                else "The machine was restarted since the last run was cut off: which requests were in flight then is not known; "
                "the gateway may bill them without our having the answers."
            )

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
        if counts.copies:
            self._display.say(
                f"{counts.to_send:,} rows to send; {counts.copies:,} ask just what another one asks and get its answer."
            )

    async def _send(self, space: Workspace, index: Index, counts: Counts, status: StatusFile, footing: Footing) -> Sent:
        if counts.pending == 0:
            return Sent()
        key = self._job.api_key()
        sending = Sending(
            self._job, self._wishes, space, counts, display=self._display, signals=self._signals, status=status,
            key=key.get_secret_value() if key else None, hours=self._hours, footing=footing, wall_clock=self._wall_clock,
        )  # fmt: skip
        return await sending.all_pending(index)

    async def _finish(self, space: Workspace, counts: Counts, sent: Sent, footing: Footing) -> Summary:
        why = sent.why
        space.journal.reserve.release()  # nothing is in flight any more; the last of it is for the last words
        index = space.journal.index()
        after = index.counts(has_ids=space.id_column is not None)
        if after.pending == 0 and isinstance(why, IncompleteError) and self._signals.error is None:
            why = None  # what was in flight when the hours were over was the last
        why = footing.lost() or why
        if after.pending == 0 and self._wishes.publish and why is None:
            why = await self._publish(space) or footing.lost()
        totals = reader.totals(space.journal.db)
        code, reason = how_it_ended(after, totals, why, sent=sent.rows)
        self._note_end(space, reason)
        folder = space.folder
        if isinstance(why, LookError) and footing.lost() is not None:
            folder, advice = footing.rescue()
            reason = f"{reason}; {advice}"
        complete = after.pending == 0 and why is None and self._wishes.publish
        return Summary(
            exit_code=code,
            reason=reason,
            total=after.rows,
            pending=after.pending,
            new=counts.new,
            changed=counts.changed,
            kept=counts.succeeded + counts.failed,
            sent=sent.rows,
            **asdict(totals) | {"completed": after.succeeded, "failed": after.failed},  # not those to be redone
            elapsed_s=time.monotonic() - self._started,
            run_folder=str(folder),
            results=str(self._job.output.path) if complete else None,
            in_flight=sent.in_flight,
            recovered=self._recovered,
            spent=sent.spent,
            ledger=sent.ledger,
            trouble=sent.trouble,
            outages=[spell.told for spell in sent.outages],
            failures=reader.failures(space.journal.db) if totals.failed else [],
            served_models=reader.served_models(space.journal.db),
        )

    async def _publish(self, space: Workspace) -> PipelineError | None:
        """Write the results file, unless the one there is of this journal as it is now."""
        job = self._job
        if (stamp := stamp_of(job)) is not None and stamp == space.journal.get("results"):
            return None
        try:
            await self._signals.in_thread(
                export, space, path=job.output.path, output_format=job.output_format, tick=self._signals.check
            )
        except PipelineError as exc:
            return exc
        published = stamp_of(job) or "stale"  # gone at once: the next run writes them anew
        try:
            with sentences(space.journal.path):
                space.journal.into_reserve(partial(space.journal.put, "results", published))
        except PipelineError as exc:
            return exc
        return None

    def _note_end(self, space: Workspace, reason: str) -> None:
        try:
            with sentences(space.journal.path):
                space.journal.into_reserve(partial(space.journal.end_run, reason))
        except PipelineError as exc:  # how it ended is told to whoever runs it all the same
            self._display.say(f"How this run ended is not in its journal: {exc}")
        space.journal.reserve.release_last()

    def _note(self, status: StatusFile, summary: Summary) -> None:
        """Into ``status.json``, where that is still this run's."""
        if summary.run_folder != str(self._job.run_folder):
            return
        try:
            status.write(None, state="ended", **asdict(summary))
        except PipelineError as exc:
            self._display.say(str(exc))

"""One run: lock, open, recover, index, guard, send, export, sum up. Read ``Run.live`` top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.ending import how_it_ended
from pipeline.errors import IncompleteError, PipelineError
from pipeline.ground.wording import plural
from pipeline.job import Job
from pipeline.journal import Counts, Index, Recovered, Totals, reader
from pipeline.limits.hours import Hours
from pipeline.owner import claim
from pipeline.preflight.guards import check_rebuying
from pipeline.progress.display import Display, Logged, Silent
from pipeline.progress.status_file import StatusFile
from pipeline.records import Summary
from pipeline.results import export, stamp_of
from pipeline.selection import mark, told
from pipeline.sending import Sending, Sent
from pipeline.signals import Signals
from pipeline.wishes import Wishes
from pipeline.workspace import Workspace, make_folder, opened


@dataclass(frozen=True, slots=True, kw_only=True)
class _End:
    """How a run ended: the rows ``after`` it, and the ``folder`` where its journal is to be found; its own may be ``gone``."""

    code: int
    reason: str
    after: Counts
    totals: Totals
    published: bool
    gone: bool
    folder: Path


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
        key = self._job.api_key()  # one that is missing must show before anything is made
        make_folder(self._job, say=self._display.say)
        with opened(self._job, slots=self._job.rows_at_once, adopt=self._wishes.accept_changes) as space:
            status = StatusFile(space.folder, self._facts(space))
            space.journal.recover(tell=self._tell)
            with space.journal.all_or_nothing():  # a run that is refused leaves everything as it was
                index, counts = await self._find_out(space)
            space.journal.start_run()
            sent = await self._send(space, index, counts, status, key.get_secret_value() if key else None)
            end = self._book(space, await self._ended(space, counts, sent))
            summary = self._summary(space, counts, sent, end)
            if end.folder == space.folder:  # where it is another, the status there is not this run's
                self._show_end(status, summary)
            return summary

    async def _find_out(self, space: Workspace) -> tuple[Index, Counts]:
        """Index the input and see what there is to do, before anything is sent."""
        index = await self._signals.in_thread(space.feed.index, space.spec, tick=self._tick_index)
        space.layout()  # a clash of columns must show now
        if (again := mark(space, self._wishes.redo)) is not None:
            self._display.say(told(space, self._wishes.redo, again))
        if self._wishes.accept_failed:
            self._display.say(f"{plural(space.journal.accept_failed(), 'failed row is', 'failed rows are')} accepted.")
        counts = index.counts(has_ids=space.id_column is not None)
        if self._job.request.dedupe and counts.pending:
            counts = replace(counts, copies=await self._signals.in_thread(index.find_copies, hold=True))
        accepted = self._wishes.accept_changes
        if self._wishes.most is None or accepted:  # who tries a few rows has said how many are paid for
            check_rebuying(counts, accepted=accepted, confirm=self._confirm)
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
                f"The last run was cut off with {plural(len(left.in_flight), 'request')} in flight; the gateway may bill them without "
                f"our having the answers. What was in flight is sent again, and counted in lost_attempts: {names}"
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
            self._display.say(
                f"{plural(gone, 'done row is', 'done rows are')} not in the input any more; the answers stay in the journal."
            )
        if counts.pending == 0:  # as the last words say
            self._display.note(f"{plural(counts.rows, 'row is', 'rows are all')} done; nothing is sent.")
        elif done or counts.changed or counts.redo:
            again = f", {counts.redo:,} to do again" if counts.redo else ""
            self._display.say(f"{counts.new:,} new, {counts.changed:,} changed, {done:,} kept{again}.")
        if counts.copies:
            self._display.say(
                f"{plural(counts.to_send, 'row')} to send; {plural(counts.copies, 'asks', 'ask')} just what another one asks and "
                f"{'gets' if counts.copies == 1 else 'get'} its answer."
            )

    async def _send(self, space: Workspace, index: Index, counts: Counts, status: StatusFile, key: str | None) -> Sent:
        if counts.pending == 0:
            return Sent()
        sending = Sending(
            self._job, self._wishes, space, counts, display=self._display, signals=self._signals, status=status,
            key=key, hours=self._hours, wall_clock=self._wall_clock,
        )  # fmt: skip
        return await sending.all_pending(index)

    # after

    async def _ended(self, space: Workspace, counts: Counts, sent: Sent) -> _End:
        """See what is left, and write the results where nothing is."""
        space.journal.reserve.release()  # nothing is in flight any more; the last of it is for the last words
        after = space.journal.index().counts(has_ids=space.id_column is not None) if counts.pending else counts
        why, gone = sent.why, space.footing.gone()
        if after.pending == 0 and isinstance(why, IncompleteError) and self._signals.error is None:
            why = None  # what was in flight when the hours were over was the last
        publishes = after.pending == 0 and self._wishes.publish and (gone or why) is None
        if publishes:
            why, gone = await self._publish(space), space.footing.gone()
        totals = reader.totals(space.journal.db)
        code, reason = how_it_ended(after, totals, gone or why, sent=sent.rows)
        return _End(
            code=code, reason=reason, after=after, totals=totals, published=publishes and (gone or why) is None,
            gone=gone is not None, folder=space.folder,
        )  # fmt: skip

    def _book(self, space: Workspace, end: _End) -> _End:
        """Note the end in the journal, and save that where its folder is gone."""
        try:
            space.journal.into_reserve(partial(space.journal.end_run, end.reason))
        except PipelineError as exc:  # how it ended is told to whoever runs it all the same
            self._display.say(f"How this run ended is not in its journal: {exc}")
        space.journal.reserve.release_last()
        if not end.gone:
            return end
        folder, advice = space.footing.rescue()
        return replace(end, folder=folder, reason=f"{end.reason}; {advice}")

    def _summary(self, space: Workspace, counts: Counts, sent: Sent, end: _End) -> Summary:
        after, totals, db = end.after, end.totals, space.journal.db
        return Summary(
            exit_code=end.code,
            reason=end.reason,
            total=after.rows,
            pending=after.pending,
            new=counts.new,
            changed=counts.changed,
            kept=counts.succeeded + counts.failed,
            sent=sent.rows,
            **asdict(totals) | {"completed": after.succeeded, "failed": after.failed},  # not those to be redone
            elapsed_s=time.monotonic() - self._started,
            run_folder=str(end.folder),
            results=str(self._job.output.path) if end.published else None,
            in_flight=sent.in_flight,
            recovered=self._recovered,
            spent=sent.spent,
            ledger=sent.ledger,
            trouble=sent.trouble,
            outages=[spell.told for spell in sent.outages],
            failures=reader.failures(db, space.name_of) if totals.failed else [],
            served_models=reader.served_models(db),
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
            space.journal.into_reserve(partial(space.journal.put, "results", published))
        except PipelineError as exc:
            return exc
        return None

    def _show_end(self, status: StatusFile, summary: Summary) -> None:
        try:
            status.write(None, state="ended", **asdict(summary))
        except PipelineError as exc:
            self._display.say(str(exc))

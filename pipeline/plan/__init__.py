"""What a run would do, found out without paying: ``plan`` reads everything and sends nothing.

Preflight, index, one walk over what is pending, estimates. Outcomes stay as they are; the index is kept only where the
next run will find it as it would make it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.accounting import PriceOf
from pipeline.ground.jsonio import loads
from pipeline.ground.wording import money, plural
from pipeline.job import Job
from pipeline.journal import Counts, history, reader
from pipeline.journal.room import LOG_BYTES, REPLY_BYTES, ROW_BYTES, results_bytes
from pipeline.plan.finish import Finish, finish_of, needed
from pipeline.plan.forecast import NOTHING, Span
from pipeline.plan.load import Load
from pipeline.plan.survey import Survey, surveyed
from pipeline.preflight import Finding, Preflight, accounting_of, connection_to, preflight_of
from pipeline.preflight.guards import buys_again
from pipeline.records import EMBEDDINGS, KeyInfo
from pipeline.sending.flow import allowance_of
from pipeline.signals import Signals
from pipeline.workspace import Workspace, make_folder, opened

__all__ = ["Body", "Finish", "Plan", "Span", "plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What would be sent for one row, exactly."""

    custom_id: str
    endpoint: str
    body: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run would do. ``failing`` rows cannot be sent.

    ``copies`` ask what another row asks: with ``dedupe`` they are no part of the ``pending`` rows, without it they are, and
    ``copies_share`` of the cost (of the tokens, where that is unknown) could be saved; both 0 to 1.
    ``measured_on``: so many done rows stand behind the estimates; 0 makes them a guess. ``cost`` is by unit and leaves out
    ``cost_unknown`` rows; ``seconds`` of sending and ``finish`` are None as long as no answer has been timed and no rate is
    known.
    """

    exit_code: int
    findings: list[Finding]
    rows: int
    succeeded: int
    failed: int
    new: int
    changed: int
    redo: int
    pending: int
    copies: int
    copies_share: float
    dedupe: bool
    failing: int
    slots: int
    measured_on: int
    prompt_tokens: Span
    completion_tokens: Span
    cost: dict[str, Span]
    cost_unknown: int
    seconds: Span | None
    finish: Finish | None
    disk_needed: int
    disk_free: int
    budget_left: float | None
    run_folder: str
    bodies: list[Body] = field(default_factory=list)


async def plan(job: Job, *, show: int = 0, wall_clock: Callable[[], float] = time.time) -> Plan:
    """What a run of the job would do, were it begun now. Raises ``PipelineError`` for what would stop it before it looks at the gateway."""
    key = job.api_key()
    noted: list[Finding] = []
    make_folder(job, say=lambda text: noted.append(Finding(level="warn", text=text)))
    signals = Signals()  # none are handled here: only so that an end of the whole is heard in the thread
    with opened(job, slots=job.concurrency, adopt=False) as space:
        # Another prompt makes another index; what an earlier run's answers belong to must stay to be found.
        keeps = space.journal.get("spec") in (None, space.spec)
        with space.journal.all_or_nothing() if keeps else space.journal.put_back():
            index = await signals.in_thread(space.feed.index, space.spec, tick=lambda _: signals.check())
            space.layout()  # a clash of columns must show now
            counts = index.counts(has_ids=space.id_column is not None)
            found = index.find_copies(hold=job.request.dedupe) if counts.pending else 0
            if job.request.dedupe:
                counts = replace(counts, copies=found)
            survey = await surveyed(space, index, show=show)
            known = await _asked(job, space, key.get_secret_value() if key else None)
            known = replace(known, findings=(*known.findings, *noted))
            return _Reckoning(job, space, counts, survey, known).plan(wall_clock())


async def _asked(job: Job, space: Workspace, key: str | None) -> Preflight:
    if job.base_url is None:
        return Preflight(findings=(Finding(level="ok", text="the simulator is built in: no key, no network, no bill"),))
    connection = connection_to(job, job.base_url, space.dialect, key)
    return await preflight_of(space, connection)


class _Reckoning:
    """From what was found to a plan."""

    def __init__(self, job: Job, space: Workspace, counts: Counts, survey: Survey, known: Preflight) -> None:
        self._job = job
        self._space = space
        self._counts = counts
        self._loads = survey.loads
        self._survey = survey
        self._known = known
        self._prices = accounting_of(job, known)
        self._findings = list(known.findings)

    def plan(self, now: float) -> Plan:
        counts, key = self._counts, self._known.key or KeyInfo()
        rows = sum(load.rows for load in self._loads.values())
        prompt, completion = NOTHING, NOTHING
        for model, load in self._loads.items():
            prompt = prompt.plus(load.prompt_tokens())
            completion = completion.plus(load.completion_tokens(self._most_output(model)))
        slots = min(self._job.concurrency, key.parallel or self._job.concurrency)
        cost, unknown = self._cost(self._loads)
        budget_left = None if key.max_budget is None else max(key.max_budget - (key.spend or 0.0), 0.0)
        room, free = self._disk(completion)
        need = needed(
            rows / self._job.pack, prompt.plus(completion), allowance_of(self._job, key), slots=slots,
            pace=history.pace(self._space.journal.db),
        )  # fmt: skip
        self._note_rows()
        self._note_context()
        self._note_money(cost, unknown, budget_left)
        if room > free:
            self._warn(
                f"the disk of {self._space.folder} is too full: about {room:,} bytes are needed, {free:,} are free"
            )
        stop = next((finding.exit_code for finding in self._findings if finding.level == "stop"), 0)
        return Plan(
            exit_code=stop, findings=self._findings, rows=counts.rows, succeeded=counts.succeeded, failed=counts.failed,
            new=counts.new, changed=counts.changed, redo=counts.redo, pending=counts.to_send,
            copies=counts.copies or sum(load.copies for load in self._loads.values()),
            copies_share=self._share_of_copies(), dedupe=self._job.request.dedupe, failing=self._survey.failing, slots=slots,
            measured_on=sum(load.prompt.rows for load in self._loads.values() if load.is_measured),
            prompt_tokens=prompt.rounded(), completion_tokens=completion.rounded(), cost=cost, cost_unknown=unknown,
            seconds=None if need is None else need.seconds, disk_needed=room, disk_free=free,
            finish=None if need is None else finish_of(need, self._job.limits.hours(now), now),
            budget_left=budget_left, run_folder=str(self._space.folder), bodies=self._bodies(),
        )  # fmt: skip

    def _most_output(self, model: str) -> int | None:
        info = self._known.models.get(model)
        return None if info is None else info.max_output

    def _bodies(self) -> list[Body]:
        dialect = self._space.dialect
        found = []
        for request in self._survey.shown:
            body = dialect.dress(request)
            if self._job.gateway.stream and request.endpoint != EMBEDDINGS:
                body = dialect.streamed(body)
            found.append(Body(custom_id=request.custom_id, endpoint=request.endpoint, body=loads(body)))
        return found

    def _cost(self, loads: Mapping[str, Load]) -> tuple[dict[str, Span], int]:
        """What rows cost so far tells best what rows will cost; then the price list."""
        cost: dict[str, Span] = {}
        unknown = 0
        for model, load in loads.items():
            price = self._prices.price(model)
            span = load.cost.forecast(load.rows, load.bytes)
            unit = load.cost_unit
            if span is None and price is not None:
                span, unit = _priced(price, load, self._most_output(model)), price.unit
            if span is None:
                unknown += load.rows
            else:
                cost[unit] = cost.get(unit, NOTHING).plus(span)
        return cost, unknown

    def _share_of_copies(self) -> float:
        """What part of the cost, or where no cost is known of the prompts' tokens, goes into asking the same again."""
        copies = {model: load.of_copies() for model, load in self._loads.items() if load.copies}
        (some, _), (all_of_it, unknown) = self._cost(copies), self._cost(self._loads)
        whole = 0.0 if unknown else sum(span.middle for span in all_of_it.values())
        if whole:
            return sum(span.middle for span in some.values()) / whole
        bytes_sent = sum(load.bytes for load in self._loads.values())
        return sum(load.bytes for load in copies.values()) / max(bytes_sent, 1)

    def _disk(self, completion: Span) -> tuple[int, int]:
        """Journal and results file, roughly."""
        pending = self._counts.pending
        reply = history.reply_bytes(self._space.journal.db)
        if reply is None:
            reply = REPLY_BYTES + 4 * (completion.high or 0.0) / max(pending, 1)
        source = sum(file.path.stat().st_size for file in self._space.files)
        row = reply + ROW_BYTES
        room = pending * row + LOG_BYTES + results_bytes(self._counts.rows, row, source)
        return int(room), shutil.disk_usage(self._space.folder).free

    # findings

    def _warn(self, text: str) -> None:
        self._findings.append(Finding(level="warn", text=text))

    def _note_rows(self) -> None:
        counts = self._counts
        if buys_again(counts):
            text = (
                f"{counts.rebought:,} of {plural(counts.bought, 'done row')} changed and would be paid for again: a run asks first, "
                "and where nobody can answer it stops with exit 2; to have them sent, run with --accept-changes"
            )
            self._findings.append(Finding(level="ask", text=text))
        if self._survey.failing:
            self._warn(
                f"{plural(self._survey.failing, 'row')} cannot be sent and will fail, e.g. {self._survey.failing_example}"
            )
        if self._job.model is None and self._known.models and self._space.dialect.lists_all:
            absent = [model for model in self._loads if model not in self._known.models]
            if absent:
                self._warn(f"rows name models that this key may not ask, and will fail: {', '.join(absent[:10])}")

    def _note_context(self) -> None:
        """The longest request against the model's context: an estimate, and said to be one."""
        for model, load in self._loads.items():
            context = info.context if (info := self._known.models.get(model)) is not None else None
            if context is None or not load.rows:
                continue
            tokens = load.longest_tokens()
            words = (
                f"the longest request ({load.longest_id}) has an estimated {tokens.low:,.0f} to {tokens.high or 0:,.0f} tokens, "
                f"and may be answered with {load.longest_cap:,}; {model!r} takes {context:,} together"
            )
            if tokens.low + load.longest_cap > context:
                self._warn(f"too long: {words}")
            elif (tokens.high or 0.0) + load.longest_cap > context:
                self._warn(f"perhaps too long: {words}")
            else:
                self._findings.append(Finding(level="ok", text=words))

    def _note_money(self, cost: dict[str, Span], unknown: int, budget_left: float | None) -> None:
        limits, total = self._job.limits, self._job.limits.max_cost_total
        left_of_total = None if total is None else max(total - reader.spent(self._space.journal.db), 0.0)
        lefts = {
            "the key's budget": budget_left, "limits.max_cost": limits.max_cost, "limits.max_cost_total": left_of_total,
        }  # fmt: skip
        if unknown:
            self._warn(
                f'the price of {plural(unknown, "row")} is unknown: the gateway lists none; the job may, in [prices."MODEL"]'
            )
        for name, left in lefts.items():
            for unit, span in cost.items():
                if left is None or (span.high is not None and span.high <= left):
                    continue
                words = "does not suffice" if span.low > left else "may not suffice"
                self._warn(f"{name} {words}: {money({unit: left})} are left")


def _priced(price: PriceOf, load: Load, max_output: int | None) -> Span | None:
    """The cost at this price: all prompt tokens cached at the least, where those are cheaper; none at the most."""
    prompt, completion = load.prompt_tokens(), load.completion_tokens(max_output)
    inside = price.prompt if price.cached is None else min(price.prompt, price.cached)
    low = 0.0 if price.free else (prompt.low * inside + completion.low * price.completion) / 1e6
    if price.free:
        return NOTHING
    if prompt.high is None or (completion.high is None and price.completion):
        return Span(low=low, high=None)
    return Span(low=low, high=(prompt.high * price.prompt + (completion.high or 0.0) * price.completion) / 1e6)

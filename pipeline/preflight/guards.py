"""What keeps a run from a surprise bill: the question before buying again, the budget, the watch on who answers."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.accounting import Accounting
from pipeline.errors import BudgetError, LookError, UsageError
from pipeline.ground.wording import plural
from pipeline.job import Job
from pipeline.journal import Counts, Journal, reader
from pipeline.limits.budget import Budget
from pipeline.pool.drift import Drift
from pipeline.records import ModelInfo, Usage

REBUYING_SHARE = 0.10
Confirm = Callable[[str], bool]


def buys_again(counts: Counts) -> bool:
    """Whether so many of the done rows would be sent again that somebody should say yes."""
    return counts.rebought > REBUYING_SHARE * counts.bought


def check_rebuying(counts: Counts, *, accepted: bool, confirm: Confirm | None) -> None:
    """Many done rows whose request changed need a yes. Raises ``UsageError`` where nobody gives it."""
    if accepted or not buys_again(counts):
        return
    text = (
        f"{plural(counts.rebought, 'done row')} changed (prompt, parameters, model or data) and would be sent and paid for "
        f"again, of {counts.bought:,} done"
    )
    if confirm is None or not confirm(f"{text}. Send them?"):
        raise UsageError(f"{text}: to do that, add --accept-changes; nothing was sent")


def budget_of(job: Job, journal: Journal, accounting: Accounting, model: ModelInfo | None) -> Budget | None:
    """The run's budget, if the job sets one. Raises ``UsageError`` without a price, ``BudgetError`` when all is spent."""
    limits = job.limits
    if limits.max_cost is None and limits.max_cost_total is None:
        return None
    if job.model is not None and accounting.price(job.model) is None:
        raise UsageError(
            f"limits.max_cost: the price of {job.model!r} is not known, so a limit cannot be kept: give it in the job, "
            f'[prices."{job.model}"] input_per_million = ..., output_per_million = ...'
        )
    limit, name = limits.max_cost or float("inf"), "max_cost"
    if limits.max_cost_total is not None:
        left = limits.max_cost_total - reader.spent(journal.db)
        if left <= 0:
            raise BudgetError(
                f"max_cost_total of {limits.max_cost_total:g} is spent in this journal; raise it to go on"
            )
        if left < limit:
            limit, name = left, "max_cost_total"

    def price(name: str, prompt_tokens: int, completion_tokens: int) -> float | None:
        found = accounting.price(name)
        usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        return None if found is None else found.of(usage).amount

    most_output = None if model is None else model.max_output
    return Budget(limit, price=price, most_output=most_output, name=name, renewed=name == "max_cost")


def drift_of(job: Job, journal: Journal, *, accepted: bool, say: Callable[[str], None]) -> Drift:
    """The watch on who answers. Raises ``LookError`` when an embedding journal has vectors of two models already."""
    stops = job.request.endpoint == "embeddings" and not accepted
    seen = reader.seen_models(journal.db)
    for model, served in seen.items():
        if stops and len(served) > 1:
            raise LookError(
                f"the vectors in this journal for {model!r} are of {len(served)} models ({', '.join(sorted(served))}), which do "
                "not mix: make some anew with --redo 'served_model!=NAME', or go on with --allow-model-change"
            )
    return Drift(seen, stops=stops, say=say)

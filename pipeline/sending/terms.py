"""What a pool works by, as the job has it: its terms, and what holds it back."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.job import Job
from pipeline.journal import Counts
from pipeline.pool import Terms
from pipeline.pool.judge import Controls, Rulings
from pipeline.pool.patience import Patience
from pipeline.pool.poison import Poison
from pipeline.preflight.clearing import Cleared
from pipeline.records import KeyInfo
from pipeline.sending.flow import Lasting, rates_of, slots_of
from pipeline.wishes import Wishes


def terms_of(job: Job, counts: Counts, *, run_name: str, patience: Patience) -> Terms:
    """How the pool of a run deals with its rows."""
    limits = job.limits
    return Terms(
        slots=job.concurrency,
        run_name=run_name,
        rulings=Rulings(
            max_attempts=limits.max_attempts,
            budget_wait_s=limits.max_budget_wait if limits.on_budget == "wait" else None,
        ),
        fail_on_length=job.request.on_length == "fail",
        stream=job.gateway.stream,
        reached=counts.bought > 0,
        many_models=job.model is None,
        patience=patience,
        pack=job.pack,
        pack_tokens=job.request.pack_tokens,
    )


def controls_of(
    job: Job, wishes: Wishes, counts: Counts, cleared: Cleared, share: Lasting, *, note: Callable[[str], None]
) -> Controls:
    """What holds that pool back, or ends it."""
    key = cleared.known.key or KeyInfo()
    fresh = counts.bought == 0 and not wishes.keep_going
    return Controls(
        slots=slots_of(job, share, key, note=note),
        rates=rates_of(job, share, key, note=note),
        poison=Poison(rows=counts.to_send, most=job.limits.most_failures(counts.rows), watches_first=fresh),
        budget=cleared.budget,
        drift=cleared.drift,
    )

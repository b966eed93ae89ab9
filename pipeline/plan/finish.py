"""When a run would be done: what rates and slots allow, laid into the hours in which it may send."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pipeline.journal.history import Pace
from pipeline.limits.hours import Hours
from pipeline.limits.rates import Allowance
from pipeline.plan.forecast import Span

Bound = Literal["slots", "requests", "tokens"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How long sending takes, in seconds, and what makes it take that long; ``per_minute`` is the rate, where it is one."""

    seconds: Span
    bound: Bound
    per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """When a run begun at ``begun_at`` is done, ``at``, in so many ``openings`` of its window. Moments are Unix seconds.

    ``bound`` and ``per_minute`` are those of the need. ``by`` is when the run has to stop, if it has to: with its window, or
    at its deadline. ``in_time`` None: it may be, or not.
    """

    bound: Bound
    per_minute: float | None
    begun_at: float
    at: Span
    openings: int
    by: float | None
    in_time: bool | None


def needed(calls: float, tokens: Span, allowance: Allowance, *, slots: int, pace: Pace | None) -> Need | None:
    """By the rates, and by how long answers took so far; None where neither is known."""
    rpm, tpm = allowance.rpm or math.inf, allowance.tpm or math.inf
    least: dict[Bound, float] = {
        "slots": 0.0 if pace is None else calls * pace.p50_s / slots,
        "requests": calls / rpm * 60,
        "tokens": tokens.low / tpm * 60,
    }
    bound = max(least, key=lambda name: least[name])
    if pace is None and bound == "slots":
        return None
    high = None
    if pace is not None and (tokens.high is not None or allowance.tpm is None):
        high = max(calls * pace.p95_s / slots, least["requests"], (tokens.high or 0.0) / tpm * 60)
    per_minute = {"slots": None, "requests": allowance.rpm, "tokens": allowance.tpm}[bound]
    return Need(seconds=Span(low=least[bound], high=high), bound=bound, per_minute=per_minute)


def finish_of(need: Need, hours: Hours, now: float) -> Finish:
    """Lay the sending into the openings of the window, one after the other, whatever the deadline."""
    earliest, openings = hours.finish(now, need.seconds.low)
    latest = None
    if need.seconds.high is not None:
        latest, openings = hours.finish(now, need.seconds.high)
    by = hours.closes_at(now)
    in_time = False if earliest > by else True if latest is not None and latest <= by else None
    return Finish(
        bound=need.bound,
        per_minute=need.per_minute,
        begun_at=now,
        at=Span(low=earliest, high=latest),
        openings=openings,
        by=by if by < math.inf else None,
        in_time=in_time if by < math.inf else None,
    )

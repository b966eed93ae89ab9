"""Where a run stands: one read-only snapshot feeds the bar, the log line, ``status.json`` and the summary."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.ground.wording import duration, in_one_line, money, number, plural
from pipeline.records import Attempt, Cost, Outcome

RATE_WINDOW_S = 30.0
LEAST_WINDOW_S = 5.0  # what a run did before that, while it begins with one request, says nothing about the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Activity:
    """What the pool is doing now. ``slots`` may be in flight; ``rpm`` is the pace, None when there is none.

    ``away_since`` (Unix seconds) and ``away`` (its cause) tell of an outage that lasts, ``paused_s`` how long the rate limit
    holds everyone still, ``oldest_s`` how long the oldest request in flight takes already. ``outages`` are those there were, as
    in a ``Summary``.
    """

    busy: int = 0
    slots: int = 0
    waiting: int = 0
    trouble: str | None = None
    away_since: float | None = None
    away: str = ""
    rpm: float | None = None
    paused_s: float = 0.0
    oldest_s: float = 0.0
    outages: Sequence[tuple[float, float | None, str]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run stands. Only rows that are durable are counted. ``eta_s`` None: not known yet.

    ``cost`` is of all rows done so far, ``projected_cost`` what all rows will have cost, if the rest is like them.
    ``reused``: rows that were given the answer of another in this run.
    """

    state: str
    total: int
    completed: int
    failed: int
    pending: int
    sent: int
    reused: int
    elapsed_s: float
    rows_per_s: float
    tokens: int
    tokens_per_s: float
    cost: dict[str, float]
    cost_unknown: int
    projected_cost: dict[str, float]
    slots: int
    busy: int
    waiting: int
    rpm: float | None
    eta_s: float | None
    doing: str
    outages: Sequence[tuple[float, float | None, str]]

    @property
    def line(self) -> str:
        """The snapshot in one line."""
        return ", ".join([*self._counts, *self._figures, *filter(None, [self.doing])])

    def fitting(self, columns: int) -> str:
        """As much of it as ``columns`` hold, what matters most first: trouble, time left, ...; no figure is cut in two."""
        parts = self._counts
        if self.doing:
            text = ", ".join([*parts, self.doing])
            return text if len(text) <= columns else f"{text[: max(columns - 3, 0)]}..."
        for figure in self._figures:
            if len(", ".join([*parts, figure])) > columns:
                break
            parts.append(figure)
        return ", ".join(parts)

    @property
    def _counts(self) -> list[str]:
        counts = [f"{self.completed + self.failed:,}/{plural(self.total, 'row')}"]
        if self.failed:
            counts.append(f"{self.failed:,} failed")
        if self.reused:
            counts.append(f"{self.reused:,} reused")
        return counts

    @property
    def _figures(self) -> list[str]:
        left = [f"{duration(self.eta_s)} left"] if self.eta_s is not None and self.pending else []
        return [
            *left,
            f"{self.rows_per_s:,.1f} rows/s",
            f"{self.busy}/{self.slots} slots{'' if self.rpm is None else f' at {number(self.rpm)}/min'}",
            f"cost {money(self.cost, self.cost_unknown)}{self._projected}",
            f"{self.tokens:,} tokens ({self.tokens_per_s:,.0f}/s)",
        ]

    @property
    def _projected(self) -> str:
        return f" of about {money(self.projected_cost)}" if self.pending and any(self.projected_cost.values()) else ""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts what became durable in this run, on top of what the journal held when it began.

    ``copies`` of the rows are not to be sent: they get the answers of others at the end, in no time.
    """

    total: int
    completed: int
    failed: int
    pack: int = 1
    copies: int = 0
    tokens: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    cost_unknown: int = 0
    sent: int = 0
    reused: int = 0
    new_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    _marks: deque[tuple[float, int, int]] = field(default_factory=deque)

    def kept(self, records: Sequence[Outcome | Attempt]) -> None:
        """These are on disk."""
        for record in records:
            self._pay(record.cost)
            if isinstance(record, Attempt):
                continue
            self.sent += record.sent
            if record.status == "succeeded":
                self.completed += 1
            else:
                self.failed += 1
            if record.completion is not None:
                self.new_tokens += record.completion.usage.total_tokens or 0
            self.cost_unknown += record.cost.amount is None and (record.status == "succeeded" or record.lost)

    def reuse(self, *, succeeded: int, failed: int) -> None:
        """So many copies have an outcome on disk."""
        self.completed += succeeded
        self.failed += failed
        self.reused += succeeded + failed
        self.copies = max(self.copies - succeeded - failed, 0)
        self.total = max(self.total, self.completed + self.failed)  # copies are more than ``try`` was to send

    def _pay(self, cost: Cost) -> None:
        if cost.amount is not None:
            self.cost[cost.unit] = self.cost.get(cost.unit, 0.0) + cost.amount

    def snapshot(self, activity: Activity) -> Snapshot:
        """Where the run stands now; rates are those of the last half minute."""
        now = time.monotonic()
        self._marks.append((now, self.sent, self.new_tokens))
        while len(self._marks) > 2 and now - self._marks[0][0] > RATE_WINDOW_S:
            self._marks.popleft()
        then, sent, tokens = self._marks[0]
        span = now - then
        rate = (self.sent - sent) / span if span > 0 else 0.0
        done = self.completed + self.failed
        pending = max(self.total - done, 0)
        to_send = max(pending - self.copies, 0)
        return Snapshot(
            state="running",
            total=self.total,
            completed=self.completed,
            failed=self.failed,
            pending=pending,
            sent=self.sent,
            reused=self.reused,
            elapsed_s=now - self.started,
            rows_per_s=rate,
            tokens=self.tokens + self.new_tokens,
            tokens_per_s=(self.new_tokens - tokens) / span if span > 0 else 0.0,
            cost=dict(self.cost),
            cost_unknown=self.cost_unknown,
            projected_cost={unit: amount / done * (done + to_send) for unit, amount in self.cost.items() if done},
            slots=activity.slots,
            busy=activity.busy,
            waiting=activity.waiting,
            rpm=activity.rpm,
            eta_s=self._eta(to_send, rate, activity) if span >= LEAST_WINDOW_S or not to_send else None,
            doing=_doing(to_send, activity),
            outages=activity.outages,
        )

    def _eta(self, to_send: int, rate: float, activity: Activity) -> float | None:
        """By what was done lately, but never sooner than the pace allows; nobody knows when an outage ends."""
        if activity.away_since is not None:
            return None
        by_pace = 0.0 if activity.rpm is None else activity.paused_s + to_send / self.pack / activity.rpm * 60
        by_rate = to_send / rate if rate > 0 else None
        if by_rate is None:
            return by_pace or None
        return max(by_rate, by_pace)


def _doing(to_send: int, activity: Activity) -> str:
    trouble = in_one_line(activity.trouble or "", 240)
    if activity.away_since is not None:
        clock = time.strftime("%H:%M:%S", time.localtime(activity.away_since))
        return f"waiting since {clock} for the gateway ({in_one_line(activity.away, 240)})"
    if activity.paused_s > 0:
        return f"the rate limit is used up: all wait {activity.paused_s:.0f} s ({trouble})"
    if 0 < to_send <= activity.busy + activity.waiting:
        return (
            f"{plural(to_send, 'row')} left, the oldest takes {activity.oldest_s:.0f} s already"
            if activity.busy
            else trouble
        )
    if activity.waiting:
        return f"{plural(activity.waiting, 'row waits', 'rows wait')} to try again ({trouble})"
    return ""

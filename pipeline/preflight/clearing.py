"""What is found out before anything is sent: key, model, prices, budget. A gateway that is away is waited for first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.accounting import Accounting
from pipeline.client import Connection
from pipeline.errors import IncompleteError
from pipeline.job import Job
from pipeline.limits.budget import Budget
from pipeline.limits.hours import Hours
from pipeline.pool.drift import Drift
from pipeline.pool.outage import FIRST_PROBE_S, MOST_PROBE_S, Spell
from pipeline.pool.patience import Patience
from pipeline.preflight import Preflight, accounting_of, preflight_of
from pipeline.preflight.guards import budget_of, drift_of
from pipeline.progress import Activity
from pipeline.records import Verdict
from pipeline.wishes import Wishes
from pipeline.workspace import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Cleared:
    """What was found out, and nothing of it stands against sending."""

    known: Preflight
    accounting: Accounting
    budget: Budget | None
    drift: Drift


class Clearing:
    """``await cleared(connection)``; ``outages`` are those that had to end first. ``show`` is told what it waits for."""

    def __init__(
        self,
        job: Job,
        wishes: Wishes,
        space: Workspace,
        *,
        patience: Patience,
        reached: bool,
        hours: Hours,
        wall_clock: Callable[[], float],
        say: Callable[[str], None],
        show: Callable[[Activity], None],
    ) -> None:
        self._job = job
        self._wishes = wishes
        self._space = space
        self._patience = patience
        self._reached = reached
        self._hours = hours
        self._now = wall_clock
        self._say = say
        self._show = show
        self.outages: list[Spell] = []

    async def cleared(self, connection: Connection) -> Cleared:
        """Raises ``PipelineError`` for what stands against sending."""
        job, journal = self._job, self._space.journal
        known = await self._preflight(connection)
        if known.error is not None:
            raise known.error
        for text in known.warnings:
            self._say(text)
        accounting = accounting_of(job, known)
        model = known.models.get(job.model or "")
        return Cleared(
            known=known,
            accounting=accounting,
            budget=None if known.away else budget_of(job, journal, accounting, model),
            drift=drift_of(job, journal, accepted=self._wishes.allow_model_change, say=self._say),
        )

    async def _preflight(self, connection: Connection) -> Preflight:
        """What cannot work must not begin; a gateway whose list of models binds nobody is not asked, the first row tells."""
        if not self._space.dialect.lists_all:
            return Preflight()
        known = await self._asked(connection)
        if known.away is None or self._hours.opens_in_s(self._now()) > 0:  # it is asked again when the window opens
            return known
        spell = Spell(started_at=self._now(), ended_at=None, cause=_cause(known.away), code=known.away.code)
        self.outages.append(spell)
        known = await self._until_there(connection, known.away, spell)
        self.outages[-1] = replace(spell, ended_at=self._now())
        return known

    async def _asked(self, connection: Connection) -> Preflight:
        known = await preflight_of(self._space, connection, reached=self._reached)
        if known.odd is not None and self._needs_listed_prices:
            known = replace(known, away=known.odd)
        return known.waiting_for_budget if self._job.limits.on_budget == "wait" else known

    @property
    def _needs_listed_prices(self) -> bool:
        """A limit in money cannot be kept without them: a page in place of the list is then waited out, like an outage."""
        limits, own = self._job.limits, self._job.prices
        return (limits.max_cost or limits.max_cost_total) is not None and self._job.model not in own

    async def _until_there(self, connection: Connection, away: Verdict, spell: Spell) -> Preflight:
        """Prices are asked for once, so a run that begins in an outage does not begin before it has ended."""
        since, delay_s = time.monotonic(), FIRST_PROBE_S
        while True:
            if (why := self._patience.ends(away, time.monotonic() - since, reached=self._reached)) is not None:
                raise why
            if self._hours.left_s(self._now()) <= 0:
                raise IncompleteError(self._hours.over(self._now()))
            self._show(Activity(away_since=spell.started_at, away=_cause(away)))
            await asyncio.sleep(delay_s)
            known = await self._asked(connection)
            if known.away is None:
                return known
            away = known.away
            delay_s = FIRST_PROBE_S if away.unsent else min(2.0 * delay_s, MOST_PROBE_S)


def _cause(away: Verdict) -> str:
    return f"{away.code}: {away.message}"

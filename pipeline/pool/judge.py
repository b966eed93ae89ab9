"""What becomes of a request once its reply is there: an outcome, or another try, now or later, at whose charge."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial

from pipeline.errors import PipelineError
from pipeline.gateways import Announced, OpenAI
from pipeline.gateways.unreadable import carefully
from pipeline.ground.frozen import frozen
from pipeline.limits.budget import Budget
from pipeline.limits.rates import Rates
from pipeline.limits.slots import Slots
from pipeline.pool import packs
from pipeline.pool.away import Away
from pipeline.pool.backlog import Backlog, Ticket
from pipeline.pool.books import SLOW, Books, Keeper
from pipeline.pool.drift import Drift
from pipeline.pool.patience import refused
from pipeline.pool.poison import Poison
from pipeline.pool.retry import Backoff
from pipeline.records import Attempt, Completion, Kind, Outcome, Reply, Request, Verdict

MOST_BLAMED = 2  # a row that meets the same error when the gateway is back, and again, may be what takes it away
MOST_HELD = 20  # a row that finds the gateway away again and again, while the witness in between never does
BUDGET_POLL_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rulings:
    """What the judge goes by. ``budget_wait_s``: how long an empty budget of the gateway's is waited out, None not at all."""

    max_attempts: int
    backoff: Backoff = field(default_factory=Backoff)
    budget_wait_s: float | None = None


@dataclass(slots=True, kw_only=True)
class Try:
    """One send of a ticket. ``entries`` are its places in the in-flight table, ``tokens`` were put aside for the rate."""

    ticket: Ticket
    call_id: str
    entries: list[int]
    sent_at: float
    tokens: int = 0
    base64: bool = True


@frozen
class Said:
    """All that is read in a reply, before anything is done about it. ``outcome``: what it makes of the row, if it ends it."""

    reply: Reply
    verdict: Verdict
    outcome: Outcome | None
    limits: Announced


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What holds a run back, or ends it."""

    slots: Slots
    rates: Rates
    poison: Poison
    budget: Budget | None = None
    drift: Drift | None = None


class Judge:
    """``await settle(tried, reply)`` after every send. ``stop`` ends the run; ``reached``: this gateway has answered before.

    ``answered`` is told of every good answer.
    """

    def __init__(
        self,
        rulings: Rulings,
        *,
        dialect: OpenAI,
        books: Books,
        keeper: Keeper,
        backlog: Backlog,
        controls: Controls,
        stop: Callable[[PipelineError], None],
        answered: Callable[[Request, Completion], None],
        reached: bool,
    ) -> None:
        self._rulings = rulings
        self._dialect = dialect
        self._books = books
        self._keeper = keeper
        self._backlog = backlog
        self._slots, self._rates, self._poison = controls.slots, controls.rates, controls.poison
        self._stop = stop
        self._answered = answered
        self.reached = reached
        self.trouble: str | None = None
        self.asks_base64 = True
        self._slept_at = float("-inf")

    def believed(self, verdict: Verdict) -> Verdict:
        """A refusal that may pass is an outage first: a key that has worked, a budget that fills up again."""
        if verdict.kind is not Kind.FATAL:
            return verdict
        if verdict.code == "budget_exceeded" and self._rulings.budget_wait_s is not None:
            wait_s = self._rulings.budget_wait_s
            poll_s = min(BUDGET_POLL_S, wait_s / 10)
            return replace(verdict, kind=Kind.OUTAGE, retry_after_s=poll_s, recheck_s=wait_s)
        if verdict.recheck_s and self.reached:
            return replace(verdict, kind=Kind.OUTAGE)
        return verdict

    def slept(self) -> None:
        """The machine was asleep: what was in flight is gone, and nobody's fault."""
        self._slept_at = asyncio.get_running_loop().time()

    async def settle(self, tried: Try, reply: Reply, away: Away) -> None:
        """Act on what came back."""
        said = carefully(partial(self._read, tried), reply)
        reply, verdict, outcome = said.reply, said.verdict, said.outcome
        if tried.ticket.rows and verdict.kind is Kind.REJECTED and self._asks_otherwise(tried, reply):
            self._clear(tried)
            return
        if outcome is not None and outcome.completion is not None:
            self._answered(tried.ticket.request, outcome.completion)
        self._tell_limits(tried, said)
        match verdict.kind:
            case Kind.OK | Kind.REJECTED if outcome is not None:
                self.reached = True
                await self._keep(tried, outcome)
            case Kind.TRANSIENT | Kind.OUTAGE:
                await self._blame(tried, reply, verdict, away)
            case Kind.THROTTLED:
                self._clear(tried)
                self._hold(tried, verdict)
            case _:
                self._clear(tried)
                self._stop(refused(verdict))

    def _read(self, tried: Try, reply: Reply) -> Said:
        ticket = tried.ticket
        verdict = self.believed(self._dialect.classify(reply, ticket.request.endpoint))
        if ticket.rows and verdict.kind is Kind.OK:
            reply, verdict = packs.read(reply, len(ticket.rows))
        ends = verdict.kind in (Kind.OK, Kind.REJECTED)
        outcome = self._books.outcome(ticket, reply, verdict, tried.call_id) if ends else None
        return Said(reply=reply, verdict=verdict, outcome=outcome, limits=self._dialect.announced_limits(reply))

    # limits

    def _tell_limits(self, tried: Try, said: Said) -> None:
        """What every reply says about how much the gateway takes."""
        told, outcome = said.limits, said.outcome
        if told.parallel is not None:
            self._slots.announced(told.parallel)
        if told.rpm is not None or told.tpm is not None:
            self._rates.announced(rpm=told.rpm, tpm=told.tpm)
        if outcome is not None:
            self._slots.answered(first_try=tried.ticket.sends == 1)
            used = None if outcome.completion is None else outcome.completion.usage.total_tokens
            self._rates.answered(put_aside=tried.tokens, used=used)
        elif said.verdict.kind is not Kind.THROTTLED:
            self._slots.troubled()

    def _hold(self, tried: Try, verdict: Verdict) -> None:
        """A limit is met: the row waits and is charged nothing; whose limit it is tells who waits with it."""
        self.trouble = f"{verdict.code}: {verdict.message}"
        self.reached = True
        ticket, backoff = tried.ticket, self._rulings.backoff
        ticket.waits += 1
        if verdict.scope == "parallel":
            self._slots.refused(sent_at=tried.sent_at)
            told_s = verdict.retry_after_s
            self._backlog.put_back(ticket, backoff.soon() if told_s is None else backoff.delay(1, told_s))
        elif self._is_of_rate(verdict) and verdict.retry_after_s is None:
            self._rates.refused(sent_at=tried.sent_at)
            self._backlog.put_first(ticket)  # the pause holds it
        elif verdict.scope != "model" and verdict.retry_after_s is not None:
            self._rates.pause(verdict.retry_after_s)
            self._backlog.put_back(ticket, backoff.delay(ticket.waits, verdict.retry_after_s))
        else:
            if verdict.scope == "model":  # everybody's limit: it says nothing about this key's
                self._slots.troubled()
            else:
                self._slots.refused(sent_at=tried.sent_at)
            self._backlog.put_back(ticket, backoff.delay(ticket.waits, verdict.retry_after_s))

    def _is_of_rate(self, verdict: Verdict) -> bool:
        """Where the gateway does not say which limit it is: none of parallel requests refuses the only one."""
        return verdict.scope in ("requests", "tokens") or (not verdict.scope and self._slots.alone)

    # blame

    async def _blame(self, tried: Try, reply: Reply, verdict: Verdict, away: Away) -> None:
        """The row's fault or the gateway's: where the reply does not tell, a witness does."""
        ticket = tried.ticket
        self.trouble = f"{verdict.code}: {verdict.message}"
        failure = reply.failure
        if failure is not None and (tried.sent_at < self._slept_at or (failure.stale and not ticket.stale)):
            ticket.stale = ticket.stale or failure.stale
            await self._try_again(tried, reply, verdict)
            return
        if verdict.ambiguous:
            blamed = ticket.blamed < MOST_BLAMED and await away.blames_gateway(verdict, ticket.request)
            ticket.blamed += blamed
        else:
            blamed = verdict.kind is Kind.OUTAGE and ticket.held < MOST_HELD
            ticket.held += blamed
        if blamed:
            away.open(verdict, ticket.request)
            await self._try_again(tried, reply, verdict)
        else:
            await self._charge(tried, reply, verdict)

    async def _try_again(self, tried: Try, reply: Reply, verdict: Verdict) -> None:
        """At nobody's charge; what was billed, or may be unseen, is booked all the same."""
        ticket = tried.ticket
        attempt = self._books.attempt(ticket, reply, verdict, tried.call_id)
        if attempt.lost or attempt.cost.amount:
            await self._keep(tried, attempt)
        else:
            self._clear(tried)
        ticket.stream = ticket.stream or verdict.code in SLOW
        self._backlog.put_first(ticket)

    async def _charge(self, tried: Try, reply: Reply, verdict: Verdict) -> None:
        """This try counts; the row fails when it was its last (a pack is split then), else it waits."""
        ticket = tried.ticket
        ticket.tries += 1
        ticket.stream = ticket.stream or verdict.code in SLOW  # events keep the way open for a slow answer
        most = min(self._rulings.max_attempts, verdict.most_tries or self._rulings.max_attempts)
        if ticket.tries >= most and len(ticket.rows) <= 1:
            await self._keep(tried, self._books.outcome(ticket, reply, verdict, tried.call_id))
            return
        await self._keep(tried, self._books.attempt(ticket, reply, verdict, tried.call_id))
        delay_s = self._rulings.backoff.delay(ticket.tries, verdict.retry_after_s)
        if ticket.tries < most:
            self._backlog.put_back(ticket, delay_s)
        else:
            self._backlog.split(ticket, delay_s=delay_s, tries=most - 1)

    def _asks_otherwise(self, tried: Try, reply: Reply) -> bool:
        """A refused pack comes again at once: with plain numbers, or in halves; whose fault it is shows when it is alone."""
        ticket = tried.ticket
        if tried.base64 and packs.refuses_base64(reply):
            self.asks_base64 = False
            self._backlog.put_first(ticket)
            return True
        if len(ticket.rows) > 1:
            self.reached = True
            self._backlog.split(ticket, tries=ticket.tries)
            return True
        return False

    # the journal

    def _keep(self, tried: Try, record: Outcome | Attempt) -> Awaitable[None]:
        ticket = tried.ticket
        records = packs.parted(ticket.request, ticket.rows, record) if ticket.rows else (record,)
        if (why := self._poison.check(records)) is not None:
            self._stop(why)
        return self._keeper.keep(records, tried.entries)

    def _clear(self, tried: Try) -> None:
        for entry in tried.entries:
            self._keeper.clear(entry)

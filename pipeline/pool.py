"""The life of one request: slot -> send -> verdict -> outcome, or wait and again.

``slots`` long-lived workers take tickets from one backlog; a ticket that waits for its next try sits in a timer and
holds no slot. Time is the loop's, so that tests can run it virtually; the wall clock is injected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from pipeline import packs
from pipeline.accounting import Accounting
from pipeline.backlog import Backlog, Item, Ticket
from pipeline.books import SLOW, Books, may_be_billed
from pipeline.budget import Budget
from pipeline.drift import Drift
from pipeline.errors import BudgetError, GatewayError, PipelineError
from pipeline.gateways import OpenAI
from pipeline.outage import GatewayProber, Outage, Sender, Spell
from pipeline.records import CHAT, Attempt, Completion, Kind, Outcome, Reply, Request, Verdict
from pipeline.retry import Backoff

UNREACHED_S = 60.0
LEAST_WAITING = 16
MOST_BLAMED = 2  # a row that meets the same error when the gateway is back, and again, may be what takes it away


class Keeper(Protocol):
    """Where ends of requests are kept: the journal's writer, or a list in tests."""

    def enter(self, request: Request, call_id: str) -> int: ...
    def clear(self, entry: int) -> None: ...
    async def keep(self, record: Outcome | Attempt, entry: int | None) -> None: ...
    async def keep_all(self, records: Sequence[Outcome | Attempt], entries: Sequence[int]) -> None: ...


@dataclass(slots=True, kw_only=True)
class Activity:
    """What the pool is doing now, for the progress line."""

    busy: int = 0
    last_trouble: str | None = None
    outage: Spell | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the pool works by."""

    slots: int
    run_name: str
    max_attempts: int
    fail_on_length: bool = False
    stream: bool = False
    reached: bool = False
    pack: int = 1
    pack_tokens: int = 0
    backoff: Backoff = field(default_factory=Backoff)


class Pool:
    """Works off a feed with ``terms.slots`` workers; ``stopped`` is why it ended early, if it did."""

    def __init__(
        self,
        terms: Terms,
        *,
        sender: Sender,
        dialect: OpenAI,
        accounting: Accounting,
        keeper: Keeper,
        wall_clock: Callable[[], float],
        budget: Budget | None = None,
        drift: Drift | None = None,
    ) -> None:
        self._terms = terms
        self._sender = sender
        self._dialect = dialect
        self._keeper = keeper
        self._books = Books(
            dialect=dialect,
            accounting=accounting,
            wall_clock=wall_clock,
            fail_on_length=terms.fail_on_length,
            answered=self._watch,
        )
        self._budget = budget
        self._drift = drift
        self._reached = terms.reached
        self._base64 = True
        self._backlog = Backlog(
            most_waiting=max(terms.slots, LEAST_WAITING),
            low_water=2 * terms.slots,
            pack=terms.pack,
            pack_tokens=terms.pack_tokens,
        )
        self._outage = Outage(
            GatewayProber(sender, dialect, run_name=terms.run_name, booked=self._book_witness),
            wall_clock=wall_clock,
            began=self._outage_began,
            lasts=self._outage_lasts,
            ended=self._outage_ended,
        )
        self.outages: list[Spell] = []
        self.activity = Activity()
        self.stopped: PipelineError | None = None

    @property
    def waiting(self) -> int:
        """Rows that wait for their next try."""
        return self._backlog.waiting

    async def work(self, feed: AsyncGenerator[Sequence[Item], None]) -> None:
        """Run until the feed is worked off or the pool was told to ``drain``."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._outage.watch(), name="outage")
            async with asyncio.TaskGroup() as workers:
                workers.create_task(self._feed(feed), name="feed")
                for number in range(self._terms.slots):
                    workers.create_task(self._worker(), name=f"slot-{number}")
            watching.cancel()

    async def _feed(self, feed: AsyncGenerator[Sequence[Item], None]) -> None:
        try:
            await self._backlog.feed(feed)
        except PipelineError as exc:
            self.stop(exc)  # what is in flight is still finished and kept

    def drain(self) -> None:
        """Start nothing more; what is in flight is finished and kept."""
        self._backlog.close()
        self._outage.release()

    async def _worker(self) -> None:
        while (item := await self._backlog.get()) is not None:
            if isinstance(item, Outcome):
                await self._keeper.keep(item, None)
                continue
            await self._outage.gate()
            if self._backlog.closed:
                return  # the row stays pending
            if self._budget is None:
                await self._try(item)
            else:
                await self._try_within(self._budget, item)
            self._backlog.settle()

    async def _try_within(self, budget: Budget, ticket: Ticket) -> None:
        """Put the request's upper bound aside before it is sent, and settle it with what became of it."""
        try:
            reserved = await budget.reserve(ticket.rows or (ticket.request,))
        except BudgetError as exc:
            self.stop(exc)
            return
        if self._backlog.closed:
            budget.settle(reserved, 0.0)
            return
        await self._try(ticket)
        budget.settle(reserved, ticket.spent)
        ticket.spent = 0.0

    async def _try(self, ticket: Ticket) -> None:
        request = ticket.request
        ticket.sends += 1
        call_id = f"{self._terms.run_name}-{request.index}-{ticket.sends}"
        entries = [self._keeper.enter(row, call_id) for row in ticket.rows or (request,)]
        base64 = self._base64
        self.activity.busy += 1
        try:
            reply = await self._send(ticket, call_id)
        finally:
            self.activity.busy -= 1
        verdict = self._believed(self._dialect.classify(reply, request.endpoint))
        if ticket.rows:
            if verdict.kind is Kind.REJECTED and self._asks_otherwise(ticket, reply, base64):
                self._clear(entries)
                return
            if verdict.kind is Kind.OK:
                reply, verdict = packs.read(reply, len(ticket.rows))
        match verdict.kind:
            case Kind.OK | Kind.REJECTED:
                self._reached = True
                await self._keep(ticket, self._books.outcome(ticket, reply, verdict), entries)
            case Kind.TRANSIENT | Kind.OUTAGE:
                await self._judge(ticket, reply, verdict, entries, call_id)
            case Kind.THROTTLED:
                self._clear(entries)
                self._hold(ticket, verdict)
            case Kind.FATAL:
                self._clear(entries)
                self.stop(_fatal(verdict))

    def _asks_otherwise(self, ticket: Ticket, reply: Reply, base64: bool) -> bool:
        """A refused pack comes again at once: with plain numbers, or in halves; whose fault it is shows when it is alone."""
        if base64 and packs.refuses_base64(reply):
            self._base64 = False
            self._backlog.put_first(ticket)
            return True
        if len(ticket.rows) > 1:
            self._reached = True
            self._backlog.split(ticket, tries=ticket.tries)
            return True
        return False

    async def _send(self, ticket: Ticket, call_id: str) -> Reply:
        request = ticket.request
        stream = (self._terms.stream or ticket.stream) and request.endpoint == CHAT
        body = self._dialect.dress(request)
        if stream:
            body = self._dialect.streamed(body)
        elif ticket.rows and self._base64:
            body = packs.asking_base64(body)
        return await self._sender.send(request.endpoint, body, self._dialect.headers(call_id), stream=stream)

    def _believed(self, verdict: Verdict) -> Verdict:
        """A refusal of a key that has worked may be the gateway's own trouble: it is an outage until it has persisted."""
        if verdict.kind is Kind.FATAL and verdict.recheck_s and self._reached:
            return replace(verdict, kind=Kind.OUTAGE)
        return verdict

    async def _judge(self, ticket: Ticket, reply: Reply, verdict: Verdict, entries: list[int], call_id: str) -> None:
        """The row's fault or the gateway's: where the reply does not tell, a witness does."""
        self.activity.last_trouble = f"{verdict.code}: {verdict.message}"
        if verdict.ambiguous:
            away = ticket.blamed < MOST_BLAMED and await self._outage.blames_gateway(verdict, ticket.request)
            ticket.blamed += away
        else:
            away = verdict.kind is Kind.OUTAGE
        if not away:
            await self._charge(ticket, reply, verdict, entries, call_id)
            return
        self._outage.open(verdict, ticket.request)
        if may_be_billed(reply, verdict):
            await self._keep(ticket, self._books.attempt(ticket, reply, verdict, call_id), entries)
        else:
            self._clear(entries)
        ticket.stream = ticket.stream or verdict.code in SLOW
        self._backlog.put_first(ticket)

    def _outage_began(self, spell: Spell) -> None:
        self.activity.outage = spell

    def _outage_lasts(self, said: Verdict, seconds: float) -> None:
        if said.kind is Kind.FATAL and seconds >= said.recheck_s:
            self.stop(_fatal(said))
        elif not self._reached and seconds >= UNREACHED_S:
            self.stop(_unreached(said))

    def _outage_ended(self, spell: Spell) -> None:
        self.activity.outage = None
        self.outages.append(spell)

    async def _book_witness(self, request: Request, call_id: str, reply: Reply) -> None:
        if reply.status == 200:
            await self._keeper.keep(self._books.witness(request, call_id, reply), None)

    def _watch(self, request: Request, completion: Completion) -> None:
        if self._drift is None:
            return
        if (why := self._drift.check(request.model, completion.model, request.custom_id)) is not None:
            self.stop(why)

    async def _charge(self, ticket: Ticket, reply: Reply, verdict: Verdict, entries: list[int], call_id: str) -> None:
        """This try counts; the row fails when it was its last (a pack is split then), else it waits."""
        ticket.tries += 1
        ticket.stream = ticket.stream or verdict.code in SLOW  # events keep the way open for a slow answer
        most = min(self._terms.max_attempts, verdict.most_tries or self._terms.max_attempts)
        if ticket.tries >= most and len(ticket.rows) <= 1:
            await self._keep(ticket, self._books.outcome(ticket, reply, verdict), entries)
            return
        attempt = self._books.attempt(ticket, reply, verdict, call_id)
        billed_unseen = attempt.lost or (reply.status == 200 and attempt.cost is None)
        ticket.spent = None if billed_unseen else attempt.cost or 0.0
        await self._keep(ticket, attempt, entries)
        delay_s = self._terms.backoff.delay(ticket.tries, verdict.retry_after_s)
        if ticket.tries < most:
            self._put_back(ticket, delay_s)
        else:
            self._backlog.split(ticket, delay_s=delay_s, tries=most - 1)

    async def _keep(self, ticket: Ticket, record: Outcome | Attempt, entries: list[int]) -> None:
        if ticket.rows:
            await self._keeper.keep_all(packs.parted(ticket.rows, record), entries)
        else:
            await self._keeper.keep(record, entries[0])

    def _clear(self, entries: list[int]) -> None:
        for entry in entries:
            self._keeper.clear(entry)

    def _hold(self, ticket: Ticket, verdict: Verdict) -> None:
        """A limit is met: the row waits and is charged nothing."""
        self.activity.last_trouble = f"{verdict.code}: {verdict.message}"
        self._reached = True
        ticket.waits += 1
        backoff = self._terms.backoff
        self._put_back(ticket, backoff.soon() if verdict.soon else backoff.delay(ticket.waits, verdict.retry_after_s))

    def _put_back(self, ticket: Ticket, delay_s: float) -> None:
        self._backlog.put_back(ticket, delay_s)

    def stop(self, why: PipelineError) -> None:
        """Drain, and have this as the reason."""
        if self.stopped is None:
            self.stopped = why
        self.drain()


def _fatal(verdict: Verdict) -> PipelineError:
    if verdict.code == "budget_exceeded":
        return BudgetError(f"the gateway's budget is used up: {verdict.message}")
    return GatewayError(f"the gateway refuses this job ({verdict.code}): {verdict.message}")


def _unreached(verdict: Verdict) -> PipelineError:
    return GatewayError(
        f"the gateway was not reached for {UNREACHED_S:.0f} s, and never before in this journal "
        f"({verdict.code}): {verdict.message}. Check the base URL, the network and the VPN"
    )

"""Workers that take tickets from one backlog: slot -> gate -> money -> turn -> send; what came back is for ``judge``.

There are as many long-lived workers as the job's ceiling; how many of them send is for ``slots`` to say. A ticket that
waits for its next try sits in a timer and holds no slot. Time is the loop's, so that tests can run it virtually; the wall
clock is injected.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from pipeline.accounting import Accounting
from pipeline.errors import BudgetError, PipelineError
from pipeline.gateways import OpenAI
from pipeline.limits.tokens import Estimate
from pipeline.pool import packs
from pipeline.pool.away import Away
from pipeline.pool.backlog import Backlog, Item, Ticket
from pipeline.pool.books import Books, Keeper
from pipeline.pool.judge import Controls, Judge, Rulings, Try
from pipeline.pool.outage import GatewayProber, Outage, Sender, Spell
from pipeline.pool.patience import Patience
from pipeline.progress import Activity
from pipeline.records import CHAT, Completion, Outcome, Reply, Request, Verdict

LEAST_WAITING = 16
DIVIDE_EVERY_S = 0.25
ASLEEP_S = 30.0  # the wall clock runs on while a machine sleeps, the loop's does not


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the pool works by. ``reached``: this journal has answers from this gateway; ``many_models``: rows
    name their own."""

    slots: int
    run_name: str
    rulings: Rulings
    fail_on_length: bool = False
    stream: bool = False
    reached: bool = False
    many_models: bool = False
    patience: Patience = field(default_factory=Patience)
    pack: int = 1
    pack_tokens: int = 0


class Pool:
    """Works off a feed; ``stopped`` is why it ended early, if it did."""

    def __init__(
        self,
        terms: Terms,
        *,
        sender: Sender,
        dialect: OpenAI,
        accounting: Accounting,
        keeper: Keeper,
        wall_clock: Callable[[], float],
        controls: Controls,
    ) -> None:
        self._terms = terms
        self._sender = sender
        self._dialect = dialect
        self._keeper = keeper
        self._wall_clock = wall_clock
        self._slots, self._rates = controls.slots, controls.rates
        self._budget, self._drift = controls.budget, controls.drift
        self._estimate = Estimate()
        self._in_flight: dict[int, float] = {}  # when each was sent, the oldest first
        self._books = Books(
            dialect=dialect,
            accounting=accounting,
            wall_clock=wall_clock,
            fail_on_length=terms.fail_on_length,
        )
        self._backlog = Backlog(
            most_waiting=max(terms.slots, LEAST_WAITING),
            low_water=2 * terms.slots,
            pack=terms.pack,
            pack_tokens=terms.pack_tokens,
        )
        self._judge = Judge(
            terms.rulings,
            dialect=dialect,
            books=self._books,
            keeper=keeper,
            backlog=self._backlog,
            controls=controls,
            stop=self.stop,
            answered=self._watch,
            reached=terms.reached,
        )
        self._prober = GatewayProber(
            sender, dialect, run_name=terms.run_name, enter=keeper.enter, booked=self._book_witness
        )
        self._away = Away(self._new_outage, many=terms.many_models, back=self._backlog.unpark)
        self.stopped: PipelineError | None = None

    @property
    def activity(self) -> Activity:
        """What goes on now."""
        now = asyncio.get_running_loop().time()
        spell = self._away.spell
        return Activity(
            busy=len(self._in_flight),
            slots=self._slots.allowed,
            waiting=self._backlog.waiting,
            trouble=self._judge.trouble,
            away_since=None if spell is None else spell.started_at,
            away="" if spell is None else spell.cause,
            rpm=self._rates.rpm,
            paused_s=max(0.0, self._rates.paused_until - now),
            oldest_s=now - next(iter(self._in_flight.values()), now),
            outages=[spell.told for spell in self.outages],
        )

    @property
    def outages(self) -> list[Spell]:
        """Those there were, and the one that lasts."""
        return self._away.spells

    async def work(self, feed: AsyncGenerator[Sequence[Item], None]) -> None:
        """Run until the feed is worked off or the pool was told to ``drain``."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._away.watch(), name="outages")
            dividing = group.create_task(self._divide(), name="lease")
            async with asyncio.TaskGroup() as workers:
                workers.create_task(self._feed(feed), name="feed")
                for number in range(self._terms.slots):
                    workers.create_task(self._worker(), name=f"worker-{number}")
            watching.cancel()
            dividing.cancel()

    def drain(self) -> None:
        """Start nothing more; what is in flight is finished and kept."""
        self._backlog.close()
        self._away.release()
        self._slots.close()
        self._rates.close()

    def stop(self, why: PipelineError) -> None:
        """Drain, and have this as the reason, unless the run is ending already."""
        if not self._backlog.closed:
            self.stopped = why
        self.drain()

    async def _feed(self, feed: AsyncGenerator[Sequence[Item], None]) -> None:
        try:
            await self._backlog.feed(feed)
        except PipelineError as exc:
            self.stop(exc)  # what is in flight is still finished and kept

    async def _divide(self) -> None:
        """Keep in step with the other runs of this key, and see when the machine was asleep."""
        loop = asyncio.get_running_loop()
        ahead_s = self._wall_clock() - loop.time()
        while True:
            self._slots.divide()
            self._rates.share_out()
            await asyncio.sleep(DIVIDE_EVERY_S)
            before_s, ahead_s = ahead_s, self._wall_clock() - loop.time()
            if ahead_s - before_s > ASLEEP_S:
                self._judge.slept()
                await self._sender.drop()

    # one request

    async def _worker(self) -> None:
        while (item := await self._backlog.get()) is not None:
            if isinstance(item, Outcome):
                await self._keeper.keep((item,))
                continue
            if self._away.model(item.request.model):
                self._backlog.park(item, item.request.model)
                continue
            await self._slots.acquire()
            try:
                await self._try_within(item)
            finally:
                self._slots.release()
            if self._backlog.closed:
                return  # what was not sent stays pending
            self._backlog.settle()

    async def _try_within(self, ticket: Ticket) -> None:
        """Pass the gate, put the request's upper bound of money aside and wait for its turn; settle what it did cost."""
        reserved = 0.0
        try:
            if self._budget is not None:
                reserved = await self._budget.reserve(ticket.rows or (ticket.request,))
        except BudgetError as exc:
            self.stop(exc)
            return
        tokens = self._estimate.of(ticket.request)
        while True:
            if self._away.gateway:
                await self._away.gate()
            await self._rates.turn(tokens)
            if self._backlog.closed or not self._away.gateway:  # else it began while this one waited
                break
        ticket.spent = 0.0
        if self._away.model(ticket.request.model):
            self._backlog.park(ticket, ticket.request.model)
        elif not self._backlog.closed:
            await self._try(ticket, tokens)
        if self._budget is not None:
            self._budget.settle(reserved, ticket.spent)

    async def _try(self, ticket: Ticket, tokens: int) -> None:
        request = ticket.request
        ticket.sends += 1
        call_id = f"{self._terms.run_name}-{request.index}-{ticket.sends}"
        tried = Try(
            ticket=ticket,
            call_id=call_id,
            entries=[self._keeper.enter(row, call_id) for row in ticket.rows or (request,)],
            sent_at=asyncio.get_running_loop().time(),
            tokens=tokens,
            base64=self._judge.asks_base64,
        )
        self._in_flight[id(tried)] = tried.sent_at
        try:
            reply = await self._send(tried)
        finally:
            del self._in_flight[id(tried)]
        await self._judge.settle(tried, reply, self._away)

    def _send(self, tried: Try) -> Awaitable[Reply]:
        ticket, request = tried.ticket, tried.ticket.request
        stream = (self._terms.stream or ticket.stream) and request.endpoint == CHAT
        body = self._dialect.dress(request)
        if stream:
            body = self._dialect.streamed(body)
        elif ticket.rows and tried.base64:
            body = packs.asking_base64(body)
        return self._sender.send(request.endpoint, body, self._dialect.headers(tried.call_id), stream=stream)

    # what others tell

    def _new_outage(self, ended: Callable[[], None]) -> Outage:
        return Outage(
            self._prober,
            believed=self._judge.believed,
            wall_clock=self._wall_clock,
            lasts=self._outage_lasts,
            ended=ended,
        )

    def _outage_lasts(self, said: Verdict, seconds: float) -> None:
        if (why := self._terms.patience.ends(said, seconds, reached=self._judge.reached)) is not None:
            self.stop(why)

    async def _book_witness(self, request: Request, call_id: str, reply: Reply, entry: int) -> None:
        attempt = self._books.witness(request, call_id, reply)
        if self._budget is not None:
            self._budget.spent += attempt.cost.amount or 0.0
        if attempt.lost or reply.status == 200:
            await self._keeper.keep((attempt,), (entry,))
        else:
            self._keeper.clear(entry)

    def _watch(self, request: Request, completion: Completion) -> None:
        self._estimate.learn(request, completion.usage)
        if self._drift is None:
            return
        if (why := self._drift.check(request.model, completion.model, request.custom_id)) is not None:
            self.stop(why)

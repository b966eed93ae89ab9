"""The rows a pool has yet to deal with: fresh ones, ones that are due again, and timers of those that wait.

One queue instead of a task per row: a waiting row costs a timer and no slot, and fresh rows stay out while too many wait,
so that neither memory nor the gateway pays for a row that cannot go on.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from pipeline.pool import packs
from pipeline.records import EMBEDDINGS, Outcome, Request

MOST_BYTES = 64 << 20  # of fresh bodies: rows with images are large
MOST_PARKED = 1_000  # rows of models that are away, so that those of others behind them can go on

Item = Request | Outcome
"""What is fed: a request to send, or the outcome of a row that could not become one."""


@dataclass(slots=True, kw_only=True)
class Ticket:
    """A request on its way: ``rows`` are those it asks for when they are embeddings, all in one call. ``tries`` were charged to the row, ``sends`` went out, ``waits`` were the gateway's doing.

    ``stream``: the next try asks for events. ``blamed``: how often the gateway was blamed for
    its error, ``held``: how often it was away. ``stale``: one try of it went into a connection that was just closing.
    ``spent``: what the last one cost, None when it may have been billed unseen.
    """

    request: Request
    rows: Sequence[Request] = ()
    tries: int = 0
    sends: int = 0
    waits: int = 0
    stream: bool = False
    spent: float | None = 0.0
    blamed: int = 0
    stale: bool = False
    held: int = 0


class Backlog:
    """Tickets that are ready, and timers of those that wait. Fresh rows stay out while too many wait."""

    def __init__(self, *, most_waiting: int, low_water: int, pack: int = 1, pack_tokens: int = 0) -> None:
        """``pack``: so many embeddings rows go out in one call, as long as they are of ``pack_tokens`` at the most."""
        self._fresh: deque[Item] = deque()
        self._due: deque[Ticket] = deque()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._parked: dict[str, list[Ticket]] = {}
        self._most_waiting = most_waiting
        self._low_water = low_water * pack
        self._pack = pack
        self._pack_tokens = pack_tokens
        self._fresh_bytes = 0
        self._rows_waiting = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._wants_more = asyncio.Event()
        self._wants_more.set()
        self._exhausted = False
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether nothing more is given out."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Rows that wait for their next try."""
        return self._rows_waiting

    async def feed(self, source: AsyncGenerator[Sequence[Item], None]) -> None:
        """Fill up from the source whenever little is left, until it ends."""
        async with aclosing(source):
            async for items in source:
                self._fresh.extend(items)
                self._fresh_bytes += sum(len(item.body) for item in items if isinstance(item, Request))
                self._wake(len(items))
                while self._is_full and not self._closed:
                    self._wants_more.clear()
                    await self._wants_more.wait()
                if self._closed:
                    return
        self._exhausted = True
        self._wake()

    async def get(self) -> Ticket | Outcome | None:
        """The next thing to do; None when there will be nothing more."""
        while not self._closed:
            if self._due:
                return self._due.popleft()
            if self._fresh and self._has_room and not self._is_scant:
                return self._next()
            if self._exhausted and not self._fresh and not self._timers and not self._parked:
                return None
            future = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            await future
        return None

    @property
    def _has_room(self) -> bool:
        parked = sum(map(len, self._parked.values())) if self._parked else 0
        return len(self._timers) < self._most_waiting and parked < MOST_PARKED

    @property
    def _is_full(self) -> bool:
        return len(self._fresh) >= self._low_water or self._fresh_bytes >= MOST_BYTES

    @property
    def _is_scant(self) -> bool:
        """Rows that would fill the pack are just being read."""
        return len(self._fresh) < self._pack and not self._exhausted and self._wants_more.is_set() and self._pack > 1

    def _next(self) -> Ticket | Outcome:
        """The first fresh row, with those that go out in one call with it."""
        item = self._fresh.popleft()
        if isinstance(item, Outcome):
            next_up: Ticket | Outcome = item
        else:
            self._fresh_bytes -= len(item.body)
            next_up = Ticket(request=item) if item.endpoint != EMBEDDINGS else self._packed(item)
        if not self._is_full:
            self._wants_more.set()
        return next_up

    def _packed(self, first: Request) -> Ticket:
        value, rest = packs.opened(first)
        if rest is None:
            return Ticket(request=first)
        rows, inputs, tokens = [first], [value], first.estimated_tokens
        while len(rows) < self._pack and self._fresh:
            item = self._fresh[0]
            if isinstance(item, Outcome) or item.endpoint != EMBEDDINGS:
                break
            tokens += item.estimated_tokens
            if tokens > self._pack_tokens:
                break
            value, others = packs.opened(item)
            if others != rest:
                break
            rows.append(item)
            inputs.append(value)
            self._fresh_bytes -= len(item.body)
            self._fresh.popleft()
        return Ticket(request=packs.joined(rows, inputs), rows=rows)

    def split(self, ticket: Ticket, *, delay_s: float = 0.0, tries: int = 0) -> None:
        """Have the rows of a pack come again in two halves; a row that is alone starts anew, halves with ``tries``."""
        middle = len(ticket.rows) // 2
        for rows in (ticket.rows[:middle], ticket.rows[middle:]):
            half = Ticket(
                request=packs.joined(rows), rows=rows, sends=ticket.sends, tries=tries if len(rows) > 1 else 0
            )
            if delay_s:
                self.put_back(half, delay_s)
            else:
                self.put_first(half)

    def put_first(self, ticket: Ticket) -> None:
        """Have the ticket come again before all others."""
        self._due.append(ticket)
        self._wake(1)

    def put_back(self, ticket: Ticket, delay_s: float) -> None:
        """Have the ticket come again after ``delay_s``."""
        loop = asyncio.get_running_loop()
        self._rows_waiting += len(ticket.rows) or 1
        self._timers[id(ticket)] = loop.call_later(delay_s, self._come_due, ticket)

    def park(self, ticket: Ticket, model: str) -> None:
        """Have the ticket wait until ``unpark`` is told that its model is there again."""
        self._rows_waiting += len(ticket.rows) or 1
        self._parked.setdefault(model, []).append(ticket)

    def unpark(self, model: str) -> None:
        """Have all tickets of this model come again."""
        tickets = self._parked.pop(model, [])
        self._rows_waiting -= sum(len(ticket.rows) or 1 for ticket in tickets)
        self._due.extend(tickets)
        self._wake()

    def _come_due(self, ticket: Ticket) -> None:
        del self._timers[id(ticket)]
        self._rows_waiting -= len(ticket.rows) or 1
        self._due.append(ticket)
        self._wake(2)  # one for this ticket, one for the fresh row that may come in for it

    def settle(self) -> None:
        """A ticket has ended: whoever waits for the very end should look again."""
        if self._waiters and self._exhausted:
            self._wake()

    def close(self) -> None:
        """Give out nothing more; what waits stays pending in the journal."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._parked.clear()
        self._rows_waiting = 0
        self._wants_more.set()
        self._wake()

    def _wake(self, most: int | None = None) -> None:
        woken = 0
        while self._waiters and (most is None or woken < most):
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
                woken += 1

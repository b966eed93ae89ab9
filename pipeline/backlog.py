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

from pipeline.records import Outcome, Request

Item = Request | Outcome
"""What is fed: a request to send, or the outcome of a row that could not become one."""


@dataclass(slots=True, kw_only=True)
class Ticket:
    """A request on its way: ``tries`` were charged to the row, ``sends`` went out, ``waits`` were the gateway's doing.

    ``stream``: the next try asks for events. ``spent``: what the last one cost, None when it may have been billed unseen.
    """

    request: Request
    tries: int = 0
    sends: int = 0
    waits: int = 0
    stream: bool = False
    spent: float | None = 0.0


class Backlog:
    """Tickets that are ready, and timers of those that wait. Fresh rows stay out while too many wait."""

    def __init__(self, *, most_waiting: int, low_water: int) -> None:
        self._fresh: deque[Item] = deque()
        self._due: deque[Ticket] = deque()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._most_waiting = most_waiting
        self._low_water = low_water
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
        """Tickets that wait for their next try."""
        return len(self._timers)

    async def feed(self, source: AsyncGenerator[Sequence[Item], None]) -> None:
        """Fill up from the source whenever little is left, until it ends."""
        async with aclosing(source):
            async for items in source:
                self._fresh.extend(items)
                self._wake(len(items))
                while len(self._fresh) >= self._low_water and not self._closed:
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
            if self._fresh and len(self._timers) < self._most_waiting:
                item = self._fresh.popleft()
                if len(self._fresh) < self._low_water:
                    self._wants_more.set()
                return item if isinstance(item, Outcome) else Ticket(request=item)
            if self._exhausted and not self._fresh and not self._timers:
                return None
            future = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            await future
        return None

    def put_back(self, ticket: Ticket, delay_s: float) -> None:
        """Have the ticket come again after ``delay_s``."""
        loop = asyncio.get_running_loop()
        self._timers[id(ticket)] = loop.call_later(delay_s, self._come_due, ticket)

    def _come_due(self, ticket: Ticket) -> None:
        del self._timers[id(ticket)]
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
        self._wants_more.set()
        self._wake()

    def _wake(self, most: int | None = None) -> None:
        woken = 0
        while self._waiters and (most is None or woken < most):
            future = self._waiters.popleft()
            if not future.done():
                future.set_result(None)
                woken += 1

"""One connection: a request goes out in one write, what comes back is waited for and handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from pipeline.client.failures import disconnected, never_sent, stale, timed_out
from pipeline.client.wire.incoming import Answer, Incoming
from pipeline.records import Failure

# uvicorn, under both gateways, closes connections idle for 5 s (measured); a pool that keeps them longer races it.
KEEP_ALIVE_S = 4.0
REUSED_DROP_S = 1.0
JOINED_BYTES = 64 << 10  # a larger body is not copied behind its head


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """How long to wait, in seconds: to be connected, for the next byte of a reply, and for the whole."""

    connect_s: float
    silence_s: float
    total_s: float


class HttpConnection(asyncio.Protocol):
    """``await connection.sent(...)``, one request at a time. ``free`` is told when it may take the next, ``gone`` when it is closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        most_bytes: int,
        free: Callable[[HttpConnection], None],
        gone: Callable[[HttpConnection], None],
    ) -> None:
        self._loop = loop
        self._free, self._gone = free, gone
        self._incoming = Incoming(most_bytes)
        self._waiter: asyncio.Future[Answer | Failure] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._idle_since = loop.time()
        self._uses = 0
        self.closed = asyncio.Event()

    @property
    def is_fresh(self) -> bool:
        """Whether the server has most likely not closed it yet."""
        return not self._transport.is_closing() and self._loop.time() - self._idle_since < KEEP_ALIVE_S

    async def sent(self, head: bytes, body: bytes, times: Times, *, events: bool) -> Answer | Failure:
        """Send a request; what came of it."""
        if self._transport.is_closing():
            return never_sent("connect_failed", "the server closed the connection at once")
        self._uses += 1
        self._times = times
        self._sent_at = self._heard_at = now = self._loop.time()
        self._incoming.expect(events=events)
        self._waiter = self._loop.create_future()
        self._watch(now + min(times.silence_s, times.total_s))
        if len(body) <= JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.writelines((head, body))
        waiter = self._waiter
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiter is waiter:  # else its reply is here, and somebody else may be using the connection by now
                self.abort()
            raise

    def abort(self) -> None:
        """Break it: who waits for a reply gets none, however much of it is here."""
        self._settle(disconnected("it was broken off here"))
        self._transport.abort()

    # what asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Some bytes of a reply. Those that nobody asked for would be taken for the next one's."""
        if self._waiter is None:
            self.abort()
            return
        self._heard_at = self._loop.time()
        incoming = self._incoming
        incoming.feed(data)
        if incoming.trouble is not None:
            self._settle(incoming.trouble)
            self.abort()
        elif incoming.answer is not None:
            self._settle(incoming.answer)
            incoming.answer = None  # an idle connection holds no body
            # A reply that came before its request was out leaves the rest of that in front of the next one.
            if incoming.keeps and self._transport.get_write_buffer_size() == 0:
                self._idle_since = self._heard_at
                self._free(self)
            else:
                self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed."""
        if self._timer is not None:
            self._timer.cancel()
        if self._waiter is not None:
            if exc is None:
                self._incoming.closed()
            self._settle(self._incoming.trouble or self._incoming.answer or self._broken(exc))
        self._incoming.forget()
        self._gone(self)
        self.closed.set()

    # in here

    def _settle(self, came: Answer | Failure) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(came)

    def _broken(self, exc: Exception | None) -> Failure:
        at_once = self._loop.time() - self._sent_at < REUSED_DROP_S
        if self._uses > 1 and not self._incoming.begun and at_once:
            return stale()
        return disconnected("the server closed it" if exc is None else str(exc) or type(exc).__name__)

    def _watch(self, until: float) -> None:
        """One timer for all: it rings when something may be due, at the latest when an idle connection would be old."""
        until = min(until, self._loop.time() + KEEP_ALIVE_S)
        if self._timer is not None:
            if self._timer.when() <= until:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(until, self._ring)

    def _ring(self) -> None:
        self._timer = None
        idle = self._waiter is None
        times = None if idle else self._times
        due = self._idle_since + KEEP_ALIVE_S
        if times is not None:
            due = min(self._heard_at + times.silence_s, self._sent_at + times.total_s)
        if self._loop.time() < due:
            self._watch(due)
            return
        self._settle(timed_out())
        self.abort()

"""How fast requests may start: so many a minute, so many tokens a minute, told or learned. Home of aiolimiter.

Requests start evenly, never in a burst: a gateway counts in windows whose beginning only it knows. A limit nobody told is
learned from the first refusal: all runs of the key pause until the window that their first request began is over, and
what was let in during that window becomes the pace. Much later, and rarely, a little more is tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from aiolimiter import AsyncLimiter

from pipeline.ground.wording import number, plural
from pipeline.lease import Pace, Share

WINDOW_S = 60.0
MARGIN_S = 1.0  # a request reaches the gateway later than it was sent
SLACK = 1.02  # of each interval: else the last request of one window falls into the next one
POLL_S = 5.0  # where a window's beginning is not known, and at the most:
MOST_POLL_S = 30.0
QUIET_S = 300.0  # without a refusal, until a little more than was learned is tried
BURST_S = 3.0  # so much of a minute's tokens may be taken at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """So many requests and tokens a minute; None is not limited, or not known. ``assumed``: it may be more."""

    rpm: float | None = None
    tpm: float | None = None
    assumed: bool = False


class Rates:
    """``await turn(tokens)`` before each request; tell ``refused`` and ``answered`` what came of it.

    ``share`` holds what the runs of one key know together. ``note`` is told of every change, with its reason. Times are
    the loop's, in seconds.
    """

    def __init__(self, allowance: Allowance, *, share: Share, note: Callable[[str], None] = lambda text: None) -> None:
        self._share = share
        self._note = note
        self._told = allowance
        self._assumed = allowance.rpm if allowance.assumed else None
        self._rpm: float | None = None
        self._tpm: float | None = None
        self._requests: AsyncLimiter | None = None
        self._tokens: AsyncLimiter | None = None
        self._queue = asyncio.Lock()  # first come first served: a large request is not overtaken for ever
        self._closing = asyncio.Event()
        self._begun = 0  # requests started since ``share_out``,
        self._begun_at = 0.0  # the first of them when
        self._debt = 0.0  # tokens used over what was put aside
        self._quiet_since = float("-inf")
        self._quiet_s = QUIET_S
        self._step = 0.1
        self._poll_s = POLL_S
        self._good_rpm: float | None = None  # before a little more was tried
        self._go_by(self._assumed)
        self.paused_until = float("-inf")

    @property
    def rpm(self) -> float | None:
        """The pace in requests a minute; None when there is none."""
        return self._rpm

    async def turn(self, tokens: int) -> None:
        """Wait until a request of about ``tokens`` may start; when closed everybody passes, to see that."""
        if self._rpm is None and self._tpm is None and self.paused_until == float("-inf"):
            self._count(asyncio.get_running_loop().time(), 1)
        else:
            await self._or_closed(self._take_turn(tokens))

    def close(self) -> None:
        """Let everyone through."""
        self._closing.set()

    def share_out(self) -> None:
        """Tell the other runs of this key what was begun, and hear what they know: called a few times a second."""
        now = asyncio.get_running_loop().time()
        with self._share.locked() as pace:
            self._tell(pace)
            if pace.paused_until > now:
                _learn(pace)  # other runs may have told of more
            paused_until, rpm = pace.paused_until, pace.rpm
        self.paused_until = paused_until if paused_until > now else float("-inf")
        before = self._rpm
        self._go_by(rpm or self._assumed)
        if self._rpm not in (None, before):
            self._note(f"rates: {number(self._rpm)} requests a minute, as the runs of this key have learned")

    # what came of requests

    def refused(self, *, sent_at: float) -> None:
        """A request that was sent at ``sent_at`` met the rate limit, and the gateway does not say how long to wait."""
        now = asyncio.get_running_loop().time()
        with self._share.locked() as pace:
            self._tell(pace)
            pace.refused += 1
            if sent_at >= pace.paused_until:
                self._pause(pace, now)
            else:
                _learn(pace)  # it was on its way when the pause began, here or in another run
            self.paused_until, rpm = pace.paused_until, pace.rpm
        self._go_by(rpm or self._assumed)

    def pause(self, seconds: float) -> None:
        """The gateway says how long everyone is to wait."""
        until = asyncio.get_running_loop().time() + seconds
        with self._share.locked() as pace:
            pace.paused_until = max(pace.paused_until, until)
            self.paused_until = pace.paused_until

    def answered(self, *, put_aside: int, used: int | None) -> None:
        """A request was let in. ``used`` of the tokens put aside for it were needed, None when nobody counted."""
        if self._tpm is not None and used is not None:
            self._debt += used - put_aside
        self._poll_s = POLL_S
        if self._rpm in (None, self._told_rpm):
            return
        now = asyncio.get_running_loop().time()
        if self._quiet_since == float("-inf"):
            self._quiet_since = now
        elif now - self._quiet_since >= self._quiet_s and self._queue.locked():
            self._try_more(now)

    def announced(self, *, rpm: int | None, tpm: int | None) -> None:
        """The gateway tells the key's own limits; what the job asks for holds where it is less."""
        told = Allowance(rpm=least(self._told_rpm, rpm), tpm=least(self._told.tpm, tpm))
        if (told.rpm, told.tpm) != (self._told_rpm, self._told.tpm):
            self._note(f"rates: the gateway says {rpm or 'any'} requests and {tpm or 'any'} tokens a minute")
            self._told, self._assumed = told, None
            self._go_by(None)

    # learning

    def _pause(self, pace: Pace, now: float) -> None:
        """A new episode. Where no pace is told or learned yet, the window so far tells the allowance."""
        let_in = pace.started - pace.refused
        self._quiet_since = now
        if not pace.rpm and self._told_rpm is None and let_in > 0:
            pace.paused_until = _end_of_window(pace)
            _learn(pace)
            words = (
                f"about {plural(let_in, 'request a minute is', 'requests a minute are')} let in, as this window shows"
            )
        else:
            pace.paused_until = now + self._poll_s
            words = self._slow_down(pace)
            self._poll_s = min(1.5 * self._poll_s, MOST_POLL_S)
        self._note(f"rates: refused; pause of {pace.paused_until - now:.1f} s for all; {words}")

    def _slow_down(self, pace: Pace) -> str:
        """Refused at the pace itself: back to the one before more was tried, or a little slower, once after each answer."""
        self._step = 0.1
        if self._good_rpm is not None:
            pace.rpm, self._good_rpm = self._good_rpm, None
            self._quiet_s = min(2.0 * self._quiet_s, 16 * QUIET_S)
        elif self._rpm is not None and self._poll_s == POLL_S:
            pace.rpm = max(1.0, 0.95 * self._rpm)
        return f"the pace is {number(pace.rpm)} a minute" if pace.rpm else "then one by one"

    def _try_more(self, now: float) -> None:
        if self._rpm is None:
            return
        self._good_rpm, self._quiet_since = self._rpm, now
        more = self._rpm * (1.0 + self._step)
        self._note(
            f"rates: {number(self._rpm)} -> {number(more)} a minute: nothing was refused for {self._quiet_s:.0f} s"
        )
        self._step = min(1.0, 2.0 * self._step)
        with self._share.locked() as pace:
            pace.rpm = more
        self._go_by(more)

    # taking turns

    @property
    def _told_rpm(self) -> float | None:
        return None if self._told.assumed else self._told.rpm

    def _go_by(self, learned: float | None) -> None:
        """Have the limiters go at the least of what is told and learned."""
        rpm, tpm = least(self._told_rpm, learned), self._told.tpm
        if rpm != self._rpm:
            self._rpm = rpm
            self._requests = None if rpm is None else AsyncLimiter(1, SLACK * 60.0 / rpm)
        if tpm != self._tpm:
            self._tpm = tpm
            self._tokens = None if tpm is None else AsyncLimiter(tpm * BURST_S / 60.0, SLACK * BURST_S)

    async def _take_turn(self, tokens: int) -> None:
        async with self._queue:
            if self._requests is not None:
                await self._requests.acquire()
            if self._tokens is not None:
                await self._put_aside(self._tokens, tokens)
            delay_s = self._others_turn(tokens)
            while delay_s > 0:
                await asyncio.sleep(delay_s)
                delay_s = self._others_turn(tokens)  # somebody else may have been first, or a pause have begun

    async def _put_aside(self, limiter: AsyncLimiter, tokens: int) -> None:
        """In pieces: the limiter refuses an amount over its size."""
        left = max(0.0, tokens + self._debt)
        self._debt = min(0.0, tokens + self._debt)
        while left > 0:
            piece = min(left, limiter.max_rate)
            await limiter.acquire(piece)
            left -= piece

    def _others_turn(self, tokens: int) -> float:
        """Seconds to wait for a pause to end, or for the other runs of this key; 0 when the turn is ours, and taken."""
        now = asyncio.get_running_loop().time()
        with self._share.locked() as pace:
            until = max(pace.paused_until, pace.next_start, pace.next_tokens)
            if until > now:
                return until - now
            if self._rpm is not None:
                pace.next_start = now + SLACK * 60.0 / self._rpm
            if self._tpm is not None:
                pace.next_tokens = max(pace.next_tokens, now - BURST_S) + SLACK * tokens * 60.0 / self._tpm
        self.paused_until = float("-inf")
        self._count(now, 1)
        return 0.0

    def _count(self, now: float, requests: int) -> None:
        if not self._begun:
            self._begun_at = now
        self._begun += requests

    def _tell(self, pace: Pace) -> None:
        """Add what was begun to the window that all runs of the key share; a new one begins when the last is over."""
        if self._begun and self._begun_at - pace.window_start >= WINDOW_S:
            pace.window_start, pace.started, pace.refused = self._begun_at, 0, 0
        pace.started += self._begun
        self._begun = 0

    async def _or_closed(self, waiting: Coroutine[Any, Any, None]) -> None:
        turn = asyncio.create_task(waiting, name="turn")
        closing = asyncio.create_task(self._closing.wait(), name="closing")
        try:
            await asyncio.wait({turn, closing}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            turn.cancel()
            closing.cancel()
        if turn.done() and not turn.cancelled():
            turn.result()


def _end_of_window(pace: Pace) -> float:
    return pace.window_start + WINDOW_S + MARGIN_S


def _learn(pace: Pace) -> None:
    """Where a pause ends a window that was seen from its beginning, what was let in during that is the pace."""
    if pace.paused_until == _end_of_window(pace):
        pace.rpm = float(max(1, pace.started - pace.refused))


def least(one: float | None, other: float | None) -> float | None:
    """The smaller limit; None is no limit."""
    known = [value for value in (one, other) if value is not None]
    return min(known, default=None)

"""How many requests may be in flight: one controller, which finds the gateway's limit and keeps to it.

It begins with one (the canary), doubles while answers come and all of it is used, up to what the gateway announced or the
job's ceiling. A refusal for want of a parallel slot cuts once an episode, to what was really let in; upwards is tried
again later, and less and less often. Runs of one key divide the number among themselves (see ``lease``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from pipeline.lease import Share

HOLD_S = 10.0  # after trouble at the gateway: no growth
FIRST_TRY_S = 10.0  # after a cut: until one more is tried,
TOLD_TRY_S = 1.0  # where the gateway tells of more: others have the rest, often what a killed run has left there;
# and every try that goes well doubles the next
MOST_TRY_S = 600.0


class Slots:
    """``await acquire()`` before a request, ``release()`` after it; in between tell what came of it.

    ``ceiling`` is the most this run may have in flight, ``first`` what it begins with. ``note`` is told of every change,
    with its reason. Times are the loop's, in seconds.
    """

    def __init__(
        self,
        *,
        ceiling: int,
        share: Share,
        first: int = 1,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._ceiling = ceiling
        self._share = share
        self._note = note
        self._limit = min(first, ceiling)  # of this run, while it rises
        self._key: int | None = None  # of all runs of the key together: announced, or learned from refusals
        self._told: int | None = None
        self._others = 0
        self._granted = self._limit
        self.busy = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False
        self._successes = 0
        self._hold_until = float("-inf")
        self._cut_at = float("-inf")
        self._peak = 0  # requests in flight when the present episode of refusals began,
        self._refused = 0  # and how many of those were refused
        self._try_at = float("-inf")
        self._try_s = FIRST_TRY_S
        self._tried_at = float("-inf")
        self._more = 1  # how many more are tried

    @property
    def allowed(self) -> int:
        """How many requests this run may have in flight now."""
        return min(self._limit, self._granted)

    @property
    def alone(self) -> bool:
        """Whether a single request is in flight, of all runs of this key."""
        return self.busy + self._share.elsewhere == 1

    async def acquire(self) -> None:
        """Wait for a slot, first come first served; when closed everybody passes, to see that."""
        if self._closed or (not self._waiters and self.busy < self.allowed):
            self.busy += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()  # it was given just now
            raise

    def release(self) -> None:
        """Give a slot back."""
        self.busy -= 1
        self._let_in()

    def close(self) -> None:
        """Let everyone through."""
        self._closed = True
        self._let_in()

    def divide(self) -> None:
        """See what other runs of this key need, leave and have learned: called a few times a second."""
        with self._share.locked() as pace:
            key = pace.parallel or None
        if key not in (None, self._key):
            self._note(f"slots of this key: {self._key or 'not known'} -> {key}: another run with it has learned so")
            self._try_at = asyncio.get_running_loop().time() + self._first_try_s
        self._key = key
        demand = min(self.busy + len(self._waiters), self._ceiling)
        parallel = self._ceiling if self._key is None else self._key
        self._granted = self._share.refresh(demand=demand, busy=self.busy, parallel=parallel)
        if self._share.others != self._others:
            self._others = self._share.others
            self._note(f"other runs with this key on this machine: {self._others}; slots and pace are shared among all")
        self._let_in()

    # what came of requests

    def answered(self, *, first_try: bool) -> None:
        """The gateway has dealt with a request; one that took several tries says nothing about the limit."""
        now = asyncio.get_running_loop().time()
        if not first_try or not self._waiters or now < self._hold_until:
            return
        if self._limit < self._most:
            self._successes += 1
            if self._successes >= self._limit:
                self._rise()
        elif now >= self._try_at:
            self._try_more(now)

    def refused(self, *, sent_at: float) -> None:
        """No parallel slot was free for a request that was sent at ``sent_at``."""
        now = asyncio.get_running_loop().time()
        if sent_at >= self._cut_at:  # else it was in flight already when the last cut was made: the same episode
            self._peak, self._refused = self.busy + self._share.elsewhere, 0
            if self._cut_at == float("-inf"):
                self._try_s = self._first_try_s
            elif self._told is None or self._tried_at > self._cut_at:  # of what is told, trying was not refused yet
                self._try_s = min(2.0 * self._try_s, MOST_TRY_S)
            self._cut_at, self._more = now, 1
        self._refused += 1
        self._try_at = now + self._try_s
        let_in = max(1, self._peak - self._refused)
        with self._share.locked() as pace:
            self._key = pace.parallel or None  # another run may just have learned of fewer
        if self._key is None or let_in < self._key:
            self._learn(let_in, f"of {self._peak} in flight {self._refused} were refused")

    def troubled(self) -> None:
        """Something else is wrong at the gateway: no time to grow."""
        self._hold_until = asyncio.get_running_loop().time() + HOLD_S

    def announced(self, parallel: int) -> None:
        """The gateway tells how many the key may have."""
        if parallel != self._told:
            self._told = parallel
            self._learn(parallel, "the gateway says so")

    @property
    def _most(self) -> int:
        return self._ceiling if self._key is None else min(self._key, self._ceiling)

    @property
    def _first_try_s(self) -> float:
        return FIRST_TRY_S if self._told is None else TOLD_TRY_S

    def _rise(self) -> None:
        limit, self._successes = min(2 * self._limit, self._most), 0
        self._note(f"slots: {self._limit} -> {limit}: answers come, and all of them are used")
        self._limit = limit
        self.divide()

    def _try_more(self, now: float) -> None:
        most = self._told or self._ceiling
        if self._key is None or self._key >= most:
            return
        if self._tried_at > self._cut_at:  # the last one went well
            self._try_s = self._first_try_s
            self._more = 1 if self._told is None else 2 * self._more
        self._tried_at, self._try_at = now, now + self._try_s
        more = min(self._more, most - self._key)
        what = "one more is" if more == 1 else f"{more} more are"
        self._learn(self._key + more, f"nothing was refused for a while: {what} tried")

    def _learn(self, parallel: int, why: str) -> None:
        self._note(f"slots of this key: {self._key or 'not known'} -> {parallel}: {why}")
        self._key = parallel
        with self._share.locked() as pace:
            pace.parallel = parallel
        self.divide()

    def _let_in(self) -> None:
        while self._waiters and (self._closed or self.busy < self.allowed):
            waiter = self._waiters.popleft()
            if not waiter.done():
                self.busy += 1
                waiter.set_result(None)

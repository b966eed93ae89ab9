"""A pool with an in-memory gateway and journal, on a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from virtual import run_virtually

from pipeline.accounting import Accounting, PriceOf
from pipeline.gateways import OpenAI
from pipeline.lease import Memory, Share
from pipeline.limits.budget import Budget
from pipeline.limits.rates import Allowance, Rates
from pipeline.limits.slots import Slots
from pipeline.pool import Pool, Terms
from pipeline.pool.books import Keeper
from pipeline.pool.judge import Controls, Rulings
from pipeline.pool.outage import Sender
from pipeline.pool.patience import Patience
from pipeline.pool.poison import Poison
from pipeline.pool.retry import Backoff
from pipeline.records import Attempt, Failure, Outcome, Reply, Request

GOOD = {
    "id": "x",
    "model": "m-1",
    "choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
}


def reply(status: int = 200, json: object = GOOD, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status=status, headers=headers or {}, body=b"{}", json=json, elapsed_s=0.1)


def lost(code: str = "timeout", *, sent: bool = True, stale: bool = False) -> Reply:
    failure = Failure(code=code, message="gone", sent=sent, stale=stale)
    return Reply(status=0, headers={}, body=b"", json=None, elapsed_s=0.1, failure=failure)


def error(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **more: str) -> Reply:
    return reply(status, {"error": {"message": message, **more}}, headers)


def request(number: int) -> Request:
    return Request(
        custom_id=f"r{number}", index=number, endpoint="/chat/completions", model="m", body=b"{}",
        fingerprint=number.to_bytes(16, "big"), estimated_tokens=1,
    )  # fmt: skip


class Kept:
    """An in-memory journal that also watches what is in flight."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.attempts: list[Attempt] = []
        self.witnesses: list[Attempt] = []
        self.set: dict[int, str] = {}
        self._next = 0

    def enter(self, request: Request, call_id: str) -> int:
        self._next += 1
        self.set[self._next] = call_id
        return self._next

    def clear(self, entry: int) -> None:
        del self.set[entry]

    async def keep(self, records: Sequence[Outcome | Attempt], entries: Sequence[int] = ()) -> None:
        for record in records:
            if isinstance(record, Attempt):
                (self.witnesses if record.code == "witness" else self.attempts).append(record)
            else:
                self.outcomes.append(record)
        for entry in entries:
            self.clear(entry)


class Script:
    """A gateway that answers each row's n-th send as told, and notes when."""

    def __init__(
        self,
        answer: Callable[[int, int], Reply],
        *,
        takes_s: float = 1.0,
        back_at: float = 0.0,
        away: Reply | None = None,
    ) -> None:
        self._answer = answer
        self._back_at = back_at
        self._away = away
        self.probes: list[float] = []
        self.drops: list[float] = []
        self.witnesses: list[float] = []
        self._takes_s = takes_s
        self.sends: list[tuple[float, str]] = []
        self.streams: list[bool] = []
        self.busy = 0
        self.most_busy = 0
        self._counts: dict[str, int] = {}

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
        call_id = headers.get("X-Client-Request-Id") or headers.get("x-litellm-call-id") or "p1-0-?"
        now = asyncio.get_running_loop().time()
        if b"Say yes" in body:
            self.witnesses.append(now)
            return self._away if self._away is not None and now < self._back_at else reply()
        row = int(call_id.split("-")[1])
        self.streams.append(stream)
        self._counts[str(row)] = self._counts.get(str(row), 0) + 1
        nth = self._counts[str(row)]
        self.sends.append((asyncio.get_running_loop().time(), call_id))
        self.busy += 1
        self.most_busy = max(self.most_busy, self.busy)
        try:
            await asyncio.sleep(self._takes_s)
        finally:
            self.busy -= 1
        return self._answer(row, nth)

    async def get(self, path: str) -> Reply:
        now = asyncio.get_running_loop().time()
        self.probes.append(now)
        return self._away if self._away is not None and now < self._back_at else reply(200, {"data": []})

    async def drop(self) -> None:
        self.drops.append(asyncio.get_running_loop().time())


async def feed(rows: int, size: int = 8) -> AsyncGenerator[list[Request | Outcome], None]:
    for first in range(0, rows, size):
        yield [request(number) for number in range(first, min(first + size, rows))]


def pool_of(
    sender: Sender,
    keeper: Keeper,
    *,
    slots: int = 4,
    attempts: int = 5,
    dialect: OpenAI | None = None,
    prices: dict[str, PriceOf] | None = None,
    wall_clock: Callable[[], float] | None = None,
    budget_wait_s: float | None = None,
    allowance: Allowance | None = None,
    poison: Poison | None = None,
    budget: Budget | None = None,
    rising: bool = False,
    wait: bool = False,
    max_outage_s: float | None = None,
    share: Share | None = None,
    note: Callable[[str], None] = lambda text: None,
    **terms: Any,
) -> Pool:
    """A pool on the running loop's clock that shares with nobody; it begins with all its slots unless it is ``rising``."""
    clock = asyncio.get_running_loop().time
    share = share or Memory(ceiling=slots)
    rulings = Rulings(max_attempts=attempts, backoff=Backoff(random=random.Random(1)), budget_wait_s=budget_wait_s)
    return Pool(
        Terms(
            slots=slots,
            run_name="p1",
            rulings=rulings,
            patience=Patience(wait=wait, max_outage_s=max_outage_s),
            **terms,
        ),
        sender=sender,
        dialect=dialect or OpenAI(),
        accounting=Accounting(prices or {}),
        keeper=keeper,
        wall_clock=wall_clock or clock,
        controls=Controls(
            slots=Slots(ceiling=slots, share=share, first=1 if rising else slots, note=note),
            rates=Rates(allowance or Allowance(), share=share, note=note),
            poison=poison or Poison(rows=1_000_000, watches_first=False),
            budget=budget,
        ),
    )


def work(
    answer: Callable[[int, int], Reply],
    *,
    rows: int = 1,
    reached: bool = True,
    during: Callable[[Pool], object] | None = None,
    takes_s: float = 1.0,
    back_at: float = 0.0,
    away: Reply | None = None,
    sender: Script | None = None,
    **settings: Any,
) -> tuple[Kept, Script, Pool, float]:
    """Have a pool work off some rows; what was kept, what the gateway saw, and the virtual seconds it took."""
    kept, script = Kept(), sender or Script(answer, takes_s=takes_s, back_at=back_at, away=away)

    async def main() -> tuple[Pool, float]:
        loop = asyncio.get_running_loop()
        prices = {"m": PriceOf(prompt=1.0, completion=2.0)}
        pool = pool_of(script, kept, prices=prices, reached=reached, **settings)
        if during is not None:
            loop.call_later(0.5, during, pool)
        await pool.work(feed(rows))
        return pool, loop.time()

    pool, took = run_virtually(main())
    return kept, script, pool, took

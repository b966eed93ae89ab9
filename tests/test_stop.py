"""A run that is told to stop does so at once, whatever its workers are waiting for."""

from __future__ import annotations

import asyncio

import pytest
from pools import Kept, Script, error, feed, lost, pool_of, reply
from virtual import run_virtually

from pipeline.errors import IncompleteError
from pipeline.limits.budget import Budget
from pipeline.limits.rates import Allowance
from pipeline.records import Reply

REFUSED = lost("connect_failed", sent=False)
AWAY_S = 500.0


def stopped(answer: Reply, *, at: float = 30.0, rows: int = 20, away: Reply | None = None, **settings: object) -> float:
    """When a run ended that was told to at ``at``, in virtual seconds; each of its requests takes one."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        script = Script(lambda row, nth: answer, away=away, back_at=AWAY_S)
        pool = pool_of(script, Kept(), **settings)
        loop.call_later(at, pool.stop, IncompleteError("enough"))
        await pool.work(feed(rows))
        assert isinstance(pool.stopped, IncompleteError)
        return loop.time()

    return run_virtually(main())


def one_row() -> Budget:
    """Money for one row at a time."""
    return Budget(1.5, price=lambda *_: 1.0, most_output=1, name="max_cost")


def test_waiting_for_a_slot() -> None:
    assert stopped(reply(), at=0.5, rising=True) == 1.0


def test_waiting_for_a_turn() -> None:
    assert stopped(reply(), allowance=Allowance(rpm=1), at=30.0) == 30.0


def test_waiting_for_the_rate_to_come_back() -> None:
    assert stopped(error(429, "slow down", {"retry-after": "3600"})) == 30.0


def test_waiting_for_a_limit_of_everybody() -> None:
    assert stopped(error(429, "slow down"), at=20.5) < 22.0


def test_waiting_to_try_again() -> None:
    assert stopped(error(500), rows=1, attempts=9) < 31.5


@pytest.mark.parametrize("many", [False, True])
def test_waiting_for_a_gateway_that_is_away(many: bool) -> None:
    assert stopped(error(503), away=error(503), reached=True, many_models=many) == 30.0


def test_waiting_for_money_while_the_gateway_goes_away() -> None:
    """Whoever gets its turn only after the stop must not wait for an outage that began after it."""
    assert stopped(REFUSED, at=0.5, away=REFUSED, reached=True, budget=one_row()) == 1.0


def test_the_first_reason_to_stop_is_the_one_that_is_told() -> None:
    async def main() -> None:
        pool = pool_of(Script(lambda row, nth: reply()), Kept(), budget=one_row())
        asyncio.get_running_loop().call_later(0.5, pool.drain)
        await pool.work(feed(20))
        assert pool.stopped is None, "a signal: what it means is not for the pool to say"

    run_virtually(main())

"""The money stop: parallel requests cannot all pass the same check, and what is unseen counts as spent."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from virtual import run_virtually

from pipeline.errors import BudgetError
from pipeline.limits.budget import Budget
from pipeline.records import Request


def request(max_tokens: int | None = 10, n: int = 1) -> Request:
    body = b'{"n":%d}' % n if max_tokens is None else b'{"max_tokens":%d,"n":%d}' % (max_tokens, n)
    return Request(
        custom_id="r", index=1, endpoint="/x", model="m", body=body, fingerprint=b"0" * 16, estimated_tokens=1
    )


def budget(limit: float, most_output: int | None = None) -> Budget:
    return Budget(limit, price=lambda model, inside, outside: outside * 1.0, most_output=most_output, name="max_cost")


def test_parallel_requests_do_not_all_pass_the_same_check() -> None:
    async def main() -> tuple[int, float]:
        money = budget(35.0)
        passed = 0

        async def one() -> None:
            nonlocal passed
            reserved = await money.reserve([request(10)])
            passed += 1
            await asyncio.sleep(1)
            money.settle(reserved, 10.0)

        done = await asyncio.gather(*(one() for _ in range(20)), return_exceptions=True)
        assert sum(isinstance(result, BudgetError) for result in done) == 17
        return passed, money.spent

    assert run_virtually(main()) == (3, 30.0)


def test_what_turned_out_cheaper_makes_room() -> None:
    async def main() -> float:
        money = budget(35.0)
        for _ in range(20):
            money.settle(await money.reserve([request(10)]), 1.0)
        return money.spent

    assert run_virtually(main()) == 20.0


def test_an_answer_nobody_saw_counts_in_full() -> None:
    async def main() -> None:
        money = budget(25.0)
        money.settle(await money.reserve([request(10)]), 1.0)
        for _ in range(2):
            money.settle(await money.reserve([request(10)]), None)
        said = r"21 of 25 are spent in this run \(up to 20 by tries that were lost\), and the next row may cost 10"
        with pytest.raises(BudgetError, match=said):
            await money.reserve([request(10)])

    run_virtually(main())


@pytest.mark.parametrize(
    ("renewed", "limit", "advice"),
    [
        (True, 25.0, "it is what one run may spend, and the next may as much again"),
        (True, 5.0, "raise it to go on"),
        (False, 25.0, "raise it to go on"),
    ],
)
def test_who_has_reached_a_limit_reads_what_helps(renewed: bool, limit: float, advice: str) -> None:
    """Of ``max_cost`` the next run has as much again, if that is enough for a single row; of ``max_cost_total`` not."""

    async def main() -> None:
        money = Budget(limit, price=lambda *_: 10.0, most_output=1, name="a limit", renewed=renewed)
        with pytest.raises(
            BudgetError, match=f"a limit is reached: .* in this run, and the next row may cost 10; {advice}$"
        ):
            for _ in range(3):
                money.settle(await money.reserve([request(10)]), 10.0)

    run_virtually(main())


@pytest.mark.parametrize(
    ("body", "bound"),
    [
        (b'{"max_tokens":10,"prompt":["a","b","c"]}', 30.0),
        (b'{"max_tokens":10,"prompt":[[1,2],[3]],"n":2}', 40.0),
        (b'{"max_tokens":10,"prompt":[1,2,3]}', 10.0),
        (b'{"max_tokens":10,"prompt":["a"],"n":2,"best_of":5}', 50.0),
        (b'{"max_tokens":-1}', 500.0),
    ],
)
def test_the_bound_counts_every_text_that_a_request_may_have_written(body: bytes, bound: float) -> None:
    async def main() -> None:
        assert await budget(1e9, most_output=500).reserve([replace(request(), body=body)]) == bound

    run_virtually(main())


def test_the_bound_is_max_tokens_times_n_else_the_models_maximum_else_the_dearest_so_far() -> None:
    async def main() -> None:
        assert await budget(1e9).reserve([request(10, n=3)]) == 30.0
        assert await budget(1e9, most_output=500).reserve([request(None)]) == 500.0
        money = budget(1e9)
        money.settle(await money.reserve([request(None)]), 7.0)
        assert await money.reserve([request(None)]) == 7.0

    run_virtually(main())

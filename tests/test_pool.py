"""The life of a request, on a virtual clock with an in-memory gateway: backoff, attempts, slots, drain."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pools import GOOD, Kept, Script, error, feed, lost, pool_of, reply, request, work
from virtual import run_virtually

from pipeline.errors import BudgetError, GatewayError, IncompleteError, LookError
from pipeline.gateways import LiteLLM, Lumen
from pipeline.limits.budget import Budget
from pipeline.pool import Pool
from pipeline.pool.poison import Poison
from pipeline.pool.retry import Backoff
from pipeline.progress import Tally
from pipeline.records import Outcome, Reply, Request


def test_all_slots_are_used_and_never_more() -> None:
    memory, script, _, took = work(lambda row, nth: reply(), rows=40, slots=4)
    assert len(memory.outcomes) == 40
    assert script.most_busy == 4
    assert took == pytest.approx(10.0)
    assert memory.set == {}


def test_an_answer_has_tokens_cost_and_the_served_model() -> None:
    memory, *_ = work(lambda row, nth: reply())
    outcome = memory.outcomes[0]
    assert (outcome.status, outcome.model, outcome.completion and outcome.completion.model) == ("succeeded", "m", "m-1")
    assert (outcome.cost.amount, outcome.cost.source) == (pytest.approx(14e-6), "price_table")


def test_waiting_for_the_next_try_holds_no_slot() -> None:
    memory, script, _, took = work(lambda row, nth: error(500) if row == 0 and nth == 1 else reply(), rows=5, slots=1)
    assert [(when, call.split("-")[1]) for when, call in script.sends][:2] == [(0.0, "0"), (pytest.approx(1.0), "1")]
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert took == pytest.approx(6.0, abs=0.01)


@pytest.mark.parametrize(
    "bad",
    [
        error(500), error(408), reply(200, None), reply(200, {"choices": []}), reply(200, []), reply(418 + 100, None), lost(),
        reply(200, {"choices": [{"message": None}]}), reply(200, {"error": {"message": "mid-air"}}),
    ],
)  # fmt: skip
def test_server_errors_are_bounded_and_every_try_is_booked(bad: Reply) -> None:
    memory, script, _, _ = work(lambda row, nth: bad, attempts=3)
    assert len(script.sends) == 3
    assert [outcome.status for outcome in memory.outcomes] == ["failed"]
    assert len(memory.attempts) == 2
    unseen = bad.failure is not None or bad.status == 200  # a 200 that cannot be read may be billed as any other
    assert {attempt.lost for attempt in memory.attempts} == {unseen}
    assert memory.outcomes[0].lost == unseen
    assert memory.outcomes[0].error_message is not None
    assert memory.outcomes[0].error_message.endswith("(after 3 tries)")


@pytest.mark.parametrize("status", [400, 413, 422, 451])
def test_a_rows_own_fault_is_never_retried(status: int) -> None:
    memory, script, _, _ = work(lambda row, nth: error(status, "too long", code="context_length_exceeded"))
    assert len(script.sends) == 1
    assert memory.outcomes[0].error_code == "context_length_exceeded"
    assert memory.outcomes[0].error_message == f"HTTP {status}: too long"


@pytest.mark.parametrize(
    "bad",
    [error(429), error(503), error(502), error(529), lost("connect_failed", sent=False), reply(302, None)],
)
def test_the_gateways_trouble_costs_no_attempt(bad: Reply) -> None:
    memory, script, _, _ = work(lambda row, nth: bad if nth <= 12 else reply(), attempts=2)
    assert len(script.sends) == 13
    assert memory.outcomes[0].status == "succeeded"
    assert memory.attempts == []


def test_retry_after_is_honoured_to_the_second() -> None:
    _, script, _, _ = work(lambda row, nth: error(429, headers={"retry-after": "7"}) if nth == 1 else reply())
    waited = script.sends[1][0] - script.sends[0][0] - 1.0
    assert 7.0 <= waited <= 7.7


@given(tries=st.integers(1, 200), seed=st.integers(0, 2**32))
def test_backoff_grows_jitters_and_is_capped(tries: int, seed: int) -> None:
    backoff = Backoff(random=random.Random(seed))
    full = min(60.0, 2.0 ** (tries - 1))
    assert full / 2 <= backoff.delay(tries) <= full
    assert 30.0 <= backoff.delay(tries, 30.0) <= 31.0


def test_backoff_of_rows_that_failed_together_does_not_bring_them_back_together() -> None:
    _, script, _, _ = work(lambda row, nth: error(500) if nth == 1 else reply(), rows=8, slots=8)
    second = sorted(when for when, call in script.sends if call.endswith("-2"))
    assert len({round(when, 3) for when in second}) == 8


def test_a_gateway_that_says_no_to_all_is_not_hammered() -> None:
    """Rows that wait keep fresh ones out: a thousand rows at a closed gateway are a few dozen requests a minute."""

    def drain(pool: Pool) -> None:
        asyncio.get_running_loop().call_later(60, pool.drain)

    _, script, _, _ = work(lambda row, nth: error(429), rows=1000, slots=8, during=drain, takes_s=0.01)
    assert len({call.split("-")[1] for _, call in script.sends}) <= 16 + 8
    assert len(script.sends) < 24 * 8


def test_fatal_stops_the_run_and_leaves_rows_pending() -> None:
    refused = error(401, "bad key", code="invalid_api_key")
    memory, script, pool, _ = work(lambda row, nth: refused, rows=100, slots=2, reached=False)
    assert len(script.sends) == 2
    assert memory.outcomes == []
    assert isinstance(pool.stopped, GatewayError)
    assert "bad key" in str(pool.stopped)


def test_a_key_that_worked_and_is_refused_is_believed_after_a_minute() -> None:
    refused = error(401, "who are you")
    _, script, pool, took = work(lambda row, nth: refused, rows=20, reached=True, away=refused, back_at=1e9)
    assert isinstance(pool.stopped, GatewayError)
    assert 60 <= took < 100
    assert len(script.sends) == 4, "one send a slot, then one probe for all"
    memory, _, pool, _ = work(lambda row, nth: refused if nth == 1 else reply(), away=refused, back_at=40.0)
    assert pool.stopped is None
    assert memory.outcomes[0].status == "succeeded"


def test_a_full_parallel_limit_waits_for_a_slot_and_not_for_a_minute() -> None:
    full = error(
        429,
        "Rate limit exceeded for api_key: x. Limit type: max_parallel_requests. Current limit: 5",
        {"retry-after": "60"},
    )
    _, script, _, _ = work(lambda row, nth: full if nth < 20 else reply(), dialect=LiteLLM())
    waits = [later - earlier - 1.0 for (earlier, _), (later, _) in pairwise(script.sends)]
    assert len(waits) == 19
    assert all(0.2 <= wait <= 2.0 for wait in waits)


@pytest.mark.parametrize("slow", [lost("timeout"), error(524), error(504)])
def test_a_row_that_took_too_long_asks_for_events_the_next_time(slow: Reply) -> None:
    _, script, _, _ = work(lambda row, nth: slow if nth == 1 else reply())
    assert script.streams == [False, True]


def test_an_error_that_more_tries_do_not_mend_gets_few() -> None:
    bad = error(500, "Internal server error", type="api_error", code="internal_error")
    _, script, _, _ = work(lambda row, nth: bad, attempts=5, dialect=Lumen())
    assert len(script.sends) == 2


def test_a_cost_that_the_gateway_told_goes_before_the_price_table_also_for_lost_tries() -> None:
    told = {"x-litellm-response-cost": "3e-05"}
    bad = reply(200, {"choices": []}, told)
    memory, *_ = work(lambda row, nth: bad if nth == 1 else reply(headers=told), dialect=LiteLLM())
    assert (memory.outcomes[0].cost.amount, memory.outcomes[0].cost.source) == (3e-05, "gateway")
    assert memory.attempts[0].cost.amount == 3e-05


@pytest.mark.parametrize(
    ("bad", "known"),
    [
        (reply(200, None), None),
        (reply(200, None, {"x-litellm-response-cost": "3e-05"}), 3e-05),
        (reply(200, {"choices": [], "usage": GOOD["usage"]}), 1.4e-05),
    ],
)
def test_an_answer_that_cannot_be_read_is_lost_unless_its_tokens_or_cost_are_told(
    bad: Reply, known: float | None
) -> None:
    memory, *_ = work(lambda row, nth: bad if nth == 1 else reply(), dialect=LiteLLM())
    assert memory.attempts[0].cost.amount == known
    assert memory.attempts[0].lost == (known is None)


def test_what_an_unreadable_answer_cost_is_kept_also_when_the_gateway_is_to_blame() -> None:
    """A witness fails as well: the row is charged no try, and yet the money is spent."""
    bad = reply(200, None, {"x-litellm-response-cost": "3e-05"})
    memory, _, pool, _ = work(
        lambda row, nth: bad if nth == 1 else reply(), dialect=LiteLLM(), attempts=1, back_at=5.0, away=error(500)
    )
    assert [outcome.status for outcome in memory.outcomes] == ["succeeded"]
    assert [(attempt.cost.amount, attempt.lost) for attempt in memory.attempts] == [(3e-05, False)]
    assert len(pool.outages) == 1


@pytest.mark.parametrize(
    ("bad", "cost"),
    [(lost("timeout"), 10.0), (reply(200, None, {"x-litellm-response-cost": "0.5"}), 0.5), (error(500), 0.0)],
)
def test_a_try_that_the_gateway_is_to_blame_for_counts_towards_the_budget_all_the_same(bad: Reply, cost: float) -> None:
    budget = Budget(100.0, price=lambda *_: 10.0, most_output=1, name="max_cost")
    memory, _, pool, _ = work(
        lambda row, nth: bad if nth == 1 else reply(200, GOOD, {"x-litellm-response-cost": "0.25"}),
        dialect=LiteLLM(), attempts=1, back_at=5.0, away=error(500), budget=budget,
    )  # fmt: skip
    assert ([outcome.status for outcome in memory.outcomes], len(pool.outages)) == (["succeeded"], 1)
    assert budget.spent == pytest.approx(cost + 0.25, abs=1e-4), "what a witness costs is next to nothing"


def test_an_empty_budget_is_its_own_stop() -> None:
    _, _, pool, _ = work(lambda row, nth: error(429, "no money", code="insufficient_quota"))
    assert isinstance(pool.stopped, BudgetError)


REFUSED = lost("connect_failed", sent=False)


def test_never_reached_is_given_up_after_a_minute() -> None:
    _, script, pool, took = work(lambda row, nth: REFUSED, rows=50, reached=False, away=REFUSED, back_at=1e9)
    assert isinstance(pool.stopped, GatewayError)
    assert 60 <= took < 65
    assert len(script.sends) == 4
    assert len(script.probes) in (60, 61)


def test_once_reached_an_outage_is_waited_out_as_one_with_one_probe_a_second() -> None:
    def away(row: int, nth: int) -> Reply:
        return REFUSED if asyncio.get_running_loop().time() < 600 else reply()

    memory, script, pool, took = work(away, rows=50, slots=8, reached=True, away=REFUSED, back_at=600.0)
    assert pool.stopped is None
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert memory.attempts == []
    assert len(script.sends) == 8 + 50, "one send a slot found out; then nothing was sent until it was back"
    assert len(script.probes) == pytest.approx(600, abs=2)
    assert took == pytest.approx(600 + 7, abs=2.1), "back within two seconds"
    assert [(round(spell.started_at), spell.cause.split(":")[0]) for spell in pool.outages] == [(1, "connect_failed")]
    assert pool.outages[0].ended_at == pytest.approx(600, abs=2)


def test_a_500_that_a_witness_meets_too_is_an_outage_and_costs_no_row_an_attempt() -> None:
    def away(row: int, nth: int) -> Reply:
        return error(500, "Cannot connect to host") if asyncio.get_running_loop().time() < 300 else reply()

    memory, script, pool, _ = work(away, rows=20, slots=4, attempts=2, away=error(500), back_at=300.0)
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert memory.attempts == []
    assert len(script.sends) == 4 + 20
    assert len(script.witnesses) < 20, "backing off to 30 s"
    assert len(pool.outages) == 1


def test_a_500_that_a_witness_does_not_meet_is_the_rows_own() -> None:
    memory, script, pool, _ = work(lambda row, nth: error(500) if row == 3 else reply(), rows=10, slots=2, attempts=3)
    assert [outcome.custom_id for outcome in memory.outcomes if outcome.status == "failed"] == ["r3"]
    assert 1 <= len(script.witnesses) <= 3
    assert pool.outages == []
    assert len(memory.witnesses) == len(script.witnesses)
    assert all(attempt.cost.amount == pytest.approx(14e-6) for attempt in memory.witnesses), "booked as overhead"


def test_what_a_witness_costs_counts_towards_the_budget() -> None:
    budget = Budget(1.0, price=lambda *_: 0.0, most_output=1, name="max_cost")
    memory, script, *_ = work(lambda row, nth: error(500) if nth == 1 else reply(), budget=budget)
    assert (len(memory.outcomes), len(script.witnesses)) == (1, 1)
    assert budget.spent == pytest.approx(2 * 14e-6)


def test_a_row_that_alone_is_slower_than_the_front_proxy_waits_does_not_wait_for_ever() -> None:
    memory, _, pool, _ = work(lambda row, nth: error(524) if row == 3 else reply(), rows=10, attempts=3)
    failed = next(outcome for outcome in memory.outcomes if outcome.status == "failed")
    assert (failed.error_code, failed.lost) == ("http_524", True)
    assert pool.outages == []


def test_a_row_that_itself_takes_the_model_away_is_charged_in_the_end() -> None:
    """Measured on LiteLLM: a broken answer puts the model aside for some seconds, so that the witness fails, too."""
    poisoned = [0.0]

    def answer(row: int, nth: int) -> Reply:
        if row == 1:
            poisoned[0] = asyncio.get_running_loop().time()
            return error(500, "litellm.APIError")
        return reply()

    memory = Kept()
    aside = error(429, "in cooldown", {"retry-after": "5"}, type="all_deployments_in_cooldown")

    class Poisoned(Script):
        """Puts the model aside for five seconds."""

        async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
            self._back_at = poisoned[0] + 5.0 if poisoned[0] else 0.0
            return await super().send(endpoint, body, headers, stream=stream)

    async def main() -> None:
        sender = Poisoned(answer, away=aside, takes_s=0.1)
        await pool_of(sender, memory, slots=2, attempts=3, reached=True, dialect=LiteLLM()).work(feed(5))

    run_virtually(main())
    statuses = {outcome.custom_id: outcome.status for outcome in memory.outcomes}
    assert statuses == {"r0": "succeeded", "r1": "failed", "r2": "succeeded", "r3": "succeeded", "r4": "succeeded"}


@pytest.mark.parametrize(("drops", "tries"), [(1, 1), (2, 2)])
def test_a_connection_that_was_just_closing_costs_a_row_nothing_once(drops: int, tries: int) -> None:
    """It is sent again at once, and the first try is named: it may have been read all the same."""
    gone = lost("disconnected", stale=True)
    memory, script, pool, _ = work(lambda row, nth: gone if nth <= drops else reply(), attempts=2, takes_s=0.0)
    assert [outcome.status for outcome in memory.outcomes] == ["succeeded"]
    assert [(attempt.code, attempt.lost) for attempt in memory.attempts] == [("disconnected", True)] * drops
    assert [call for _, call in script.sends] == [f"p1-0-{nth}" for nth in range(1, drops + 2)]
    assert script.sends[1][0] == 0.0
    assert (len(script.witnesses), pool.outages, memory.set) == (tries - 1, [], {})


def test_an_answer_lost_in_an_outage_is_booked_though_not_charged() -> None:
    def away(row: int, nth: int) -> Reply:
        return lost("disconnected") if asyncio.get_running_loop().time() < 100 else reply()

    memory, *_ = work(away, rows=4, slots=4, attempts=1, away=REFUSED, back_at=100.0)
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert sum(attempt.lost for attempt in memory.attempts) == 4


def test_drain_during_an_outage_ends_at_once() -> None:
    memory, script, _, took = work(
        lambda row, nth: REFUSED,
        rows=50,
        away=REFUSED,
        back_at=1e9,
        during=lambda pool: asyncio.get_running_loop().call_later(30, pool.drain),
    )
    assert memory.outcomes == []
    assert took == pytest.approx(30.5, abs=0.1)
    assert len(script.sends) == 4


def test_drain_finishes_what_is_in_flight_and_starts_nothing() -> None:
    memory, script, _, took = work(lambda row, nth: reply(), rows=100, slots=4, during=Pool.drain)
    assert len(script.sends) == len(memory.outcomes) == 4
    assert took == pytest.approx(1.0)


def test_cut_off_answers_fail_when_asked_to_and_keep_their_cost() -> None:
    cut = {**GOOD, "choices": [{"message": {"content": "ye"}, "finish_reason": "length"}]}
    memory, *_ = work(lambda row, nth: reply(200, cut), fail_on_length=True)
    assert (memory.outcomes[0].status, memory.outcomes[0].error_code) == ("failed", "length")
    assert memory.outcomes[0].cost.amount == pytest.approx(14e-6)


def test_a_row_that_never_became_a_request_is_kept_without_a_send() -> None:
    memory, script = Kept(), Script(lambda row, nth: reply())
    broken = Outcome(
        custom_id="x", index=1, fingerprint=b"0" * 16, status="failed", error_code="null_field", sent=False
    )

    async def one() -> AsyncGenerator[list[Request | Outcome], None]:
        yield [broken]

    async def main() -> None:
        await pool_of(script, memory).work(one())

    run_virtually(main())
    assert memory.outcomes == [broken]
    assert script.sends == []


def test_an_outage_longer_than_allowed_ends_the_run() -> None:
    _, _, pool, took = work(lambda row, nth: REFUSED, rows=50, away=REFUSED, back_at=1e9, max_outage_s=600.0)
    assert isinstance(pool.stopped, IncompleteError)
    assert took == pytest.approx(602, abs=2)


def test_waiting_for_a_gateway_that_was_never_reached_has_no_end_when_asked_to() -> None:
    memory, _, pool, took = work(
        lambda row, nth: REFUSED if asyncio.get_running_loop().time() < 7200 else reply(),
        rows=5, reached=False, away=REFUSED, back_at=7200.0, wait=True,
    )  # fmt: skip
    assert (len(memory.outcomes), pool.stopped) == (5, None)
    assert 7200 < took < 7210


NO_COINS = error(429, "Coin budget exhausted", type="invalid_request_error")


def test_an_empty_budget_is_waited_out_when_asked_to() -> None:
    memory, script, pool, took = work(
        lambda row, nth: NO_COINS if asyncio.get_running_loop().time() < 3000 else reply(),
        rows=20, slots=4, away=NO_COINS, back_at=3000.0, dialect=Lumen(), budget_wait_s=3 * 3600.0,
    )  # fmt: skip
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert memory.attempts == []
    assert took < 3000 + 70
    assert len(script.witnesses) == pytest.approx(50, abs=1), "once a minute"
    assert [spell.code for spell in pool.outages] == ["budget_exceeded"]


def test_an_empty_budget_is_given_up_in_the_end() -> None:
    memory, _, pool, took = work(
        lambda row, nth: NO_COINS,
        away=NO_COINS,
        back_at=1e9,
        dialect=Lumen(),
        budget_wait_s=3 * 3600.0,
        max_outage_s=60.0,
    )
    assert memory.outcomes == []
    assert isinstance(pool.stopped, BudgetError)
    assert 3 * 3600 <= took <= 3 * 3600 + 61


def test_a_machine_that_slept_drops_its_connections_at_no_rows_charge() -> None:
    """The wall clock has jumped against the loop's; what was in flight breaks, and nobody is at fault."""
    asleep = [0.0]

    class Sleeper(Script):
        """Breaks what is in flight when connections are dropped."""

        async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
            began = asyncio.get_running_loop().time()
            sending = asyncio.ensure_future(super().send(endpoint, body, headers, stream=stream))
            while not sending.done():
                await asyncio.wait([sending], timeout=0.1)
                if self.drops and began < self.drops[0] and not sending.done():
                    return lost("disconnected")
            return sending.result()

    sleeper = Sleeper(lambda row, nth: reply(), takes_s=5.0)

    def sleep(pool: Pool) -> None:
        asleep[0] = 8 * 3600.0

    clock = 1_000_000.0
    memory, _, pool, _ = work(
        lambda *_: reply(), rows=8, slots=4, attempts=1, sender=sleeper, during=sleep,
        wall_clock=lambda: clock + asleep[0] + asyncio.get_running_loop().time(),
    )  # fmt: skip
    assert sleeper.drops == [pytest.approx(0.5, abs=0.3)]
    assert {outcome.status for outcome in memory.outcomes} == {"succeeded"}
    assert sum(attempt.lost for attempt in memory.attempts) == 4, "they may be billed"
    assert pool.outages == []


def rejected_outcomes(count: int, codes: str = "a") -> list[Outcome]:
    return [
        Outcome(custom_id=f"r{n}", index=n, fingerprint=b"", status="failed", error_code=codes[n % len(codes)])
        for n in range(count)
    ]


@pytest.mark.parametrize(("rows", "stops_at"), [(5, 5), (100, 5), (200, 10), (400, 20), (1_000_000, 20), (4, None)])
def test_first_rows_that_all_fail_alike_stop_the_run(rows: int, stops_at: int | None) -> None:
    poison = Poison(rows=rows)
    said = [poison.check([outcome]) for outcome in rejected_outcomes(min(rows, 30))]
    assert next((n for n, why in enumerate(said, 1) if why is not None), None) == stops_at


def test_first_rows_that_fail_otherwise_or_not_all_do_not_stop_it() -> None:
    assert Poison(rows=1000).check(rejected_outcomes(30, codes="ab")) is None
    succeeded = Outcome(custom_id="s", index=1, fingerprint=b"", status="succeeded")
    assert Poison(rows=1000).check([*rejected_outcomes(19), succeeded, *rejected_outcomes(30)]) is None
    assert Poison(rows=1000, watches_first=False).check(rejected_outcomes(1000)) is None
    unsent = [replace(outcome, sent=False) for outcome in rejected_outcomes(30)]
    assert Poison(rows=1000, most=5).check(unsent) is None, "rows that never became a request cost nothing"


def test_more_failures_than_allowed_stop_the_run() -> None:
    poison = Poison(rows=1000, most=7, watches_first=False)
    assert poison.check(rejected_outcomes(7, codes="abc")) is None
    assert isinstance(poison.check(rejected_outcomes(1)), LookError)


def test_a_broken_job_is_stopped_while_it_is_cheap() -> None:
    bad = error(400, "no such parameter", code="bad_parameter")
    memory, script, pool, _ = work(lambda row, nth: bad, rows=1000, slots=4, poison=Poison(rows=1000), rising=True)
    assert isinstance(pool.stopped, LookError)
    assert "bad_parameter" in str(pool.stopped)
    assert 20 <= len(script.sends) <= 23
    assert len(memory.outcomes) == len(script.sends)


def test_a_fatal_canary_has_cost_one_request() -> None:
    _, script, pool, _ = work(lambda row, nth: error(401, "bad key"), rows=100, slots=16, reached=False, rising=True)
    assert len(script.sends) == 1
    assert isinstance(pool.stopped, GatewayError)


def test_the_snapshot_tells_what_it_waits_for() -> None:
    seen: list[str] = []

    def look(pool: Pool) -> None:
        seen.append(Tally(total=3, completed=0, failed=0).snapshot(pool.activity).doing)
        asyncio.get_running_loop().call_later(
            400, lambda: seen.append(Tally(total=3, completed=0, failed=0).snapshot(pool.activity).doing)
        )

    work(lambda row, nth: reply(), rows=3, takes_s=412.0, during=look)
    assert seen == ["3 rows left, the oldest takes 0 s already", "3 rows left, the oldest takes 400 s already"]


def test_the_snapshot_tells_of_an_outage_while_it_lasts_and_after() -> None:
    seen: list[Any] = []

    def look(pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        for at in (10, 30):
            loop.call_at(at, lambda: seen.append(Tally(total=9, completed=0, failed=0).snapshot(pool.activity).outages))

    def away(row: int, nth: int) -> Reply:
        return REFUSED if asyncio.get_running_loop().time() < 20 else reply()

    work(away, rows=100, away=REFUSED, back_at=20.0, during=look)
    [(_, lasts, cause)], [(_, ended, _)] = seen
    assert (lasts, ended) == (None, 20.0)
    assert cause.startswith("connect_failed")


def test_one_of_several_models_that_is_away_does_not_hold_the_others() -> None:
    """A third of the rows ask a model in cooldown: they wait, the rest goes on, and nobody is charged."""
    cold = error(429, "in cooldown", {"retry-after": "5"}, type="all_deployments_in_cooldown")
    finished: dict[str, float] = {}

    class Two(Script):
        """Model m-cold is away for five minutes."""

        async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
            now = asyncio.get_running_loop().time()
            if b"m-cold" in body and now < 300:
                return cold
            answer = await super().send(endpoint, body, headers, stream=stream)
            finished[body.decode()[-9:]] = asyncio.get_running_loop().time()
            return answer

    async def rows() -> AsyncGenerator[list[Request | Outcome], None]:
        for number in range(90):
            model = "m-cold" if number % 3 == 0 else "m-warm"
            yield [replace(request(number), model=model, body=f'{{"model":"{model}"}}'.encode())]

    kept, gateway = Kept(), Two(lambda row, nth: reply())

    async def main() -> tuple[Pool, float]:
        pool = pool_of(gateway, kept, slots=4, dialect=LiteLLM(), reached=True, many_models=True)
        warm_at = 0.0
        working = asyncio.create_task(pool.work(rows()))
        while not working.done():
            await asyncio.sleep(0.5)
            if sum(outcome.model == "m-warm" for outcome in kept.outcomes) == 60 and not warm_at:
                warm_at = asyncio.get_running_loop().time()
        return pool, warm_at

    pool, warm_at = run_virtually(main())
    assert len(kept.outcomes) == 90
    assert kept.attempts == []
    assert warm_at < 20, "sixty rows at four slots of a second"
    assert [spell.code for spell in pool.outages] == ["model_cooldown"]
    cold_sends = [call for when, call in gateway.sends if when < 300]
    assert len(cold_sends) == 60

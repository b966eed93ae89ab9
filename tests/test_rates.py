"""The pace, on a virtual clock: fixed windows nobody announced, told rates, tokens, pauses; every step of it is exact."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping

import pytest
from pools import GOOD, Kept, Script, error, feed, pool_of, reply, work
from virtual import run_virtually

from pipeline.gateways import LiteLLM, Lumen, OpenAI
from pipeline.limits.rates import Allowance
from pipeline.pool import Pool
from pipeline.records import Reply

SLOW_DOWN = error(429, "Rate limit exceeded. Please slow down.", type="rate_limit_error", code="rate_limit_exceeded")


class Windows(Script):
    """Lets in so many requests a window of 60 s, which begins with the first request after the one before."""

    def __init__(
        self, allowed: Mapping[float, int], *, takes_s: float = 0.5, used_before: int = 0, says: Reply = SLOW_DOWN
    ) -> None:
        super().__init__(lambda row, nth: reply(), takes_s=takes_s)
        self._allowed = allowed
        self._says = says
        self._ends = 60.0 if used_before else -1.0
        self._used = used_before
        self.windows: list[tuple[float, int]] = []
        self.refusals: list[float] = []

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
        await asyncio.sleep(0.05)  # on its way
        now = asyncio.get_running_loop().time()
        if now >= self._ends:
            self._ends, self._used = now + 60.0, 0
            self.windows.append((now, 0))
        allowed = next(allowed for since, allowed in reversed(self._allowed.items()) if now >= since)
        if self._used >= allowed:
            self.refusals.append(now)
            return self._says
        self._used += 1
        if self.windows:
            self.windows[-1] = (self.windows[-1][0], self.windows[-1][1] + 1)
        return await super().send(endpoint, body, headers, stream=stream)


def windows(gateway: Windows, *, rows: int, slots: int, dialect: OpenAI | None = None, **settings: object) -> list[str]:
    """The run's log of working off ``rows`` there."""
    notes: list[str] = []
    kept, _, pool, _ = work(
        lambda *_: reply(), rows=rows, slots=slots, sender=gateway, dialect=dialect or Lumen(), note=notes.append, **settings
    )  # fmt: skip
    assert (len(kept.outcomes), kept.attempts, pool.stopped) == (rows, [], None)
    return notes


@pytest.mark.parametrize(("allowed", "slots"), [(30, 4), (600, 16), (600, 64)])
def test_a_window_nobody_announced_is_learned_from_its_first_refusal(allowed: int, slots: int) -> None:
    gateway = Windows({0.0: allowed})
    notes = windows(gateway, rows=5 * allowed, slots=slots)
    used = [count / allowed for _, count in gateway.windows[1:4]]
    late = [when for when in gateway.refusals if when > gateway.windows[1][0]]
    print(
        f"{allowed}/min at {slots} slots: {min(used):.3f} of the allowance used, {len(gateway.refusals)} + {len(late)} refused"
    )
    assert min(used) >= 0.95
    assert late == []
    assert len(gateway.refusals) <= slots
    assert gateway.windows[1][0] == pytest.approx(61.0, abs=0.5), "the window began with the first request"
    assert "requests a minute are let in, as this window shows" in notes[0]


@pytest.mark.parametrize(("allowed", "slots"), [(30, 4), (600, 16)])
def test_a_refusal_without_a_word_is_of_the_rate_when_it_meets_the_only_request(allowed: int, slots: int) -> None:
    gateway = Windows({0.0: allowed}, says=error(429, ""))
    windows(gateway, rows=4 * allowed, slots=slots, dialect=OpenAI())
    print(f"{allowed}/min, bare 429s: {len(gateway.refusals)} refused of {4 * allowed}, windows {gateway.windows}")
    assert len(gateway.refusals) <= 2 * slots
    assert sum(count for _, count in gateway.windows[1:4]) >= 0.75 * 3 * allowed


def test_a_told_rate_is_kept_from_the_first_request_on_and_never_in_a_burst() -> None:
    gateway = Windows({0.0: 60})
    windows(gateway, rows=300, slots=16, allowance=Allowance(rpm=60))
    starts = [when for when, _ in gateway.sends]
    assert gateway.refusals == []
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.99
    assert 300 / (starts[-1] / 60) >= 0.95 * 60


def test_an_assumed_rate_grows_once_nothing_was_refused_for_long_and_a_refusal_takes_it_back() -> None:
    gateway = Windows({0.0: 40})
    notes = windows(gateway, rows=1500, slots=4, allowance=Allowance(rpm=30, assumed=True))
    grown = [text for text in notes if "->" in text]
    assert "rates: 30 -> 33 a minute: nothing was refused for 300 s" in grown, grown
    assert len(gateway.refusals) <= 0.02 * 1500
    assert max(count for _, count in gateway.windows[-4:]) >= 32


def test_an_assumed_rate_that_is_too_much_is_no_knowledge() -> None:
    gateway = Windows({0.0: 20})
    notes = windows(gateway, rows=100, slots=4, allowance=Allowance(rpm=30, assumed=True))
    assert "about 20 requests a minute are let in" in notes[0]
    assert len(gateway.refusals) <= 4
    assert min(count for _, count in gateway.windows[1:-1]) == 20


def test_a_told_rate_that_is_more_than_the_gateway_grants_comes_down() -> None:
    gateway = Windows({0.0: 30})
    windows(gateway, rows=600, slots=8, allowance=Allowance(rpm=40))
    print(f"30 a minute and told 40: {len(gateway.refusals)} refused of 600")
    assert len(gateway.refusals) <= 0.03 * 600


def test_a_limit_that_falls_slows_the_run_down() -> None:
    gateway = Windows({0.0: 120, 300.0: 60})
    windows(gateway, rows=1200, slots=8)
    late = [when for when in gateway.refusals if when > 310]
    print(f"from 120 to 60 a minute: {len(late)} refused afterwards")
    assert len(late) <= 60


def test_a_window_that_others_have_begun_is_waited_for_politely() -> None:
    """Another host has the same key: the window is used up before the first request here."""
    gateway = Windows({0.0: 30}, used_before=30)
    windows(gateway, rows=60, slots=4)
    early = [when for when in gateway.refusals if when < 60]
    assert len(early) <= 4 + 10, "one by one, every few seconds"
    assert gateway.windows[0][0] == pytest.approx(60, abs=30)


def test_for_ever_refused_is_waited_for_with_few_requests() -> None:
    gateway = Windows({0.0: 0})

    def drain(pool: Pool) -> None:
        asyncio.get_running_loop().call_later(3600, pool.drain)

    kept, _, _, took = work(lambda *_: reply(), rows=500, slots=16, sender=gateway, dialect=Lumen(), during=drain)
    assert kept.outcomes == []
    assert took == pytest.approx(3600.5, abs=1), "the end is heard at once"
    assert len(gateway.refusals) <= 16 + 3600 / 30 + 10
    print(f"refused for an hour: {len(gateway.refusals)} requests")


def test_retry_after_holds_everyone() -> None:
    busy = error(429, "slow down", {"retry-after": "20"})
    _, script, _, _ = work(lambda row, nth: busy if row == 0 and nth == 1 else reply(), rows=100, slots=4, takes_s=1.0)
    starts = sorted(when for when, _ in script.sends)
    assert [when for when in starts if 1.0 < when < 21.0] == [], "all four slots wait"


@pytest.mark.parametrize("told", ["0", "-1", "Sun, 06 Nov 1994 08:49:37 GMT"])
def test_a_retry_after_that_is_no_wait_is_no_leave_to_ask_without_end(told: str) -> None:
    busy = error(429, "slow down", {"retry-after": told})

    def drain(pool: Pool) -> None:
        asyncio.get_running_loop().call_later(60, pool.drain)

    _, script, *_ = work(lambda row, nth: busy, takes_s=0.01, during=drain)
    assert len(script.sends) < 20


@pytest.mark.parametrize("told", ["0.01", "1"])
def test_a_short_wait_that_is_told_for_ever_is_not_taken_by_all_for_ever(told: str) -> None:
    busy = error(429, "slow down", {"retry-after": told})

    def drain(pool: Pool) -> None:
        asyncio.get_running_loop().call_later(600, pool.drain)

    _, script, *_ = work(lambda row, nth: busy, rows=500, slots=64, takes_s=0.1, during=drain)
    late = [when for when, _ in script.sends if when > 60]
    print(f"told to wait {told} s for ten minutes: {len(script.sends):,} requests of 64 slots")
    assert len(late) / 540 < 64 / 2, "each slot once in 2 s at the most"


def test_tokens_are_put_aside_by_estimate_and_settled_after() -> None:
    usage = {"prompt_tokens": 900, "completion_tokens": 100, "total_tokens": 1000}
    _, script, _, took = work(
        lambda row, nth: reply(200, {**GOOD, "usage": usage}), rows=100, slots=8, allowance=Allowance(tpm=10_000)
    )
    per_minute = [sum(1000 for when, _ in script.sends if at <= when < at + 60) for at in range(0, int(took) - 60, 5)]
    assert max(per_minute[12:]) <= 10_000, "once the estimate has learned"
    assert took == pytest.approx(600, rel=0.1), "100 rows of 1,000 tokens at 10,000 a minute"


@pytest.mark.parametrize("after_s", [0, 90])
def test_two_runs_of_one_key_share_the_pace(after_s: int) -> None:
    gateway = Windows({0.0: 30})

    async def main() -> list[Kept]:
        kept = [Kept(), Kept()]
        first = pool_of(gateway, kept[0], slots=4, dialect=Lumen(), reached=True)
        second = pool_of(gateway, kept[1], slots=4, dialect=Lumen(), reached=True, share=first._rates._share)
        async with asyncio.TaskGroup() as group:
            group.create_task(first.work(feed(100)))
            await asyncio.sleep(after_s)
            group.create_task(second.work(feed(20)))
        return kept

    kept = run_virtually(main())
    assert [len(one.outcomes) for one in kept] == [100, 20]
    assert [when for when in gateway.refusals if when > gateway.windows[1][0]] == []
    assert min(count for _, count in gateway.windows[1:-1]) >= 0.95 * 30


def test_announced_rates_are_kept_at_once() -> None:
    told = {"x-ratelimit-api_key-limit-requests": "60"}
    _, script, _, _ = work(lambda row, nth: reply(headers=told), rows=60, slots=8, dialect=LiteLLM())
    starts = sorted(when for when, _ in script.sends)[8:]
    assert min(b - a for a, b in itertools.pairwise(starts)) >= 0.99

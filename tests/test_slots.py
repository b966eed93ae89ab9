"""The controller of parallel requests, on a virtual clock: every step of it is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from pools import Kept, Script, error, feed, pool_of, reply, work
from virtual import run_virtually

from pipeline.gateways import LiteLLM
from pipeline.lease import Memory
from pipeline.limits.slots import Slots
from pipeline.records import Reply

FULL = error(429, "Too many concurrent requests")


class Narrow(Script):
    """Refuses at once what comes in over its limit, which may change with time."""

    def __init__(self, limits: Mapping[float, int], *, takes_s: float = 1.0) -> None:
        super().__init__(lambda row, nth: reply(), takes_s=takes_s)
        self._limits = limits
        self.refusals: list[float] = []
        self.served_s = 0.0

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
        now = asyncio.get_running_loop().time()
        limit = next(limit for since, limit in reversed(self._limits.items()) if now >= since)
        if self.busy >= limit:
            self.refusals.append(now)
            await asyncio.sleep(0.01)
            return FULL
        self.served_s += self._takes_s
        return await super().send(endpoint, body, headers, stream=stream)


def narrow(
    limits: Mapping[float, int], *, rows: int, slots: int = 16, takes_s: float = 1.0
) -> tuple[Narrow, float, list[str]]:
    """What a gateway of these limits saw, how long it took, and what the run's log says."""
    gateway, notes = Narrow(limits, takes_s=takes_s), []
    kept, _, pool, took = work(
        lambda *_: reply(), rows=rows, slots=slots, rising=True, sender=gateway, note=notes.append
    )
    assert len(kept.outcomes) == rows
    assert kept.attempts == []
    assert pool.stopped is None
    return gateway, took, notes


def test_the_first_row_goes_alone_then_it_doubles_up_to_the_ceiling() -> None:
    _, script, _, _ = work(lambda row, nth: reply(), rows=100, slots=16, rising=True)
    starts = [round(when, 3) for when, _ in script.sends]
    assert [starts.count(second) for second in range(6)] == [1, 2, 4, 8, 16, 16]


def test_an_unannounced_limit_is_found_and_kept() -> None:
    gateway, took, notes = narrow({0.0: 5}, rows=600)
    efficiency = gateway.served_s / 5 / took
    print(f"600 rows at 5 unannounced: {len(gateway.refusals)} refused, efficiency {efficiency:.3f}")
    assert len(gateway.refusals) <= 12
    assert efficiency >= 0.97
    assert "of 8 in flight 3 were refused" in " ".join(notes)
    tries = [text for text in notes if "one more is tried" in text]
    assert 3 <= len(tries) <= 5, "after 10, 20, 40 and 80 s"


def test_more_slots_are_found_when_there_are_more() -> None:
    gateway, _, notes = narrow({0.0: 2, 60.0: 8}, rows=900, slots=8)
    assert gateway.most_busy == 8, notes


def test_less_slots_cut_once_an_episode_to_what_is_let_in() -> None:
    gateway, _, notes = narrow({0.0: 8, 30.0: 3}, rows=400, slots=8)
    assert "slots of this key: 4 -> 3: of 8 in flight 5 were refused" in notes, notes
    assert len(gateway.refusals) < 30


@pytest.mark.parametrize("how", ["header", "words of a 429"])
def test_an_announced_limit_is_never_passed(how: str) -> None:
    told = {"x-ratelimit-api_key-limit-max_parallel_requests": "5"} if how == "header" else {}
    words = "Rate limit exceeded for api_key: x. Limit type: max_parallel_requests. Current limit: 5, Remaining: 0."
    first = reply() if how == "header" else error(429, words)
    _, script, _, _ = work(
        lambda row, nth: first if (row, nth) == (0, 1) else reply(headers=told), rows=200, slots=16, rising=True, dialect=LiteLLM()
    )  # fmt: skip
    assert script.most_busy == 5


def test_slots_that_others_have_for_a_moment_are_back_soon_where_the_gateway_tells_of_them() -> None:
    """A killed run's last requests, say, which go on at the gateway."""
    notes: list[str] = []
    told = {"x-ratelimit-api_key-limit-max_parallel_requests": "5"}
    gateway = Narrow({0.0: 5, 10.0: 3, 11.0: 5}, takes_s=0.2)
    gateway._answer = lambda row, nth: reply(headers=told)
    work(lambda *_: reply(), rows=500, slots=16, rising=True, sender=gateway, dialect=LiteLLM(), note=notes.append)
    assert "slots of this key: 4 -> 3: of 5 in flight 2 were refused" in notes, notes
    assert len(gateway.refusals) <= 4
    late = [when for when, _ in gateway.sends if 14 <= when < 18]
    assert len(late) == pytest.approx(5 * 4 / 0.2, abs=5), "all five again, within three seconds"


def test_many_slots_that_others_have_had_for_a_moment_are_back_as_soon() -> None:
    """Refused twice before anything was tried, which is no reason to try less often; then by one, two, four, ... more."""
    notes: list[str] = []
    told = {"x-ratelimit-api_key-limit-max_parallel_requests": "32"}
    gateway = Narrow({0.0: 32, 10.0: 8, 10.5: 2, 11.0: 32}, takes_s=0.2)
    gateway._answer = lambda row, nth: reply(headers=told)
    work(lambda *_: reply(), rows=3000, slots=32, rising=True, sender=gateway, dialect=LiteLLM(), note=notes.append)
    assert "slots of this key: 2 -> 3: nothing was refused for a while: one more is tried" in notes, notes
    assert "slots of this key: 17 -> 32: nothing was refused for a while: 15 more are tried" in notes, notes
    late = [when for when, _ in gateway.sends if 17 <= when < 19]
    assert len(late) == pytest.approx(32 * 2 / 0.2, abs=32), "all again after some six tries, one a second"


def test_a_limit_that_an_earlier_run_has_learned_is_tried_to_be_passed_too() -> None:
    async def main() -> Narrow:
        gateway = Narrow({0.0: 5})
        share = Memory(ceiling=16)
        with share.locked() as pace:
            pace.parallel = 2
        await pool_of(gateway, Kept(), slots=16, rising=True, share=share).work(feed(200))
        return gateway

    assert run_virtually(main()).most_busy == 5


def test_trouble_at_the_gateway_pauses_growth_and_does_not_cut() -> None:
    _, script, _, _ = work(
        lambda row, nth: error(500) if row == 3 and nth == 1 else reply(), rows=200, slots=16, rising=True
    )
    starts = [round(when, 3) for when, _ in script.sends]
    assert [starts.count(second) for second in (2, 3, 4, 12)] == [4, 4, 4, 4], "row 3 fails at 3 s: 10 s of no growth"
    assert script.most_busy == 16


def test_who_waits_for_a_slot_and_is_cancelled_leaves_it_to_others() -> None:
    async def main() -> int:
        slots = Slots(ceiling=1, share=Memory(ceiling=1))
        await slots.acquire()
        waiting = [asyncio.create_task(slots.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        slots.release()  # the first has it now,
        waiting[0].cancel()  # and does not want it any more
        waiting[1].cancel()
        await asyncio.wait(waiting)
        assert [task.cancelled() for task in waiting] == [True, True, False]
        return slots.busy

    assert run_virtually(main()) == 1


def test_other_runs_of_the_key_are_noted_once() -> None:
    """Fewer slots than `-c` says, and not a word about it in run.log, looked like a defect."""
    share, notes = Memory(ceiling=4), list[str]()
    slots = Slots(ceiling=4, share=share, note=notes.append)
    for share.others in (0, 1, 1, 0):
        slots.divide()
    assert [note.partition(";")[0][-2:] for note in notes] == [" 1", " 0"]

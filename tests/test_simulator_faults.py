"""The simulated gateway misbehaving: every fault on the wire, when it strikes, and what the books say about it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
import uvloop

from pipeline.errors import UsageError
from pipeline.simulator import Faults, Settings, Simulator, serve


class Client:
    """A session at a simulator."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession) -> None:
        self.sim = sim
        self.session = session

    async def chat(self, text: str = "Hello.", **params: Any) -> tuple[int, Any, bytes]:
        payload = {"model": "m", "messages": [{"role": "user", "content": text}], **params}
        async with self.session.post(self.sim.base_url + "/chat/completions", json=payload) as reply:
            return reply.status, reply.headers, await reply.read()

    async def statuses(self, *texts: str) -> list[int]:
        return [(await self.chat(text))[0] for text in texts]

    async def raw(self, text: str = "Hello.", *, stream: bool = False) -> tuple[bytes, str]:
        """What arrives on a bare socket, and how the connection ends."""
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}).encode()
        host, _, port = self.sim.base_url.removeprefix("http://").removesuffix("/v1").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        got, end = b"", "closed"
        try:
            while chunk := await reader.read(65536):
                got += chunk
        except ConnectionResetError:
            end = "reset"
        writer.close()
        return got, end


def run(
    test: Callable[[Client], Awaitable[None]],
    *faults: dict[str, Any],
    runner: Callable[[Any], None] = asyncio.run,
    **settings: Any,
) -> None:
    async def main() -> None:
        script = Faults.from_list(faults)
        async with Simulator(Settings(faults=script, **settings)) as sim, aiohttp.ClientSession() as session:
            await test(Client(sim, session))

    runner(main())


# What goes wrong


def test_another_script_can_be_played_while_it_serves() -> None:
    async def change(client: Client) -> None:
        assert await client.statuses("a", "b") == [503, 503]
        client.sim.play(Faults.from_list([{"fault": 500, "between": [4, 4]}]))
        assert await client.statuses("a", "b", "c") == [200, 500, 200], "arrivals are counted on"
        with pytest.raises(UsageError, match="an error of lumen"):
            client.sim.play(Faults.from_list([{"fault": "bad_body"}]))
        client.sim.play(Faults())
        assert await client.statuses("a") == [200]

    run(change, {"fault": 503})


def test_scripted_statuses_carry_what_the_script_says() -> None:
    async def test(client: Client) -> None:
        status, headers, body = await client.chat()
        assert (status, headers["retry-after"], json.loads(body)["error"]["type"]) == (429, "2", "requests")
        status, headers, body = await client.chat()
        assert (status, headers["x-a"], json.loads(body)) == (503, "b", {"detail": "down"})
        status, _, body = await client.chat()
        assert (status, body) == (524, b"gone")
        status, headers, body = await client.chat()
        assert (status, headers["content-type"][:9]) == (200, "text/html")
        assert b"<html>" in body
        totals = client.sim.ledger.totals
        assert (totals.billed, totals.by_fault) == (0, {"429": 1, "503": 1, "524": 1, "html": 1})

    run(
        test,
        {"fault": 429, "retry_after": 2, "first": 1},
        {"fault": "503", "body": {"detail": "down"}, "headers": {"x-a": "b"}, "first": 2},
        {"fault": 524, "body": "gone", "first": 3},
        {"fault": "html"},
    )


def _message(reply: Any) -> Any:
    return reply["choices"][0]["message"] if reply["choices"] else {}


@pytest.mark.parametrize(
    ("fault", "shows"),
    [
        ("empty_choices", lambda reply: reply["choices"] == []),
        ("no_usage", lambda reply: "usage" not in reply),
        ("empty_content", lambda reply: _message(reply)["content"] == ""),
        ("refusal", lambda reply: _message(reply)["content"] is None and _message(reply)["refusal"]),
    ],
)
def test_spoiled_answers_are_billed_in_full(fault: str, shows: Callable[[Any], bool]) -> None:
    async def test(client: Client) -> None:
        assert [bool(shows(json.loads((await client.chat())[2]))) for _ in range(2)] == [True, False]
        spoiled, whole = client.sim.ledger.entries
        assert (spoiled.fault, spoiled.billed, spoiled.cost) == (fault, True, whole.cost)

    run(test, {"fault": fault, "first": 1})


@pytest.mark.parametrize(
    ("fault", "gone", "left"),
    [
        ("empty_choices", b'"content":"', b'"usage":{'),
        ("no_usage", b'"usage":{', b'"content":"Hello'),
        ("empty_content", b'"content":"Hello', b'"finish_reason":"stop"'),
        ("refusal", b'"content":"Hello', b'"refusal":"I'),
    ],
)
def test_spoiled_streams(fault: str, gone: bytes, left: bytes) -> None:
    async def test(client: Client) -> None:
        options = {"model": "sim/echo", "stream": True, "stream_options": {"include_usage": True}}
        bodies = [(await client.chat(**options))[2] for _ in range(2)]
        assert [gone in body for body in bodies] == [False, True]
        assert left in bodies[0]
        assert bodies[0].endswith(b"data: [DONE]\n\n")
        assert client.sim.ledger.totals.billed == 2

    run(test, {"fault": fault, "first": 1})


def test_spoiled_embeddings_and_faults_that_do_not_concern_them() -> None:
    async def test(client: Client) -> None:
        for key, value in (("data", []), ("usage", None)):
            async with client.session.post(
                f"{client.sim.base_url}/embeddings", json={"model": "m", "input": "a"}
            ) as reply:
                assert (await reply.json()).get(key) == value
        assert [entry.fault for entry in client.sim.ledger.entries] == ["empty_choices", "no_usage"]

    run(test, {"fault": "refusal"}, {"fault": "empty_choices", "first": 1}, {"fault": "no_usage"})


def test_the_list_of_models_needs_no_slot_and_can_be_spoiled() -> None:
    async def test(client: Client) -> None:
        hanging = asyncio.create_task(client.chat(), name="hanging")
        await asyncio.sleep(0.05)
        bodies = []
        for _ in range(2):
            async with client.session.get(f"{client.sim.base_url}/models") as reply:
                bodies.append(await reply.read())
        assert bodies[1].startswith(bodies[0])
        assert len(bodies[0]) < len(bodies[1])
        hanging.cancel()

    run(test, {"fault": "hang", "first": 1}, {"fault": "truncated_json", "times": 1}, max_parallel=1)


@pytest.mark.parametrize("stream", [False, True])
def test_truncated_json_is_a_complete_http_answer(stream: bool) -> None:
    async def test(client: Client) -> None:
        (_, _, short), (_, _, whole) = await client.chat(stream=stream), await client.chat(stream=stream)
        assert whole.startswith(short)
        assert 0 < len(short) < len(whole)
        assert [entry.billed for entry in client.sim.ledger.entries] == [True, True]

    run(test, {"fault": "truncated_json", "first": 1})


def test_a_truncated_stream_whose_client_left_before_is_not_billed() -> None:
    async def test(client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.chat(stream=True)
        await asyncio.sleep(0.4)
        assert [entry.billed for entry in client.sim.ledger.entries] == [False]

    run(test, {"fault": "truncated_json"}, latency_s=0.3)


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("at", "billed"), [("request", False), ("reply", True), ("body", True)])
def test_resets_are_resets(at: str, billed: bool, stream: bool, runner: Callable[[Any], None]) -> None:
    async def test(client: Client) -> None:
        got, end = await client.raw(stream=stream)
        assert end == "reset"
        assert got.startswith(b"HTTP/1.1 200 OK") if at == "body" else got == b""
        (entry,) = client.sim.ledger.entries
        assert (entry.status, entry.fault, entry.billed) == (0, "reset", billed)
        assert await client.statuses("again") == [200]

    run(test, {"fault": "reset", "at": at, "times": 1}, runner=runner)


def test_a_hang_ends_when_the_client_leaves() -> None:
    async def test(client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.chat()
        await asyncio.sleep(0.05)
        (entry,) = client.sim.ledger.entries
        assert (entry.status, entry.fault, entry.billed) == (0, "hang", False)
        assert client.sim.ledger.totals.in_flight == 0
        assert await client.statuses("again") == [200]  # the one slot is free again

    run(test, {"fault": "hang", "times": 1}, max_parallel=1)


def test_a_hang_of_some_seconds_ends_with_a_closed_connection() -> None:
    async def test(client: Client) -> None:
        start = time.perf_counter()
        assert await client.raw() == (b"", "closed")
        assert 0.2 <= time.perf_counter() - start < 1

    run(test, {"fault": "hang", "seconds": 0.2})


def test_stopping_does_not_wait_for_what_hangs() -> None:
    waiting: list[asyncio.Task[Any]] = []

    async def test(client: Client) -> None:
        waiting.extend(asyncio.create_task(client.chat(text)) for text in ("hang", "slow"))
        await asyncio.sleep(0.1)
        assert client.sim.ledger.totals.in_flight == 2

    start = time.perf_counter()
    run(test, {"fault": "hang", "match": "hang"}, {"fault": "slow_headers", "seconds": 30})
    assert time.perf_counter() - start < 2
    assert all(task.cancelled() or task.exception() for task in waiting)


def test_slow_headers_delay_the_answer_and_slow_bodies_trickle() -> None:
    async def test(client: Client) -> None:
        for text, headers_after, body_after in (("one", 0.5, 0), ("two", 0, 0.5), ("three", 0, 0)):
            start = time.perf_counter()
            payload = {"model": "sim/echo", "messages": [{"role": "user", "content": text}], "stream": text == "two"}
            async with client.session.post(f"{client.sim.base_url}/chat/completions", json=payload) as reply:
                middle = time.perf_counter()
                body = await reply.read()
            assert headers_after <= middle - start < headers_after + 0.4
            assert body_after * 0.8 <= time.perf_counter() - middle < body_after + 0.4
            assert text.encode() in body

    run(
        test,
        {"fault": "slow_headers", "seconds": 0.5, "match": "one"},
        {"fault": "slow_body", "seconds": 0.5, "match": "two"},
    )


def test_a_slow_body_arrives_whole() -> None:
    async def test(client: Client) -> None:
        start = time.perf_counter()
        (_, _, slow), (_, _, quick) = await client.chat(), await client.chat()
        assert slow == quick
        assert time.perf_counter() - start >= 0.2

    run(test, {"fault": "slow_body", "seconds": 0.2, "first": 1})


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_a_refused_port_is_closed_and_comes_back(runner: Callable[[Any], None]) -> None:
    async def test(client: Client) -> None:
        idle = await asyncio.gather(*(client.statuses(text) for text in "abc"))
        served = await asyncio.gather(client.statuses("restart"), client.statuses("in flight"))
        assert idle + served == [[200]] * 5
        for _ in range(3):
            with pytest.raises(aiohttp.ClientConnectorError) as caught:
                await client.chat("newcomer")
            assert isinstance(caught.value.os_error, ConnectionRefusedError)
        await asyncio.sleep(0.5)
        assert await client.statuses("later") == [200]
        assert (len(client.sim.ledger.entries), client.sim.ledger.totals.by_fault) == (6, {"refused": 1})

    fault = {"fault": "refused", "seconds": 0.4, "match": "restart", "times": 1}
    run(test, fault, runner=runner, latency_s=0.15)


def test_stopping_while_the_port_is_away() -> None:
    async def test(client: Client) -> None:
        assert await client.statuses("x") == [200]

    start = time.perf_counter()
    run(test, {"fault": "refused", "seconds": 30})
    assert time.perf_counter() - start < 2


def test_the_first_rule_that_applies_decides() -> None:
    async def test(client: Client) -> None:
        assert await client.statuses("a", "b", "c", "d") == [500, 503, 503, 200]

    run(test, {"fault": 500, "times": 1}, {"fault": 503, "times": 2})


# Books


def test_without_entries_the_totals_are_the_same() -> None:
    totals = []

    async def test(client: Client) -> None:
        assert await client.statuses("a", "b", "c") == [200] * 3
        totals.append(client.sim.ledger.totals)
        assert bool(client.sim.ledger.entries) is (len(totals) == 1)

    run(test, ledger=True)
    run(test, ledger=False)
    assert totals[0] == totals[1]
    assert totals[0].billed == 3


@pytest.mark.parametrize(("stream", "billed"), [(False, True), (True, False)])
def test_leaving_ends_a_stream_unbilled_but_a_whole_answer_is_made_and_billed(stream: bool, billed: bool) -> None:
    async def test(client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.chat("one two three four", stream=stream)
        assert client.sim.ledger.totals.in_flight == 1
        await asyncio.sleep(0.4)
        (entry,) = client.sim.ledger.entries
        assert (entry.status, entry.billed, entry.cost > 0) == (200, billed, billed)
        assert client.sim.ledger.totals.in_flight == 0

    run(test, latency_s=0.3)


# Life


def test_serve_runs_until_it_is_cancelled_and_says_where() -> None:
    async def main() -> None:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(serve(Settings(), ready.set_result), name="serve")
        url = await ready
        async with aiohttp.ClientSession() as session, session.get(url + "/models") as reply:
            assert reply.status == 200
        port = int(url.removesuffix("/v1").rpartition(":")[2])
        with pytest.raises(UsageError, match=rf"port {port} \(Address already in use\): choose another port"):
            await serve(Settings(port=port), print)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(main())

"""The simulator as Lumen: bodies it accepts, coins, its one rate limit, its threads and errors as they were measured."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from test_simulator_litellm import Client, Reply, own
from test_simulator_litellm import run as run_dialect

from pipeline.errors import UsageError
from pipeline.simulator import Faults, Key, Model, Settings

FREE = Model(name="free", input_cost_per_token=0.0, output_cost_per_token=0.0)


def run(test: Any, *faults: dict[str, Any], **settings: Any) -> None:
    run_dialect(test, *faults, dialect="lumen", **settings)


async def post(client: Client, **options: Any) -> Reply:
    return await client.call("POST", "/v1/chat/completions", **options)


def refusal(reply: Reply) -> tuple[int, str, str]:
    return reply.status, reply.error["message"], reply.error["type"]


# Answers


def test_the_body_is_sorted_and_full_of_nulls_and_names_the_model_upstream() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("fx")
        assert reply.body == json.dumps(reply.json, sort_keys=True, separators=(",", ":")).encode()
        (choice,) = reply.json["choices"]
        assert reply.json["model"] == "up-fx"
        names = ("annotations", "audio", "function_call", "refusal", "tool_calls")
        assert choice["message"] == {"content": "You said: Hello.", "role": "assistant"} | dict.fromkeys(names)
        assert {"moderation", "service_tier", "system_fingerprint"} <= reply.json.keys()
        details = {"completion_tokens_details": None, "prompt_tokens_details": None}
        assert reply.json["usage"] == {"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11} | details
        assert client.sim.ledger.entries[0].served == "up-fx"

    run(test)


def test_headers_tell_nothing() -> None:
    async def test(client: Client) -> None:
        for status in (200, 404):
            reply = await client.chat("fx" if status == 200 else "no")
            assert reply.status == status
            assert set(reply.headers) == {
                "date", "server", "content-type", "content-length", "x-frame-options", "x-content-type-options",
                "referrer-policy", "strict-transport-security", "vary",
            }  # fmt: skip
            assert reply.headers["server"] == "uvicorn"

    run(test)


def test_a_stream_always_ends_with_the_usage() -> None:
    async def test(client: Client) -> None:
        for options in ({}, {"stream_options": {"include_usage": False}}):
            reply = await client.chat("fx", stream=True, **options)
            assert reply.events[-1] == "[DONE]"
            *pieces, last = (json.loads(event) for event in reply.events[:-1])
            assert {piece["model"] for piece in pieces} == {"up-fx"}
            assert all(piece["usage"] is None for piece in pieces)
            nulls = {"content": None, "function_call": None, "refusal": None, "role": None, "tool_calls": None}
            assert pieces[-1]["choices"][0]["delta"] == nulls
            assert pieces[-1]["choices"][0]["finish_reason"] == "stop"
            assert (last["choices"], last["usage"]["total_tokens"]) == ([], 11)

    run(test)


def test_the_list_of_models_has_prices_and_what_is_down_but_not_what_one_may_not_use() -> None:
    async def test(client: Client) -> None:
        rows = (await client.get("/v1/models"))["data"]
        assert [(row["id"], row["status"], row["instances"]["healthy"]) for row in rows] == [
            ("dummy", "ok", 1),
            ("fx", "ok", 1),
            ("gpt-4o", "ok", 1),
            ("down", "down", 0),
        ]
        assert rows[0].items() >= {
            "object": "model",
            "owned_by": "lumen",
            "parent": None,
            "root": "dummy",
            "max_model_len": 8192,
            "input_cost_per_million": 5.0,
            "output_cost_per_million": 15.0,
            "max_output_tokens": 2048,
        }.items()  # fmt: skip
        assert (rows[1]["root"], rows[1]["max_model_len"], "max_output_tokens" in rows[1]) == ("up-fx", None, False)
        assert {"last_minute", "last_hour", "last_day"} == rows[0]["requests"].keys()

    run(test)


# What it accepts


@pytest.mark.parametrize("name", ["top_k", "min_p", "guided_json", "chat_template_kwargs", "num_retries"])
def test_unknown_parameters_are_a_server_error_unless_nested(name: str) -> None:
    async def test(client: Client) -> None:
        assert refusal(await client.chat("fx", **{name: 1})) == (500, "Upstream error. Please try again.", "api_error")
        assert client.sim.ledger.totals.billed == 0
        assert (await client.chat("fx", extra_body={name: 1}, seed=1, user="u", metadata=None)).status == 200
        reply = await client.chat("fx", extra_body={"max_tokens": 2})
        assert reply.json["choices"][0]["finish_reason"] == "length"

    run(test)


def test_bodies_that_are_refused() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield json.dumps(body).encode()

    body = {"model": "fx", "messages": [{"role": "user", "content": "x"}]}
    as_json = {"Content-Type": "application/json"}

    async def test(client: Client) -> None:
        raw = json.dumps(body).encode()
        bad: list[dict[str, Any]] = [
            {"data": pieces(), "headers": as_json},
            {"data": raw, "headers": {"Content-Type": "text/plain"}},
            {"data": gzip.compress(raw), "headers": as_json | {"Content-Encoding": "gzip"}},
            {"data": raw[:-1], "headers": as_json},
        ]
        for options in bad:
            assert refusal(await post(client, **options)) == (400, "Invalid request body", "invalid_request_error")
        for wrong in ({}, {"model": "fx"}, {"messages": body["messages"]}):
            expected = (400, "model and messages are required", "invalid_request_error")
            assert refusal(await post(client, json=wrong)) == expected
        part = {"type": "text", "text": "x"}
        for wrong in (
            [],
            body | {"messages": "x"},
            body | {"messages": [{"content": "x"}]},
            body | {"messages": [{"role": "system", "content": [part]}]},
            body | {"model": 1},
        ):
            reply = await post(client, json=wrong)
            assert refusal(reply) == (500, "Internal server error", "api_error")
            assert reply.error["code"] == "internal_error"
        assert (await post(client, json=body | {"messages": [{"role": "user", "content": [part]}]})).status == 200
        assert (await post(client, data=raw, headers={"Content-Type": "application/json; charset=utf-8"})).status == 200

    run(test)


def test_routes() -> None:
    async def test(client: Client) -> None:
        for path in ("/v1/embeddings", "/v1/rerank", "/v1/batches", "/v1/chat/completions/", "/chat/completions"):
            reply = await client.call("POST", path, json={"model": "fx", "input": "x"})
            assert reply.status == 404
            assert reply.error == {"code": "not_found", "message": "Not found", "type": "invalid_request_error"}
        reply = await client.call("GET", "/v1/chat/completions")
        assert (reply.status, reply.headers["content-type"][:9]) == (405, "text/html")
        reply = await client.call("GET", "/healthz")
        assert (reply.status, reply.body) == (200, b"")

    run(test)


def test_what_is_wrong_with_a_key() -> None:
    async def test(client: Client) -> None:
        for given in (None, "Basic k", "bearer k", "Bearer ", "k"):
            reply = await client.chat("fx", headers={"Authorization": given} if given else {})
            expected = (400, "Missing or malformed Authorization header", "invalid_request_error")
            assert refusal(reply) == expected
        reply = await client.chat("fx", headers={"Authorization": "Bearer other"})
        assert refusal(reply) == (401, "Invalid or inactive API key", "authentication_error")
        assert (await client.call("GET", "/healthz")).status == 200
        # None of these was counted.
        assert (await client.chat("fx", headers={"Authorization": "Bearer k"})).status == 200

    run(test, api_key="k", key=Key(rpm=1))


def test_a_closed_account() -> None:
    async def test(client: Client) -> None:
        assert refusal(await client.chat("fx")) == (403, "Account disabled", "authentication_error")

    run(test, key=Key(disabled=True))


@pytest.mark.parametrize(
    ("settings", "model"),
    [({}, "consent"), ({"key": Key(models=("dummy",))}, "fx"), ({"key": Key(coins=0)}, "fx")],
    ids=["terms not accepted", "not for this key", "an empty pool"],
)
def test_no_access_to_a_model(settings: dict[str, Any], model: str) -> None:
    async def test(client: Client) -> None:
        assert refusal(await client.chat(model)) == (403, "No access to this model", "invalid_request_error")
        assert model not in [row["id"] for row in (await client.get("/v1/models"))["data"]]

    run(test, **settings)


def test_models_that_are_not_there() -> None:
    async def test(client: Client) -> None:
        assert refusal(await client.chat("no")) == (404, "Model 'no' not found", "invalid_request_error")
        expected = (503, "No healthy endpoints for model 'down'", "server_error")
        assert refusal(await client.chat("down")) == refusal(await client.chat("down", stream=True)) == expected

    run(test)


# Limits and money


def test_a_rate_window_for_each_route_counts_all_that_got_in() -> None:
    async def test(client: Client) -> None:
        client.clock.now += 1000
        statuses = [(await client.chat("fx")).status]
        client.clock.now += 30
        statuses += [(await client.chat("no")).status, (await post(client, data=b"")).status]
        reply = await client.chat("fx", stream=True)
        assert [*statuses, reply.status] == [200, 404, 400, 429]
        assert reply.error == {
            "code": "rate_limit_exceeded",
            "message": "Rate limit exceeded. Please slow down.",
            "type": "rate_limit_error",
        }
        assert "retry-after" not in reply.headers
        assert [(await client.call("GET", "/v1/models")).status for _ in range(4)] == [200, 200, 200, 429]
        client.clock.now += 29.9
        assert await client.statuses("fx") == [429]
        client.clock.now += 0.2
        assert await client.statuses("fx", "fx", "fx", "fx") == [200, 200, 200, 429]

    run(test, key=Key(rpm=3))


def test_thirty_a_minute_unless_told_otherwise() -> None:
    async def test(client: Client) -> None:
        assert await client.statuses(*["fx"] * 31) == [200] * 30 + [429]

    run(test)


def test_a_shorter_window() -> None:
    async def test(client: Client) -> None:
        assert await client.statuses("fx", "fx") == [200, 429]
        client.clock.now += 2
        assert await client.statuses("fx", "fx") == [200, 429]

    run(test, key=Key(rpm=1), window_s=2)


def test_coins_are_taken_after_the_answer_and_never_below_zero() -> None:
    async def test(client: Client) -> None:
        replies = await asyncio.gather(*(client.chat("dummy", text=f"{n}") for n in range(5)))
        assert [reply.status for reply in replies] == [200] * 5
        totals = client.sim.ledger.totals
        assert (totals.unit, totals.billed) == ("coins", 5)
        usage = replies[0].json["usage"]
        cost = round(usage["prompt_tokens"] * 5 / 1e6 + usage["completion_tokens"] * 15 / 1e6, 6)
        assert [entry.cost for entry in client.sim.ledger.entries] == [cost] * 5
        for model in ("dummy", "fx"):
            reply = await client.chat(model)
            assert refusal(reply) == (429, "Coin budget exhausted", "invalid_request_error")
            assert "code" not in reply.error
        client.clock.now += 3599
        assert await client.statuses("fx") == [429]
        client.clock.now += 1
        assert await client.statuses("fx", "fx", "dummy", "dummy") == [200, 200, 200, 429]
        client.clock.now += 3600 * 10
        assert await client.statuses("dummy", "dummy") == [200, 429]

    run(test, key=Key(coins=1e-06, coins_per_hour=1.0), latency_s=0.05)


def test_a_debt_is_forgiven() -> None:
    async def test(client: Client) -> None:
        assert await client.statuses("dummy", "dummy") == [200, 429]
        assert client.sim.ledger.totals.cost > 2 * 5e-05
        assert await client.statuses("dummy", "dummy") == [429, 429]
        assert (await client.chat("dummy")).error["type"] == "rate_limit_error"  # those without coins count, too
        client.clock.now += 3600
        assert await client.statuses("dummy") == [200]

    run(test, key=Key(coins=5e-05, coins_per_hour=5e-05, rpm=4))


@pytest.mark.parametrize(("stream", "booked"), [(False, True), (True, False)])
def test_without_usage_it_is_free_and_a_stream_is_not_booked_at_all(stream: bool, booked: bool) -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("dummy", stream=stream)
        assert reply.status == 200
        bodies = [json.loads(event) for event in reply.events[:-1]] if stream else [reply.json]
        assert {body["usage"] for body in bodies} == {None}
        (entry,) = client.sim.ledger.entries
        assert (entry.billed, entry.cost, entry.prompt_tokens) == (booked, 0.0, 0)

    run(test, {"fault": "no_usage"})


# Threads


def test_one_more_than_there_are_threads_waits_in_silence_even_a_sign_of_life() -> None:
    async def test(client: Client) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        calls = [asyncio.create_task(client.chat("fx", text=f"{n}"), name=f"{n}") for n in range(3)]
        await asyncio.sleep(0.05)
        assert (await client.call("GET", "/healthz")).status == 200
        assert 0.3 <= loop.time() - start < 0.6
        assert [(await call).status for call in calls] == [200] * 3
        assert loop.time() - start >= 0.6
        assert client.sim.ledger.totals.peak_parallel == 2

    run(test, max_parallel=2, latency_s=0.3)


def test_ten_threads_unless_told_otherwise() -> None:
    async def test(client: Client) -> None:
        await asyncio.gather(*(client.chat("fx", text=f"{n}") for n in range(12)))
        assert client.sim.ledger.totals.peak_parallel == 10

    run(test, latency_s=0.1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_nothing_and_pays(stream: bool) -> None:
    async def test(client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.chat("dummy", stream=stream)
        assert await client.emptied() >= 0.2
        (entry,) = client.sim.ledger.entries
        assert (entry.billed, entry.cost > 0) == (True, True)

    run(test, latency_s=0.6)


def test_a_timeout_in_the_body_ends_the_work() -> None:
    async def test(client: Client) -> None:
        start = asyncio.get_running_loop().time()
        reply = await client.chat("dummy", timeout=0.05)
        assert refusal(reply) == (500, "Upstream error. Please try again.", "api_error")
        assert 1.5 <= asyncio.get_running_loop().time() - start < 5
        assert client.sim.ledger.totals.billed == 0

    run(test, latency_s=30)


# Errors by name

ERRORS = [
    ("context", 400, "This model's maximum context length is 4096 tokens.", "BadRequestError", "BadRequestError"),
    ("policy", 400, "The response was filtered", "BadRequestError", "BadRequestError"),
    ("upstream_401", 401, "upstream 401", "AuthenticationError", "AuthenticationError"),
    ("upstream_429", 429, "upstream busy", "RateLimitError", "RateLimitError"),
    ("upstream_500", 500, "Upstream error. Please try again.", "api_error", "InternalServerError"),
    ("bad_parameter", 500, "Upstream error. Please try again.", "api_error", "InternalServerError"),
    ("upstream_html", 500, "Internal server error", "api_error", None),
    ("budget", 429, "Coin budget exhausted", "invalid_request_error", None),
    ("requests", 429, "Rate limit exceeded. Please slow down.", "rate_limit_error", None),
    ("no_endpoints", 503, "No healthy endpoints for model 'fx'", "server_error", None),
    ("disabled", 403, "Account disabled", "authentication_error", None),
]


@pytest.mark.parametrize(("name", "status", "says", "type_", "in_stream"), ERRORS, ids=[error[0] for error in ERRORS])
def test_errors_by_name_and_what_a_stream_makes_of_them(
    name: str, status: int, says: str, type_: str, in_stream: str | None
) -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("fx")
        assert (reply.status, reply.error["message"][: len(says)], reply.error["type"]) == (status, says, type_)
        assert "retry-after" not in reply.headers
        reply = await client.chat("fx", stream=True)
        if in_stream is None:
            assert reply.status == status
        else:
            assert (reply.status, reply.headers["content-type"][:17]) == (200, "text/event-stream")
            error, done = reply.events
            assert done == "[DONE]"
            assert json.loads(error)["error"].keys() == {"message", "type"}
            assert json.loads(error)["error"]["type"] == in_stream
        assert client.sim.ledger.totals.billed == 0

    run(test, {"fault": name})


def test_a_stream_that_breaks_ends_as_if_it_had_not() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("fx", stream=True)
        *pieces, error, done = reply.events
        assert (reply.status, done, len(pieces) > 1) == (200, "[DONE]", True)
        assert json.loads(error)["error"]["message"] == "Upstream error. Please try again."
        assert client.sim.ledger.totals.billed == 0

    run(test, {"fault": "stream_error"})


def test_a_prompt_longer_than_the_context() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("m", "one " * 40)
        assert (reply.status, reply.error["type"]) == (400, "BadRequestError")
        assert "maximum context length is 30 tokens" in reply.error["message"]
        reply = await client.chat("m", max_tokens=0)
        assert (reply.status, reply.error["type"], "param" in reply.error) == (400, "BadRequestError", False)

    run(test, models=(Model(name="m", max_input_tokens=30),))


def test_the_page_of_a_front_proxy_is_bare() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("fx")
        assert (reply.status, "vary" in reply.headers, own(reply)) == (403, False, [])

    run(test, {"fault": "front_html", "status": 403})


# Settings


def test_a_dialect_has_only_its_own_errors() -> None:
    for dialect, fault, owner in (("openai", "cooldown", "litellm"), ("lumen", "model_parallel", "litellm")):
        script: Any = {"dialect": dialect, "faults": Faults.from_list([{"fault": 500}, {"fault": fault}])}
        message = rf'faults\[1\]\.fault: "{fault}" is an error of {owner}, not of the dialect {dialect}, which has "'
        with pytest.raises(UsageError, match=message):
            Settings(**script)
    unknown: Any = "azure"
    with pytest.raises(UsageError, match="dialect: expected one of openai, litellm, lumen, got 'azure'"):
        Settings(dialect=unknown)


def test_the_plain_dialect_has_errors_and_limits_too() -> None:
    async def test(client: Client) -> None:
        replies = [await client.chat("m") for _ in range(4)]
        assert [reply.status for reply in replies] == [429, 400, 200, 429]
        codes = [reply.error["code"] for reply in replies if reply.status != 200]
        assert codes == ["insufficient_quota", "context_length_exceeded", "rate_limit_exceeded"]
        assert replies[2].json["model"] == "m-2026"
        client.clock.now += 60
        reply = await client.chat("m", stream=True)
        assert (json.loads(reply.events[-2])["error"]["type"], reply.events[-1]) == ("server_error", "[DONE]")

    faults = [{"fault": "budget", "first": 1}, {"fault": "context", "first": 2}, {"fault": "stream_error"}]
    drift = {"fault": "drift", "upstream": "m-2026"}
    run_dialect(test, *faults, drift, dialect="openai", key=Key(rpm=3))

"""The simulator as a LiteLLM proxy: headers, limits, money, errors and pages as they were measured."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import aiohttp
import pytest

from pipeline.simulator import Faults, Key, Model, Settings, Simulator

FREE, PRICED = "lbl/cborg-mini", "lab/priced"
PRICES = {"input_cost_per_token": 2e-06, "output_cost_per_token": 1e-05}


class Clock:
    """A clock that stands still until it is told to go."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Reply:
    """A reply with its headers in lower case."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[str]:
        return [event.removeprefix("data: ") for event in self.body.decode().split("\n\n")[:-1]]


class Client:
    """A session at a simulator."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession, clock: Clock) -> None:
        self.sim = sim
        self.session = session
        self.clock = clock

    async def call(self, method: str, path: str, **options: Any) -> Reply:
        async with self.session.request(method, self.sim.base_url.removesuffix("/v1") + path, **options) as reply:
            return Reply(reply.status, reply.headers, await reply.read())

    async def get(self, path: str, **options: Any) -> Any:
        reply = await self.call("GET", path, **options)
        assert reply.status == 200, reply.body
        return reply.json

    async def chat(self, model: str = FREE, text: str = "Hello.", headers: Any = None, **params: Any) -> Reply:
        payload = {"model": model, "messages": [{"role": "user", "content": text}], **params}
        return await self.call("POST", "/v1/chat/completions", json=payload, headers=headers)

    async def emptied(self) -> float:
        """How long it takes until no call is left in the house."""
        start = asyncio.get_running_loop().time()
        async with asyncio.timeout(5):
            while self.sim.ledger.totals.in_flight:
                await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time() - start

    async def statuses(self, *models: str) -> list[int]:
        return [(await self.chat(model)).status for model in models]


def run(
    test: Callable[[Client], Awaitable[None]], *faults: dict[str, Any], dialect: str = "litellm", **settings: Any
) -> None:
    async def main() -> None:
        clock = Clock()
        given: Any = {"dialect": dialect, "faults": Faults.from_list(faults), "clock": clock, **settings}
        async with Simulator(Settings(**given)) as sim, aiohttp.ClientSession() as session:
            await test(Client(sim, session, clock))

    asyncio.run(main())


def own(reply: Reply) -> list[str]:
    return [name for name in reply.headers if "litellm" in name]


# Answers


def test_headers_tell_the_cost_the_alias_and_who_answered() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("p", headers={"x-litellm-call-id": "mine"})
        entry = client.sim.ledger.entries[0]
        expected = {
            "x-litellm-call-id": "mine",
            "x-litellm-model-name": "openai/priced-1",
            "x-litellm-model-group": "p",
            "x-litellm-version": "1.106.2",
            "x-litellm-response-cost": str(entry.cost),
            "x-litellm-response-cost-original": str(entry.cost),
            "x-litellm-response-cost-input": str(entry.prompt_tokens * 2e-06),
            "x-litellm-response-cost-output": str(entry.completion_tokens * 1e-05),
            "x-litellm-key-spend": str(1 + entry.cost),
            "x-litellm-key-max-budget": "20.0",
            "x-litellm-attempted-retries": "0",
            "x-ratelimit-api_key-limit-max_parallel_requests": "5",
            "x-ratelimit-api_key-remaining-max_parallel_requests": "4",
        }
        assert expected.items() <= reply.headers.items()
        assert {
            "x-litellm-model-id",
            "x-litellm-model-api-base",
            "x-litellm-response-duration-ms",
        } <= reply.headers.keys()
        assert (entry.call_id, entry.model, entry.served) == ("mine", "p", "openai/priced-1")
        assert entry.cost == pytest.approx(6 * 2e-06 + 5 * 1e-05)
        assert reply.json["model"] == "p"
        assert reply.json["choices"][0]["provider_specific_fields"] == {"stop_reason": None}
        assert list(reply.json["usage"]) == ["completion_tokens", "prompt_tokens", "total_tokens"]
        ids = [(await client.chat("p")).headers["x-litellm-call-id"] for _ in range(2)]
        assert ids[0] != ids[1]
        assert [str(UUID(one)) for one in ids] == ids == [entry.call_id for entry in client.sim.ledger.entries[1:]]

    run(
        test,
        models=(Model(name="p", upstream="openai/priced-1", **PRICES),),
        key=Key(max_parallel=5, max_budget=20.0, spend=1.0),
    )


def test_a_free_model_has_no_cost_header() -> None:
    async def test(client: Client) -> None:
        for model in (FREE, "zero"):
            reply = await client.chat(model)
            assert "x-litellm-response-cost" not in reply.headers
            assert reply.headers["x-litellm-response-cost-original"] == "0.0"
        assert client.sim.ledger.totals.billed == 2
        assert client.sim.ledger.totals.cost == 0

    zero = Model(name="zero", input_cost_per_token=0.0, output_cost_per_token=0.0)
    run(test, models=(Model(name=FREE, upstream="hosted_vllm/x"), zero))


def test_streams_tell_the_cost_in_a_late_chunk_and_a_wrong_one_in_the_headers() -> None:
    async def test(client: Client) -> None:
        usages = []
        for model in (PRICED, FREE):
            reply = await client.chat(model, stream=True, stream_options={"include_usage": True})
            assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert reply.headers["cache-control"] == "no-cache"
            assert "x-litellm-response-cost" not in reply.headers
            assert reply.headers["x-litellm-response-cost-original"] == "0.0"
            assert not [name for name in reply.headers if name.startswith("x-ratelimit")]
            *pieces, finish, usage = (json.loads(event) for event in reply.events[:-1])
            assert reply.events[-1] == "[DONE]"
            assert all("finish_reason" not in piece["choices"][0] for piece in pieces)
            assert finish["choices"] == [{"finish_reason": "stop", "index": 0, "delta": {}}]
            assert usage["choices"] == [{"index": 0, "delta": {}}]
            assert {piece["model"] for piece in pieces} == {model}
            usages.append(usage["usage"])
        assert usages[0]["cost"] == client.sim.ledger.entries[0].cost > 0
        assert "completion_tokens_details" not in usages[0]
        assert "cost" not in usages[1]
        details = {"reasoning_tokens": 0, "text_tokens": usages[1]["completion_tokens"]}
        assert usages[1]["completion_tokens_details"] == details
        assert b"usage" not in (await client.chat(PRICED, stream=True)).body

    run(test)


def test_embeddings() -> None:
    async def test(client: Client) -> None:
        for inputs in (["one two", "three"], []):
            body = {"model": "nomic-embed-text", "input": inputs}
            reply = await client.call("POST", "/embeddings", json=body)
            assert (reply.status, len(reply.json["data"]), reply.json["model"]) == (
                200,
                len(inputs),
                "nomic-embed-text",
            )
            assert "x-litellm-response-cost" not in reply.headers
            assert reply.json["usage"] == {
                "completion_tokens": 0,
                "prompt_tokens": 3 if inputs else 0,
                "total_tokens": 3 if inputs else 0,
                "completion_tokens_details": None,
                "prompt_tokens_details": None,
            }
        assert reply.headers["x-ratelimit-api_key-remaining-requests"] == "8"

    run(test, key=Key(rpm=10))


def test_an_alias_can_drift_to_another_model() -> None:
    async def test(client: Client) -> None:
        replies = [await client.chat() for _ in range(3)]
        names = [reply.headers["x-litellm-model-name"] for reply in replies]
        assert names == ["hosted_vllm/gpt-oss-20b", "hosted_vllm/gpt-oss-20b", "hosted_vllm/new"]
        assert {reply.json["model"] for reply in replies} == {FREE}
        assert client.sim.ledger.entries[2].served == "hosted_vllm/new"

    run(test, {"fault": "drift", "upstream": "hosted_vllm/new", "after": 2, "match": FREE})


def test_deployments_of_one_alias_take_turns() -> None:
    async def test(client: Client) -> None:
        names = [(await client.chat("a")).headers["x-litellm-model-name"] for _ in range(4)]
        assert sorted(names) == ["x/1", "x/1", "x/2", "x/2"]
        info = (await client.get("/v1/model/info"))["data"]
        assert [(row["model_name"], row["litellm_params"]["model"]) for row in info] == [("a", "x/1"), ("a", "x/2")]
        assert len({row["model_info"]["id"] for row in info}) == 2
        assert [row["id"] for row in (await client.get("/v1/models"))["data"]] == ["a"]

    run(test, models=(Model(name="a", upstream="x/1"), Model(name="a", upstream="x/2")))


# Refusals


@pytest.mark.parametrize(
    ("given", "type_", "param"),
    [
        (None, "auth_error", "None"),
        ("Bearer other", "auth_error", "None"),
        ("Bearer sk-wrong", "token_not_found_in_db", "key"),
    ],
)
def test_errors_from_authentication_have_no_headers_of_litellm(given: str | None, type_: str, param: str) -> None:
    async def test(client: Client) -> None:
        reply = await client.chat(headers={"Authorization": given} if given else {})
        assert (reply.status, reply.error["type"], reply.error["param"], reply.error["code"]) == (
            401,
            type_,
            param,
            "401",
        )
        assert own(reply) == []
        assert (await client.chat(headers={"Authorization": "Bearer sk-right"})).status == 200
        assert await client.get("/health/readiness") == {"status": "healthy", "db": "connected"}
        assert await client.get("/health/liveliness") == "I'm alive!"
        assert (await client.call("GET", "/v1/nowhere")).status == 404

    run(test, api_key="sk-right")


@pytest.mark.parametrize(
    ("data", "headers", "status", "says", "bare"),
    [
        (b'{"model": "m", ', {}, 400, "Invalid JSON payload: unexpected end of data: line 1 column 16 (char 15)", True),
        (b'{"model": "\\ud800"}', {}, 400, "Invalid JSON payload: no low surrogate in string", True),
        (b"\xff", {}, 400, "/v1/chat/completions: Missing required parameter: 'messages'.", False),
        (b"", {}, 400, "/v1/chat/completions: Missing required parameter: 'messages'.", False),
        (b'{"model": "%b"}', {}, 400, "/v1/chat/completions: Missing required parameter: 'messages'.", False),
        (gzip.compress(b'{"model": "%b", "messages": [{"role": "user"}]}', mtime=0), {"Content-Encoding": "gzip"}, 400, "Missing required", False),
        (b"[]", {}, 500, "Internal server error", False),
        (b'{"model": "no", "messages": [{"role": "user"}]}', {}, 400, "Invalid model name passed in model=no.", False),
        (b'{"model": "%b,%b", "messages": [{"role": "user"}]}', {}, 400, "Invalid model name passed in model=", False),
        (b'{"model": "%b", "messages": [], "n": 0}', {}, 400, "litellm.BadRequestError: Hosted_vllmException - ", False),
    ],
)  # fmt: skip
def test_bad_bodies(data: bytes, headers: dict[str, str], status: int, says: str, bare: bool) -> None:
    async def test(client: Client) -> None:
        sent = data.replace(b"%b", FREE.encode()) if not headers else data
        reply = await client.call("POST", "/v1/chat/completions", data=sent, headers=headers)
        assert reply.status == status
        assert says in reply.error["message"]
        assert ("code" in reply.error) is (status == 400)
        assert (own(reply) == []) is bare
        if not bare:
            assert reply.headers["x-litellm-response-cost"] == "0"
            assert UUID(reply.headers["x-litellm-call-id"])

    run(test)


def test_routes_that_are_not_there() -> None:
    async def test(client: Client) -> None:
        for method, path, status, detail in (
            ("POST", "/cost/calculate", 404, "Not Found"),
            ("POST", "/v1/batches", 404, "Not Found"),
            ("GET", "/v1/nowhere", 404, "Not Found"),
            ("GET", "/v1/chat/completions", 405, "Method Not Allowed"),
        ):
            reply = await client.call(method, path)
            assert (reply.status, reply.json, own(reply)) == (status, {"detail": detail}, [])

    run(test)


def test_a_restricted_key_may_not_even_know_which_models_there_are() -> None:
    async def test(client: Client) -> None:
        for model in (PRICED, "unheard-of"):
            reply = await client.chat(model)
            assert (reply.status, reply.error["type"], own(reply)) == (403, "key_model_access_denied", [])
        assert (await client.chat(FREE)).status == 200
        assert [row["id"] for row in (await client.get("/models"))["data"]] == [FREE]

    run(test, key=Key(models=(FREE,)))


def test_parameters_of_the_proxy_and_of_vllm_are_accepted() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat(num_retries=0, top_k=3, extra_body={"max_tokens": 2})
        assert reply.json["choices"][0]["finish_reason"] == "length"

    run(test)


def test_a_prompt_longer_than_the_context() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat("m", "one " * 40)
        assert reply.status == 400
        assert "ContextWindowExceededError" in reply.error["message"]
        assert "maximum context length is 30 tokens" in reply.error["message"]
        assert (await client.chat("m")).status == 200
        assert (await client.chat("m", max_tokens=30)).status == 400

    run(test, models=(Model(name="m", upstream="hosted_vllm/x", max_input_tokens=30),))


ERRORS: list[tuple[str, int, Any, str, dict[str, str | None]]] = [
    ("bad_key", 401, "token_not_found_in_db", "Authentication Error, Invalid proxy server token", {"x-litellm-call-id": None}),
    ("expired_key", 401, "expired_key", "Expired Key", {"x-litellm-call-id": None}),
    ("database", 401, "auth_error", "Error in external connector", {"x-litellm-call-id": None}),
    ("user_budget", 422, "budget_exceeded", "ExceededBudget: User=", {"x-litellm-call-id": None}),
    ("parallel", 429, "throttling_error", "Limit type: max_parallel_requests", {"rate_limit_type": "max_parallel_requests"}),
    ("requests", 429, "throttling_error", "Limit type: requests", {"retry-after": "60"}),
    ("tokens", 429, "throttling_error", "Limit type: tokens", {"rate_limit_type": "tokens"}),
    ("cooldown", 429, "all_deployments_in_cooldown", "Try again in 5 seconds", {"retry-after": "5"}),
    ("model_parallel", 429, "throttling_error", "Deployment has all max_parallel_requests", {"retry-after": None}),
    ("upstream_429", 429, "throttling_error", "litellm.RateLimitError", {"llm_provider-retry-after": "7", "retry-after": None}),
    ("context", 400, "invalid_request_error", "litellm.ContextWindowExceededError", {}),
    ("policy", 400, "invalid_request_error", "litellm.BadRequestError: Hosted_vllmException - The response was filtered", {}),
    ("timeout", 408, "invalid_request_error", "litellm.Timeout", {}),
    ("upstream_refused", 500, "internal_server_error", "Cannot connect to host", {}),
    ("upstream_reset", 500, "internal_server_error", "Server disconnected", {}),
    ("upstream_html", 503, "internal_server_error", "litellm.ServiceUnavailableError", {}),
    ("upstream_404", 404, "invalid_request_error", "litellm.NotFoundError", {"x-litellm-response-cost": "0"}),
    ("upstream_401", 401, "authentication_error", "litellm.AuthenticationError", {"x-litellm-call-id": "mine"}),
    ("upstream_403", 403, "permission_error", "litellm.PermissionDeniedError", {}),
    ("upstream_422", 422, "invalid_request_error", "litellm.BadRequestError", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "status", "type_", "says", "headers"), ERRORS, ids=[error[0] for error in ERRORS])
def test_errors_by_name(name: str, status: int, type_: str, says: str, headers: dict[str, str | None]) -> None:
    async def test(client: Client) -> None:
        for stream in (False, True):
            reply = await client.chat(headers={"x-litellm-call-id": "mine"}, stream=stream)
            assert (reply.status, reply.error["type"], reply.error["code"]) == (status, type_, str(status))
            assert says in reply.error["message"]
            assert "$" not in reply.body.decode()
            assert {header: reply.headers.get(header) for header in headers} == headers
            assert not client.sim.ledger.entries[0].billed
            client.clock.now += 5

    more = {"retry_after": 7} if name == "upstream_429" else {}
    run(test, {"fault": name, **more})


@pytest.mark.parametrize("status", [403, 502, 503, 520, 524])
def test_the_page_of_a_front_proxy_is_bare(status: int) -> None:
    async def test(client: Client) -> None:
        reply = await client.chat()
        assert (reply.status, reply.headers["content-type"][:9], own(reply)) == (status, "text/html", [])
        assert (await client.get("/v1/models"))["data"]

    run(test, {"fault": "front_html", "times": 1} | ({} if status == 502 else {"status": status}))


def test_the_proxy_gives_up_when_the_client_says_so() -> None:
    async def test(client: Client) -> None:
        loop = asyncio.get_running_loop()
        took = []
        for retries in (None, 0):
            start = loop.time()
            reply = await client.chat(headers={"x-litellm-timeout": "0.2"}, num_retries=retries)
            assert (reply.status, reply.error["type"]) == (408, "invalid_request_error")
            took.append(loop.time() - start)
        assert took[0] >= 0.6 > took[1] >= 0.2
        assert client.sim.ledger.totals.billed == 0

    run(test, latency_s=30)


def test_a_stream_that_breaks_has_an_error_and_no_end() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat(stream=True)
        assert reply.status == 200
        *pieces, last = (json.loads(event) for event in reply.events)
        assert pieces[0]["choices"][0]["delta"]
        assert last["error"]["message"].startswith("litellm.APIConnectionError")
        assert last["error"] | {"message": ""} == {"message": "", "type": None, "param": None, "code": "500"}
        reply = await client.chat(stream=True)
        assert b"[DONE]" not in reply.body
        assert b"finish_reason" not in reply.body
        assert json.loads(reply.events[-1])["choices"]
        assert client.sim.ledger.totals.billed == 0
        assert (await client.chat()).status == 200

    run(test, {"fault": "stream_error", "first": 1}, {"fault": "cut_stream"})


# Limits


def test_parallel_requests_are_refused_at_once_and_a_slot_is_free_when_a_call_ends() -> None:
    async def test(client: Client) -> None:
        replies = await asyncio.gather(*(client.chat(text=f"{n}") for n in range(8)))
        refused = [reply for reply in replies if reply.status == 429]
        assert len(refused) == 3
        key = refused[0].error["message"].split()[5].rstrip(".")
        assert refused[0].error == {
            "message": f"Rate limit exceeded for api_key: {key}. Limit type: max_parallel_requests. Current limit: 5, "
            "Remaining: 0. Limit resets at: 2027-01-15 08:01:00 UTC",
            "type": "throttling_error",
            "param": None,
            "code": "429",
        }
        limit = {
            "retry-after": "60",
            "reset_at": "2027-01-15 08:01:00 UTC",
            "rate_limit_type": "max_parallel_requests",
            "x-litellm-response-cost": "0",
        }
        assert limit.items() <= refused[0].headers.items()
        assert await client.statuses(FREE) == [200]

    run(test, latency_s=0.2)


def test_a_window_begins_with_its_first_request_and_refusals_do_not_prolong_it() -> None:
    async def test(client: Client) -> None:
        client.clock.now += 1000
        for _ in range(5):
            await client.get("/key/info")  # only answers count
        assert (await client.chat()).headers["x-ratelimit-api_key-remaining-requests"] == "2"
        client.clock.now += 30
        assert await client.statuses(FREE, FREE, FREE) == [200, 200, 429]
        for _ in range(5):
            client.clock.now += 5.9
            reply = await client.chat()
            assert (reply.status, reply.headers["rate_limit_type"], reply.headers["retry-after"]) == (
                429,
                "requests",
                "60",
            )
        client.clock.now += 0.6
        assert await client.statuses(FREE, FREE, FREE, FREE) == [200, 200, 200, 429]

    run(test, key=Key(rpm=3))


def test_tokens_are_reserved_and_given_back() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat()
        assert reply.headers["x-ratelimit-api_key-remaining-tokens"] == str(2100 - 6 - 1024)
        used = reply.json["usage"]["total_tokens"]
        reply = await client.chat(max_tokens=2)
        assert reply.headers["x-ratelimit-api_key-remaining-tokens"] == str(2100 - used - 6 - 2)
        replies = await asyncio.gather(*(client.chat(text=text) for text in "abc"))
        assert sorted(reply.status for reply in replies) == [200, 200, 429]
        refused = next(reply for reply in replies if reply.status == 429)
        assert (refused.headers["rate_limit_type"], "Current limit: 2100" in refused.error["message"]) == (
            "tokens",
            True,
        )
        assert await client.statuses(FREE, FREE, FREE) == [200] * 3

    run(test, key=Key(tpm=2100), latency_s=0.1)


@pytest.mark.parametrize("fault", ["upstream_401", "upstream_404"])
def test_what_fails_upstream_takes_the_model_away_from_everybody_for_a_while(fault: str) -> None:
    async def test(client: Client) -> None:
        assert (await client.get("/v1/models"))["data"]
        assert await client.statuses(FREE, FREE, PRICED) == [int(fault[-3:]), 429, 200]
        reply = await client.chat()
        assert (reply.error["type"], reply.headers["retry-after"]) == ("all_deployments_in_cooldown", "5")
        client.clock.now += 4.9
        assert await client.statuses(FREE) == [429]
        client.clock.now += 0.1
        assert await client.statuses(FREE) == [200]

    run(test, {"fault": fault, "times": 1})


def test_another_deployment_takes_over_from_one_that_cools_down() -> None:
    async def test(client: Client) -> None:
        replies = [await client.chat("a") for _ in range(4)]
        assert [reply.status for reply in replies] == [404, 200, 200, 200]
        assert len({reply.headers["x-litellm-model-name"] for reply in replies[1:]}) == 1

    models = (Model(name="a", upstream="x/1"), Model(name="a", upstream="x/2"))
    run(test, {"fault": "upstream_404", "first": 1}, models=models)


def test_the_operators_limit_of_a_model_does_not_say_when_to_come_back() -> None:
    async def test(client: Client) -> None:
        replies = await asyncio.gather(*(client.chat(model, text=f"{n}") for n, model in enumerate("aab")))
        assert sorted(reply.status for reply in replies) == [200, 200, 429]
        refused = next(reply for reply in replies if reply.status == 429)
        assert "Deployment has all max_parallel_requests slots in use" in refused.error["message"]
        assert not {"retry-after", "rate_limit_type"} & refused.headers.keys()

    run(test, models=(Model(name="a", max_parallel=1), Model(name="b")), latency_s=0.1)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves(stream: bool) -> None:
    async def test(client: Client) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await client.chat(stream=stream)
        # A stream frees its slot at once; a plain call keeps it until the answer nobody reads is made.
        assert (await client.emptied() < 0.5) is stream
        assert [entry.billed for entry in client.sim.ledger.entries] == [not stream]
        logs = await client.get("/spend/logs", params={"request_id": client.sim.ledger.entries[0].call_id or ""})
        assert logs == []
        client.clock.now += 1
        logs = await client.get("/spend/logs", params={"request_id": client.sim.ledger.entries[0].call_id or ""})
        assert [row["status"] for row in logs] == ([] if stream else ["success"])

    run(test, latency_s=0.8)


# Money


@pytest.mark.parametrize("status", [422, 429, 400])
def test_the_call_that_crosses_the_line_succeeds_and_then_all_is_over(status: int) -> None:
    async def test(client: Client) -> None:
        assert await client.statuses("p", "p", FREE) == [200, status, status]
        reply = await client.chat("p")
        assert (reply.error["type"], reply.error["code"], own(reply)) == ("budget_exceeded", str(status), [])
        assert f"Current cost: {client.sim.ledger.totals.cost}, Max budget: 1e-06" in reply.error["message"]
        assert await client.statuses("zero") == [200]
        assert (await client.call("GET", "/v1/models")).status == status
        assert (await client.get("/user/info"))["user_info"]["spend"] == 0
        assert (await client.get("/key/info"))["info"]["spend"] == 0
        client.clock.now += 1
        assert (await client.get("/key/info"))["info"]["spend"] == client.sim.ledger.totals.cost > 1e-06

    zero = Model(name="zero", input_cost_per_token=0.0, output_cost_per_token=0.0)
    models = (Model(name="p", **PRICES), Model(name=FREE), zero)
    run(test, models=models, key=Key(max_budget=1e-06), budget_status=status)


# Pages


def test_pages() -> None:
    async def test(client: Client) -> None:
        reply = await client.chat(PRICED, headers={"x-litellm-call-id": "c-1"})
        info = (await client.get("/key/info"))["info"]
        limits = {"max_parallel_requests": 3, "rpm_limit": 50, "tpm_limit": None, "max_budget": None, "models": []}
        assert limits.items() <= info.items()
        user = await client.get("/user/info")
        assert (user["user_id"], user["keys"]) == (info["user_id"], [info])
        rows = (await client.get("/model/info"))["data"]
        assert [row["model_name"] for row in rows] == ["lbl/cborg-chat", FREE, PRICED, "nomic-embed-text"]
        assert rows[2]["model_info"]["input_cost_per_token"] == 1.5e-07
        assert (rows[1]["model_info"]["input_cost_per_token"], rows[3]["model_info"]["mode"]) == (None, "embedding")
        groups = (await client.get("/model_group/info"))["data"]
        assert [group["providers"] for group in groups] == [
            ["hosted_vllm"],
            ["hosted_vllm"],
            ["openai"],
            ["hosted_vllm"],
        ]
        models = (await client.get("/v1/models"))["data"]
        assert models[1]["created"] == 1677610602
        client.clock.now += 1
        (row,) = await client.get("/spend/logs", params={"request_id": "c-1"})
        assert row["request_id"] == reply.json["id"]
        assert str(row["spend"]) == reply.headers["x-litellm-response-cost"]
        assert (row["prompt_tokens"], row["completion_tokens"]) == (6, 5)
        body = {"model": PRICED, "messages": [{"role": "user", "content": "Hello."}]}
        cost = (await client.call("POST", "/spend/calculate", json=body)).json
        assert cost == {"cost": pytest.approx(6 * 1.5e-07)}
        assert (await client.call("POST", "/spend/calculate", json=body | {"model": FREE})).json == {"cost": 0.0}
        for prompt, total in ((body, 6), ({"model": FREE, "prompt": "one two"}, 2)):
            counted = (await client.call("POST", "/utils/token_counter", json=prompt)).json
            assert (counted["total_tokens"], counted["count_source"]) == (total, "local_estimate")
        assert client.sim.ledger.totals.billed == 1

    run(test, key=Key(max_parallel=3, rpm=50))

"""The simulated gateway over real HTTP: what it answers, refuses and writes into its books."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from typing import Any

import aiohttp
import openai
import pytest

from pipeline.simulator import Settings, Simulator


class Client:
    """A session at a simulator."""

    def __init__(self, sim: Simulator, session: aiohttp.ClientSession) -> None:
        self.sim = sim
        self.session = session

    async def post(self, path: str, payload: Any, **options: Any) -> tuple[int, Any, bytes]:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        async with self.session.post(self.sim.base_url + path, data=data, **options) as reply:
            body = await reply.read()
            return reply.status, reply.headers, body

    async def chat(self, text: str = "Hello.", **params: Any) -> tuple[int, Any, bytes]:
        return await self.post("/chat/completions", chat(text, **params))

    async def say(self, text: str = "Hello.", **params: Any) -> Any:
        status, _, body = await self.chat(text, **params)
        assert status == 200, body
        return json.loads(body)

    async def status(self, text: str) -> int:
        return (await self.chat(text))[0]


def chat(text: str, **params: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **params}


def run(test: Callable[[Client], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with Simulator(Settings(**settings)) as sim, aiohttp.ClientSession() as session:
            await test(Client(sim, session))

    asyncio.run(main())


async def timed(call: Awaitable[Any]) -> float:
    start = time.perf_counter()
    await call
    return time.perf_counter() - start


def content(reply: Any) -> Any:
    return reply["choices"][0]["message"]["content"]


def events(body: bytes) -> list[Any]:
    lines = body.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


# Answers


def test_the_same_request_gets_the_same_bytes() -> None:
    async def test(client: Client) -> None:
        replies = [await client.chat("Tell me about rivers.") for _ in range(2)]
        assert replies[0][2] == replies[1][2]
        reply = json.loads(replies[0][2])
        usage = reply["usage"]
        assert (reply["object"], reply["model"]) == ("chat.completion", "m")
        assert content(reply) == "You said: Tell me about rivers."
        assert usage["prompt_tokens"] > 4 < usage["completion_tokens"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert replies[0][1]["x-request-id"] != replies[1][1]["x-request-id"]
        async with client.session.post(client.sim.base_url[:-3] + "/chat/completions", json=chat("x")) as reply:
            assert reply.status == 200

    run(test)


@pytest.mark.parametrize(
    ("system", "user", "expected"),
    [
        ("Answer with one of these labels: billing, shipping, other.", "The shipping took weeks.", "shipping"),
        ("", "Classify the text as one of positive, negative or neutral.\n\nText: what a negative mood", "negative"),
        (
            "Categories:\n- Bug report: it breaks\n- Feature request\n",
            "I have a request, a feature!",
            "Feature request",
        ),
        ('Pick one of ["red", "green"]', "Green grass", "green"),
        ("Summarise in one sentence.", "It rained. We stayed home. It was dull.", "It rained."),
        ("", "Summarize the text:\n\nIt rained all day! We stayed home.", "It rained all day!"),
        ("", "Good morning.", "You said: Good morning."),
    ],
)
def test_answers_make_sense(system: str, user: str, expected: str) -> None:
    async def test(client: Client) -> None:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "text", "text": user}]},
        ]
        assert content(await client.say(messages=messages)) == expected

    run(test)


def test_labels_without_a_hint_in_the_text_are_spread_by_hash() -> None:
    async def test(client: Client) -> None:
        replies = [content(await client.say(f"Labels: alpha, beta, gamma\nticket {n}")) for n in range(30)]
        assert set(replies) == {"alpha", "beta", "gamma"}

    run(test)


def test_json_answers_fit_the_schema_or_the_keys_asked_for() -> None:
    schema = {
        "type": "object",
        "properties": {
            "label": {"enum": ["refund", "delivery"]},
            "score": {"type": "number", "minimum": 2, "maximum": 3},
            "stars": {"type": "integer", "minimum": 1, "maximum": 5},
            "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 2},
            "note": {"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 10}]},
            "sure": {"type": "boolean"},
            "children": {"type": "array", "items": {"$ref": "#"}},
        },
        "$defs": {"tag": {"type": "string"}},
    }

    async def test(client: Client) -> None:
        wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        value = json.loads(content(await client.say("My delivery was late, very late.", response_format=wish)))
        assert value.keys() == schema["properties"].keys()
        assert value["label"] == "delivery"
        assert 2 < value["score"] < 3
        assert 1 <= value["stars"] <= 5
        assert [type(tag) for tag in value["tags"]] == [str, str]
        assert len(value["note"]) <= 10
        assert isinstance(value["sure"], bool)
        text = 'Return JSON like {"category": ..., "reason": ...}. Categories: cat, dog\n\nA dog.'
        assert json.loads(content(await client.say(text)))["category"] == "dog"
        reply = await client.say("hm", response_format={"type": "json_object"})
        assert json.loads(content(reply)) == {"answer": "hm"}

    run(test)


def test_max_tokens_n_and_stop_are_honoured() -> None:
    async def test(client: Client) -> None:
        reply = await client.say("one two three four", model="sim/echo", max_tokens=2, n=3)
        assert [choice["message"]["content"] for choice in reply["choices"]] == ["one two"] * 3
        assert reply["choices"][2]["finish_reason"] == "length"
        assert reply["usage"]["completion_tokens"] == 6
        reply = await client.say("one two three four", model="sim/echo", stop=["three"], max_completion_tokens=4)
        assert (content(reply), reply["choices"][0]["finish_reason"]) == ("one two ", "stop")

    run(test)


def test_a_stream_says_the_same_in_chunks() -> None:
    async def test(client: Client) -> None:
        whole = await client.say("one two, three")
        _, headers, body = await client.chat("one two, three", stream=True, stream_options={"include_usage": True})
        assert headers["content-type"].startswith("text/event-stream")
        *chunks, last = events(body)
        deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(deltas) == content(whole)
        assert len(deltas) > 5
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[-2:]] == [None, "stop"]
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert all("usage" not in chunk for chunk in events((await client.chat(stream=True))[2]))

    run(test)


def test_embeddings_are_unit_vectors_in_either_encoding() -> None:
    async def test(client: Client) -> None:
        wish = {"model": "e", "input": ["one", "two", "one"]}
        reply = json.loads((await client.post("/embeddings", wish))[2])
        vectors = [item["embedding"] for item in reply["data"]]
        assert [item["index"] for item in reply["data"]] == [0, 1, 2]
        assert vectors[0] == vectors[2] != vectors[1]
        assert sum(x * x for x in vectors[0]) == pytest.approx(1)
        assert len(vectors[0]) == 64
        assert reply["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        packed = json.loads((await client.post("/embeddings", {**wish, "encoding_format": "base64"}))[2])
        assert list(struct.unpack("<64f", base64.b64decode(packed["data"][1]["embedding"]))) == vectors[1]
        short = json.loads((await client.post("/embeddings", {"model": "e", "input": [1, 2], "dimensions": 3}))[2])
        assert len(short["data"]) == 1
        assert len(short["data"][0]["embedding"]) == 3

    run(test)


def test_the_official_sdk_works_against_it() -> None:
    async def main() -> None:
        async with (
            Simulator(Settings(api_key="k")) as sim,
            openai.AsyncOpenAI(base_url=sim.base_url, api_key="k") as sdk,
        ):
            messages: Any = [{"role": "user", "content": "Hello there."}]
            reply = await sdk.chat.completions.create(model="sim/labeler", messages=messages)
            assert reply.choices[0].message.content == "You said: Hello there."
            assert reply.usage
            options: Any = {"include_usage": True}
            stream = await sdk.chat.completions.create(
                model="sim/labeler", messages=messages, stream=True, stream_options=options
            )
            chunks = [chunk async for chunk in stream]
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "You said: Hello there."
            assert chunks[-1].usage == reply.usage
            vector = (await sdk.embeddings.create(model="sim/embed", input="hi", dimensions=8)).data[0].embedding
            assert len(vector) == 8
            assert {"sim/labeler", "sim/echo", "sim/embed"} <= {one.id for one in (await sdk.models.list()).data}
            with pytest.raises(openai.AuthenticationError):
                await sdk.with_options(api_key="other").models.list()
            with pytest.raises(openai.BadRequestError, match="at least one message"):
                await sdk.chat.completions.create(model="m", messages=[])

    asyncio.run(main())


# Refusals


@pytest.mark.parametrize(
    ("path", "payload", "status", "param"),
    [
        ("/chat/completions", b'{"model": "m", ', 400, None),
        ("/chat/completions", [], 400, None),
        ("/chat/completions", {"messages": []}, 400, "model"),
        ("/chat/completions", {"model": "m"}, 400, "messages"),
        ("/chat/completions", {"model": "m", "messages": "hi"}, 400, "messages"),
        ("/chat/completions", {"model": "m", "messages": [{"content": "x"}]}, 400, "messages[0]"),
        ("/chat/completions", chat("x", max_tokens=0), 400, "max_tokens"),
        ("/chat/completions", chat("x", n="2"), 400, "n"),
        ("/chat/completions", chat("x", stop=[1]), 400, "stop"),
        ("/chat/completions", chat("x", stream_options=[1]), 400, "stream_options"),
        ("/chat/completions", chat("x", model="unlisted"), 404, None),
        ("/embeddings", {"model": "m"}, 400, "input"),
        ("/embeddings", {"model": "m", "input": []}, 400, "input"),
        ("/embeddings", {"model": "m", "input": ["a", ""]}, 400, "input"),
        ("/embeddings", {"model": "m", "input": "a", "dimensions": -1}, 400, "dimensions"),
        ("/embeddings", {"model": "m", "input": "a", "encoding_format": "hex"}, 400, "encoding_format"),
        ("/rerank", {}, 404, None),
    ],
)
def test_bad_requests_get_openai_errors(path: str, payload: Any, status: int, param: str | None) -> None:
    async def test(client: Client) -> None:
        got, _, body = await client.post(path, payload)
        error = json.loads(body)["error"]
        assert (got, error["param"], error["type"]) == (status, param, "invalid_request_error"), error
        assert not client.sim.ledger.entries[0].billed

    run(test, models=("m",))


def test_a_key_is_asked_for_only_where_one_is_set() -> None:
    async def test(client: Client) -> None:
        assert (await client.chat())[0] == 401
        for given, status in (("Bearer wrong", 401), ("secret", 401), ("Bearer secret", 200)):
            headers = {"Authorization": given}
            got, _, body = await client.post("/chat/completions", chat("x"), headers=headers)
            assert got == status
            assert b"secret" not in body

    run(test, api_key="secret")
    assert "secret" not in repr(Settings(api_key="secret"))


def test_one_more_than_max_parallel_is_refused_at_once() -> None:
    async def test(client: Client) -> None:
        replies = await asyncio.gather(*(client.chat(f"{n}") for n in range(5)))
        assert sorted(status for status, _, _ in replies) == [200, 200, 200, 429, 429]
        refused = next(reply for reply in replies if reply[0] == 429)
        assert json.loads(refused[2])["error"]["code"] == "rate_limit_exceeded"
        assert "retry-after" not in refused[1]
        assert await client.status("again") == 200
        assert client.sim.ledger.totals.peak_parallel == 3

    run(test, max_parallel=3, latency_s=0.2)


def test_latency_is_spread_the_same_way_in_every_run() -> None:
    async def waits(seed: int) -> list[float]:
        settings = Settings(latency_s=0.2, jitter=1.0, seed=seed)
        async with Simulator(settings) as sim, aiohttp.ClientSession() as session:
            return await asyncio.gather(*(timed(Client(sim, session).status(text)) for text in "aaabcdef"))

    first, again, other = (sorted(asyncio.run(waits(seed))) for seed in (1, 1, 3))
    assert first == pytest.approx(again, abs=0.1)
    assert first != pytest.approx(other, abs=0.1)
    assert first[-1] - first[0] > 0.2


# Books


def test_the_books_name_every_request() -> None:
    async def test(client: Client) -> None:
        await client.post("/chat/completions", chat("x"), headers={"x-client-request-id": "c-1"})
        await client.post("/embeddings", b"{")
        url = client.sim.base_url[:-3] + "/ledger"
        async with client.session.get(url) as reply:
            books = await reply.json()
        assert books["requests"][0] == {
            "number": 1,
            "at": pytest.approx(time.time(), abs=10),
            "ended_at": pytest.approx(time.time(), abs=10),
            "method": "POST",
            "path": "/v1/chat/completions",
            "body_digest": blake2b(json.dumps(chat("x")).encode(), digest_size=16).hexdigest(),
            "call_id": "c-1",
            "model": "m",
            "served": "m",
            "status": 200,
            "fault": None,
            "billed": True,
            "prompt_tokens": 5,
            "completion_tokens": 4,
            "cost": pytest.approx((5 * 1 + 4 * 10) / 1e6),
        }
        assert (books["requests"][1]["status"], books["requests"][1]["cost"]) == (400, 0)
        async with client.session.get(url, params={"totals": "1"}) as reply:
            assert await reply.json() == {"totals": books["totals"]}
        assert books["totals"]["unit"] == "USD"
        assert books["totals"]["by_status"] == {"200": 1, "400": 1}

    run(test, input_cost_per_million=1, output_cost_per_million=10)

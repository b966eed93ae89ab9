"""Whatever a server says: the run ends as the contract has it, each row has its one outcome, and memory stays bounded."""

from __future__ import annotations

import asyncio
import logging
import os
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from conftest import examples, read_jsonl, write_jsonl
from hostile import (
    ANSWER,
    DONE,
    EVENTS,
    GOOD,
    HEAD,
    HTTP,
    JSON,
    STREAM,
    STREAMS,
    Case,
    Hostile,
    Say,
    bomb,
    chunk,
    chunked,
    delta,
    endless,
    event,
    reply,
    serving,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import Script, error, lost, work
from pools import reply as found_reply

import pipeline.limits.rates
import pipeline.pool.judge
import pipeline.pool.outage
from pipeline import Job, Summary, Wishes, arun
from pipeline.client import Client, Connection
from pipeline.client.stream import Assembly
from pipeline.errors import IncompleteError
from pipeline.export import export_folder
from pipeline.gateways import Announced, LiteLLM, Lumen, OpenAI
from pipeline.ground.jsonio import dumps, loads
from pipeline.pool import Pool, packs
from pipeline.pool.judge import MOST_HELD
from pipeline.preflight import Preflight, preflight
from pipeline.records import CHAT, COMPLETIONS, EMBEDDINGS, Completion, Cost, Kind, Reply, Verdict
from pipeline.verify import verify

MB = 1 << 20
DIALECTS = (OpenAI(), LiteLLM(), Lumen())


async def run_against(
    hostile: Hostile, folder: Path, names: Sequence[str], **changes: Any
) -> tuple[Summary, list[dict[str, Any]]]:
    """A run with a row for each name."""
    write_jsonl(folder / "in.jsonl", [{"id": name, "text": name} for name in names])
    overrides = {
        "input.path": str(folder / "in.jsonl"), "input.id": "id", "output.path": str(folder / "out.jsonl"), "model": "m",
        "gateway.base_url": hostile.url, "gateway.concurrency": 32, "request.prompt": "row {{ text }}",
        "gateway.max_reply_bytes": 2 * MB, **changes,
    }  # fmt: skip
    summary = await arun(Job.load(None, overrides=overrides), Wishes(keep_going=True))
    output = folder / "out.jsonl"
    return summary, read_jsonl(output) if output.exists() else []


def _exported(folder: Path, output: Path, output_format: str | None) -> int:
    rows, _ = export_folder(
        folder, output, output_format=output_format, selection="all", results_only=False, input_path=None
    )
    return rows


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage that only one row sees is over in no time, and soon that row's own."""
    monkeypatch.setattr(pipeline.pool.outage, "FIRST_PROBE_S", 0.01)
    monkeypatch.setattr(pipeline.pool.judge, "MOST_HELD", 3)


@pytest.mark.parametrize(
    ("cases", "stream", "tries"),
    [(HTTP, False, 1), (JSON, False, 2), (STREAMS, True, 1)],
    ids=["http", "json", "streams"],
)
def test_every_row_has_its_one_outcome_whatever_the_server_says(
    cases: list[Case],
    stream: bool,
    tries: int,
    quick: None,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    names = [name for case in cases for name in (case.name, f"good after {case.name}")]
    complaints: list[dict[str, Any]] = []

    async def main() -> tuple[Summary, list[dict[str, Any]], Hostile]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with serving({case.name: case.say for case in cases}) as hostile:
            changes = {"gateway.stream": stream, "limits.max_attempts": tries, "gateway.timeout": 2 if stream else 0.7}
            summary, rows = await run_against(hostile, tmp_path, names, **changes)
        return summary, rows, hostile

    with caplog.at_level(logging.WARNING):
        summary, rows, hostile = asyncio.run(main())
    assert (summary.exit_code, summary.pending) == (3, 0)
    assert [row["id"] for row in rows] == names
    expected = dict.fromkeys(names, (None, False)) | {case.name: (case.code, case.lost) for case in cases}
    assert {row["id"]: row["error_code"] for row in rows} == {name: code for name, (code, _) in expected.items()}
    for row in rows:
        # A connection that closes behind a whole reply may meet the next row as it does: that try is lost, and not charged.
        assert row["lost_attempts"] >= 1 if expected[row["id"]][1] else row["lost_attempts"] <= 1, row
    for row in rows:
        assert (row["status"] == "succeeded") == (row["error_code"] is None)
        assert row["content"] is None or row["status"] == "succeeded"
        if row["error_code"] != "redirected":  # an outage's tries are not charged
            asked = hostile.asked.count(row["id"])
            assert asked <= tries
            assert row["attempts"] in (asked, asked + 1)
        assert len(row["error_message"] or "") < 2000
    folder = Path(summary.run_folder)
    for name, output_format in (("x.parquet", None), ("x.csv", None), ("batch.jsonl", "batch")):
        assert _exported(folder, tmp_path / name, output_format) == len(names)
    assert verify(folder).findings == []
    assert not complaints
    assert not caplog.records
    assert "Traceback" not in capfd.readouterr().err


def test_a_server_that_closes_every_connection_without_a_word_is_not_away(quick: None, tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    closing = reply(ANSWER, b"X-Then: closed")

    async def main() -> tuple[Summary, list[dict[str, Any]]]:
        says = {"3": reply(b"{}", b"X-Then: closed", status=b"500 No"), "7": reply(b"{}", status=b"503 Away")}
        async with serving(says, other=closing, listed=reply(b'{"data":[]}', b"X-Then: closed"), times=1) as hostile:
            return await run_against(hostile, tmp_path, names)

    summary, _ = asyncio.run(main())
    assert (summary.exit_code, summary.completed) == (0, 12)


@pytest.mark.slow
@settings(max_examples=5, deadline=None)
@given(says=st.deferred(lambda: st.lists(garbled(), min_size=5, max_size=12)), stream=st.booleans())
def test_a_run_through_any_garble_ends_with_every_row_accounted_for(says: list[bytes], stream: bool) -> None:
    names = [str(number) for number in range(len(says))]

    async def main(folder: Path) -> tuple[Summary, list[dict[str, Any]]]:
        async with serving(dict(zip(names, says, strict=True)), times=2) as hostile:
            changes = {"gateway.stream": stream, "gateway.timeout": 0.5, "limits.max_attempts": 2}
            return await run_against(hostile, folder, names, **changes)

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(pipeline.pool.outage, "FIRST_PROBE_S", 0.01)
        patch.setattr(pipeline.pool.judge, "MOST_HELD", 3)
        for name in ("WINDOW_S", "MARGIN_S", "POLL_S", "MOST_POLL_S"):  # a garbled 429 is a limit, too
            patch.setattr(pipeline.limits.rates, name, 0.05)
        summary, rows = asyncio.run(main(Path(folder)))
        assert verify(Path(summary.run_folder)).findings == []
    assert (summary.exit_code, summary.pending) in ((0, 0), (3, 0))
    assert [row["id"] for row in rows] == names
    assert summary.completed + summary.failed == len(names)


def test_a_server_that_is_hostile_to_everyone_is_an_outage_and_no_rows_fault(quick: None, tmp_path: Path) -> None:
    names = ["says nothing", "no HTTP", "a redirect", "binary", "100,000 levels", "gzip that is none", "a gzip bomb"]
    says = {case.name: case.say for case in HTTP + JSON}

    async def one(name: str) -> Summary:
        (tmp_path / name).mkdir()
        async with serving({}, other=says[name], listed=says[name]) as hostile:
            rows = [str(number) for number in range(8)]
            summary, found = await run_against(hostile, tmp_path / name, rows, **{"limits.max_outage": 1})
            assert found == []
            return summary

    async def main() -> list[Summary]:
        return await asyncio.gather(*map(one, names))

    for summary in asyncio.run(main()):
        assert (summary.exit_code, summary.completed, summary.failed, summary.pending) == (75, 0, 0, 8)
        assert "limits.max_outage" in summary.reason


# ---------------------------------------------------------------- one exchange


def exchanges(says: Sequence[Say], *, stream: bool = False, proxied: bool = False, **limits: Any) -> list[Reply]:
    """What the client makes of these, all at once; ``proxied``: by way of a proxy, which is the hostile server itself."""

    async def main() -> list[Reply]:
        async with serving({str(number): say for number, say in enumerate(says)}) as hostile:
            reach: dict[str, Any] = {"timeout_s": 2.0, "connect_timeout_s": 2.0, **limits}
            reach["base_url"] = "http://gateway.invalid/v1" if proxied else hostile.url
            proxies = {"http_proxy": hostile.url.removesuffix("/v1"), "no_proxy": ""} if proxied else {}
            with patch.dict(os.environ, proxies):
                client = Client(Connection(api_key=None, **reach))
                async with client:
                    bodies = [b'{"messages":[{"content":"row %d"}]}' % number for number in range(len(says))]
                    return await asyncio.gather(*(client.send("/x", body, {}, stream=stream) for body in bodies))

    return asyncio.run(main())


def check(found: Reply, endpoint: str = CHAT) -> Kind:
    """All that is read in a reply can be read, now and in the journal, and written down."""
    for dialect in DIALECTS:
        verdict = dialect.classify(found, endpoint)
        dialect.announced_limits(found)
        said = [verdict.code, verdict.message, dialect.request_id(found) or ""]
        if verdict.kind is Kind.OK:
            answer = dialect.completion(found, endpoint)
            dialect.told_cost(found)
            content = dialect.content(answer.raw)
            assert endpoint == EMBEDDINGS or content == answer.content
            said += [answer.content or "", answer.model or "", answer.finish_reason or ""]
        for text in said:
            text.encode()
    return verdict.kind


@pytest.mark.parametrize(
    ("whole", "stream"),
    [
        (GOOD, False),
        (chunked(ANSWER[:40], ANSWER[40:]), False),
        (reply(STREAM, head=EVENTS), True),
        (chunked(STREAM[:90], STREAM[90:], head=EVENTS), True),
    ],
    ids=["length", "chunks", "stream", "stream in chunks"],
)
@pytest.mark.parametrize("proxied", [False, True], ids=["wire", "session"])
def test_a_connection_closed_anywhere_is_no_answer_and_may_be_billed(whole: bytes, stream: bool, proxied: bool) -> None:
    replies = exchanges([whole[:end] for end in range(len(whole) + 1)], stream=stream, proxied=proxied)
    *cut, last = replies
    assert check(last) is Kind.OK
    for found in cut:
        assert found.failure is not None
        assert found.failure.sent
        assert check(found) is Kind.TRANSIENT
    assert {found.failure.code for found in cut if found.failure is not None} <= {"disconnected", "malformed_reply"}


NOISE = st.sampled_from(
    [b"\r\n", b"\n", b"\0", b"\xff", b": ", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"{", b"]",
     b'"', b"\\ud800", b"data: ", b"data: [DONE]\n\n", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n", b"\x1f\x8b\x08", b"9" * 30,
     b"null", b"Content-Encoding: gzip\r\n", b"Retry-After: -1e9\r\n", b"[" * 3000, b"1e999"]
) | st.binary(max_size=20)  # fmt: skip
WHOLES = [
    GOOD,
    chunked(ANSWER[:40], ANSWER[40:]),
    reply(STREAM, head=EVENTS),
    reply(b'{"error":{"message":"no","code":"x","type":"y"}}', b"Retry-After: 0.1", status=b"429 No"),
    reply(b"", b"Location: http://127.0.0.1:9/", status=b"302 Found"),
]


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """A good reply after an accident: bytes put in, taken out, moved, and the rest cut off."""
    found = bytearray(draw(st.sampled_from(WHOLES)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(found)))
        match draw(st.sampled_from(["put", "take", "repeat", "cut"])):
            case "put":
                found[at:at] = draw(NOISE)
            case "take":
                del found[at : at + draw(st.integers(1, 40))]
            case "repeat":
                found[at:at] = found[max(0, at - draw(st.integers(1, 60))) : at]
            case "cut" if draw(st.booleans()):
                del found[at:]
    return bytes(found)


@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(says=st.lists(garbled(), min_size=10, max_size=30), stream=st.booleans(), proxied=st.booleans())
def test_no_bytes_get_past_the_client(says: list[bytes], stream: bool, proxied: bool) -> None:
    for found in exchanges(says, stream=stream, proxied=proxied, timeout_s=0.5):
        assert (found.status == 0) <= (found.failure is not None or found.json is not None or found.body == b"")
        check(found)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
MESSAGE = st.fixed_dictionaries({}, optional={"content": ODD, "refusal": ODD, "tool_calls": ODD, "role": ODD}) | ODD
CHOICE = st.fixed_dictionaries({}, optional={"message": MESSAGE, "finish_reason": ODD, "text": ODD, "index": ODD}) | ODD
USAGE = st.fixed_dictionaries(
    {}, optional={"prompt_tokens": ODD, "completion_tokens": ODD, "prompt_tokens_details": ODD, "cost": ODD}
)
VECTOR = st.fixed_dictionaries({"embedding": ODD}, optional={"index": ODD}) | ODD
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "choices": st.lists(CHOICE, max_size=2) | ODD, "usage": USAGE | ODD, "model": ODD, "id": ODD, "data": st.lists(VECTOR, max_size=3) | ODD,
        "error": st.fixed_dictionaries({}, optional={"message": ODD, "code": ODD, "type": ODD}) | ODD, "detail": ODD, "object": ODD,
    },
)  # fmt: skip


@settings(max_examples=examples(300), deadline=None)
@given(
    body=BODIES,
    status=st.sampled_from([200, 200, 200, 400, 429, 500]),
    endpoint=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]),
)
def test_no_json_is_taken_for_an_answer_that_cannot_be_read_again(body: Any, status: int, endpoint: str) -> None:
    found = Reply(status=status, headers={}, body=dumps(body), json=loads(dumps(body)), elapsed_s=0.1)
    check(found, endpoint)
    if endpoint == EMBEDDINGS and status == 200:
        packs.read(found, 2)


@pytest.mark.parametrize("case", HTTP + JSON, ids=lambda case: case.name)
def test_no_list_of_models_ends_the_preflight(case: Case) -> None:
    async def main() -> list[Preflight]:
        async with serving({}, listed=case.say) as hostile:
            reach = Connection(
                base_url=hostile.url, api_key=None, timeout_s=0.2, connect_timeout_s=2, max_reply_bytes=MB
            )
            return [await preflight(reach, dialect, model="m") for dialect in DIALECTS]

    for known in asyncio.run(main()):
        assert known.models == {}


def test_a_second_reply_that_nobody_asked_for_is_given_to_no_other_row() -> None:
    other = reply(ANSWER.replace(b"yes", b"another row's"))

    async def twice(writer: asyncio.StreamWriter) -> None:
        writer.write(GOOD)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(other)
        await writer.drain()
        await asyncio.sleep(0.5)

    async def main() -> list[Reply]:
        async with serving({}, other=twice) as hostile:
            connection = Connection(base_url=hostile.url, api_key=None, timeout_s=5, connect_timeout_s=2)
            async with Client(connection) as client:
                first = await client.send("/x", b"{}", {})
                await asyncio.sleep(0.1)
                return [first, await client.send("/x", b"{}", {})]

    assert [found.json["choices"][0]["message"]["content"] for found in asyncio.run(main())] == ["yes", "yes"]


# ---------------------------------------------------------------- memory


LARGE = 100 * MB
CHUNKS = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
HUGE: dict[str, tuple[Say, int]] = {  # what is said, and how much of it may be
    "100 MB": (endless(HEAD + b"Content-Length: %d\r\n\r\n" % LARGE, b" " * 65536, most=LARGE), 4 * MB),
    "100 MB in chunks": (endless(CHUNKS, chunk(b" " * 65536), most=LARGE), 4 * MB),
    "100 MB in chunks of a byte": (endless(CHUNKS, chunk(b" ") * 4096, most=LARGE), MB // 16),
    "100 MB of gzip": (bomb(LARGE), 4 * MB),
    "100 MB of events": (endless(EVENTS + b"\r\n", event(delta("x" * 500)) * 100, most=LARGE), 4 * MB),
    "a line of 100 MB": (endless(EVENTS + b"\r\ndata: ", b"x" * 65536, most=LARGE), 4 * MB),
    "100 MB of headers": (endless(b"HTTP/1.1 200 OK\r\n", b"X-Y: z\r\n" * 8192, most=LARGE), 4 * MB),
}


@pytest.mark.parametrize("name", HUGE)
def test_memory_stays_flat(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    say, most = HUGE[name]

    async def main() -> tuple[Reply, Reply, int]:
        async with serving({}, other=say, listed=say) as hostile:
            reach = Connection(
                base_url=hostile.url, api_key=None, timeout_s=20, connect_timeout_s=2, max_reply_bytes=most
            )
            async with Client(reach) as client:
                tracemalloc.start()
                sent = await client.send("/x", b"{}", {}, stream=True)
                got = await client.get("/models")
                peak = tracemalloc.get_traced_memory()[1]
                tracemalloc.stop()
                return sent, got, peak

    sent, got, peak = asyncio.run(main())
    with capsys.disabled():
        print(f" {name}, of which {most / MB:g} MB may be: {peak / MB:.1f} MB;", end="")
    for found in (sent, got):
        assert found.failure is not None
        assert found.failure.code == ("malformed_reply" if "headers" in name else "reply_too_large")
        assert found.failure.sent
    assert peak < 2 * most + 8 * MB


# ---------------------------------------------------------------- what nobody foresaw


class Unforeseen(OpenAI):
    """A dialect that trips, in one place, over what row 1 is answered."""

    def __init__(self, place: str) -> None:
        super().__init__()
        self._place = place

    def _trip(self, found: Reply, place: str) -> None:
        if place == self._place and found.headers.get("odd"):
            raise KeyError(f"what is this? {self._place}")

    def classify(self, reply: Reply, endpoint: str = CHAT) -> Verdict:
        self._trip(reply, "classify")
        return super().classify(reply, endpoint)

    def completion(self, reply: Reply, endpoint: str = CHAT) -> Completion:
        self._trip(reply, "completion")
        return super().completion(reply, endpoint)

    def told_cost(self, reply: Reply) -> Cost | None:
        self._trip(reply, "told_cost")
        return super().told_cost(reply)

    def announced_limits(self, reply: Reply) -> Announced:
        self._trip(reply, "announced_limits")
        return super().announced_limits(reply)


@pytest.mark.parametrize("place", ["classify", "completion", "told_cost", "announced_limits"])
def test_an_error_nobody_foresaw_in_one_reply_is_that_rows_trouble(place: str) -> None:
    def answer(row: int, nth: int) -> Reply:
        return found_reply(headers={"odd": "1"} if row == 1 else {})

    kept, _, pool, _ = work(answer, rows=4, attempts=3, dialect=Unforeseen(place))
    assert pool.stopped is None
    assert {outcome.custom_id: outcome.status for outcome in kept.outcomes} == {
        "r0": "succeeded", "r1": "failed", "r2": "succeeded", "r3": "succeeded",
    }  # fmt: skip
    failed = next(outcome for outcome in kept.outcomes if outcome.status == "failed")
    assert failed.error_code == "unreadable_reply"
    assert failed.error_message == (
        f"HTTP 200, but it cannot be read (KeyError: 'what is this? {place}') (after 3 tries)"
    )
    assert failed.lost
    assert [attempt.lost for attempt in kept.attempts] == [True, True]
    assert kept.set == {}


@pytest.mark.parametrize("place", ["classify", "completion", "told_cost"])
def test_nor_does_it_end_the_run_in_what_a_witness_is_answered(place: str) -> None:
    class Odd(Script):
        async def send(self, endpoint: str, body: bytes, *rest: Any, **more: Any) -> Reply:
            given = await super().send(endpoint, body, *rest, **more)
            return replace(given, headers={"odd": "1"}) if b"Say yes" in body else given

    def answer(row: int, nth: int) -> Reply:
        return error(500) if nth == 1 else found_reply()

    script = Odd(answer)
    _, _, pool, _ = work(answer, rows=2, dialect=Unforeseen(place), sender=script, max_outage_s=60.0, reached=True)
    assert script.witnesses
    assert pool.stopped is None or isinstance(pool.stopped, IncompleteError)


def test_an_error_of_our_own_ends_the_run() -> None:
    def trip(self: Pool, *_: object) -> None:
        raise TypeError("ours")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pool, "_watch", trip)
        with pytest.raises(ExceptionGroup) as caught:
            work(lambda row, nth: found_reply())
    assert caught.value.subgroup(TypeError) is not None


def test_a_line_of_10_mb_is_put_together_in_one_go_however_many_pieces_it_comes_in() -> None:
    line = event(delta("x" * 10_000_000, "stop"))
    assembly = Assembly()
    begun = time.perf_counter()
    for at in range(0, len(line), 1000):
        assembly.feed(line[at : at + 1000])
    assembly.feed(DONE)
    assert time.perf_counter() - begun < 1.0, "joined piece by piece it takes 10 s and more"
    assert len(assembly.body()["choices"][0]["message"]["content"]) == 10_000_000


def test_a_reply_that_is_too_large_is_tried_twice() -> None:
    kept, script, _, _ = work(lambda row, nth: lost("reply_too_large"), attempts=5)
    assert len(script.sends) == 2
    assert [(outcome.error_code, outcome.lost) for outcome in kept.outcomes] == [("reply_too_large", True)]


def test_a_row_for_which_alone_the_gateway_is_always_away_fails_in_the_end() -> None:
    kept, script, pool, _ = work(
        lambda row, nth: found_reply(302, None) if row == 1 else found_reply(), rows=3, attempts=2
    )
    assert pool.stopped is None
    assert sorted(outcome.custom_id for outcome in kept.outcomes if outcome.status == "failed") == ["r1"]
    assert len(script.sends) == 2 + MOST_HELD + 2

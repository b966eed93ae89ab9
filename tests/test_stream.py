"""Streams put together: split anywhere, in both gateways' shapes, and never taken for complete when they are not."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.client import stream
from pipeline.client.stream import Assembly

LITELLM = [
    {"id": "c1", "created": 1, "model": "lab/priced", "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "Grüß "}}]},
    {"id": "c1", "model": "lab/priced", "choices": [{"index": 0, "delta": {"content": "Gott 🚀", "reasoning_content": "hm"}}]},
    {"id": "c1", "model": "lab/priced", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"id": "c1", "model": "lab/priced", "choices": [{"index": 0, "delta": {}}], "usage": {"completion_tokens": 5, "prompt_tokens": 110, "total_tokens": 115, "cost": 0.000135}},
]  # fmt: skip
LUMEN = [
    {"id": "c2", "model": "up-fx", "choices": [{"index": 0, "delta": {"role": None, "content": "Grüß ", "tool_calls": None}, "finish_reason": None}], "usage": None},
    {"id": "c2", "model": "up-fx", "choices": [{"index": 0, "delta": {"role": None, "content": "Gott 🚀"}, "finish_reason": "stop"}], "usage": None},
    {"id": "c2", "model": "up-fx", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}},
]  # fmt: skip


def events(chunks: list[dict[str, object]], *, done: bool = True, newline: bytes = b"\n") -> bytes:
    lines = [b"data: " + orjson.dumps(chunk) for chunk in chunks] + ([b"data: [DONE]"] if done else [])
    return b"".join(line + newline + newline for line in lines)


@pytest.mark.parametrize("chunks", [LITELLM, LUMEN])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
@given(cuts=st.lists(st.integers(1, 900), max_size=8))
def test_a_stream_split_anywhere_is_the_same_completion(
    chunks: list[dict[str, object]], newline: bytes, cuts: list[int]
) -> None:
    data = b": ping" + newline + newline + events(chunks, newline=newline)
    assembly = Assembly()
    edges = [0, *sorted(cuts), len(data)]
    for start, end in pairwise(edges):
        assembly.feed(data[start:end])
    body = assembly.body()
    assert assembly.complete
    assert body["choices"][0]["message"]["content"] == "Grüß Gott 🚀"
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["completion_tokens"] in (2, 5)
    assert body["model"] == chunks[0]["model"]


def test_reasoning_and_the_price_of_the_usage_chunk_are_kept() -> None:
    assembly = Assembly()
    assembly.feed(events(LITELLM))
    assert assembly.body()["choices"][0]["message"]["reasoning_content"] == "hm"
    assert assembly.body()["usage"]["cost"] == 0.000135


@pytest.mark.parametrize("left_out", [2, 3])
def test_without_finish_reason_or_done_it_is_not_complete(left_out: int) -> None:
    assembly = Assembly()
    assembly.feed(
        events([chunk for at, chunk in enumerate(LITELLM) if at != left_out or left_out == 3], done=left_out == 2)
    )
    assert not assembly.complete


@pytest.mark.parametrize("piece", [1, 2, 7, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_byte_order_mark_and_a_missing_last_newline_cost_no_event(newline: bytes, piece: int) -> None:
    data = b"\xef\xbb\xbf" + events(LITELLM, newline=newline).rstrip()
    assembly = Assembly()
    for at in range(0, len(data), piece):
        assembly.feed(data[at : at + piece])
    status, body = assembly.whole(200)
    assert status == 200
    assert body is not None
    assert body["choices"][0]["message"]["content"] == "Grüß Gott 🚀"
    assert body["id"] == "c1"


@pytest.mark.parametrize("end", [b"data: [DO", b'data: {"error": {"message": "g', b"data:", b"dat"])
def test_half_an_event_at_the_end_is_a_cut_and_no_nonsense(end: bytes) -> None:
    assembly = Assembly()
    assembly.feed(events(LITELLM, done=False) + end)
    assert assembly.whole(200) == (200, None)


def test_an_error_without_a_last_newline_is_that_error() -> None:
    assembly = Assembly()
    assembly.feed(b'data: {"error": {"message": "gone", "code": 503}}')
    assert assembly.whole(200) == (503, {"error": {"message": "gone", "code": 503}})


def test_an_error_event_is_that_error_with_and_without_done() -> None:
    litellm = {"error": {"message": "litellm.APIConnectionError: gone", "type": None, "param": None, "code": "500"}}
    lumen = {"error": {"message": "This model's maximum context length is 8192 tokens.", "type": "BadRequestError"}}
    for chunk, done, status in ((litellm, False, 500), (lumen, True, 400), ({"error": "odd"}, True, 500)):
        assembly = Assembly()
        assembly.feed(events([LITELLM[0], chunk], done=done))
        assert assembly.error is not None
        assert assembly.error_status() == status
        assert not assembly.complete


def test_tool_calls_come_in_pieces() -> None:
    def delta(*calls: dict[str, object], finish: str | None = None) -> dict[str, object]:
        return {"choices": [{"index": 0, "delta": {"tool_calls": list(calls)}, "finish_reason": finish}]}

    assembly = Assembly()
    pieces = [
        delta({"index": 0, "id": "a", "function": {"name": "look", "arguments": ""}}),
        delta(
            {"index": 0, "function": {"arguments": '{"x"'}},
            {"index": 1, "id": "b", "function": {"name": "go", "arguments": "{}"}},
        ),
        delta({"index": 0, "function": {"arguments": ": 1}"}}, finish="tool_calls"),
    ]
    assembly.feed(events(pieces))
    message = assembly.body()["choices"][0]["message"]
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "look", "arguments": '{"x": 1}'},
        {"name": "go", "arguments": "{}"},
    ]
    assert message["content"] is None


def test_log_probabilities_come_token_by_token_and_are_all_kept() -> None:
    """They were paid for; two tokens may also be alike to the last digit."""
    told = [{"token": text, "logprob": -0.5, "top_logprobs": []} for text in ("a", "b", "b", "b", "c")]
    chunks: list[dict[str, object]] = [
        {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": one["token"]}, "logprobs": {"content": [one], "refusal": None}, "finish_reason": None}]}
        for one in told
    ]  # fmt: skip
    chunks.append({"choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]})
    assembly = Assembly()
    assembly.feed(events(chunks))
    (choice,) = assembly.body()["choices"]
    assert choice["logprobs"] == {"content": told, "refusal": None}
    assert choice["message"]["content"] == "abbbc"


def test_a_list_of_objects_comes_in_pieces_too() -> None:
    chunks: list[dict[str, object]] = [
        {"choices": [{"index": 0, "delta": {"content": "x", "annotations": [{"url": n}], "level": n}, "finish_reason": "stop" if n == 3 else None}]}
        for n in (1, 2, 3)
    ]  # fmt: skip
    assembly = Assembly()
    assembly.feed(events(chunks))
    message = assembly.body()["choices"][0]["message"]
    assert (message["annotations"], message["level"]) == ([{"url": 1}, {"url": 2}, {"url": 3}], 3)


def test_several_choices_stay_apart() -> None:
    chunks = [
        {"choices": [{"index": i, "delta": {"content": f"{i}{n}"}, "finish_reason": "stop" if n else None}]}
        for n in range(2)
        for i in (1, 0)
    ]
    assembly = Assembly()
    assembly.feed(events(chunks))
    assert [choice["message"]["content"] for choice in assembly.body()["choices"]] == ["0001", "1011"]


def said(name: str, text: object, *, index: int = 0, **more: object) -> dict[str, Any]:
    return {"id": "c1", "choices": [{"index": index, "delta": {name: text}, **more}]}


TEXTS = st.one_of(
    st.sampled_from(["", " word", "content", "id", 'a"b', "\\", "\n", "\u2028", "🚀"]), st.text(max_size=4)
)
CHUNKS = st.builds(
    said,
    st.sampled_from(["content", "content", "content", "reasoning_content", "role"]),
    TEXTS,
    index=st.sampled_from([0, 0, 0, 1]),
    finish_reason=st.sampled_from([None, None, None, "stop"]),
    echo=st.sampled_from(["", "", " word"]),
)


@given(
    chunks=st.lists(CHUNKS, max_size=30),
    spaced=st.booleans(),
    escaped=st.booleans(),
    newline=st.sampled_from([b"\n", b"\r\n"]),
)
def test_texts_that_are_cut_out_are_those_of_the_events(
    chunks: list[dict[str, Any]], spaced: bool, escaped: bool, newline: bytes
) -> None:
    """Each event is told apart from the one before by chance alone, so what is not parsed is held against what is there."""
    separators = (", ", ": ") if spaced else (",", ":")
    lines = [json.dumps(chunk, separators=separators, ensure_ascii=escaped).encode() for chunk in chunks]
    assembly = Assembly()
    assembly.feed(b"".join(b"data: %b%b" % (line, newline * 2) for line in lines))
    expected: dict[tuple[int, str], str] = {}
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        for name in choice["delta"].keys() - {"role"}:
            at = (choice["index"], name)
            expected[at] = expected.get(at, "") + choice["delta"][name]
    found = {
        (choice["index"], name): text
        for choice in assembly.body()["choices"]
        for name, text in choice["message"].items()
        if name != "role" and text is not None
    }
    assert found == expected


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is parsed from here on."""
    seen: list[bytes] = []

    def loads(data: bytes, *, exact: bool = True) -> Any:
        seen.append(data)
        return orjson.loads(data)

    monkeypatch.setattr(stream, "loads", loads)
    return seen


def test_events_that_are_alike_are_not_parsed(parsed: list[bytes]) -> None:
    assembly = Assembly()
    chunks = [
        said("role", "assistant"),
        *[said("content", f"{n} ") for n in range(500)],
        said("content", "", finish_reason="stop"),
    ]
    assembly.feed(events(chunks))
    _, body = assembly.whole(200)
    assert body is not None
    assert body["choices"][0]["message"]["content"] == "".join(f"{n} " for n in range(500))
    assert len(parsed) < 10


def test_events_that_differ_are_looked_through_for_likeness_only_so_often(parsed: list[bytes]) -> None:
    assembly = Assembly()
    assembly.feed(events([{**said("content", "x"), "noise": n} for n in range(500)], done=False))
    assert assembly.body()["choices"][0]["message"]["content"] == "x" * 500
    assert len(parsed) < 520


A, B = said("content", "a"), said("content", "b")
TWO = {"choices": [*A["choices"], *said("content", "x", index=1)["choices"]]}
BOTH = {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a", "reasoning_content": "r"}}]}
ENDS = said("content", "a", finish_reason="stop")


@pytest.mark.parametrize(
    "chunks",
    [
        [{**A, "echo": "a"}, {**B, "echo": "a"}, {**A, "echo": "b"}],
        [{"echo": "a", **A}, {"echo": "b", **A}, {"echo": "a", **B}],
        [ENDS, said("content", None, finish_reason="length"), ENDS],
        [{**A, "usage": {"n": 1}}, {"choices": [], "usage": {"n": 2}}, {**A, "usage": {"n": 1}}],
        [TWO, TWO],
        [BOTH, BOTH],
        [said("content", "a"), BOTH],
    ],
    ids=["echo behind", "echo before", "finish reason", "usage", "two choices", "two texts", "a text more"],
)
def test_what_else_an_event_tells_is_not_passed_over(
    chunks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = []
    for most in (stream._MOST_MOULDS, 0):
        monkeypatch.setattr(stream, "_MOST_MOULDS", most)
        assembly = Assembly()
        assembly.feed(events(chunks))
        bodies.append(assembly.body())
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("text", [b"a\x01b", b"\xff", b"\xc3", b'a"', b'","', b"\\"])
def test_what_is_no_text_is_nonsense_also_among_events_that_are_alike(text: bytes) -> None:
    good = b"data: " + orjson.dumps(said("content", "x")) + b"\n\n"
    assembly = Assembly()
    with pytest.raises(ValueError):
        assembly.feed(
            good * 3 + good.replace(b'"x"', b'"%b"' % text) + good.replace(b'"x"', b'"n"') + events([LITELLM[2]])
        )
        assembly.whole(200)


def test_what_a_mould_does_not_hold_is_an_event_of_its_own() -> None:
    line = b"data: " + orjson.dumps(said("content", "x"))
    assembly = Assembly()
    assembly.feed(line + b"\n\n")
    with pytest.raises(ValueError):  # its beginning and its end overlap: no text, and no JSON
        assembly.feed(line.replace(b'"x"', b'"') + b"\n\n")


def test_a_text_goes_to_the_field_that_stands_there_now() -> None:
    """A list may come in place of a text, and what follows goes to it: garbage, but the same garbage for every event."""
    chunks = [
        said("content", "a"),
        said("content", "b"),
        said("content", ["c"]),
        said("content", "d"),
        said("content", "e"),
    ]
    assembly = Assembly()
    assembly.feed(events(chunks))
    assert assembly.body()["choices"][0]["message"]["content"] == "cde"


def test_events_nested_too_deeply_for_a_comparison_are_events() -> None:
    line = b"data: " + orjson.dumps({**said("content", "x"), "more": 0}).replace(
        b":0}", b":%b0%b}" % (b"[" * 1000, b"]" * 1000)
    )
    assembly = Assembly()
    assembly.feed((line + b"\n\n") * 3)
    assert assembly.body()["choices"][0]["message"]["content"] == "xxx"


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: []\n\n", b"data: nonsense\n\n"])
def test_nonsense_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        Assembly().feed(data)

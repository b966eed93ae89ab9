"""Embeddings: rows share calls, a bad row does not take others along, vectors stay exact from the wire to the results."""

from __future__ import annotations

import asyncio
import base64
import csv
import dataclasses
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Bench, Server, clean_environment, read_jsonl, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from pools import pool_of
from virtual import run_virtually

from pipeline import Job, run
from pipeline.accounting import PriceOf
from pipeline.errors import InputError, JobError
from pipeline.gateways import LiteLLM, OpenAI
from pipeline.pool import Pool
from pipeline.pool.packs import joined, parted, read, shares, whole_shares
from pipeline.records import EMBEDDINGS, Attempt, Completion, Cost, Failure, Outcome, Reply, Request, Usage
from pipeline.simulator import embeddings

OWN = {"endpoint": EMBEDDINGS, "model": "e"}


def request(number: int, text: Any = None, **params: Any) -> Request:
    text = f"text {number}" if text is None else text
    body = orjson.dumps({"input": text, "model": "e", **params}, option=orjson.OPT_SORT_KEYS)
    return Request(
        custom_id=f"r{number}", index=number, body=body, fingerprint=number.to_bytes(16, "big"),
        estimated_tokens=len(body) // 4, **OWN,
    )  # fmt: skip


def vector_of(text: Any) -> list[float]:
    """A made-up vector that tells whose it is."""
    return [float(len(str(text))), float(sum(map(ord, str(text))) % 1000), 0.1]


def good(body: bytes, headers: Mapping[str, str] | None = None, **changes: Any) -> Reply:
    asked = orjson.loads(body)
    given = asked["input"]
    inputs = given if isinstance(given, list) and type(given[0]) is not int else [given]
    data = []
    for at, text in enumerate(inputs):
        vector: Any = vector_of(text)
        if asked.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<3f", *vector)).decode()
        data.append({"object": "embedding", "index": at, "embedding": vector})
    data.reverse()  # what counts is the index
    answer = {"object": "list", "data": data, "model": "e-1", "usage": {"prompt_tokens": 7 * len(inputs), "total_tokens": 7 * len(inputs)}, **changes}  # fmt: skip
    return Reply(status=200, headers=headers or {}, body=orjson.dumps(answer), json=answer, elapsed_s=0.1)


def refused(message: str = "this text cannot be embedded", status: int = 400) -> Reply:
    body = {"error": {"message": message}}
    return Reply(status=status, headers={}, body=orjson.dumps(body), json=body, elapsed_s=0.1)


def lost() -> Reply:
    failure = Failure(code="timeout", message="gone", sent=True)
    return Reply(status=0, headers={}, body=b"", json=None, elapsed_s=0.1, failure=failure)


class Memory:
    """An in-memory journal that remembers which records came together."""

    def __init__(self) -> None:
        self.groups: list[list[Outcome | Attempt]] = []
        self.set: dict[int, str] = {}
        self.most_set = 0
        self._next = 0

    @property
    def outcomes(self) -> dict[str, Outcome]:
        return {r.custom_id: r for group in self.groups for r in group if isinstance(r, Outcome)}

    @property
    def attempts(self) -> list[Attempt]:
        return [r for group in self.groups for r in group if isinstance(r, Attempt) and r.custom_id[:1] == "r"]

    def enter(self, request: Request, call_id: str) -> int:
        self._next += 1
        self.set[self._next] = request.custom_id
        self.most_set = max(self.most_set, len(self.set))
        return self._next

    def clear(self, entry: int) -> None:
        del self.set[entry]

    async def keep(self, records: Sequence[Outcome | Attempt], entries: Sequence[int] = ()) -> None:
        self.groups.append(list(records))
        for entry in entries:
            self.clear(entry)


class Gateway:
    """Answers as told, and remembers what it was asked."""

    def __init__(self, answer: Callable[[bytes, int], Reply]) -> None:
        self._answer = answer
        self.calls: list[dict[str, Any]] = []
        self.ids: list[str] = []

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply:
        assert (endpoint, stream) == (EMBEDDINGS, False)
        if any("-witness-" in name for name in headers.values()):  # after an error that may be the gateway's
            return good(body)
        self.calls.append(orjson.loads(body))
        self.ids.append(headers.get("X-Client-Request-Id", ""))
        await asyncio.sleep(1.0)
        return self._answer(body, len(self.calls))

    async def get(self, path: str) -> Reply:
        raise AssertionError("nothing is away")

    async def drop(self) -> None:
        raise AssertionError("nothing is away")

    @property
    def sizes(self) -> list[int]:
        return [len(call["input"]) if isinstance(call["input"], list) else 1 for call in self.calls]


async def feed(rows: Sequence[Request | Outcome], size: int = 32) -> AsyncGenerator[Sequence[Request | Outcome], None]:
    for first in range(0, len(rows), size):
        await asyncio.sleep(0)
        yield rows[first : first + size]


def work(
    answer: Callable[[bytes, int], Reply],
    rows: int | Sequence[Request | Outcome],
    *,
    pack: int = 8,
    slots: int = 2,
    attempts: int = 3,
    pack_tokens: int = 10_000,
    dialect: OpenAI | None = None,
) -> tuple[Memory, Gateway, Pool]:
    memory, gateway = Memory(), Gateway(answer)
    given = [request(number) for number in range(1, rows + 1)] if isinstance(rows, int) else rows

    async def main() -> Pool:
        pool = pool_of(
            gateway, memory, slots=slots, attempts=attempts, reached=True, stream=True, pack=pack, pack_tokens=pack_tokens,
            dialect=dialect, prices={"e": PriceOf(prompt=1.0, completion=0.0)},
        )  # fmt: skip
        await pool.work(feed(given))
        return pool

    pool = run_virtually(main())
    assert memory.set == {}
    return memory, gateway, pool


def numbers(outcome: Outcome) -> list[float]:
    assert outcome.completion is not None and outcome.completion.form == "float32"
    return [round(number, 4) for number in struct.unpack("<3f", outcome.completion.raw)]


# packing


def test_rows_share_calls_and_each_gets_its_own_vector() -> None:
    memory, gateway, _ = work(lambda body, nth: good(body), 20)
    assert gateway.sizes == [8, 8, 4]
    assert all(call["encoding_format"] == "base64" for call in gateway.calls)
    assert len(memory.groups) == 3, "a pack is one transaction"
    assert len(memory.outcomes) == 20
    for number in range(1, 21):
        assert numbers(memory.outcomes[f"r{number}"]) == vector_of(f"text {number}")


def test_a_pack_of_one_is_an_ordinary_request() -> None:
    memory, gateway, _ = work(lambda body, nth: good(body), 2, pack=1)
    assert [call["input"] for call in gateway.calls] == ["text 1", "text 2"]
    usage = memory.outcomes["r1"].completion.usage  # type: ignore[union-attr]
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (7, 0, False)


def test_packs_are_bounded_by_tokens_and_hold_equal_bodies_only() -> None:
    rows = [request(n, "x" * 400) for n in range(1, 7)]
    _, gateway, _ = work(lambda body, nth: good(body), rows, pack_tokens=250)
    assert gateway.sizes == [2, 2, 2]
    rows = [request(1), request(2, dimensions=8), request(3, dimensions=8), request(4)]
    _, gateway, _ = work(lambda body, nth: good(body), rows)
    assert sorted(gateway.sizes) == [1, 1, 2]


def test_token_ids_and_rows_with_several_inputs() -> None:
    rows = [request(1, [1, 2, 3]), request(2, ["alone"]), request(5, "with"), request(3, ["a", "b"]), request(4, "d")]
    memory, gateway, _ = work(lambda body, nth: good(body), rows)
    assert [call["input"] for call in gateway.calls] == [[1, 2, 3], ["alone", "with"], ["a", "b"], "d"]
    several = memory.outcomes["r3"].completion
    assert several is not None and several.form == "json"
    assert json.loads(OpenAI().content(several.raw) or "")[1] == vector_of("b")


def test_rows_in_flight_are_bounded_by_slots_times_pack() -> None:
    memory, _, _ = work(lambda body, nth: good(body), 500, pack=8, slots=3)
    assert memory.most_set == 24


def test_no_base64_here_is_learnt_once_and_costs_no_row_an_attempt() -> None:
    def answer(body: bytes, nth: int) -> Reply:
        return refused("Unknown encoding_format: base64") if b'"base64"' in body else good(body)

    memory, gateway, _ = work(answer, 100, slots=2)
    assert sum("encoding_format" in call for call in gateway.calls) <= 2
    assert memory.attempts == []
    assert numbers(memory.outcomes["r100"]) == vector_of("text 100")


# splitting


def test_the_one_bad_row_of_a_pack_is_found_and_costs_the_others_nothing() -> None:
    def answer(body: bytes, nth: int) -> Reply:
        return refused() if b'"text 13"' in body else good(body)

    memory, gateway, _ = work(answer, 16, pack=16)
    failed = [outcome for outcome in memory.outcomes.values() if outcome.status == "failed"]
    assert [outcome.custom_id for outcome in failed] == ["r13"]
    assert failed[0].error_message == "HTTP 400: this text cannot be embedded"
    assert memory.attempts == []
    assert gateway.sizes.count(1) == 2 and len(gateway.calls) == 9
    assert len(set(gateway.ids)) == len(gateway.ids), "every call has its own id"


def test_a_pack_that_goes_wrong_is_tried_again_whole_and_split_when_its_tries_are_used_up() -> None:
    _, gateway, _ = work(lambda body, nth: refused(status=500) if nth == 1 else good(body), 8)
    assert gateway.sizes == [8, 8]

    def answer(body: bytes, nth: int) -> Reply:
        return refused(status=500) if b'"text 3"' in body else good(body)

    memory, gateway, _ = work(answer, 8, attempts=3)
    assert gateway.sizes[:3] == [8, 8, 8]
    assert gateway.sizes[3] == 4
    failed = [outcome for outcome in memory.outcomes.values() if outcome.status == "failed"]
    assert [outcome.custom_id for outcome in failed] == ["r3"]
    assert len(memory.outcomes) == 8
    per_row = [sum(attempt.custom_id == f"r{number}" for attempt in memory.attempts) for number in range(1, 9)]
    assert per_row == [4, 4, 7, 5, 3, 3, 3, 3]


def test_a_lost_pack_is_a_lost_attempt_of_each_row() -> None:
    memory, _, _ = work(lambda body, nth: lost() if nth == 1 else good(body), 8)
    assert sorted(attempt.custom_id for attempt in memory.attempts) == [f"r{number}" for number in range(1, 9)]
    assert all(attempt.lost for attempt in memory.attempts)
    assert len({attempt.call_id for attempt in memory.attempts}) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: [*data, data[0]],
        lambda data: [{**item, "index": 0} for item in data],
        lambda data: [{**data[0], "embedding": [1.0]}, *data[1:]],
        lambda data: [{**data[0], "embedding": None}, *data[1:]],
        lambda data: [{**data[0], "embedding": [1.0, None, 2.0]}, *data[1:]],
        lambda data: [{**data[0], "embedding": base64.b64encode(struct.pack("<3f", 1, math.nan, 2)).decode()}, *data[1:]],
        lambda data: [{**row, "embedding": base64.b64encode(bytes(13)).decode()} for row in data],
        lambda data: [{**data[0], "embedding": "?"}, *data[1:]],
        lambda data: [{**data[0], "embedding": "AAAA"}, *data[1:]],
        lambda data: [{**data[0], "embedding": []}, *data[1:]],
        lambda data: [{**data[0], "index": "0"}, *data[1:]],
        lambda data: [],
        lambda data: [None, *data[1:]],
        lambda data: "none",
    ],
)  # fmt: skip
def test_vectors_that_are_not_whole_are_asked_for_again(change: Callable[[Any], Any]) -> None:
    def answer(body: bytes, nth: int) -> Reply:
        whole = good(body)
        if nth > 1:
            return whole
        spoilt = {**whole.json, "data": change(whole.json["data"])}
        return Reply(status=200, headers={}, body=orjson.dumps(spoilt), json=spoilt, elapsed_s=0.1)

    memory, gateway, _ = work(answer, 4)
    assert gateway.sizes == [4, 4]
    assert len(memory.attempts) == 4
    assert math.fsum(attempt.cost.amount or 0.0 for attempt in memory.attempts) == pytest.approx(28e-6), (
        "it was paid, too"
    )
    assert numbers(memory.outcomes["r4"]) == vector_of("text 4")


def test_a_blob_that_begins_like_json_is_still_a_vector() -> None:
    reply = good(orjson.dumps({"input": "x"}))
    reply.json["data"][0]["embedding"] = list(struct.unpack("<1f", b"{}{}"))
    found, verdict = read(reply, 1)
    assert (found.body, verdict.kind.value) == (b"{}{}", "ok")


# sharing


@given(total=st.integers(0, 10**9), weights=st.lists(st.integers(0, 10_000), min_size=1, max_size=64))
def test_tokens_are_shared_out_to_the_last_one(total: int, weights: list[int]) -> None:
    parts = whole_shares(total, weights)
    assert sum(part or 0 for part in parts) == total
    if sum(weights):
        assert all(
            abs((part or 0) - total * weight / sum(weights)) <= 1 for part, weight in zip(parts, weights, strict=True)
        )


@given(total=st.floats(0, 100), weights=st.lists(st.integers(0, 10_000), min_size=1, max_size=64))
def test_cost_is_shared_out_to_the_last_digits(total: float, weights: list[int]) -> None:
    assert math.fsum(part or 0.0 for part in shares(total, weights)) == pytest.approx(total, abs=1e-12)


def test_what_nobody_told_is_unknown_for_each_row() -> None:
    completion = Completion(content=None, finish_reason=None, model=None, usage=Usage(), raw=b"12341234")
    outcome = Outcome(custom_id="", index=0, fingerprint=b"", status="succeeded", completion=completion)
    rows = [request(1), request(2)]
    parts = parted(joined(rows), rows, outcome)
    assert all(isinstance(part, Outcome) and part.cost == Cost() and part.completion.usage == Usage() for part in parts)  # type: ignore[union-attr]


def test_a_row_of_a_pack_keeps_all_that_its_call_tells() -> None:
    """A row's record is made field by field: one that is added to records must not be forgotten there."""
    of_row = {"custom_id", "index", "fingerprint", "cost", "completion", "usage", "raw", "form"}
    answer = Completion(
        content="c", finish_reason="stop", model="served", usage=Usage(prompt_tokens=2), raw=b"12341234", remark="empty"
    )
    whole = Outcome(
        custom_id="", index=0, fingerprint=b"", status="failed", model="m", completion=answer, error_code="e", error_message="w",
        latency_s=1.0, request_id="q", completed_at=2.0, sent=False, lost=True, call_id="k",
    )  # fmt: skip
    rows = [request(1), request(2)]
    for part in parted(joined(rows), rows, whole):
        assert isinstance(part, Outcome)
        for made, told in ((part, whole), (part.completion, answer)):
            for field in dataclasses.fields(told):
                if field.name not in of_row:
                    assert getattr(told, field.name) != field.default, f"{field.name} is not tried here"
                    assert getattr(made, field.name) == getattr(told, field.name)


def test_tokens_and_cost_go_by_the_length_of_the_text() -> None:
    rows = [request(1, "x" * 30), request(2, "x" * 10)]
    memory, _, _ = work(lambda body, nth: good(body, {"x-litellm-response-cost": "4e-06"}), rows, dialect=LiteLLM())
    one, two = memory.outcomes["r1"], memory.outcomes["r2"]
    assert one.completion is not None and two.completion is not None
    assert (one.completion.usage.prompt_tokens, two.completion.usage.prompt_tokens) == (11, 3)
    assert one.completion.usage.estimated
    assert (one.cost.amount, two.cost.amount) == (pytest.approx(3e-06, abs=1e-15), pytest.approx(1e-06, abs=1e-15))
    assert one.cost.source == "gateway"


def test_a_row_that_never_became_a_request_goes_its_own_way() -> None:
    broken = Outcome(
        custom_id="x", index=9, fingerprint=b"0" * 16, status="failed", error_code="null_field", sent=False
    )
    memory, _, _ = work(lambda body, nth: good(body), [request(1), broken, request(2)])
    assert memory.outcomes["x"] == broken
    assert len(memory.outcomes) == 3


# from end to end


def exact(text: str, dimensions: int = 64) -> bytes:
    """The simulator's vector of a text, bit for bit."""
    ask = embeddings.EmbeddingAsk(model="sim/embed", inputs=(text,), base64=True, dimensions=dimensions)
    return struct.pack(f"<{dimensions}f", *embeddings.embed(ask).vectors[0])


def embedding_job(source: Path, output: Path, url: str, **changes: Any) -> Job:
    settings = {
        "input.path": str(source), "input.id": "id", "output.path": str(output), "gateway.base_url": url, "model": "sim/embed",
        "request.endpoint": "embeddings", "request.prompt": "search_document: {{ text }}",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }  # fmt: skip
    return Job.load(None, overrides=settings)


def some_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": number, "text": f"row {number} " + "word " * (number % 7)} for number in range(count)]


def text_of(row: Mapping[str, Any]) -> str:
    return f"search_document: {row['text']}"


def vectors_in(path: Path) -> list[bytes]:
    if path.suffix == ".parquet":
        found = pq.read_table(path).column("embedding").to_pylist()
    elif path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            found = [json.loads(row["embedding"]) for row in csv.DictReader(file)]
    else:
        found = [row["embedding"] for row in read_jsonl(path)]
    return [struct.pack(f"<{len(vector)}f", *vector) for vector in found]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_vectors_are_exact_in_every_format(ending: str, tmp_path: Path, gateway: Server) -> None:
    rows = some_rows(100)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    output = tmp_path / f"out.{ending}"
    before = gateway.ledger()["totals"]["requests"]
    summary = run(embedding_job(source, output, gateway.url, request__pack=10))
    assert (summary.exit_code, summary.completed) == (0, 100)
    assert gateway.ledger()["totals"]["requests"] - before == 10
    assert vectors_in(output) == [exact(text_of(row)) for row in rows]
    if ending == "parquet":
        assert pq.read_schema(output).field("embedding").type == pa.list_(pa.float32(), 64)
        group = pq.read_metadata(output).row_group(0)
        in_dictionary = {
            column.path_in_schema: column.has_dictionary_page for column in map(group.column, range(group.num_columns))
        }
        assert (in_dictionary["embedding.list.element"], in_dictionary["model"]) == (False, True)
    assert run(embedding_job(source, output, gateway.url, request__pack=7)).sent == 0, (
        "the pack is no part of a request"
    )


def test_dimensions_that_differ_and_rows_that_failed(tmp_path: Path, gateway: Server) -> None:
    rows = [{"id": "a", "text": "a", "params": {"dimensions": 3}}, {"id": "b", "text": "b"}, {"id": "c", "text": None}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    summary = run(embedding_job(source, tmp_path / "out.parquet", gateway.url))
    assert (summary.exit_code, summary.failed) == (3, 1)
    found = pq.read_table(tmp_path / "out.parquet").column("embedding")
    assert found.type == pa.list_(pa.float32())
    assert [None if vector is None else len(vector) for vector in found.to_pylist()] == [3, 64, None]


def test_a_null_among_vectors_of_one_size_is_read_by_others(tmp_path: Path, gateway: Server) -> None:
    import duckdb
    import polars

    rows = [{"id": "n", "text": None}, *some_rows(3)]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    output = tmp_path / "out.parquet"
    run(embedding_job(source, output, gateway.url))
    assert pq.read_schema(output).field("embedding").type == pa.list_(pa.float32(), 64)
    first = list(struct.unpack("<64f", exact(text_of(rows[1]))))
    found = duckdb.sql(f"SELECT embedding FROM '{output}'").fetchall()
    assert found[0][0] is None and list(found[1][0]) == first
    assert list(polars.read_parquet(output)["embedding"][1]) == first


def test_usage_and_cost_of_the_rows_are_those_of_the_ledger(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    rows = some_rows(57)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    price = {"prices": {"sim/embed": {"input_per_million": 0.15, "output_per_million": 0.0}}}
    summary = run(embedding_job(source, tmp_path / "out.jsonl", server.url, **price))
    totals = server.ledger()["totals"]
    assert (totals["requests"], summary.prompt_tokens, summary.completion_tokens) == (2, totals["prompt_tokens"], 0)
    found = read_jsonl(tmp_path / "out.jsonl")
    assert sum(row["prompt_tokens"] for row in found) == totals["prompt_tokens"]
    assert all(row["usage_estimated"] and row["total_tokens"] == row["prompt_tokens"] for row in found)
    assert math.fsum(row["cost"] for row in found) == pytest.approx(totals["prompt_tokens"] * 0.15e-6, abs=1e-12)


def test_faults_on_packs_cost_no_good_row(tmp_path: Path, serve: Callable[..., Server]) -> None:
    faults = [
        {"fault": 400, "match": "row 11 "},
        {"fault": 429, "retry_after": 0.1, "every": 3},
        {"fault": "reset", "at": "reply", "between": [4, 4]},
        {"fault": "truncated_json", "between": [5, 5]},
        {"fault": "empty_choices", "between": [7, 7]},
    ]
    server = serve(faults=faults)
    rows = some_rows(40)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    summary = run(embedding_job(source, tmp_path / "out.jsonl", server.url, request__pack=8))
    assert (summary.exit_code, summary.completed, summary.failed) == (3, 39, 1)
    for row, found in zip(rows, read_jsonl(tmp_path / "out.jsonl"), strict=True):
        assert (found["status"] == "failed") == (row["id"] == 11)
        if row["id"] != 11:
            assert struct.pack("<64f", *found["embedding"]) == exact(text_of(row))
    lost_rows = sum(found["lost_attempts"] for found in read_jsonl(tmp_path / "out.jsonl"))
    assert lost_rows == summary.lost_attempts
    sizes = (1, 2, 4, 8)  # of the pack that was reset, and of the one whose vectors could not be read
    assert lost_rows in {one + other for one in sizes for other in sizes}


def test_a_gateway_without_base64_gives_the_same_vectors(tmp_path: Path, serve: Callable[..., Server]) -> None:
    no = {"error": {"message": "encoding_format is not supported", "type": "BadRequestError"}}
    server = serve(faults=[{"fault": 400, "body": no, "match": "encoding_format"}])
    rows = some_rows(40)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    summary = run(embedding_job(source, tmp_path / "out.parquet", server.url, gateway__concurrency=1))
    assert (summary.exit_code, server.ledger()["totals"]["requests"]) == (0, 3)
    assert vectors_in(tmp_path / "out.parquet") == [exact(text_of(row)) for row in rows]


@pytest.mark.slow
def test_a_run_killed_in_the_middle_goes_on_and_names_every_row_of_its_packs(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve("--latency", "0.15")
    rows = some_rows(400)
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    job = embedding_job(
        source, tmp_path / "out.parquet", server.url, request__pack=4, gateway__concurrency=4, input__id="id"
    )
    words = ["-i", source, "-o", tmp_path / "out.parquet", "--base-url", server.url, "-m", "sim/embed", "--id", "id", "-c", "4",
             "-p", "search_document: {{ text }}", "--set", "request.endpoint=embeddings", "--set", "request.pack=4"]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "run", *map(str, words), "-q"],
        env=clean_environment(),
        start_new_session=True,
    )
    while server.ledger()["totals"]["requests"] < 30:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    summary = run(job)
    assert (summary.exit_code, summary.completed) == (0, 400)
    assert 0 < len(summary.recovered) <= 2 * 4 * 4
    assert len(summary.recovered) % 4 == 0, "packs are kept or lost as a whole"
    assert summary.lost_attempts == len(summary.recovered)
    assert vectors_in(tmp_path / "out.parquet") == [exact(text_of(row)) for row in rows]


def test_batch_lines_of_three_endpoints(tmp_path: Path, serve: Callable[..., Server]) -> None:
    told = {"id": "cmpl-1", "model": "m", "choices": [{"index": 0, "text": "once upon", "finish_reason": "stop"}], "usage": {"prompt_tokens": 2, "completion_tokens": 2}}  # fmt: skip
    server = serve(faults=[{"fault": 200, "path": "/completions", "match": "tell", "body": told}])
    lines = [
        {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "sim/embed", "input": "hello"}},
        {"custom_id": "b", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": "tell"}},
        {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "sim/echo", "messages": [{"role": "user", "content": "hi"}]}},
        {"custom_id": "d", "method": "POST", "url": "/v1/embeddings", "body": {"model": "sim/embed", "input": ["x", "y"], "encoding_format": "float"}},
    ]  # fmt: skip
    source = write_jsonl(tmp_path / "in.jsonl", lines)
    settings = {"input.path": str(source), "gateway.base_url": server.url}
    assert run(Job.load(None, overrides={**settings, "output.path": str(tmp_path / "out.jsonl")})).exit_code == 0
    one, two, three, four = (row["content"] for row in read_jsonl(tmp_path / "out.jsonl"))
    assert struct.pack("<64f", *json.loads(one)) == exact("hello")
    assert (two, three) == ("once upon", "hi")
    assert [len(vector) for vector in json.loads(four)] == [64, 64]
    batch = {**settings, "output.path": str(tmp_path / "b.jsonl"), "output.format": "batch"}
    assert run(Job.load(None, overrides=batch)).exit_code == 0
    body = read_jsonl(tmp_path / "b.jsonl")[0]["response"]["body"]
    assert (body["object"], body["data"][0]["index"], body["usage"]["prompt_tokens"]) == (
        "list",
        0,
        body["usage"]["total_tokens"],
    )
    assert struct.pack("<64f", *body["data"][0]["embedding"]) == exact("hello")


def test_batch_lines_of_an_embeddings_job_share_calls(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve()
    lines = [
        {"custom_id": f"c{n}", "method": "POST", "url": "/v1/embeddings", "body": {"model": "sim/embed", "input": [f"t {n}"], "encoding_format": "float"}}
        for n in range(5)
    ]  # fmt: skip
    overrides = {
        "input.path": str(write_jsonl(tmp_path / "in.jsonl", lines)), "gateway.base_url": server.url,
        "output.path": str(tmp_path / "out.parquet"), "request.endpoint": "embeddings",
    }  # fmt: skip
    assert run(Job.load(None, overrides=overrides)).exit_code == 0
    assert server.ledger()["totals"]["requests"] == 1
    assert vectors_in(tmp_path / "out.parquet") == [exact(f"t {n}") for n in range(5)]
    bad = {**lines[0], "custom_id": "z", "body": {"model": "sim/embed", "input": ["a", "b"]}}
    write_jsonl(tmp_path / "in.jsonl", [*lines, bad])
    with pytest.raises(InputError, match=r"in\.jsonl:6: the batch line asks for 2 vectors"):
        run(Job.load(None, overrides=overrides))


def test_lumen_says_at_once_that_it_has_no_embeddings(tmp_path: Path, bench: Bench) -> None:
    bench.write([{"id": "a", "text": "x"}])
    with pytest.raises(JobError, match="lumen has no embeddings"):
        bench.run(gateway__preset="lumen", request__endpoint="embeddings", gateway__api_key_env="PATH")
    line = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}}
    source = write_jsonl(tmp_path / "lines.jsonl", [line])
    overrides = {"input.path": str(source), "output.path": str(tmp_path / "o.jsonl"), "gateway.preset": "lumen", "gateway.base_url": bench.server.url, "gateway.api_key_env": "PATH"}  # fmt: skip
    with pytest.raises(InputError, match=r"lines\.jsonl:1: .*lumen does not have; it has /v1/chat/completions"):
        run(Job.load(None, overrides=overrides))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"request.system": "s"}, "system does not go with"),
        ({"request.params": {"encoding_format": "float"}}, "params.encoding_format cannot be set"),
        ({"request.pack": 0}, "request.pack: at least 1|request.pack: expected at least 1"),
        ({"request.endpoint": "rerank"}, "request.endpoint"),
    ],
)
def test_what_does_not_go_with_embeddings_is_said(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    settings = {"input.path": "x.jsonl", "output.path": "y.jsonl", "gateway.base_url": "http://h/v1", "model": "m", "request.endpoint": "embeddings"}  # fmt: skip
    with pytest.raises(JobError, match=words):
        Job.load(None, overrides={**settings, **changes})


def test_an_embeddings_job_needs_a_text(tmp_path: Path, bench: Bench) -> None:
    bench.write([{"id": "a", "messages": []}])
    settings = {key: value for key, value in bench.settings.items() if key != "request.prompt"}
    with pytest.raises(Exception, match="embeddings are made of one text a row"):
        run(Job.load(None, overrides={**settings, "request.endpoint": "embeddings"}))


def test_try_shows_dimension_and_first_numbers(tmp_path: Path, pipeline: Any, gateway: Server) -> None:
    write_jsonl(tmp_path / "in.jsonl", some_rows(3))
    words = ["-i", "in.jsonl", "-o", "out.jsonl", "--base-url", gateway.url, "-m", "sim/embed", "-p", "{{ text }}"]
    ended = pipeline("try", *words, "-n", "2", "--set", "request.endpoint=embeddings")
    assert ended.code == 0, ended.err
    first = struct.unpack("<64f", exact("row 0 "))
    assert "input: row 0" in ended.out
    assert f"=> 64 dimensions: {first[0]:.4f}, {first[1]:.4f}" in ended.out

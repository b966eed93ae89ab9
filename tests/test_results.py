"""A results file is whole or not there, holds what was asked for, and says where it came from."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import orjson
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Bench, Pipeline, examples, read_jsonl, write_jsonl
from filled import (
    ROWS,
    answered,
    every_third_failed,
    exported,
    failed,
    job_for,
    read,
    small_chunks,
    some,
    workspace,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion

import pipeline.results
import pipeline.sink.parquet
from pipeline import Wishes, run
from pipeline.errors import IncompleteError, InterruptedRunError, JobError, PipelineError
from pipeline.export import export_folder
from pipeline.records import Outcome, Request
from pipeline.results import export
from pipeline.sink import TYPES, AtomicFile
from pipeline.verify import verify

RESULTS = ["llm_" + name for name in TYPES]


# ---------------------------------------------------------------- which rows, which columns


def ids(rows: list[dict[str, Any]], name: str = "custom_id") -> list[str]:
    return [row[name] for row in rows]


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_part_of_the_rows(tmp_path: Path, ending: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    job = job_for(tmp_path / "in.jsonl", tmp_path / "x.jsonl", input__id="id", request__prompt="{{ q }}")
    with workspace(job, some) as space:
        for selection, expected in (("partial", "xyz"), ("failed", "yz"), ("all", "xyzw")):
            for only in (False, True):
                path = tmp_path / f"{selection}{only}.{ending}"
                rows = export(space, path=path, output_format=ending, selection=selection, results_only=only)  # type: ignore[arg-type]
                found = read(path)
                assert (rows, ids(found)) == (len(expected), list(expected))
                assert ("q" in found[0]) is not only
                assert only or [row["q"] or None for row in found] == [
                    dict(zip("xyzw", ("one", "two", None, "four"), strict=True))[name] for name in expected
                ]
    with pytest.raises(IncompleteError, match="1 row has no outcome yet"):
        again(job.run_folder, tmp_path / "whole.jsonl")
    assert again(job.run_folder, tmp_path / "part.jsonl", selection="partial") == (3, 1)


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_a_part_of_parquet_rows_where_stretches_have_none_of_it(tmp_path: Path, ending: str) -> None:
    pq.write_table(pa.Table.from_pylist([row | {"n": [1, 2]} for row in ROWS]), tmp_path / "in.parquet")
    job = job_for(tmp_path / "in.parquet", tmp_path / "x.jsonl", input__id="id", request__prompt="{{ q }}")
    with small_chunks(1), workspace(job, some) as space:
        for selection, expected in (("partial", "xyz"), ("failed", "yz")):
            for only in (True, False):
                path = tmp_path / f"{selection}{only}.{ending}"
                rows = export(space, path=path, output_format=ending, selection=selection, results_only=only)  # type: ignore[arg-type]
                assert (rows, ids(read(path))) == (len(expected), list(expected))
        assert ending != "parquet" or pq.read_schema(path).field("n").type == pa.list_(pa.int64())


def again(run_folder: Path, path: Path, **changes: Any) -> tuple[int, int]:
    asked: dict[str, Any] = {"output_format": None, "selection": "all", "results_only": False, "input_path": None}
    return export_folder(run_folder, path, **{**asked, **changes})


def test_rows_that_failed_say_why_and_hold_nulls(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS[:3])
    job = job_for(tmp_path / "in.jsonl", tmp_path / "out.jsonl", input__id="id", request__prompt="{{ q }}")
    exported(job, some)
    good, refused, null = read(job.output.path)
    assert good | {"fingerprint": ""} == {
        "id": "x", "q": "one", "custom_id": "x", "status": "succeeded", "content": "an answer", "finish_reason": "stop",
        "model": "asked", "served_model": "served", "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
        "cached_tokens": 2, "reasoning_tokens": None, "usage_estimated": False, "cost": 0.25, "cost_unit": "USD",
        "cost_source": "price_table", "attempts": 1, "lost_attempts": 0, "latency_s": 0.5, "request_id": "req-1",
        "completed_at": "2023-11-14T22:13:20.123456+00:00", "fingerprint": "", "error_code": None, "error_message": None,
    }  # fmt: skip
    assert refused | {"status": "failed", "error_code": "content_policy", "error_message": "HTTP 400: no"} == refused
    assert null | {"status": "failed", "error_code": "null_field", "attempts": 0, "cost_source": "unknown"} == null
    for row in (refused, null):
        assert {row[name] for name in ("content", "finish_reason", "served_model", "cost", "total_tokens")} == {None}


def test_kept_columns_come_in_the_order_asked_for_and_prefixed_results_after_them(tmp_path: Path) -> None:
    rows = [{"a": 1, "status": "mine", "c": [1]}]
    source = write_jsonl(tmp_path / "in.jsonl", rows)
    for ending in ("parquet", "jsonl", "csv"):
        output = tmp_path / f"out.{ending}"
        with pytest.raises(JobError, match=r"a column called 'status'.*output\.prefix"):
            exported(job_for(source, output))
        exported(job_for(source, output, output__prefix="llm_"))
        assert list(read(output)[0]) == ["a", "status", "c", *RESULTS]
        exported(job_for(source, output, output__keep=["c", "a", "c"]))
        assert list(read(output)[0]) == ["c", "a", *TYPES]
        exported(job_for(source, output, output__keep=[]))
        assert list(read(output)[0]) == list(TYPES)
        with pytest.raises(JobError, match="no column 'b'; its columns are: a, status, c"):
            exported(job_for(source, output, output__keep=["b"]))


def test_an_id_column_called_custom_id_stands_once(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"custom_id": "x", "a": 1}])
    exported(job_for(source, tmp_path / "out.jsonl"))
    assert list(read(tmp_path / "out.jsonl")[0]) == ["a", *TYPES]
    exported(job_for(source, tmp_path / "out.jsonl", output__prefix="llm_"))
    assert list(read(tmp_path / "out.jsonl")[0]) == ["custom_id", "a", *RESULTS]


# ---------------------------------------------------------------- answers of every kind

ANSWERS = st.lists(
    st.text(st.characters(codec="utf-8") | st.sampled_from('",;\n\r\t\0'), max_size=20), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=examples(80))
@given(answers=ANSWERS, ending=st.sampled_from(["parquet", "jsonl", "csv"]))
def test_an_answer_arrives_as_it_was_given(answers: list[str], ending: str) -> None:
    with TemporaryDirectory() as name:
        source = write_jsonl(Path(name) / "in.jsonl", [{"id": answer + str(at)} for at, answer in enumerate(answers)])
        job = job_for(source, Path(name) / f"out.{ending}", input__id="id")
        exported(job, lambda request: answered(request, request.custom_id[:-1]))
        assert [(row["custom_id"][:-1], row["content"]) for row in read(job.output.path)] == [(a, a) for a in answers]


HALF = json.dumps(
    {"choices": [{"message": {"role": "assistant", "content": "caf\u00e9 \ud83d"}, "finish_reason": "length"}]}
)


class Halves(BaseHTTPRequestHandler):
    """A gateway whose answers are cut off in the middle of an emoji, escaped as ASCII."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(HALF)))
        self.end_headers()
        self.wfile.write(HALF.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv", "batch"])
def test_an_answer_cut_off_inside_an_emoji_is_an_answer(tmp_path: Path, kind: str) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "x"}])
    with ThreadingHTTPServer(("127.0.0.1", 0), Halves) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/v1"
            job = job_for(tmp_path / "in.jsonl", tmp_path / "out", gateway__base_url=url, output__format=kind)
            assert run(job).exit_code == 0
        finally:
            server.shutdown()
    if kind == "batch":
        (line,) = read_jsonl(job.output.path)
        assert line["response"]["body"]["choices"][0]["message"]["content"] == "café \ufffd"
    else:
        job.output.path.rename(tmp_path / f"out.{kind}")
        assert read(tmp_path / f"out.{kind}")[0]["content"] == "café \ufffd"


# ---------------------------------------------------------------- OpenAI's own pair of files


def test_batch_output_is_what_openai_gives(tmp_path: Path) -> None:
    body = {"model": "asked", "messages": [{"role": "user", "content": "hi"}]}
    lines = [{"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body} for name in "abcd"]
    source = write_jsonl(tmp_path / "in.jsonl", lines)

    def answer(request: Request) -> Outcome:
        outcome = failed(request) if request.custom_id == "c" else answered(request, "line\r\nbreak é")
        if request.custom_id == "d" and outcome.completion is not None:  # a server that indents
            indented = json.dumps(orjson.loads(outcome.completion.raw), indent=2).encode()
            return replace(outcome, completion=replace(outcome.completion, raw=indented))
        return outcome

    job = job_for(
        source, tmp_path / "results" / "output.jsonl", output__format="batch", request__prompt=None, model=None
    )
    assert exported(job, answer) == 4
    found, errors = read_jsonl(job.output.path), read_jsonl(job.output.path.with_name("error.jsonl"))
    assert (ids(found), ids(errors)) == (["a", "b", "d"], ["c"])
    for line in found:
        assert list(line) == ["id", "custom_id", "response", "error"]
        assert line["error"] is None
        assert list(line["response"]) == ["status_code", "request_id", "body"]
        assert (line["response"]["status_code"], line["response"]["request_id"]) == (200, "req-1")
        answer_ = ChatCompletion.model_validate(line["response"]["body"], strict=True)
        assert answer_.choices[0].message.content == "line\r\nbreak é"
    assert errors[0] | {"response": None, "error": {"code": "content_policy", "message": "HTTP 400: no"}} == errors[0]
    names = [line["id"] for line in found + errors]
    assert all(name.startswith("batch_req_") for name in names)
    assert len(set(names)) == 4  # though all four asked the same
    assert again(job.run_folder, tmp_path / "mine.jsonl", output_format="batch") == (4, 0)
    assert len(read_jsonl(tmp_path / "mine.error.jsonl")) == 1


# ---------------------------------------------------------------- where results came from


def test_the_sheet_beside_the_results_says_where_they_came_from(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", ROWS[:3])
    (tmp_path / "prompt.txt").write_text("{{ q }}")
    job = job_for(
        source,
        tmp_path / "out.parquet",
        request__prompt=None,
        request__prompt_file=str(tmp_path / "prompt.txt"),
        request__params={"seed": 1},
        input__id="id",
        gateway__api_key_env="SOME_KEY",
    )
    exported(job, some)
    sheet = orjson.loads((tmp_path / "out.parquet.meta.json").read_bytes())
    assert set(sheet) == {
        "job", "job_file", "prompt", "gateway", "served_models", "inputs", "versions", "totals", "outages", "written_at",
    }  # fmt: skip
    assert sheet["job"]["model"] == "asked"
    assert sheet["job"]["request"]["params"] == {"seed": 1}
    assert sheet["prompt"] == "{{ q }}"
    assert sheet["gateway"] == {"preset": "openai", "family": "openai", "base_url": "http://127.0.0.1:1/v1"}
    assert sheet["served_models"] == {"served": 1}
    digest = hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest()
    assert sheet["inputs"] == [{"path": str(source), "rows": 3, "blake2b": digest}]
    assert set(sheet["versions"]) == {"pipeline", "python"}
    totals = {"completed": 1, "failed": 2, "prompt_tokens": 7, "completion_tokens": 3, "cost": {"USD": 0.25}}
    assert sheet["totals"] | totals == sheet["totals"]
    assert abs(datetime.fromisoformat(sheet["written_at"]) - datetime.now(UTC)) < timedelta(minutes=5)
    assert orjson.loads(pq.read_schema(job.output.path).metadata[b"pipeline"]) == sheet
    (tmp_path / "prompt.txt").write_text("another {{ q }}")
    again(job.run_folder, tmp_path / "again.jsonl")
    assert orjson.loads((tmp_path / "again.jsonl.meta.json").read_bytes())["prompt"] == "{{ q }}"


# ---------------------------------------------------------------- what others make of it


def test_duckdb_pandas_and_polars_read_the_right_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sink.parquet, "GROUP_ROWS", 100)
    rows = [{"n": n, "x": n / 2, "tags": ["a"], "s": {"k": n}, "mixed": n if n % 2 else str(n)} for n in range(250)]
    path = str(tmp_path / "out.parquet")
    with small_chunks(30):
        exported(job_for(write_jsonl(tmp_path / "in.jsonl", rows), Path(path), input__id="n"), every_third_failed)
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)] == [120, 120, 10]
    assert {metadata.row_group(0).column(at).compression for at in range(metadata.num_columns)} == {"ZSTD"}

    described = duckdb.sql(f"DESCRIBE FROM '{path}'").fetchall()
    kinds = {name: kind for name, kind, *_ in described}
    assert list(kinds) == ["n", "x", "tags", "s", "mixed", *TYPES]
    assert [kinds[name] for name in ("n", "x", "tags", "s", "mixed")] == [
        "BIGINT", "DOUBLE", "VARCHAR[]", "STRUCT(k BIGINT)", "VARCHAR",
    ]  # fmt: skip
    duck = {
        "string": "VARCHAR",
        "int64": "BIGINT",
        "double": "DOUBLE",
        "bool": "BOOLEAN",
        "timestamp": "TIMESTAMP WITH TIME ZONE",
    }
    assert {name: kinds[name] for name in TYPES} == {name: duck[kind] for name, kind in TYPES.items()}
    counted = duckdb.sql(
        f"SELECT status, count(*), sum(total_tokens), max(n) FROM '{path}' GROUP BY 1 ORDER BY 1"
    ).fetchall()
    assert counted == [("failed", 83, None, 248), ("succeeded", 167, 1670, 249)]

    frame = pd.read_parquet(path)
    assert str(frame["completed_at"].dtype) == "datetime64[us, UTC]"
    assert (frame["n"].dtype, frame["cost"].dtype, frame["attempts"].dtype) == ("int64", "float64", "int64")
    assert frame["n"].tolist() == list(range(250))
    polars = pl.read_parquet(path)
    assert polars.schema["completed_at"] == pl.Datetime("us", "UTC")
    assert polars.schema["reasoning_tokens"] == pl.Int64
    assert polars["s"].struct.field("k").to_list() == list(range(250))


def test_row_groups_of_large_rows_are_cut_by_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.sink.parquet, "GROUP_BYTES", 100_000)
    source = write_jsonl(tmp_path / "in.jsonl", [{"a": "x" * 10_000} for _ in range(50)])
    with small_chunks(1):
        exported(job_for(source, tmp_path / "out.parquet"))
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    assert {metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)} == {10}


# ---------------------------------------------------------------- whole or not at all


def everything(here: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in here.iterdir()}


FORMATS = ["out.parquet", "out.jsonl", "out.csv", "output.jsonl"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize(
    "trouble", [InterruptedRunError("stop"), IncompleteError("x"), KeyError("x"), OSError(28, "No space left")]
)
def test_an_export_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, older: bool, trouble: Exception
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": n} for n in range(50)])
    (tmp_path / "res").mkdir()
    kind = "batch" if name == "output.jsonl" else None
    job = job_for(source, tmp_path / "res" / name, output__format=kind, run_dir=str(tmp_path / "folder"))
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 40:
            raise trouble

    monkeypatch.setattr(pipeline.results, "STRETCH_ROWS", 2)
    with small_chunks(2), workspace(job, every_third_failed) as space:
        if older:
            export(space, path=job.output.path, output_format=job.output_format)
        before = everything(tmp_path / "res")
        again_ = partial(export, space, path=job.output.path, output_format=job.output_format, tick=tick)
        ticks = 0 if name == "out.parquet" else 20  # Parquet from JSON walks the input twice
        with pytest.raises(IncompleteError if isinstance(trouble, OSError) else type(trouble)):
            again_()
    assert everything(tmp_path / "res") == before


@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path, pipeline: Pipeline, name: str) -> None:
    (tmp_path / "res").mkdir()
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": n, "noise": os.urandom(200).hex()} for n in range(1500)])
    kind = "batch" if name == "output.jsonl" else None
    job = job_for(source, tmp_path / "res" / name, output__format=kind, run_dir=str(tmp_path / "folder"))
    exported(job, lambda request: answered(request, os.urandom(200).hex()))
    before = everything(tmp_path / "res")
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, -1)); from pipeline.cli import main; main()"
    words = ["export", str(tmp_path / "folder"), "-o", str(job.output.path), *(["--format", kind] if kind else [])]
    ended = subprocess.run([sys.executable, "-c", limit, *words], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 75, ended.stderr
    assert "no room to write results to" in ended.stderr
    assert "make room on that disk, then run the same command again" in ended.stderr
    assert everything(tmp_path / "res") == before
    assert pipeline(*words).code == 0


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_killed_export_left_behind_is_no_obstacle(tmp_path: Path, name: str) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": 1}])
    (tmp_path / f".{name}.partial").write_bytes(b"half a row" * 10_000)
    kind = "batch" if name == "output.jsonl" else None
    exported(job_for(source, tmp_path / name, output__format=kind))
    assert not list(tmp_path.glob("*.partial")) + list(tmp_path.glob(".*.partial"))
    assert kind or len(read(tmp_path / name)) == 1


def test_results_are_private_whatever_the_umask(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": 1}])
    old = os.umask(0)
    try:
        for name in FORMATS:
            kind = "batch" if name == "output.jsonl" else None
            exported(job_for(source, tmp_path / "res" / name, output__format=kind))
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "res").iterdir() if path.is_file()}
    assert {"error.jsonl", "out.parquet", "out.parquet.meta.json", "output.jsonl.meta.json"} <= set(modes)
    assert set(modes.values()) == {0o600}
    journals = [path for folder_ in (tmp_path / "res").glob("*.run") for path in folder_.iterdir()]
    assert {path.stat().st_mode & 0o077 for path in journals} == {0}


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
@pytest.mark.parametrize("relative", [True, False])
def test_an_output_that_is_a_link_is_followed(tmp_path: Path, there: bool, relative: bool) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": 1}])
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "real.jsonl"
    if there:
        target.write_text("older")
    link = tmp_path / "out.jsonl"
    link.symlink_to("far/real.jsonl" if relative else target)
    exported(job_for(source, link))
    assert link.is_symlink()
    assert not target.is_symlink()
    assert len(read_jsonl(target)) == 1
    assert sorted(path.name for path in (tmp_path / "far").iterdir()) == ["real.jsonl"]


def test_a_file_that_cannot_be_written_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PipelineError, match="cannot write results to"), AtomicFile(tmp_path / "file" / "out.jsonl"):
        pass


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.csv"])
@pytest.mark.parametrize("change", ["edited", "grown", "shrunk", "gone"])
def test_an_input_that_changed_since_it_was_indexed_is_never_put_beside_the_answers(
    tmp_path: Path, name: str, change: str
) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": n} for n in range(10)])
    job = job_for(source, tmp_path / name)
    with workspace(job) as space:
        if change == "edited":  # the same lines, the same length: only what was asked about is another
            source.write_bytes(source.read_bytes().replace(b'"n":3', b'"n":7'))
        elif change == "gone":
            source.unlink()
        else:
            write_jsonl(source, [{"n": n} for n in range(12 if change == "grown" else 5)])
        with pytest.raises(PipelineError) as caught:
            export(space, path=job.output.path, output_format=job.output_format)
        assert export(space, path=tmp_path / "alone.jsonl", output_format="jsonl", results_only=True) == 10
    assert "in.jsonl" in str(caught.value)
    assert not job.output.path.exists()


# ---------------------------------------------------------------- a second run


def test_results_that_are_up_to_date_are_left_alone(bench: Bench) -> None:
    bench.write([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
    output = bench.folder / "out.jsonl"

    def run_again(**changes: Any) -> bool:
        """Whether the results were written anew."""
        before = (output.stat().st_ino, output.stat().st_mtime_ns) if output.exists() else None
        assert bench.run(**changes)[0].exit_code == 0
        return before != (output.stat().st_ino, output.stat().st_mtime_ns)

    assert run_again()
    assert not run_again()
    assert not run_again(gateway__concurrency=3)
    for changes in ({"output__keep": ["id"]}, {"output__prefix": "llm_"}, {"output__format": "csv"}, {}):
        assert run_again(**changes), changes
        assert not run_again(**changes), changes
    output.unlink()
    assert run_again()
    output.write_text("somebody's notes")
    assert run_again()
    assert len(bench.results()) == 2
    bench.write([{"id": "b", "text": "y"}, {"id": "a", "text": "x"}])
    assert run_again()
    assert ids(bench.results()) == ["b", "a"]
    bench.write([{"id": "b", "text": "y"}])
    assert run_again()
    assert ids(bench.results()) == ["b"]
    assert not run_again()


def test_a_changed_prompt_taken_back_brings_the_first_answers_back(bench: Bench) -> None:
    bench.write([{"id": "a", "text": "x"}])
    bench.run()
    first = bench.results()
    bench.run(Wishes(accept_changes=True), request__prompt="shout {{ text }}")
    assert bench.results()[0]["content"] != first[0]["content"]
    assert bench.run()[1] == 0
    assert bench.results() == first


@pytest.mark.parametrize("ending", ["jsonl.gz", "csv.gz"])
def test_results_whose_name_ends_in_gz_are_compressed_and_proved(bench: Bench, ending: str) -> None:
    bench.write([{"id": f"r{n}", "text": f"x{n}" * 50} for n in range(50)])
    output = bench.folder / f"out.{ending}"
    summary, _ = bench.run(output__path=str(output))
    assert summary.results == str(output)
    folder = Path(summary.run_folder)
    plain = bench.folder / f"plain.{ending[:-3]}"
    assert again(folder, plain) == (50, 0)
    packed = output.read_bytes()
    assert gzip.decompress(packed) == plain.read_bytes()
    assert len(packed) < plain.stat().st_size / 2
    second = bench.folder / f"second.{ending}"
    again(folder, second)
    assert second.read_bytes() == packed, "no time and no name is in it"
    assert verify(folder).exit_code == 0
    lines = plain.read_bytes().splitlines(keepends=True)
    half, tail = len(packed) // 2, len(packed) - 6
    damage = {
        "ends after 49 rows": gzip.compress(b"".join(lines[:-1])),
        "is damaged": packed[:half],
        "cannot be compared": packed[:tail] + bytes([packed[tail] ^ 1]) + packed[tail + 1 :],
        "Not a gzipped file": plain.read_bytes(),
    }
    for words, found in damage.items():
        output.write_bytes(found)
        report = verify(folder)
        assert (report.exit_code, words in str(report.findings[0])) == (6, True), report.findings


def test_a_pair_of_batch_files_may_be_compressed(bench: Bench) -> None:
    bench.write([{"id": "good", "text": "x"}, {"id": "bad", "text": None}])
    summary, _ = bench.run(output__path=str(bench.folder / "out.jsonl.gz"), output__format="batch")
    pair = [bench.folder / name for name in ("out.jsonl.gz", "out.error.jsonl.gz")]
    assert [orjson.loads(gzip.decompress(path.read_bytes()))["custom_id"] for path in pair] == ["good", "bad"]
    assert verify(Path(summary.run_folder)).exit_code == 0

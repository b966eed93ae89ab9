"""Hostile files, batch lines and jobs: never a traceback, never a hang, always the place; and memory that is bounded.

``HOSTILE_EXAMPLES=100000`` has the fuzzing try other examples than the ones it tries each time.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Pipeline, clean_environment, read_jsonl
from hostile_input import (
    CONTRACT,
    ENDINGS,
    LINE,
    PIECES,
    fuzz,
    good,
    indexed,
    measured,
    packed,
    parquet,
    read,
    spoiled,
    zstd,
)
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.options import _setting
from pipeline.errors import InputError, JobError, UsageError
from pipeline.ground.visible import visible
from pipeline.job import Job
from pipeline.source import find

ESCAPES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]")
ONE = b'{"id":"1","text":"a"}\n'
MIB = 1 << 20


@pytest.fixture(scope="module")
def room() -> Any:
    """A folder for one module's examples: hypothesis calls a test many times."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


# what a file may hold


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_spoiled_file_is_named_with_the_place(ending: str, room: Path) -> None:
    path = room / f"x.{ending}"

    @fuzz(80)
    @given(spoiled(ending))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        try:
            rows, said = read(path)
        except InputError as exc:
            rows, said = 0, [str(exc)]
        for words in said:
            assert re.match(rf"\S*x\.{ending}(:\d+| row \d+)?: \S", words), words
        assert rows <= 4 * 40 + len(content)

    check()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_cut_off_anywhere_is_whole_or_named(ending: str, room: Path) -> None:
    path = room / f"cut.{ending}"
    content = good(ending)[0]
    whole: dict[int, Any] = {}
    for at in sorted(
        {*range(12), *range(0, len(content), max(1, len(content) // 40)), *range(len(content) - 12, len(content) + 1)}
    ):
        path.write_bytes(content[:at])
        try:
            whole[at] = read(path)
        except InputError as exc:
            assert f"cut.{ending}" in str(exc)
    assert whole[len(content)] == (40, [])
    if ending not in ("jsonl", "csv", "tsv"):  # what has an end of its own must not lose rows in silence
        assert list(whole) == [len(content)]


@fuzz(150)
@given(st.sampled_from(ENDINGS), st.binary(max_size=400) | st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join))
def test_any_bytes_under_any_ending_are_named(ending: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"any.{ending}"
        for data in (
            content,
            gzip.compress(content) if ending.endswith("gz") else content,
            zstd(content) if ending.endswith("zst") else content,
        ):
            path.write_bytes(data)
            try:
                for words in read(path)[1]:
                    assert f"any.{ending}" in words
            except InputError as exc:
                assert f"any.{ending}" in str(exc)


ODD: dict[str, tuple[str, bytes, str]] = {
    "a number of 5,000 digits": ("x.jsonl", ONE + b'{"text":' + b"9" * 5000 + b"}\n", "x.jsonl:2: a whole number of 5,000 digits"),
    "a number past all floats": ("x.jsonl", b'{"text": 1e400}\n', "x.jsonl:1: not valid JSON at column 10: 1e400 is not a finite number"),
    "100,000 levels": ("x.jsonl", b'{"text": ' + b"[" * 100_000, "x.jsonl:1: nested too deeply for JSON"),
    "a quote that swallows the file": ("x.csv", b'text,n\na,1\n"b,2\n' + b"c,3\n" * 9, "x.csv:3: the quote opened on this line is never closed"),
    "a quote in the middle": ("x.csv", b'text\n"a"b\n', "x.csv:2: text after a cell's closing quote"),
    "CR alone": ("x.csv", b"text,n\ra,1\rb,2\r", "x.csv:1: a carriage return inside the line"),
    "NUL": ("x.csv", b"text\na\0b\n", "x.csv:2: found a NUL byte"),
    "ragged rows": ("x.csv", b"text,n\na\nb,1,2\n", "x.csv:2: found 1 cell, expected 2"),
    "semicolons": ("x.csv", b"text;n\na;1\n", "x.csv:1: found one column, 'text;n'"),
    "not UTF-8": ("x.csv", b"text\n\xe9\n", "x.csv:2: byte 1 (0xe9) is not UTF-8"),
    "a column twice": ("x.csv", b"text,a,a\n1,2,3\n", "x.csv:1: column names must differ; more than once: a"),
    "a column twice, Parquet": ("x.parquet", parquet(pa.Table.from_arrays([pa.array([1])] * 2, names=["a", "a"])), "x.parquet: column names must differ"),
    "no columns": ("x.parquet", parquet(pa.table({})), "the input has no rows"),
    "lists 100 deep": ("x.parquet", b"", "x.parquet: damaged, cut off or not parquet (Parquet schema too deeply nested"),
    "a row of 8 million numbers": ("x.parquet", b"", "x.parquet: the rows of row group 1 may take 301,989,888 bytes each"),
}  # fmt: skip


def _deep() -> bytes:
    array = pa.array([1])
    for _ in range(100):
        array = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), array)
    return parquet(pa.table({"text": array}))


def _wide() -> bytes:
    return parquet(pa.table({"text": pa.array([[0] * (1 << 23)], pa.list_(pa.int64()))}))


@pytest.mark.parametrize("name", ODD)
def test_a_sin_is_said_in_words(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file, content, says = ODD[name]
    content = content or (_deep() if "deep" in name else _wide())
    (tmp_path / file).write_bytes(content)
    with pytest.raises((InputError, JobError)) as found:
        from pipeline import run

        run(
            Job.load(
                None,
                overrides={
                    "input.path": file,
                    "output.path": "o.jsonl",
                    "gateway": "simulator",
                    "model": "m",
                    "request.prompt": "{{ text }}",
                },
            )
        )
    assert str(found.value).startswith(says)


def test_what_is_odd_but_whole_is_read(tmp_path: Path) -> None:
    whole = {
        "bom.csv": (b"\xef\xbb\xbftext\r\na\nb\r\n", 2),
        "blank.csv": (b"\n\n\r\ntext\n\n\na\n\n", 1),
        "twice.jsonl": (b'{"text":1,"text":2}\n{"__class__":1,"{{ x }}":"\\u001b[31m"}\n', 2),
        "half.jsonl": (b'{"text":"\\ud800"}\n', 1),
        "digits.jsonl": (b'{"text":' + b"9" * 4000 + b"}\n", 1),
        "levels.jsonl": (b'{"text":' + b"[" * 900 + b"]" * 900 + b"}\n", 1),
        "none.parquet": (parquet(pa.table({"text": pa.array([], pa.string())})), 0),
        "members.jsonl.gz": (gzip.compress(ONE) + gzip.compress(b"") * 3000 + gzip.compress(ONE), 2),
        "frames.jsonl.zst": (zstd(ONE) + zstd(b"") * 3000 + b"\x50\x2a\x4d\x18\4\0\0\0skip" + zstd(ONE), 2),
    }
    for name, (content, rows) in whole.items():
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name) == (rows, []), name


def test_ever_new_keys_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    path = tmp_path / "keys.jsonl"
    path.write_text("".join(f'{{"k{at}":1,"text":"a"}}\n' for at in range(100_100)))
    with pytest.raises(InputError, match=r"keys.jsonl:100\d\d\d: .* more than 100,000 different keys"):
        indexed(tmp_path, path, prompt="{{ text }}", columns={"text"})


def test_a_header_of_100_000_columns_is_read_at_once(tmp_path: Path) -> None:
    names = [f"c{at}" for at in range(100_000)]
    (tmp_path / "wide.csv").write_text(",".join(names) + "\n" + ",".join(names) + "\n")
    began = time.monotonic()
    assert read(tmp_path / "wide.csv")[0] == 1
    assert time.monotonic() - began < 15, "it took the square of the columns"


# where files are


def _run(pipeline: Pipeline, *words: str) -> Any:
    return pipeline(
        "run", "-o", "out.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}", *words, timeout=60
    )


@pytest.mark.parametrize("kind", ["fifo", "socket", "device", "link to itself"])
def test_what_is_no_file_in_a_folder_is_named_and_not_waited_for(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(ONE)
    odd = folder / "b.jsonl"
    make: dict[str, Callable[[], Any]] = {
        "fifo": lambda: os.mkfifo(odd),
        "device": lambda: odd.symlink_to("/dev/zero"),
        "link to itself": lambda: odd.symlink_to("b.jsonl"),
    }
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            here = Path.cwd()
            os.chdir(folder)
            listening.bind("b.jsonl")
            os.chdir(here)
    else:
        make[kind]()
    with pytest.raises(InputError, match=r"b\.jsonl: (not a regular file|Too many levels of symbolic links)"):
        find(str(folder), base=tmp_path)


@pytest.mark.parametrize("spec", ["in", "in/**/*.jsonl", "in/**", "**/in/a.jsonl"])
def test_links_that_go_round_are_entered_once(spec: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(ONE)
    (folder / "here").symlink_to(".")
    (folder / "up").symlink_to("..")
    (folder / "in").symlink_to("../in")
    began = time.monotonic()
    assert len(find(spec, base=tmp_path)) == 1
    assert time.monotonic() - began < 5


def test_names_that_no_terminal_should_obey_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a\nb.jsonl", "\x1b[31m.jsonl"):
        Path(name).write_bytes(b"x\n")
        (said,) = read(Path(name).absolute())[1]
        assert said.startswith(name.replace("\n", "\\n").replace("\x1b", "\\x1b") + ":1: ")
    with pytest.raises(InputError, match="File name too long"):
        find("x" * 1000 + ".jsonl", base=tmp_path)
    Path(os.fsdecode(b"in\xff.jsonl")).write_bytes(ONE)
    with pytest.raises(InputError, match=r"in\\udcff\.jsonl: the name is not UTF-8, .* rename it"):
        find(".", base=tmp_path)


@pytest.mark.slow
def test_a_folder_of_10_000_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for at in range(10_000):
        (folder / f"{at}.jsonl").write_bytes(b'{"text":"%d"}\n' % at)
    ended = measured(
        tmp_path, "plan", "-i", "in", "-o", "o.jsonl", "-g", "simulator", "-m", "m", "-p", "{{ text }}", "--json"
    )
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["rows"] == 10_000
    _print("10,000 files", ended)
    assert ended.peak < 250


# batch lines

_JUNK = st.sampled_from([None, True, 0, -1, 1.5, "", "x", "POST", "GET", "/v1/chat/completions", "/v1/embeddings", "/v1/completions", "/v1/responses", [], [1], {}, {"a": 1}, "{", '{"model": "m"}', "\ud800", "{{ 1 }}", "a,b"])  # fmt: skip
_BODY = st.dictionaries(
    st.sampled_from(["model", "messages", "stream", "input", "n", "", "__class__"]),
    _JUNK | st.lists(_JUNK, max_size=3),
    max_size=4,
)


@fuzz(120)
@given(
    st.dictionaries(st.sampled_from(["custom_id", "method", "url", "body", "more"]), _JUNK | _BODY, max_size=5),
    st.booleans(),
    st.sampled_from([None, "m"]),
    st.sampled_from(["chat", "embeddings"]),
)
def test_a_batch_line_is_a_request_or_named(
    changes: dict[str, Any], whole: bool, model: str | None, endpoint: str
) -> None:
    line = {**LINE, **changes} if whole else changes
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "lines.jsonl"
        path.write_text(json.dumps(LINE) + "\n" + json.dumps(line) + "\n" + json.dumps(line)[:-1])
        with pytest.raises(InputError) as found:
            indexed(Path(name), path, prompt=None, columns=set(LINE), model=model, endpoint=endpoint)
        said = str(found.value).splitlines()
        assert all(re.match(r"\S*lines\.jsonl:[123]: ", words) for words in said), said
        assert "lines.jsonl:3: not valid JSON" in said[-1]


# jobs

JOB = """model = "sim/echo"
run_dir = "kept"
gateway.preset = "simulator"
gateway.concurrency = 4
gateway.rpm = 60.0
gateway.timeout = "90s"
gateway.ip_version = 4
input.path = "rows.jsonl"
input.id = "id"
request.system = "You"
request.prompt = "{{ text }}"
request.params.stop = ["a", {b = 1}]
request.images = ["photo"]
limits.max_attempts = 5
limits.max_cost = 1.5
limits.max_failures = "5%"
limits.window = "20:00-06:00"
limits.deadline = "8h"
limits.max_outage = "2h"
output.path = "out.jsonl"
output.keep = ["id"]
output.prefix = "llm_"
prices."m".input_per_million = 1
prices."m".output_per_million = 2.5
"""
KEYS = [line.split(" = ")[0] for line in JOB.splitlines()]
VALUES = [
    *("1", "-1", "0", "9" * 5000, "0x" + "f" * 5000, "1e400", "nan", "inf", "-inf", "18446744073709551616", "true", '"x"', '""', "3.0", "+1", "1_000"),
    *('"\\u0000"', '"\\uD800"', '"\\u001b[31m"', '"\\u202e"', '"' + "x" * 9999 + '"', "[]", "{}", "[" * 3000 + "]" * 3000, "[" * 70 + "]" * 70),
    *("{a=" * 300 + "1" + "}" * 300, "{a=" * 70 + "1" + "}" * 70, "1979-05-27", "07:32:00", "1979-05-27T07:32:00Z", '"~nobody/x"', '"a,b"', '"1e400s"'),
    *('"999999999999999999999h"', '"25:00-26:00"', '"²:00"', '"²h"', '"१h"', '"5%"', '"999%"', "[[[1]]]", '{preset="simulator"}', '"http://[::1"', '"http://a:99999/v1"'),
    *('"http://\\u0000/"', '"auto"', '["a","a"]', '[""]', "[1]", "", "{", "'", "#", "1\n[x]\ny = 2"),
]  # fmt: skip
_KEY = st.sampled_from([*KEYS, "a." * 3000 + "b", "source", "__class__", "api_key", '""', "'\\u001b[31m'", '"\\u001b[31m"', "request.params." + "a." * 70 + "b", "#", "# x", "", "a\nb", "[x]\ny", "a=1\n#", "'", ".", "input", "prices"])  # fmt: skip


@fuzz(300)
@given(_KEY, st.sampled_from(VALUES), st.integers(0, 9), st.integers(0, len(JOB) - 1), st.binary(max_size=6))
def test_a_spoiled_job_is_named_with_the_key(key: str, value: str, way: int, at: int, junk: bytes) -> None:
    text = "".join(line for line in JOB.splitlines(keepends=True) if way == 0 or not line.startswith(key + " ="))
    content = (text + f"{key} = {value}\n").encode()
    if way > 6:
        content = JOB.encode()[:at] + (junk or b"") + JOB.encode()[at + way - 7 :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "job.toml"
        path.write_bytes(content)
        try:
            _kept(Job.load(path))
        except JobError as exc:
            assert str(exc).partition(":")[0].startswith(
                (str(path), "input.", "output.", "request.", "gateway.", "run_dir", "there is")
            ) or str(path) in str(exc), exc
            assert not ESCAPES.search(str(exc))
            assert len(str(exc)) < 30_000


@fuzz(300)
@given(_KEY, st.sampled_from(["=", " = ", ""]), st.sampled_from([*VALUES, "\x1b[31m", "\udcff", "[a]", "a\nb = 2"]))
def test_a_set_option_is_taken_or_named(key: str, sign: str, value: str) -> None:
    base = {
        ("input", "path"): "r.jsonl",
        ("output", "path"): "o.jsonl",
        ("gateway", "preset"): "simulator",
        ("model",): "m",
    }
    try:
        path, found = _setting(key + sign + value)
        _kept(Job.load(None, overrides={**base, path: found}))
    except UsageError as exc:
        assert str(exc).split()[0].rstrip(":") in {
            "--set",
            "the",
            *(
                part.split(" ")[0]
                for part in ("input.path", "output.path", "run_dir", "gateway.api_key_file", "request.prompt_file")
            ),
        }, exc


def _kept(job: Job) -> None:
    """What a run does with a job before anything else: it must be kept, and be the same when it is read again."""
    assert Job.model_validate_json(job.model_dump_json(), strict=False).model_dump() == job.model_dump()
    assert job.run_folder and job.output_format and job.concurrency and job.pack
    job.limits.hours(0.0)
    job.limits.most_failures(10)


# through the door: the command line in a child


def _spoil(name: str, folder: Path) -> list[str]:
    """One hostile thing in a folder, and the words to run it."""
    (folder / "rows.jsonl").write_bytes(ONE)
    run = ["run", "-i", "rows.jsonl", "-o", "out.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}"]
    match name.split(":"):
        case ["file", ending]:
            content = bytearray(good(ending)[-1])
            content[len(content) // 2] ^= 0x55
            content[-3:] = b"\xff\x00\x1b"
            (folder / f"x.{ending}").write_bytes(content)
            return [*run, "-i", f"x.{ending}"]
        case ["option", *rest]:
            return [*run, *rest]
        case ["job", text]:
            (folder / "job.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
            return ["run", "job.toml"]
    raise AssertionError(name)


HARD = os.fsdecode(b"\xff")
DOORS = [
    ("file:jsonl", 2, "x.jsonl:"),
    ("file:parquet", 2, "x.parquet"),
    (f"option:-p:{HARD}", 2, r"the command: '\udcff' is not UTF-8 text"),
    ("option:--set:#=3", 2, "--set: '#' is no key"),
    ("option:--rpm:inf", 2, "gateway.rpm: expected a finite number"),
    ("option:--redo-ids:/dev/zero", 2, "--redo-ids: cannot read /dev/zero: it has more than"),
    ("option:/dev/zero", 2, "cannot read the job file /dev/zero: it has more than"),
    ("option:-p:{{ 'x' * 10**10 }}", 3, "the template does not fit this row"),
    ("job:model = " + "[" * 3000, 2, "job.toml: nested too deeply"),
    ("job:model = " + "9" * 5000, 2, "job.toml: a whole number of more than 4,300 digits"),
    ('job:"\\u001b[31m" = 1', 2, r"\x1b[31m is not a key of a job"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code", "says"), DOORS, ids=[name[:24] for name, _, _ in DOORS])
def test_the_command_line_ends_with_its_code_and_a_place(name: str, code: int, says: str, tmp_path: Path) -> None:
    ended = measured(tmp_path, *_spoil(name, tmp_path))
    assert ended.code == code, ended.err
    assert ended.code in CONTRACT
    assert "Traceback" not in ended.err
    assert says in ended.err
    assert not ESCAPES.search(ended.err)
    assert ended.peak < 700


@pytest.mark.parametrize(("variable", "value", "says"), [("PIPELINE_PROMPT", HARD, "PIPELINE_PROMPT: "), ("PIPELINE_RPM", "nan", "gateway.rpm"), ("PIPELINE_CONCURRENCY", "²", "gateway.concurrency")])  # fmt: skip
def test_the_environment_is_no_other_door(variable: str, value: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(ONE)
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", "-i", "rows.jsonl", "-o", "o.jsonl", "-g", "simulator", "-m", "m"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, env={**clean_environment(), variable: value},
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_terminal_and_no_log_takes_orders_from_data(tmp_path: Path, pipeline: Pipeline) -> None:
    order = "\\u001b[31m\\u0007\\u009b2J\\u202e"
    (tmp_path / "rows.jsonl").write_text(f'{{"id":"{order}a","text":null}}\n{{"id":"{order}b","text":"{order}say"}}\n')
    words = ("-i", "rows.jsonl", "--id", "id")
    said = [
        pipeline("try", "-o", "out.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}", *words),
        _run(pipeline, *words),
        pipeline("status", "out.jsonl"),
        pipeline("verify", "out.jsonl"),
        pipeline(
            "plan", "-o", "out.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}", "--show", "1", *words
        ),
        pipeline("run", "-i", "rows.jsonl", "-o", "o.jsonl", "-g", "simulator", "-m", "\x1b[31m", "-p", "{{ \x1b }}"),
        pipeline("run", "-i", "\x1b[31m.jsonl", "-o", "o.jsonl", "-g", "\x1b[31m"),
        pipeline("run", "--\x1b[31m"),
    ]
    assert [ended.code for ended in said] == [0, 3, 0, 0, 0, 2, 2, 2]
    for ended in said:
        assert not ESCAPES.search(ended.out + ended.err), ended
    assert r"\x1b[31m" in said[0].out + said[0].err
    assert not ESCAPES.search((tmp_path / "out.jsonl.run" / "run.log").read_text())
    assert [row["id"][0] for row in read_jsonl(tmp_path / "out.jsonl")] == ["\x1b", "\x1b"], (
        "the results hold what the input holds"
    )
    assert visible("a\tb\nc é🚀") == "a\tb\nc é🚀"


# bounds: what a child needs of memory and time


def _print(name: str, ended: Any) -> None:
    print(f"{name}: {ended.peak:.0f} MiB, {ended.seconds:.1f} s, exit {ended.code}")


def _small(path: Path) -> Path:
    assert path.stat().st_size < 12 * MIB
    return path


BOMBS: dict[str, tuple[Callable[[Path], Path], int, str, int]] = {
    "1 GB line, sparse": (lambda f: _sparse(f / "x.jsonl"), 2, "x.jsonl:1: a line of more than 67,108,864 bytes", 200),
    "1 GB of zeros, gz": (lambda f: packed(f / "x.jsonl.gz", bytes(MIB), 1024), 2, "x.jsonl.gz:1: a line of more than", 200),
    "1 GB line, zst": (lambda f: packed(f / "x.jsonl.zst", b"a" * MIB, 1024, head=b'{"text":"'), 2, "x.jsonl.zst:1: a line of more than", 250),
    "26 million blank lines, zst": (lambda f: packed(f / "x.jsonl.zst", b"\n" * MIB, 25, head=ONE, tail=ONE), 0, "2 succeeded", 250),
    "12 million blank lines, CSV": (lambda f: packed(f / "x.csv.zst", b"\n" * MIB, 12, head=b"text\na\n", tail=b"b\n"), 0, "2 succeeded", 250),
    "a cell of 100 MB": (lambda f: packed(f / "x.csv.gz", b"a" * MIB, 100, head=b"text\n"), 2, "x.csv.gz:2: a line of more than", 200),
    "an open quote, 1 GB": (lambda f: packed(f / "x.csv.zst", b"a,b and so on and on and on\n" * 37_000, 1000, head=b'text,n\nx,1\n"'), 2, "x.csv.zst:3: the record from here on is over 67,108,864 bytes", 900),
    "a dictionary of one, 1 GB": (lambda f: _dictionary(f / "x.parquet"), 0, "1,000 succeeded", 500),
}  # fmt: skip


def _sparse(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 30)
    return path


def _dictionary(path: Path) -> Path:
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["x" * (MIB - 100)]))
    pq.write_table(pa.table({"big": texts, "text": list(map(str, range(1000)))}), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_more_memory_than_a_line(name: str, tmp_path: Path) -> None:
    make, code, says, most = BOMBS[name]
    path = make(tmp_path)
    if path.suffix != ".jsonl":
        _small(path)
    plan = ["--set", 'output.keep=["text"]', "--set", "request.dedupe=true"]
    ended = measured(
        tmp_path,
        "run",
        "-i",
        path.name,
        "-o",
        "o.jsonl",
        "-g",
        "simulator",
        "-m",
        "sim/echo",
        "-p",
        "{{ text }}",
        *plan,
        timeout=120,
    )
    _print(name, ended)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert "Traceback" not in ended.err
    assert ended.peak < most


@pytest.mark.slow
def test_a_line_without_end_on_standard_input_is_spooled_and_named(tmp_path: Path) -> None:
    with subprocess.Popen(["head", "-c", str(1 << 29), "/dev/zero"], stdout=subprocess.PIPE) as endless:
        ended = measured(
            tmp_path,
            "run",
            "-i",
            "-",
            "-o",
            "o.jsonl",
            "-g",
            "simulator",
            "-m",
            "m",
            "-p",
            "{{ text }}",
            stdin=endless.stdout,
        )
    _print("512 MB without a line's end on stdin", ended)
    assert ended.code == 2
    assert "stdin.jsonl:1: a line of more than 67,108,864 bytes" in ended.err
    assert ended.peak < 250
    shutil.rmtree(tmp_path / "o.jsonl.run")


@pytest.mark.slow
def test_no_corrupt_parquet_brings_the_process_down(tmp_path: Path) -> None:
    """In a child, for what Arrow does with a lying size may be no exception; seeded, so that it is the same each time."""
    for at, content in enumerate(good("parquet")):
        (tmp_path / f"good{at}").write_bytes(content)
    script = (
        "import random, sys\nfrom pathlib import Path\nfrom hostile_input import read\nfrom pipeline.errors import InputError\n"
        "chance = random.Random(7)\ngood = [bytearray(path.read_bytes()) for path in sorted(Path().glob('good*'))]\n"
        "refused = 0\nfor _ in range(600):\n"
        "    data = bytearray(chance.choice(good))\n"
        "    for _ in range(chance.choice([1, 1, 2, 5])):\n"
        "        at = max(0, len(data) - chance.randrange(1, 3000)) if chance.random() < .7 else chance.randrange(len(data))\n"
        "        data[at : at + chance.choice([1, 1, 4])] = chance.choice([bytes([chance.randrange(256)]), b'\\xff' * 4, b'\\x80\\x80\\x80\\x7f'])\n"
        "    Path('x.parquet').write_bytes(data)\n"
        "    try:\n        read(Path('x.parquet').absolute())\n    except InputError as exc:\n        assert 'x.parquet' in str(exc)\n        refused += 1\n"
        "print(refused)\n"
    )
    env = {
        **clean_environment(),
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(Path(__file__).parent), str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH")])
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=env
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@pytest.mark.slow
def test_files_of_a_folder_that_do_not_agree_are_read_together(tmp_path: Path, pipeline: Pipeline) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "n": ["one"]}), folder / "b.parquet")
    pq.write_table(pa.table({"text": ["c"], "n": pa.array([{"x": 1}])}), folder / "c.parquet")
    (folder / "d.csv").write_text("text\nd\n")
    (folder / "e.jsonl").write_text('{"text":"e","n":[1]}\n{"n":2}\n')
    for output in ("out.parquet", "out.csv"):
        ended = pipeline(
            "run",
            "-i",
            "in",
            "-o",
            output,
            "-g",
            "simulator",
            "-m",
            "sim/echo",
            "-p",
            "{{ text }}",
            "--run-dir",
            f"{output}.run",
        )
        assert ended.code == 3, ended.err
        assert "5 succeeded, 1 failed" in ended.err
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 6

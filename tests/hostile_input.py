"""Hostile files, jobs and templates: what they are made of, and how one is tried in this process."""

from __future__ import annotations

import csv
import gzip
import io
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from conftest import clean_environment
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pipeline.errors import InputError, RowError, TemplateError
from pipeline.journal import Journal
from pipeline.records import Row
from pipeline.source import chunks, column_names, find
from pipeline.template import Template
from pipeline.workspace.feed import Feed

CONTRACT = frozenset({0, 2, 3, 4, 5, 6, 75, 130})
ROWS: list[dict[str, Any]] = [
    {"id": f"r{at}", "text": f'héllo "q" 🚀 {at}' * (at % 5), "n": at, "x": None if at % 3 else [1, {"a": "b"}]}
    for at in range(40)
]
LINE: dict[str, Any] = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}


def zstd(data: bytes) -> bytes:
    """One zstd stream."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    return bytes(sink.getvalue().to_pybytes())


def _csv(delimiter: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter)
    writer.writerow(["id", "text", "n"])
    writer.writerows([row["id"], row["text"] + '\nmore, "q"\t', row["n"]] for row in ROWS)
    return text.getvalue().encode()


def parquet(table: Any, **options: Any) -> bytes:
    """A Parquet file's bytes."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def _table() -> Any:
    ids = range(len(ROWS))
    return pa.table(
        {
            "id": [row["id"] for row in ROWS],
            "text": [row["text"] for row in ROWS],
            "kind": pa.array(["a", "b"] * 20).dictionary_encode(),
            "struct": [{"a": at, "b": [str(at)] * 3} for at in ids],
            "map": pa.array([[("k", at)] for at in ids], pa.map_(pa.string(), pa.int64())),
            "bytes": [b"\xff" * at for at in ids],
            "time": pa.array(ids, pa.timestamp("ns")),
            "list": [[1.0] * at for at in ids],
        }
    )


@cache
def good(ending: str) -> list[bytes]:
    """Good files with this ending, to be spoiled."""
    lines = b"".join(orjson.dumps(row) + b"\n" for row in ROWS)
    texts = {"jsonl": lines, "csv": _csv(","), "tsv": _csv("\t")}
    stem, _, packed = ending.partition(".")
    if stem == "parquet":
        return [
            parquet(_table()),
            parquet(_table(), compression="none", use_dictionary=False),
            parquet(_table(), compression="zstd", row_group_size=7, data_page_version="2.0"),
        ]
    return [{"": bytes, "gz": gzip.compress, "zst": zstd}[packed](texts[stem])]


ENDINGS = ("jsonl", "jsonl.gz", "jsonl.zst", "csv", "csv.gz", "tsv", "parquet")
PIECES = [
    *(
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\n",
        b"\r",
        b"\r\n",
        b'"',
        b'""',
        b",",
        b"\t",
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
    ),
    *(
        b"[" * 2000,
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"9" * 5000,
        b"-0",
        b"\\ud800",
        b"\xed\xa0\x80",
        b"null",
        b"\x80" * 9,
    ),
    *(
        b'{"a":1,"a":2}',
        b'{"__class__":"{{ 1 }}"}',
        b"\x1b[31m",
        b"\xfe\xff",
        b"PK\3\4",
        b"\x1f\x8b",
        b"\x28\xb5\x2f\xfd",
    ),
    *(b"PAR1", b"\xff\xff\xff\x7f"),
]


def fuzz(examples: int) -> Any:
    """So many examples, the same each time; ``HOSTILE_EXAMPLES=100000`` tries others, for as long as one likes."""
    asked = os.environ.get("HOSTILE_EXAMPLES")
    return settings(
        max_examples=int(asked or examples),
        derandomize=asked is None,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def spoiled(draw: st.DrawFn, ending: str) -> bytes:
    """A good file with a few bits turned, bytes put in or taken out, cut off, or continued by another."""
    data = bytearray(draw(st.sampled_from(good(ending))))
    for _ in range(draw(st.integers(1, 4))):
        where = draw(st.sampled_from(["any", "head", "tail"]))
        size = len(data)
        span = {"any": (0, size), "head": (0, min(size, 64)), "tail": (max(0, size - 600), size)}[where]
        at = draw(st.integers(*span))
        match draw(st.sampled_from(["flip", "cut", "put", "take", "random", "repeat", "append"])):
            case "flip" if at < size:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at:]
            case "put":
                data[at:at] = draw(st.sampled_from(PIECES))
            case "take":
                del data[at : at + draw(st.integers(1, 20))]
            case "random":
                data[at : at + 4] = draw(st.binary(min_size=1, max_size=8))
            case "repeat":
                data[at:at] = data[at // 2 : at // 2 + draw(st.integers(1, 200))]
            case _:
                data += draw(st.sampled_from(good(ending)))[: draw(st.integers(1, 400))]
    return bytes(data)


def template(prompt: str | None, columns: Any, **more: Any) -> Template:
    """A job's template."""
    settings: dict[str, Any] = {"family": "openai", "model": "m", "system": None, "params": {}, "replace_model": False}
    return Template(**{**settings, "prompt": prompt, "columns": columns, **more})


def read(path: Path) -> tuple[int, list[str]]:
    """Every row of a file on its way to a request; the rows there are, and what is said of those that are none.

    Raises ``InputError`` for the whole file. Anything else that gets out is a defect.
    """
    (file,) = find(str(path), base=path.parent)
    names = column_names(file)
    said: list[InputError] = []
    templates: dict[frozenset[str], Template] = {}
    rows = 0
    for chunk in chunks(file):
        for index, data in chunk.rows(on_error=said.append):
            assert names is None or list(data) == names
            rows += 1
            key = frozenset(data)
            if key not in templates and len(templates) < 20:
                templates[key] = template("{{ row|tojson }}", key)
            if key in templates and rows < 100:
                row = Row(custom_id=None, index=index, data=data)
                try:
                    assert len(templates[key].compose(row).fingerprint) == 16
                except RowError as error:
                    assert len(templates[key].fingerprint_of_error(row.data, error)) == 16
    return rows, [str(problem) for problem in said]


def indexed(
    folder: Path, path: Path, *, prompt: str | None = "{{ row|tojson }}", columns: Any = None, **more: Any
) -> int:
    """The index pass over a file, with a journal of its own. Raises ``InputError``."""
    files = find(str(path), base=folder)
    run_folder = folder / "run"
    run_folder.mkdir(exist_ok=True)
    journal = Journal.open(run_folder, slots=2)
    try:
        made = template(prompt, columns or {"id", "text", "n", "x"}, **more)
        return Feed(journal, files, made, id_column=None).index(str(time.monotonic()), tick=lambda _: None).rows()
    finally:
        journal.close()


def rendered(prompt: str, data: dict[str, Any]) -> str:
    """The prompt of one row, or the words of what is wrong with the template or the row."""
    try:
        made = template(prompt, set(data) or {"text"})
        body = orjson.loads(made.compose(Row(custom_id="r", index=1, data=data)).body)
    except (RowError, TemplateError) as exc:
        return f"{type(exc).__name__}: {exc}"
    text: str = body["messages"][0]["content"]
    return text


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A command that has ended, with the most memory it had (MiB) and how long it took."""

    code: int
    out: str
    err: str
    peak: float
    seconds: float


_MEASURE = (
    "import resource, subprocess, sys\n"
    "code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode\n"
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)\n"
    "sys.exit(code)\n"
)


def measured(folder: Path, *words: str, timeout: float = 60, stdin: Any = subprocess.DEVNULL) -> Measured:
    """``python -m pipeline WORDS`` in a child, its memory and time measured; none may take longer than ``timeout``."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, "-W", "error", "-m", "pipeline", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=stdin,
        timeout=timeout,
        env=clean_environment(),
        errors="backslashreplace",
    )
    *err, peak = done.stderr.splitlines()
    return Measured(
        code=done.returncode,
        out=done.stdout,
        err="\n".join(err),
        peak=int(peak) / 1024,
        seconds=time.monotonic() - began,
    )


def own_peak() -> float:
    """The most memory this process had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def packed(path: Path, piece: bytes, times: int, *, head: bytes = b"", tail: bytes = b"") -> Path:
    """A compressed file, by its ending, of ``piece`` so many times over, of which no more than one is held."""
    sink: Any = path.open("wb") if path.suffix == ".gz" else pa.OSFile(str(path), "wb")
    pack: Any = gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=1) if path.suffix == ".gz" else None
    with sink, pack or pa.CompressedOutputStream(sink, "zstd") as out:
        for part in _parts(piece, times, head, tail):
            out.write(part)
    return path


def _parts(piece: bytes, times: int, head: bytes, tail: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(times):
        yield piece
    yield tail

"""The source gives every row once, exactly as written, in little memory; and names what it cannot read."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.ground.jsonio import dumps, loads
from pipeline.source import InputFile, arrow_schema, chunks, column_names, find, matches, place

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
}
JQ = "each line must hold one whole JSON object (jq -c . writes them so)"
SAVE = "copy, download or write it again"
KNOWN = ".jsonl, .ndjson, .csv, .tsv (each also with .gz or .zst), .parquet, .pq"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def put(name: str, data: bytes) -> InputFile:
    Path(name).write_bytes(PACK[Path(name).suffix if Path(name).suffix in PACK else ""](data))
    return find(name, base=Path.cwd())[0]


def table(name: str = "rows.parquet", *, row_group_size: int = 4, **columns: Any) -> InputFile:
    pq.write_table(pa.table(columns), name, row_group_size=row_group_size)
    return find(name, base=Path.cwd())[0]


def rows(file: InputFile, **options: Any) -> list[tuple[int, dict[str, Any]]]:
    return [row for chunk in chunks(file, **options) for row in chunk.rows()]


def data(file: InputFile, **options: Any) -> list[dict[str, Any]]:
    return [row for _, row in rows(file, **options)]


def error(file: InputFile, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        rows(file, **options)
    return str(caught.value)


# ---------------------------------------------------------------- JSON

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
SCALARS = st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    SCALARS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.lists(st.dictionaries(TEXT, JSON, max_size=4), max_size=12)


@settings(max_examples=examples(150), deadline=None)
@given(
    objects=OBJECTS,
    pack=st.sampled_from(list(PACK)),
    ascii_=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n \n"]),
)
def test_json_lines_come_back_equal(objects: list[Any], pack: str, ascii_: bool, end: str) -> None:
    text = end.join(json.dumps(item, ensure_ascii=ascii_) for item in objects)
    found = rows(put("rows.jsonl" + pack, text.encode()), size=5)
    assert [row for _, row in found] == objects
    step = 2 if end == "\n \n" else 1
    assert [index for index, _ in found] == [1 + step * number for number in range(len(objects))]


@settings(max_examples=examples(150), deadline=None)
@given(value=JSON)
def test_dumps_and_loads_are_each_others_inverse(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert json.loads(dumps(value)) == value


def test_dumps_takes_what_parquet_gives() -> None:
    zone = timezone(timedelta(hours=1))
    value: dict[Any, Any] = {
        "a": [Decimal("1.50"), b"\x00\xff", timedelta(seconds=1, microseconds=5), {1}, math.nan, math.inf],
        "b": [datetime(2024, 1, 2, 3, 4, 5, 6, zone), date(2024, 1, 2), time(1, 2, 3), time(1, tzinfo=UTC)],
    }
    plain = (
        '{"a":["1.50","AP8=",1.000005,[1],null,null],'
        '"b":["2024-01-02T03:04:05.000006+01:00","2024-01-02","01:02:03","01:00:00+00:00"]}'
    )
    assert dumps(value).decode() == plain
    odd = {**value, "c": 2**70, "d": "\ud800!", 1: {date(2024, 1, 2): True, None: [], (1, "x"): {}}}
    assert dumps(odd).decode() == (
        plain[:-1] + ',"c":1180591620717411303424,"d":"�!","1":{"2024-01-02":true,"null":[],"[1,\\"x\\"]":{}}}'
    )
    with pytest.raises(TypeError):
        dumps({"a": object()})


def test_dumps_sorts_keys_at_any_depth() -> None:
    value = {"b": {"ü": 1, "z": 2}, "a": [{"d": 1, "c": 2}], "\U0001f600": 1, "\uffee": 2}
    assert dumps(value, sort_keys=True) == '{"a":[{"c":2,"d":1}],"b":{"z":2,"ü":1},"\uffee":2,"\U0001f600":1}'.encode()
    assert dumps({**value, "c": 2**64}, sort_keys=True).decode() == (
        '{"a":[{"c":2,"d":1}],"b":{"z":2,"ü":1},"c":18446744073709551616,"\uffee":2,"\U0001f600":1}'
    )


def test_deep_json_is_written_as_deep_as_it_is_read() -> None:
    deep = b"[" * 1024 + b"]" * 1024
    assert dumps(loads(deep)) == deep


def test_surrogates_are_replaced_and_big_integers_kept() -> None:
    lines = rb"""{"a": "x\ud800y", "\udc00": "\ud83d\ude00"}
{"a": [-9223372036854775809,18446744073709551616, 0.00012345678901234567, 9223372036854775807]}
{"a": "12345678901234567890123"}"""
    assert data(put("rows.jsonl", lines)) == [
        {"a": "x�y", "�": "😀"},
        {"a": [-(2**63) - 1, 2**64, 0.00012345678901234567, 2**63 - 1]},
        {"a": "12345678901234567890123"},
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a":1}\n\n{"a" 1}', f"bad.jsonl:3: not valid JSON at column 6: expecting ':' delimiter, found '1}}'; {JQ}"),
        (
            b'{"a":1',
            "bad.jsonl:1: not valid JSON at column 7: expecting ',' delimiter, found the end of the line; " + JQ,
        ),
        (b'{"a":1} {"b":2}', f"bad.jsonl:1: not valid JSON at column 9: extra data, found '{{\"b\":2}}'; {JQ}"),
        (b"{}\n[1]", f"bad.jsonl:2: found an array, expected an object; {JQ}"),
        (b"7", f"bad.jsonl:1: found a number, expected an object; {JQ}"),
        (b"null", f"bad.jsonl:1: found null, expected an object; {JQ}"),
        (b'"hi"', f"bad.jsonl:1: found a string, expected an object; {JQ}"),
        (
            b'{"NaN": "NaN", "a": NaN}',
            f"bad.jsonl:1: not valid JSON at column 21: NaN is not a finite number; write null instead; {JQ}",
        ),
        (
            b'{"a": [1, -1e999]}',
            f"bad.jsonl:1: not valid JSON at column 11: -1e999 is not a finite number; write null instead; {JQ}",
        ),
        (b'{"a": "caf\xe9"}', f"bad.jsonl:1: byte 11 (0xe9) is not UTF-8; save the file as UTF-8; {JQ}"),
        (
            b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
            f"bad.jsonl:1: nested too deeply for JSON (about 1,000 levels); {JQ}",
        ),
        (b'\n [{"a": 1}]', "bad.jsonl: a JSON array, not JSON Lines; convert it with: jq -c '.[]'"),
        ("{}".encode("utf-16"), "bad.jsonl: looks like UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        ("{}".encode("utf-16-be"), "bad.jsonl: looks like UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        (b'{}\n{"a": "%s"}' % (b"x" * 99), "bad.jsonl:2: a line of more than 64 bytes; one record, one line"),
        (
            gzip.compress(b"{}", mtime=0),
            "bad.jsonl: the name says plain text, the content is gzip; give it the right ending",
        ),
    ],
)
def test_bad_json_lines_are_named(content: bytes, message: str) -> None:
    limit = 64 if b"x" * 99 in content else 1 << 20
    assert error(put("bad.jsonl", content), max_line_bytes=limit) == message


def test_a_collector_gets_every_bad_line_and_the_good_ones_go_on() -> None:
    problems: list[InputError] = []
    (chunk,) = chunks(put("rows.jsonl", b"\n{}\nx\n1\n\n{}\n\n"))
    assert (chunk.first, chunk.last, chunk.batch) == (2, 6, None)
    assert [index for index, _ in chunk.rows(on_error=problems.append)] == [2, 6]
    assert [str(problem)[:13] for problem in problems] == ["rows.jsonl:3:", "rows.jsonl:4:"]
    assert [index for index, _ in chunk.rows({1, 5, 6, 9})] == [6]


@pytest.mark.parametrize("content", [b"", b"\n \r\n", b"\xef\xbb\xbf"])
def test_no_lines_no_rows(content: bytes) -> None:
    assert rows(put("rows.jsonl", content)) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_start_and_size_cut_the_rows_anywhere(name: str) -> None:
    if name == "rows.jsonl":
        file = put(name, b"\xef\xbb\xbf" + b"".join(b'{"n":"%d"}\n' % n for n in range(1, 31)))
    elif name == "rows.csv":
        file = put(name, b"\xef\xbb\xbfn\r\n" + b"".join(b'"%d"\r\n' % n for n in range(2, 31)))
    else:
        file = table(n=[str(n) for n in range(1, 31)])
    everything = rows(file)
    assert everything == [(n, {"n": str(n)}) for n in range(2 if name == "rows.csv" else 1, 31)]
    for start in range(1, 33):
        for size in (1, 7, 1000):
            some = list(chunks(file, start=start, size=size))
            assert all(chunk.last - chunk.first < size for chunk in some)
            assert [row for chunk in some for row in chunk.rows()] == [row for row in everything if row[0] >= start]


# ---------------------------------------------------------------- compression, the filesystem


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_joined_archives_are_one_stream(ending: str) -> None:
    file = put("rows.jsonl" + ending, b'{"a":1}\n')
    file.path.write_bytes(file.path.read_bytes() + PACK[ending](b'{"a":2}'))
    assert data(file) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "a.jsonl.gz",
            lambda raw: raw[:-9],
            "a.jsonl.gz: damaged, cut off or not gzip"
            " (Compressed file ended before the end-of-stream marker was reached)",
        ),
        ("a.csv.gz", lambda raw: raw + b"rest", "a.csv.gz: damaged, cut off or not gzip (Not a gzipped file (b're'))"),
        (
            "a.jsonl.zst",
            lambda raw: raw[:-9],
            "a.jsonl.zst: damaged, cut off or not zstd (Truncated compressed stream)",
        ),
    ],
)
def test_damaged_archives_are_named(name: str, damage: Callable[[bytes], bytes], message: str) -> None:
    file = put(name, b'{"a":"%s"}\n' % os.urandom(9000).hex().encode())
    file.path.write_bytes(damage(file.path.read_bytes()))
    assert error(file) == f"{message}; {SAVE}"
    file.path.write_bytes(b"")
    said = "gzip" if name.endswith("gz") else "zstd"
    assert error(file) == f"{name}: the name says {said}, the content is not compressed; give it the right ending"


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv.gz", "a.jsonl.zst", "a.parquet"])
def test_a_vanished_file_is_named(name: str) -> None:
    file = put(name, b"")
    file.path.unlink()
    assert error(file) == f"{name}: No such file or directory; check the path and its rights"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.parquet"])
def test_a_reader_that_stops_early_leaves_no_file_open(name: str) -> None:
    file = table(name, n=list(range(9))) if name == "a.parquet" else put(name, b'{"n":1}\n' * 9)
    some = chunks(file, size=2)
    next(some)
    some.close()  # type: ignore[attr-defined]
    assert not [seen for seen in psutil.Process().open_files() if seen.path == str(file.path)]


@pytest.mark.parametrize(("name", "count"), [("a.jsonl.gz", 200_000), ("a.csv.gz", 50_000)])
def test_memory_does_not_grow_with_the_file(name: str, count: int) -> None:
    line = b'{"prompt":"' + b"word " * 50 + b'"}\n'
    with gzip.open(name, "wb", compresslevel=1) as out:
        out.write(b"prompt\n" if "csv" in name else b"")
        for _ in range(count // 1000):
            out.write((line if "json" in name else line[10:-2] + b"\n") * 1000)
    (file,) = find(name, base=Path.cwd())
    tracemalloc.start()
    assert sum(1 for chunk in chunks(file) for _ in chunk.rows()) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20  # the text is 54 MB, and 13 MB


def test_json_lines_need_no_pyarrow() -> None:
    put("a.jsonl", b"{}")
    put("a.csv", b"a\n1")
    script = (
        "import sys; from pathlib import Path; from pipeline.source import *;"
        "assert len([row for f in find('.', base=Path.cwd()) for c in chunks(f) for row in c.rows()]) == 2;"
        "assert 'pyarrow' not in sys.modules"
    )
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", script], check=True, env={**os.environ, "PYTHONPATH": root})


# ---------------------------------------------------------------- CSV


@settings(max_examples=examples(200), deadline=None)
@given(
    records=st.lists(st.lists(TEXT.filter(lambda text: "\0" not in text), min_size=3, max_size=3), max_size=8),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC]),
    name=st.sampled_from(["rows.csv", "rows.tsv", "rows.csv.gz", "rows.tsv.zst"]),
)
def test_csv_comes_back_equal(records: list[list[str]], quoting: Any, name: str) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting, delimiter="\t" if "tsv" in name else ",")
    lines = []
    for record in [["a", "b b", "ü"], *records]:
        lines.append(text.getvalue().count("\n") + 1)
        writer.writerow(record)
    file = put(name, text.getvalue().encode())
    assert column_names(file) == ["a", "b b", "ü"]
    expected = [dict(zip(["a", "b b", "ü"], record, strict=True)) for record in records]
    assert rows(file, size=3) == list(zip(lines[1:], expected, strict=True))


def test_csv_cells_stay_text() -> None:
    file = put("rows.csv", b'id,x\r\n001,\r\n\r\n"a ""b""\r\nc",5" disk\r\n')
    assert rows(file) == [(2, {"id": "001", "x": ""}), (4, {"id": 'a "b"\r\nc', "x": '5" disk'})]
    assert [index for chunk in chunks(file) for index, _ in chunk.rows({4, 5})] == [4]


COMMA = "a cell with a comma, a quote or a line break in it must be quoted"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "bad.csv: empty; the first line must hold the column names"),
        (b"a,b,a,b\n", "bad.csv:1: column names must differ; more than once: a, b"),
        (b"\n,a\n", "bad.csv:2: column 1 has no name (pandas: to_csv(index=False))"),
        (b"a,b\n1\n", f"bad.csv:2: found 1 cell, expected 2 as in the header; {COMMA}"),
        (b'a,b\n"1\n2",3,4\n', f"bad.csv:2: found 3 cells, expected 2 as in the header; {COMMA}"),
        (b"a\nx\0y\n", "bad.csv:2: found a NUL byte, expected text; save the file as UTF-8 text"),
        (b'a\n"x\n\xe9"\n', "bad.csv:3: byte 1 (0xe9) is not UTF-8; save the file as UTF-8"),
        (
            b'a,b\n1,2\n"x\ny",z"z\n,"w"\n"",""\n1,"open\n"",\n3,4\n',
            'bad.csv:7: the quote opened on this line is never closed; end the cell with a "',
        ),
        (
            b'a,b\n"x"y,1\n',
            'bad.csv:2: text after a cell\'s closing quote; inside a quoted cell, write a quote as ""',
        ),
        (b"a\r1\r2\r", "bad.csv:1: a carriage return inside the line; line ends must be LF or CRLF"),
        ("a\n1".encode("utf-16"), "bad.csv: looks like UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        (b"PK\x03\x04", "bad.csv: the name says plain text, the content is zip; give it the right ending"),
        (
            b'a\n"' + b"x\n" * 99,
            "bad.csv:2: the record from here on is over 50 bytes; is a quote left open?",
        ),
    ],
)
def test_bad_csv_is_named(content: bytes, message: str) -> None:
    limit = 50 if content.startswith(b'a\n"x\nx') else 1 << 20
    assert error(put("bad.csv", content), max_line_bytes=limit) == message


def test_csv_goes_on_after_a_bad_record() -> None:
    problems: list[InputError] = []
    (chunk,) = chunks(put("rows.csv", b'a,b\n"1"x,\n1\n\xff,\n1,2\n'))
    assert list(chunk.rows(on_error=problems.append)) == [(5, {"a": "1", "b": "2"})]
    assert [str(problem)[:11] for problem in problems] == ["rows.csv:2:", "rows.csv:3:", "rows.csv:4:"]
    assert (chunk.first, chunk.last) == (2, 5)


# ---------------------------------------------------------------- Parquet

NS = st.integers(0, 2**60)
EPOCH = datetime(1970, 1, 1)
LEAVES: list[tuple[Any, st.SearchStrategy[Any], Callable[[Any], Any]]] = [
    (pa.string(), TEXT, str),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1), int),
    (pa.float64(), st.floats(allow_nan=False), float),
    (pa.bool_(), st.booleans(), bool),
    (pa.binary(), st.binary(max_size=9), bytes),
    (pa.decimal128(20, 3), st.decimals("-1e16", "1e16", places=3), Decimal),
    (pa.date32(), st.dates(), lambda value: value),
    (pa.timestamp("us"), st.datetimes(), lambda value: value),
    (pa.timestamp("ns"), NS, lambda value: EPOCH + timedelta(microseconds=value // 1000)),
    (pa.timestamp("ns", "UTC"), NS, lambda value: (EPOCH + timedelta(microseconds=value // 1000)).replace(tzinfo=UTC)),
    (pa.duration("ns"), NS, lambda value: timedelta(microseconds=value // 1000)),
    (
        pa.time64("ns"),
        st.integers(0, 86_399_999_999_999),
        lambda ns: (EPOCH + timedelta(microseconds=ns // 1000)).time(),
    ),
]


@st.composite
def typed(draw: Any, depth: int = 2) -> tuple[Any, st.SearchStrategy[Any], Callable[[Any], Any]]:
    """An Arrow type, what to build its values from, and what they should be in Python."""
    kind = draw(st.sampled_from(["leaf", "list", "struct", "map", "pairs"])) if depth else "leaf"
    if kind == "leaf":
        return draw(st.sampled_from(LEAVES))  # type: ignore[no-any-return]
    inner, values, expected = draw(typed(depth - 1))

    def maybe(value: Any) -> Any:
        return None if value is None else expected(value)

    values = st.none() | values
    if kind == "list":
        make = draw(st.sampled_from([pa.list_, pa.large_list]))
        return make(inner), st.lists(values, max_size=3), lambda items: [maybe(item) for item in items]
    if kind == "struct":
        fields = pa.struct([("x", inner), ("y", pa.int8())])
        pair = st.fixed_dictionaries({"x": values, "y": st.just(1)})
        return fields, pair, lambda value: {"x": maybe(value["x"]), "y": 1}
    assume("duration" not in str(inner))  # Arrow 16 reads those in a map back as integers
    if kind == "map":
        pairs = st.dictionaries(TEXT, values, max_size=3).map(lambda value: list(value.items()))
        return pa.map_(pa.string(), inner), pairs, lambda items: {key: maybe(item) for key, item in items}
    by_number = st.dictionaries(st.integers(0, 9), values, max_size=3).map(lambda value: list(value.items()))
    return pa.map_(pa.int32(), inner), by_number, lambda items: [[key, maybe(item)] for key, item in items]


@settings(max_examples=examples(150), deadline=None)
@given(drawn=st.data(), types=st.lists(typed(), min_size=1, max_size=4), count=st.integers(0, 7))
def test_parquet_rows_are_python_values(drawn: Any, types: list[Any], count: int) -> None:
    columns, expected = {}, [{} for _ in range(count)]  # type: ignore[var-annotated]
    for number, (kind, values, python) in enumerate(types):
        built = drawn.draw(st.lists(st.none() | values, min_size=count, max_size=count))
        columns[f"c.{number}"] = pa.array(built, kind)
        for row, value in zip(expected, built, strict=True):
            row[f"c.{number}"] = None if value is None else python(value)
    file = table(**columns)
    assert rows(file, size=3) == list(enumerate(expected, 1))
    wanted = {1, 3, 4, 99}
    some = [row for chunk in chunks(file, size=3) for row in chunk.rows(wanted)]
    assert some == [row for row in enumerate(expected, 1) if row[0] in wanted]
    back = [chunk.batch for chunk in chunks(file, size=3)]
    assert pa.Table.from_batches(back, arrow_schema(file)).equals(pq.read_table(file.path))


def test_parquet_columns_are_the_ones_asked_for() -> None:
    file = table(**{"a": [{"b": 1}], "a.b": [2], "w": pa.array(["x"]).dictionary_encode(), "f": [math.nan]})
    assert column_names(file) == ["a", "a.b", "w", "f"]
    assert data(file, columns=["w", "a.b"]) == [{"w": "x", "a.b": 2}]
    assert data(file, columns=["a"]) == [{"a": {"b": 1}}]
    assert data(file, columns=[]) == [{}]
    (chunk,) = chunks(file)
    assert (chunk.first, chunk.last, chunk.batch.schema) == (1, 1, arrow_schema(file))
    assert chunk.columns(["f", "a"]).schema.names == ["f", "a"]  # type: ignore[attr-defined]
    assert math.isnan(data(file)[0]["f"])
    assert error(file, columns=["w", "z"]) == "rows.parquet: no column 'z'; there are: a, a.b, w, f"


def test_rarer_parquet_types_are_python_values() -> None:
    pairs = pa.map_(pa.string(), pa.timestamp("ns"))
    file = table(
        pairs=pa.array([[[("k", 1500)]]], pa.list_(pairs, 1)),
        words=pa.ListArray.from_arrays([0, 2], pa.array(["a", "a"]).dictionary_encode()),
        zone=pa.array([0], pa.timestamp("ms", "+05:30")),
        nothing=pa.nulls(1),
    )
    zone = timezone(timedelta(hours=5, minutes=30))
    (row,) = data(file)
    assert row == {
        "pairs": [{"k": EPOCH + timedelta(microseconds=1)}],
        "words": ["a", "a"],
        "zone": datetime(1970, 1, 1, 5, 30, tzinfo=zone),
        "nothing": None,
    }
    assert type(row["pairs"][0]["k"]) is datetime


def test_large_parquet_rows_come_in_small_chunks() -> None:
    file = table(row_group_size=64, image=[os.urandom(1 << 20) for _ in range(40)])
    assert max(chunk.last - chunk.first + 1 for chunk in chunks(file)) <= 16


def test_a_value_python_cannot_hold_costs_its_row_only() -> None:
    file = table(n=[1, 2, 3], when=pa.array([0, 2**62, 1], pa.timestamp("us")))
    problems: list[InputError] = []
    (chunk,) = chunks(file)
    assert [index for index, _ in chunk.rows(on_error=problems.append)] == [1, 3]
    assert [index for index, _ in chunk.rows({2, 3}, on_error=problems.append)] == [3]
    message = (
        "rows.parquet row 2: column 'when' (timestamp[us]) has a value Python cannot hold"
        " (date value out of range); change or drop it"
    )
    assert [str(problem) for problem in problems] == [message, message]
    assert error(file) == message
    assert data(file, columns=["n"]) == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_parquet_that_is_none_is_named() -> None:
    file = table(n=list(range(999)), row_group_size=999)
    whole = file.path.read_bytes()
    not_parquet = (
        "rows.parquet: damaged, cut off or not parquet (Parquet magic bytes not found in footer."
        f" Either the file is corrupted or this is not a parquet file); {SAVE}"
    )
    for content in (b"hello, hello", whole[:-100]):
        file.path.write_bytes(content)
        assert error(file) == not_parquet
    file.path.write_bytes(whole[:40] + os.urandom(400) + whole[440:])
    assert error(file).startswith("rows.parquet: damaged, cut off or not parquet (")
    with pytest.raises(InputError, match="not parquet"):
        file.path.write_bytes(b"")
        column_names(file)
    pq.write_table(pa.Table.from_arrays([pa.array([1])] * 3, names=["a", "b", "a"]), file.path)
    assert error(file) == "rows.parquet: column names must differ; more than once: a"


# ---------------------------------------------------------------- find


def found(spec: str, base: str = ".") -> list[str]:
    return [str(file.path.relative_to(Path.cwd())) for file in find(spec, base=Path(base))]


def test_find_takes_files_patterns_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = ["d/B.JSONL.gz", "d/a.csv", "d/sub/c.parquet", "d/sub/deep/d.ndjson.zst", "d/x[1].tsv"]
    for name in [
        *seen,
        "d/.h.csv",
        "d/_SUCCESS.csv",
        "d/note.txt",
        "d/_tmp/a.csv",
        "d/.x/a.csv",
        "d/out.csv.run/a.csv",
    ]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("d/latest.csv").symlink_to("a.csv")
    Path("d/sub/loop").symlink_to("..")
    assert found("d") == seen
    assert found("../d/a.csv", base="d") == ["d/a.csv"]
    assert found("d/x[1].tsv") == ["d/x[1].tsv"]
    assert found("d/[a]*.csv") == ["d/a.csv"]
    assert found("**/*.csv", base="d") == ["d/_SUCCESS.csv", "d/_tmp/a.csv", "d/a.csv"]
    assert found("d/**/a.csv") == found("d/**/[!b].csv") == found("d/**/?.csv") == ["d/_tmp/a.csv", "d/a.csv"]
    for spec in ("**/d?a.csv", "**/d[!x]a.csv", "d/**?a.csv", "**/*d*a.csv", "**/_tmp[!x]a.csv"):
        with pytest.raises(InputError, match="no file matches this pattern"):
            find(spec, base=Path.cwd())
    assert found("d/out.csv.run/*.csv") == ["d/out.csv.run/a.csv"]
    monkeypatch.setenv("HOME", str(Path.cwd() / "d"))
    assert found("~/a.csv", base="/") == found("~/a*.csv", base="/") == ["d/a.csv"]
    gz, tsv = find("d/B.JSONL.gz", base=Path.cwd()) + find("d/x[1].tsv", base=Path.cwd())
    assert (gz.format, gz.compression, tsv.format, tsv.compression, tsv.delimiter) == (
        "jsonl",
        "gzip",
        "csv",
        None,
        "\t",
    )
    assert (place(gz, 7), place(InputFile(path=Path("/x/p.pq"), format="parquet"), 7)) == (
        "d/B.JSONL.gz:7",
        "/x/p.pq row 7",
    )


@pytest.mark.parametrize(
    ("path", "pattern", "fits"),
    [
        ("/a/b.csv", "/a/b.csv", True),
        ("/a/b.csv", "/**/b.csv", True),
        ("/b.csv", "/**/b.csv", True),
        ("/a/b.csv", "/a/**", True),
        ("/a/b/c/d.csv", "/**/b/**/*.csv", True),
        ("/a/b/c/d.csv", "/**/[!x]/?.csv", True),
        ("/a", "/a/**", False),
        ("/a/b.csv", "/a?b.csv", False),
        ("/a/b.csv", "/**/a?b.csv", False),
        ("/a/b.csv", "/a[!x]b.csv", False),
        ("/a/b.csv", "/*.csv", False),
        ("/a/b/c.csv", "/a/*.csv", False),
        ("/a/B.csv", "/**/b.csv", False),
        ("/a/b.csv/x", "/**/b.csv", False),
    ],
)
def test_a_sign_of_a_pattern_stands_for_no_slash(path: str, pattern: str, fits: bool) -> None:
    assert matches(Path(path).parts, Path(pattern).parts) is fits


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.csv", "none.csv: no such file or folder (looked for {here}/none.csv)"),
        ("d/*.csv", "d/*.csv: no file matches this pattern (looked in {here})"),
        ("d", f"d: no input file in this folder; expected names that end in {KNOWN}"),
        ("d/a.txt", f"d/a.txt: unknown ending; expected one of {KNOWN}"),
        ("d/*", f"d/a.txt: unknown ending; expected one of {KNOWN}"),
        ("p.parquet.gz", f"p.parquet.gz: unknown ending; expected one of {KNOWN}"),
        (
            "a.json",
            f"a.json: unknown ending; expected one of {KNOWN}; a JSON document becomes JSON Lines with: jq -c '.[]'",
        ),
        ("pipe.csv", "pipe.csv: not a regular file; the input is read more than once, so save it to a file"),
        (" ", "the input path is empty; name a file, a pattern or a folder"),
        ("~nobody-here/a.csv", "~nobody-here/a.csv: no such home folder; write the path out"),
        ("x" * 300, "x" * 300 + ": File name too long; check the path and its rights"),
        ("shut.csv", "shut.csv: Permission denied; check the path and its rights"),
    ],
)
def test_find_says_what_is_wrong(spec: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("d/sub.csv").mkdir(parents=True)
    for name in ("d/a.txt", "p.parquet.gz", "a.json", "shut.csv"):
        Path(name).touch()
    os.mkfifo("pipe.csv")
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut.csv" and allowed(path, mode))
    with pytest.raises(InputError) as caught:
        find(spec, base=Path.cwd())
    assert str(caught.value) == message.format(here=Path.cwd())

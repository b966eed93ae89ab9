"""The input's columns come out as they went in: types, values and order, from every format to every other."""

from __future__ import annotations

import base64
import csv
import json
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import examples, read_jsonl, write_jsonl
from filled import csv_rows, every_third_failed, exported, job_for, small_chunks, some
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.sink import TYPES
from pipeline.source import chunks, find

JSON_TEXT = {b"pipeline": b"json"}
RESULTS = ["llm_" + name for name in TYPES]


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def parquet_of(rows: list[dict[str, Any]], **settings: Any) -> pa.Table:
    """The results of these JSON Lines as Parquet, kept columns only."""
    with folder() as here:
        (here / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        exported(job_for(here / "in.jsonl", here / "out.parquet", output__prefix="llm_", **settings))
        table = pq.read_table(here / "out.parquet")
    assert table.column_names[-len(RESULTS) :] == RESULTS
    return table.drop_columns(RESULTS)


# ---------------------------------------------------------------- Parquet to Parquet: the same types and values

EPOCH_NS = st.integers(-(2**61), 2**61)  # 1896 to 2043
EPOCH_US = st.integers(-(10**15), 10**16)  # 1938 to 2286
WORDS = st.text(st.characters(codec="utf-8"), max_size=8)
LEAVES: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), st.integers(-128, 127)),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint16(), st.integers(0, 2**16 - 1)),
    (pa.uint64(), st.integers(0, 2**63 - 1)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.decimal128(9, 3), st.decimals(-999_999, 999_999, places=3)),
    (pa.decimal256(40, 2), st.decimals(-(10**12), 10**12, places=2)),
    (pa.binary(), st.binary(max_size=8)),
    (pa.large_binary(), st.binary(max_size=8)),
    (pa.binary(3), st.binary(min_size=3, max_size=3)),
    (pa.string(), WORDS),
    (pa.large_string(), WORDS),
    (pa.date32(), st.dates()),
    (pa.time32("ms"), st.integers(0, 86_399_999)),
    (pa.time64("us"), st.times()),
    (pa.time64("ns"), st.integers(0, 86_399_999_999_999)),
    (pa.timestamp("ms"), EPOCH_US.map(lambda value: value // 1000)),
    (pa.timestamp("us"), EPOCH_US),
    (pa.timestamp("ns"), EPOCH_NS),
    (pa.timestamp("us", "UTC"), EPOCH_US),
    (pa.timestamp("ns", "Europe/Berlin"), EPOCH_NS),
    (pa.duration("us"), EPOCH_US),
    (pa.duration("ns"), EPOCH_NS),
    (pa.null(), st.none()),
]


def _struct(kinds: list[Any]) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
    fields = {f"f{at}": kind for at, kind in enumerate(kinds)}
    values = st.fixed_dictionaries({name: values | st.none() for name, (_, values) in fields.items()})
    return pa.struct([pa.field(name, kind) for name, (kind, _) in fields.items()]), values


KINDS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(lambda kind: (pa.list_(kind[0]), st.lists(kind[1] | st.none(), max_size=3))),
        inner.map(lambda kind: (pa.large_list(kind[0]), st.lists(kind[1] | st.none(), max_size=3))),
        st.lists(inner, min_size=1, max_size=3).map(_struct),
        inner.map(
            lambda kind: (pa.map_(pa.string(), kind[0]), st.lists(st.tuples(WORDS, kind[1] | st.none()), max_size=3))
        ),
    ),
    max_leaves=4,
)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    size = draw(st.integers(1, 9))
    columns: dict[str, pa.Array] = {"number": pa.array(range(size), pa.int64())}
    for at in range(draw(st.integers(1, 4))):
        kind, values = draw(KINDS)
        column = pa.array(draw(st.lists(values | st.none(), min_size=size, max_size=size)), kind)
        if pa.types.is_string(kind) and draw(st.booleans()):
            column = column.dictionary_encode()
        columns[f"{draw(WORDS)}{at}"] = column
    return pa.table(columns)


@settings(deadline=None, max_examples=examples(150))
@given(table=tables(), group=st.integers(1, 4), files=st.integers(1, 3), step=st.integers(1, 3))
def test_parquet_comes_back_with_its_types_values_and_order(table: pa.Table, group: int, files: int, step: int) -> None:
    with folder() as here, small_chunks(step):
        (here / "in").mkdir()
        each = -(-table.num_rows // files)
        for at in range(0, table.num_rows, each):
            pq.write_table(table.slice(at, each), here / "in" / f"{at}.parquet", row_group_size=group)
        exported(job_for(here / "in", here / "out.parquet", output__prefix="llm_"), every_third_failed)
        before = pa.concat_tables(
            [pq.read_table(here / "in" / f"{at}.parquet") for at in range(0, table.num_rows, each)]
        )
        after = pq.read_table(here / "out.parquet")
    assert after.column_names == [*table.column_names, *RESULTS]
    kept = after.drop_columns(RESULTS)
    assert kept.schema.types == before.schema.types
    assert repr(kept.to_pylist()) == repr(before.to_pylist())  # NaN has no equal, but one look
    assert set(after["llm_status"].to_pylist()) <= {"succeeded", "failed"}
    assert [status == "failed" for status in after["llm_status"].to_pylist()] == [
        error is not None for error in after["llm_error_code"].to_pylist()
    ]


def test_what_a_column_carries_besides_its_values_stays(tmp_path: Path) -> None:
    fields = [
        pa.field("sure", pa.int64(), nullable=False, metadata={"unit": "m"}),
        pa.field("item", pa.list_(pa.field("element", pa.int32(), nullable=False))),
    ]
    pq.write_table(pa.table([[1, 2], [[1], None]], schema=pa.schema(fields)), tmp_path / "in.parquet")
    exported(job_for(tmp_path / "in.parquet", tmp_path / "out.parquet"))
    before, after = (pq.read_schema(tmp_path / name) for name in ("in.parquet", "out.parquet"))
    for name in ("sure", "item"):
        assert after.field(name).equals(before.field(name), check_metadata=True)


def disagreeing(*tables: pa.Table) -> pa.Table:
    with folder() as here:
        (here / "in").mkdir()
        for at, table in enumerate(tables):
            pq.write_table(table, here / "in" / f"{at}.parquet")
        exported(job_for(here / "in", here / "out.parquet", output__prefix="llm_"))
        return pq.read_table(here / "out.parquet").drop_columns(RESULTS)


def one(values: list[Any], kind: pa.DataType | None = None) -> pa.Table:
    return pa.table({"a": pa.array(values, kind)})


@pytest.mark.parametrize(
    ("first", "second", "kind", "values"),
    [
        (one([1]), one([2.5]), pa.float64(), [1.0, 2.5]),
        (one([1], pa.int8()), one([2**40]), pa.int64(), [1, 2**40]),
        (one([None]), one(["x"]), pa.string(), [None, "x"]),
        (one(["x"]), one(["y"], pa.large_string()), pa.large_string(), ["x", "y"]),
        (pa.table({"a": pa.array(["x"]).dictionary_encode()}), one(["y"]), pa.string(), ["x", "y"]),
        (one([{"x": 1}]), one([{"y": "b"}]), None, [{"x": 1, "y": None}, {"x": None, "y": "b"}]),
        (one([5], pa.timestamp("ms")), one([5], pa.timestamp("us")), pa.timestamp("us"), None),
        (one([Decimal("1.5")]), one([Decimal("1.25")]), pa.decimal128(4, 2), [Decimal("1.50"), Decimal("1.25")]),
    ],
)
def test_files_that_disagree_on_a_type_get_the_wider_one(
    first: pa.Table, second: pa.Table, kind: pa.DataType | None, values: list[Any] | None
) -> None:
    found = disagreeing(first, second)
    assert kind is None or found.schema.field("a").type == kind or pa.types.is_decimal(kind)
    assert values is None or found["a"].to_pylist() == values


@pytest.mark.parametrize(
    ("first", "second", "texts"),
    [
        (one([1, None]), one(["x"]), ["1", None, '"x"']),
        (one([2**53 + 1]), one([0.5]), ["9007199254740993", "0.5"]),
        (one([-1]), one([2**63], pa.uint64()), ["-1", "9223372036854775808"]),
        (one([{"x": 1}]), one([[1]]), ['{"x":1}', "[1]"]),
        (one([date(2024, 1, 2)]), one([datetime(2024, 1, 2)]), ['"2024-01-02"', '"2024-01-02T00:00:00"']),
        (one([5], pa.timestamp("us", "UTC")), one([5], pa.timestamp("us")), None),
        (one([2**62], pa.timestamp("ms")), one([5], pa.timestamp("ns")), None),
    ],
)
def test_where_no_type_takes_all_values_they_are_text_of_json(
    first: pa.Table, second: pa.Table, texts: list[str | None] | None
) -> None:
    if texts is None:
        first = one([10**13], first.schema.field("a").type)
    found = disagreeing(first, second)
    assert found.schema.field("a").metadata == JSON_TEXT
    assert texts is None or found["a"].to_pylist() == texts


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "csv"])
def test_files_of_one_input_need_not_have_the_same_columns(tmp_path: Path, ending: str) -> None:
    (tmp_path / "in").mkdir()
    required = pa.schema([pa.field("a", pa.int64(), nullable=False), pa.field("b", pa.string())])
    pq.write_table(pa.table([[1], ["x"]], schema=required), tmp_path / "in" / "0.parquet")
    pq.write_table(pa.table({"c": [2.5]}), tmp_path / "in" / "1.parquet")
    write_jsonl(tmp_path / "in" / "2.jsonl", [{"a": 3}]) if ending != "parquet" else None
    for keep in (None, ["b"]):
        exported(job_for(tmp_path / "in", tmp_path / f"out.{ending}", output__keep=keep))
        if ending == "parquet":
            found = pq.read_table(tmp_path / "out.parquet").to_pylist()
            assert [row["b"] for row in found] == ["x", None]
            assert keep or [(row["a"], row["c"]) for row in found] == [(1, None), (None, 2.5)]
        elif ending == "jsonl":
            found = read_jsonl(tmp_path / "out.jsonl")
            assert [row.get("b") for row in found] == ["x", None, None]
            assert keep or [(row.get("a"), row.get("c")) for row in found] == [(1, None), (None, 2.5), (3, None)]
        else:
            assert [row["b"] for row in csv_rows(tmp_path / "out.csv")] == ["x", "", ""]


# ---------------------------------------------------------------- JSON Lines to Parquet: a type that fits, or text of JSON

NAMES = st.sampled_from(["a", "b", "é", "x y", "a.b", ""])
NUMBERS = st.integers(-(2**70), 2**70) | st.integers(2**53 - 2, 2**53 + 2) | st.integers(-3, 3)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)
ONE_KIND = st.sampled_from(
    [
        st.integers(-(2**63), 2**63 - 1),
        NUMBERS | st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        WORDS,
        st.lists(NUMBERS | st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        st.dictionaries(NAMES, NUMBERS, max_size=3),
        st.dictionaries(NAMES, st.booleans() | st.floats(allow_nan=False, allow_infinity=False), max_size=2),
        st.just({}) | st.none(),
        st.lists(st.none(), max_size=2),
        VALUES,
    ]
)


@st.composite
def json_rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    kinds = draw(st.dictionaries(NAMES, ONE_KIND, min_size=1, max_size=3))
    fields = {name: kind | st.none() for name, kind in kinds.items()}
    rows = st.fixed_dictionaries({}, optional=fields)
    return draw(st.lists(rows, min_size=1, max_size=8))


def same(value: Any, found: Any) -> bool:
    """Whether a JSON value came back from Parquet, where a struct has all members and numbers one width."""
    if isinstance(value, dict):
        return (
            isinstance(found, dict)
            and all(same(value.get(name), member) for name, member in found.items())
            and value.keys() <= found.keys()
        )
    if isinstance(value, list):
        return isinstance(found, list) and len(value) == len(found) and all(map(same, value, found))
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value) is type(found) and bool(value == found)
    return not isinstance(found, bool) and isinstance(found, int | float) and value == found


@settings(deadline=None, max_examples=examples(250))
@given(rows=json_rows(), step=st.integers(1, 4))
def test_json_comes_back_from_parquet(rows: list[dict[str, Any]], step: int) -> None:
    rows[0] = {**rows[0], "number": 1}  # an input has columns
    with folder() as here, small_chunks(step):
        (here / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        exported(job_for(here / "in.jsonl", here / "out.parquet", output__prefix="llm_"))
        table = pq.read_table(here / "out.parquet").drop_columns(RESULTS)
    for field in table.schema:
        column = table[field.name].to_pylist()
        if field.metadata == JSON_TEXT:
            assert field.type == pa.string()
            column = [None if text is None else json.loads(text) for text in column]
        for row, found in zip(rows, column, strict=True):
            assert same(row.get(field.name), found), (field, row)


ACROSS = 1024  # rows a stretch


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        ([{"a": 1}, {"a": 2.5}], pa.float64()),
        ([{"a": 1}] * ACROSS + [{"a": 2.5}], pa.float64()),
        ([{"a": 2**53 + 1}, {"a": 2.5}], None),
        ([{"a": 2**53 + 1}] * ACROSS + [{"a": 2.5}], None),
        ([{"a": 0.5}] * ACROSS + [{"a": 2**53 + 1}], None),
        ([{"a": [2**53 + 1]}] * ACROSS + [{"a": [2.5]}], None),
        ([{"a": 1.5}, {"a": True}], None),
        ([{"a": {"b": 1.5}}, {"a": {"b": True}}], None),
        ([{"a": True}, {"a": 1}], None),
        ([{"a": 2**70}, {"a": 1}], None),
        ([{"a": 1}] * ACROSS + [{"a": 2**70}], None),
        ([{"a": 1}, {"a": "x"}], None),
        ([{"a": 1}] * ACROSS + [{"a": "x"}], None),
        ([{"a": [1]}, {"a": {"b": 1}}], None),
        ([{"a": {}}, {"a": None}], None),
        ([{"a": {}}, {"a": {"b": 1}}], pa.struct([("b", pa.int64())])),
        ([{"a": {"b": 1}}] * ACROSS + [{"a": {"c": "x"}}], pa.struct([("b", pa.int64()), ("c", pa.string())])),
        ([{"a": []}, {"a": None}], pa.list_(pa.field("element", pa.string()))),
        ([{"a": [None]}] * ACROSS + [{"a": [1]}], pa.list_(pa.field("element", pa.int64()))),
        ([{"a": None, "b": 1}, {"b": 2}], pa.string()),
        ([{"a": {f"key {n}": n}} for n in range(300)], None),
        ([{"a": json.loads("[" * 40 + "]" * 40)}], None),
        ([{"a": json.loads('{"a":' * 200 + "1" + "}" * 200)}], None),
    ],
    ids=lambda value: None if isinstance(value, pa.DataType) else str(value)[:30],
)
def test_a_column_gets_the_one_type_that_takes_it_whole(rows: list[dict[str, Any]], kind: pa.DataType | None) -> None:
    table = parquet_of(rows)
    field, column = table.schema.field("a"), table["a"].to_pylist()
    if kind is None:
        assert (field.type, field.metadata) == (pa.string(), JSON_TEXT)
        column = [None if text is None else json.loads(text) for text in column]
    else:
        assert (field.type, field.metadata) == (kind, None)
    assert all(same(row.get("a"), found) for row, found in zip(rows, column, strict=True))


def test_a_part_of_the_results_has_the_types_of_the_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": "x", "a": 1}, {"id": "w", "a": 2.5}, {"id": "y", "a": 3}])
    job = job_for(tmp_path / "in.jsonl", tmp_path / "out.parquet", input__id="id")
    exported(job, some, selection="failed")
    found = pq.read_table(job.output.path)
    assert found.schema.field("a").type == pa.float64()
    assert found["a"].to_pylist() == [3.0]


def test_results_can_be_the_input_of_the_next_job(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"a": {"b": 1}}, {"a": "text"}])
    exported(job_for(tmp_path / "in.jsonl", tmp_path / "first.parquet"))
    with pytest.raises(JobError, match=r"output\.prefix"):
        exported(job_for(tmp_path / "first.parquet", tmp_path / "second.parquet"))
    exported(job_for(tmp_path / "first.parquet", tmp_path / "second.parquet", output__prefix="llm_"))
    found = pq.read_table(tmp_path / "second.parquet")
    assert found.column_names == ["a", *TYPES, *RESULTS]
    assert found["a"].to_pylist() == ['{"b":1}', '"text"']


# ---------------------------------------------------------------- text formats


@settings(deadline=None, max_examples=examples(150))
@given(rows=json_rows(), step=st.integers(1, 4), pack=st.booleans())
def test_json_lines_come_back_equal(rows: list[dict[str, Any]], step: int, pack: bool) -> None:
    rows[0] = {**rows[0], "number": 1}
    with folder() as here, small_chunks(step):
        source = here / ("in.jsonl.zst" if pack else "in.jsonl")
        text = "".join(json.dumps(row, ensure_ascii=pack) + "\n" for row in rows).encode()
        source.write_bytes(pa.Codec("zstd").compress(text, asbytes=True) if pack else text)
        exported(job_for(source, here / "out.jsonl", output__prefix="llm_"))
        found = [json.loads(line) for line in (here / "out.jsonl").read_bytes().splitlines()]
    assert all(list(row)[-len(RESULTS) :] == RESULTS for row in found)
    kept = [{name: value for name, value in row.items() if name not in RESULTS} for row in found]
    assert [json.dumps(row, sort_keys=True) for row in kept] == [json.dumps(row, sort_keys=True) for row in rows]


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from('",;\n\r\t '), max_size=12)
HEADERS = st.lists(
    CELLS.filter(lambda name: name.strip() and not set(name) & set(",;\t|\r\n")), min_size=1, max_size=4, unique=True
)


@settings(deadline=None, max_examples=examples(150))
@given(data=st.data(), names=HEADERS, step=st.integers(1, 4), sign=st.sampled_from([",", "\t"]))
def test_csv_comes_back_equal(data: st.DataObject, names: list[str], step: int, sign: str) -> None:
    cells = st.lists(CELLS, min_size=len(names), max_size=len(names))
    rows = data.draw(st.lists(cells, min_size=1, max_size=6))
    with folder() as here, small_chunks(step):
        source = here / ("in.csv" if sign == "," else "in.tsv")
        with source.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=sign).writerows([names, *rows])
        before = [row for chunk in chunks(find(str(source), base=here)[0]) for _, row in chunk.rows()]
        exported(job_for(source, here / "out.csv", output__prefix="llm_"))
        found = csv_rows(here / "out.csv")
        read = [row for chunk in chunks(find("out.csv", base=here)[0]) for _, row in chunk.rows()]
    assert [list(row.values()) for row in before] == rows
    assert [[row[name] for name in names] for row in found] == rows
    assert found == read


ALL_KINDS = {
    "n": pa.array([1, None], pa.int32()),
    "f": pa.array([1.5, math.nan]),
    "b": pa.array([True, False]),
    "d": pa.array([Decimal("1.50"), None]),
    "bin": pa.array([b"\x00\xff", b""]),
    "text": pa.array(['a "quoted", é\nline', ""]),
    "day": pa.array([date(2024, 1, 2), None]),
    "at": pa.array([1_700_000_000_123_456_789, None], pa.timestamp("ns", "UTC")),
    "clock": pa.array([time(1, 2, 3), None]),
    "took": pa.array([timedelta(seconds=1, microseconds=5), None]),
    "kind": pa.array(["x", "y"]).dictionary_encode(),
    "list": pa.array([[1, None], []]),
    "struct": pa.array([{"x": None, "y": [b"\x01"]}, None]),
    "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
}


def test_parquet_as_json_lines_says_the_same_in_words(tmp_path: Path) -> None:
    pq.write_table(pa.table(ALL_KINDS), tmp_path / "in.parquet")
    exported(job_for(tmp_path / "in.parquet", tmp_path / "out.jsonl"))
    first, second = read_jsonl(tmp_path / "out.jsonl")
    assert {name: first[name] for name in ALL_KINDS} == {
        "n": 1, "f": 1.5, "b": True, "d": "1.50", "bin": base64.b64encode(b"\x00\xff").decode(),
        "text": 'a "quoted", é\nline', "day": "2024-01-02", "at": "2023-11-14T22:13:20.123456+00:00", "clock": "01:02:03",
        "took": 1.000005, "kind": "x", "list": [1, None], "struct": {"x": None, "y": ["AQ=="]}, "map": {"k": 1},
    }  # fmt: skip
    assert [second[name] for name in ("n", "f", "text", "list", "struct", "map")] == [None, None, "", [], None, None]


def test_parquet_as_csv_says_the_same_in_words(tmp_path: Path) -> None:
    pq.write_table(pa.table(ALL_KINDS), tmp_path / "in.parquet")
    exported(job_for(tmp_path / "in.parquet", tmp_path / "out.csv"))
    first, second = csv_rows(tmp_path / "out.csv")
    assert {name: first[name] for name in ALL_KINDS} == {
        "n": "1", "f": "1.5", "b": "true", "d": "1.50", "bin": "AP8=", "text": 'a "quoted", é\nline', "day": "2024-01-02",
        "at": "2023-11-14T22:13:20.123456+00:00", "clock": "01:02:03", "took": "1.000005", "kind": "x", "list": "[1,null]",
        "struct": '{"x":null,"y":["AQ=="]}', "map": '{"k":1}',
    }  # fmt: skip
    assert [second[name] for name in ("n", "f", "b", "bin", "list", "map")] == ["", "nan", "false", "", "[]", ""]
    assert (first["completed_at"], first["usage_estimated"]) == ("2023-11-14T22:13:20.123456+00:00", "false")

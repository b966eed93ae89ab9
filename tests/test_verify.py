"""``verify`` finds each kind of damage and says what to do; where there is none it finds none, in every format."""

from __future__ import annotations

import csv
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Pipeline, Server, clean_environment, read_jsonl, write_jsonl
from filled import answered, job_for, workspace
from simulated import Simulated, simulated
from test_memory import MB, measured, numbered

from pipeline import Job, Wishes, run
from pipeline.errors import PipelineError, RunFolderError
from pipeline.results import export
from pipeline.simulator import Settings
from pipeline.verify import Report, told, verify

FORMATS = ("jsonl", "csv", "parquet", "batch")
ROWS = [{"id": f"r{n}", "text": f"row, number\n{n}" if n % 3 else f"row {n}", "n": n / 4} for n in range(9)]
ROWS += [{"id": "none", "text": None, "n": None}]
PRICE = {"input_per_million": 1.0, "output_per_million": 2.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A run that has ended, in a folder that may be damaged."""

    path: Path
    format: str

    @property
    def output(self) -> Path:
        return self.path / f"out.{'jsonl' if self.format == 'batch' else self.format}"

    @property
    def input(self) -> Path:
        return self.path / "in.jsonl"

    @property
    def run(self) -> Path:
        return self.path / f"{self.output.name}.run"

    @property
    def journal(self) -> Path:
        return self.run / "journal.sqlite"

    def sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.journal, isolation_level=None)) as db:
            for statement in statements:
                assert db.execute(statement).rowcount != 0, f"changed nothing: {statement}"

    def json(self, path: Path, change: Callable[[dict[str, Any]], object]) -> None:
        value = orjson.loads(path.read_bytes())
        change(value)
        path.write_bytes(orjson.dumps(value))

    def lines(self, change: Callable[[list[bytes]], list[bytes]], path: Path | None = None) -> None:
        path = path or self.output
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    def verify(self) -> tuple[int, str]:
        """Exit code and all that is said."""
        try:
            report = verify(self.run)
        except PipelineError as exc:
            return exc.exit_code, str(exc)
        return report.exit_code, "\n".join(told(report))


def job_in(folder: Path, url: str, form: str, **changes: Any) -> Job:
    overrides = {
        "input.path": str(folder / "in.jsonl"),
        "input.id": "id",
        "output.path": str(folder / f"out.{'jsonl' if form == 'batch' else form}"),
        "output.format": form,
        "gateway.base_url": url,
        "model": "sim/echo",
        "request.prompt": "say {{ text }}",
        ("prices", "sim/echo"): PRICE,
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return Job.load(None, overrides={tuple(k.split(".")) if isinstance(k, str) else k: v for k, v in overrides.items()})


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory, gateway: Server) -> dict[str, Path]:
    """One ended run for each format."""
    found = {}
    for form in FORMATS:
        folder = found[form] = tmp_path_factory.mktemp(form)
        write_jsonl(folder / "in.jsonl", ROWS)
        summary = run(job_in(folder, gateway.url, form))
        assert (summary.exit_code, summary.completed, summary.failed) == (3, 9, 1)
    return found


@pytest.fixture
def ended(originals: dict[str, Path], tmp_path: Path) -> Callable[[str], Folder]:
    """A copy of one of them."""

    def copy(form: str = "jsonl") -> Folder:
        shutil.copytree(originals[form], tmp_path / form)
        return Folder(path=tmp_path / form, format=form)

    return copy


# ---------------------------------------------------------------- no damage


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_without_damage_has_no_findings(
    originals: dict[str, Path], ended: Callable[[str], Folder], form: str
) -> None:
    for folder in (Folder(path=originals[form], format=form), ended(form)):
        report = verify(folder.run)
        assert (report.exit_code, report.findings, report.unfinished) == (0, [], [])
        assert report.checked["rows of the input"] == report.checked["rows of the results"] == 10
        assert report.checked["replies"] == report.checked["checksums of replies"] == 9
        assert report.checked["outcomes"] == 10


@pytest.mark.slow
def test_vectors_copies_and_streams_have_no_findings(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve("--dialect", "litellm")
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": f"text {n // 2}"} for n in range(20)])
    kinds: dict[str, dict[str, Any]] = {
        "vectors": {"request__endpoint": "embeddings", "model": "nomic-embed-text"},
        "copies": {"request__dedupe": True, "model": "lab/priced"},
        "streams": {"gateway__stream": True, "gateway__preset": "litellm", "model": "lab/priced"},
    }
    for name, changes in kinds.items():
        for form in FORMATS:
            job = job_in(tmp_path, server.url, form, output__path=str(tmp_path / f"{name}.{form}"), **changes)
            assert run(job).completed == 20
            report = verify(job.run_folder)
            assert (report.exit_code, report.findings) == (0, []), (name, form)


def test_parquet_input_keeps_its_types_and_has_no_findings(tmp_path: Path, gateway: Server) -> None:
    table = pa.table(
        {
            "id": [f"r{n}" for n in range(50)],
            "text": ["some text"] * 50,
            "x": pa.array([float("nan") if n % 2 else n / 3 for n in range(50)]),
            "kind": pa.array(["a", "b"] * 25).dictionary_encode(),
            "many": pa.array([[{"a": n}] for n in range(50)]),
            "at": pa.array([n * 1_000_000 for n in range(50)], pa.timestamp("ns")),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=20)
    job = job_in(tmp_path, gateway.url, "parquet", input__path=str(tmp_path / "in.parquet"))
    assert run(job).completed == 50
    assert verify(job.run_folder).findings == []
    found = pq.read_table(job.output.path)
    at = found.column_names.index("x")
    values = [0.5 if n == 30 else value for n, value in enumerate(found["x"].to_pylist())]
    pq.write_table(found.set_column(at, found.field(at), pa.array(values)), job.output.path)
    report = verify(job.run_folder)
    assert [finding.what for finding in report.findings] == [
        f"{job.output.path} row 31 is not what the journal says in the column 'x'"
    ]


# ---------------------------------------------------------------- damage


def flipped_in(path: Path, needle: bytes) -> None:
    """Another byte where these are."""
    data = bytearray(path.read_bytes())
    at = data.index(needle)
    data[at] ^= 0x01
    path.write_bytes(data)


def flip_a_reply(folder: Folder) -> None:
    with closing(sqlite3.connect(folder.journal, isolation_level=None)) as db:
        body = bytearray(db.execute("SELECT body FROM reply WHERE no = 2").fetchone()[0])
        body[body.index(b"say ")] ^= 0x01
        db.execute("UPDATE reply SET body = ? WHERE no = 2", (bytes(body),))


def scribble_on_a_page(folder: Folder) -> None:
    with folder.journal.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xa5" * 64)


def half_the_journal(folder: Folder) -> None:
    data = folder.journal.read_bytes()
    folder.journal.write_bytes(data[: len(data) // 2])


def parquet_cell(folder: Folder) -> None:
    table = pq.read_table(folder.output)
    at = table.column_names.index("cost")
    costs = table["cost"].to_pylist()
    costs[4] += 0.001
    pq.write_table(table.set_column(at, table.field(at), pa.array(costs)), folder.output)


def parquet_time(folder: Folder) -> None:
    """A flipped bit may make of a time one that Python has not."""
    table = pq.read_table(folder.output)
    times = pa.array([2**62] * table.num_rows, pa.int64()).cast(table.schema.field("completed_at").type)
    at = table.schema.get_field_index("completed_at")
    pq.write_table(table.set_column(at, table.schema.field(at), times), folder.output)


def parquet_rows(change: Callable[[pa.Table], pa.Table]) -> Callable[[Folder], None]:
    return lambda folder: pq.write_table(change(pq.read_table(folder.output)), folder.output)


def half_the_parquet(folder: Folder) -> None:
    data = folder.output.read_bytes()
    folder.output.write_bytes(data[: len(data) // 2])


def csv_cell(folder: Folder) -> None:
    with folder.output.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    rows[3][rows[0].index("completion_tokens")] = "7777"
    with folder.output.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def in_flight(folder: Folder) -> None:
    from pipeline.journal.inflight import InFlightTable

    table = InFlightTable(folder.run / "inflight", slots=4)
    table.enter("r3", 4, bytes(16), "p1-4-1")
    table.close()


def older_journal(folder: Folder) -> None:
    """As put back from a copy that was made before the last rows."""
    folder.sql("DELETE FROM reply WHERE no > 5", "DELETE FROM outcome WHERE no > 5")


def meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], None]:
    return lambda folder: folder.json(folder.output.with_name(folder.output.name + ".meta.json"), change)


def status(change: Callable[[dict[str, Any]], object]) -> Callable[[Folder], None]:
    return lambda folder: folder.json(folder.run / "status.json", change)


def sql(*statements: str) -> Callable[[Folder], None]:
    return lambda folder: folder.sql(*statements)


def lines(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Folder], None]:
    return lambda folder: folder.lines(change)


def put(name: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda table: table.__setitem__(name, value)


SWAP = "UPDATE {table} SET fingerprint = (SELECT fingerprint FROM {table} t WHERE t.custom_id = iif({table}.custom_id = 'r1', 'r2', 'r1')) WHERE custom_id IN ('r1', 'r2')"
SAYS: list[tuple[str, str, Callable[[Folder], object], int, str]] = [
    # the journal as a file
    ("a bit of a reply", "jsonl", flip_a_reply, 6, "the kept answer of 'r1' is not the one that was received"),
    ("bytes of a page", "jsonl", scribble_on_a_page, 6, "damaged"),
    ("half the journal", "jsonl", half_the_journal, 6, "damaged"),
    ("no SQLite", "jsonl", lambda f: f.journal.write_bytes(b"nothing " * 999), 6, "is damaged (file is not a database)"),
    ("no journal", "jsonl", lambda f: f.journal.unlink(), 6, "is not whole: 10 rows were done as status.json beside it says, the journal has 0"),
    ("an empty journal", "jsonl", lambda f: f.journal.write_bytes(b""), 6, "is not whole: 10 rows"),
    ("an older journal", "jsonl", older_journal, 6, "is not whole: 10 rows were done as status.json beside it says, the journal has 5"),
    ("a foreign table", "jsonl", sql("CREATE TABLE mine (x)"), 6, "the journal has a table mine that is none of pipeline's"),
    ("a trigger", "jsonl", sql("CREATE TRIGGER t AFTER INSERT ON reply BEGIN DELETE FROM outcome; END"), 6, "the journal has a trigger t"),
    ("a column too many", "jsonl", sql("ALTER TABLE outcome ADD COLUMN mine"), 6, "the table outcome of the journal has other columns"),
    ("an index dropped", "jsonl", sql("DROP INDEX attempt_row"), 6, "the journal has no index attempt_row"),
    # index and input
    ("an edited input", "jsonl", lambda f: f.lines(lambda rows: [*rows[:2], rows[2].replace(b"number", b"NUMBER"), *rows[3:]], f.input), 6, "in.jsonl:3 is not the row that was indexed there"),
    ("a column that is not asked", "jsonl", lambda f: f.lines(lambda rows: [rows[0].replace(b"0.0", b"0.5"), *rows[1:]], f.input), 6, "row 1 is not what the journal says in the column 'n'"),
    ("the same, not kept", "batch", lambda f: f.lines(lambda rows: [rows[0].replace(b"0.0", b"0.5"), *rows[1:]], f.input), 6, "in.jsonl is not the file that the results were made from"),
    ("a row less", "jsonl", lambda f: f.lines(lambda rows: rows[:-1], f.input), 6, "in.jsonl:10 was indexed and is not there"),
    ("a row in front", "jsonl", lambda f: f.lines(lambda rows: [b'{"id":"x","text":"y"}\n', *rows], f.input), 6, "in.jsonl:1 is not the row that was indexed there"),
    ("a bad line", "jsonl", lambda f: f.lines(lambda rows: [*rows[:4], b"{\n", *rows[5:]], f.input), 6, "in.jsonl:5: not valid JSON"),
    ("no input", "jsonl", lambda f: f.input.unlink(), 2, "no such file or folder; if the input has moved, say where it is now with -i FILE"),
    ("an id of the index", "jsonl", sql("UPDATE input SET custom_id = 'r9' WHERE custom_id = 'r1'"), 6, "in.jsonl:2 is not the row that was indexed there"),
    ("a doubled id", "jsonl", sql("UPDATE input SET custom_id = 'r1' WHERE custom_id = 'r2'"), 6, "the id 'r1' stands 2 times in the index"),
    ("fingerprints of the index", "jsonl", sql(SWAP.format(table="input")), 6, "in.jsonl:2 is not the row that was indexed there"),
    ("a row of the index", "jsonl", sql("DELETE FROM input WHERE custom_id = 'r4'"), 6, "in.jsonl:5 is not in the index"),
    # what a value or a fact can be
    ("a flag of bytes", "jsonl", sql("UPDATE outcome SET usage_estimated = X'' WHERE custom_id = 'r1'"), 6, "the table outcome of the journal has a value of another kind"),
    ("a number of text", "jsonl", sql("UPDATE input SET no = CAST('x' AS TEXT) WHERE custom_id = 'r1'"), 6, "the table input of the journal has a value of another kind"),
    ("a time of no calendar", "csv", sql("UPDATE outcome SET completed_at = 9e99 WHERE custom_id = 'r1'"), 6, "the outcome of 'r1' has a time that cannot be"),
    ("names of columns", "jsonl", sql("UPDATE file SET columns = '[}'"), 6, "the names of a file's columns are no JSON"),
    ("another output", "jsonl", sql("UPDATE meta SET value = value || 'x' WHERE key = 'output'"), 6, "for its output, and its job another one"),
    ("an unknown fact", "jsonl", sql("INSERT INTO meta VALUES ('liked', 'yes')"), 6, "the journal says 'liked', which is none of pipeline's words"),
    ("a job that is no JSON", "jsonl", sql("UPDATE meta SET value = replace(value, ':', '}') WHERE key = 'job'"), 2, "journal.sqlite: invalid JSON: "),
    # one outcome a row
    ("fingerprints of outcomes", "jsonl", sql(SWAP.format(table="outcome")), 6, "the outcome of 'r1' is that of another row"),
    ("one outcome for two", "jsonl", sql("UPDATE input SET no = 2 WHERE custom_id = 'r2'"), 6, "the rows 'r1' and 'r2' share one outcome"),
    ("two outcomes", "jsonl", sql("UPDATE outcome SET custom_id = 'r1', fingerprint = (SELECT fingerprint FROM outcome o WHERE o.custom_id = 'r1') WHERE custom_id = 'r2'"), 6, "the row 'r1' has 2 outcomes"),
    ("no outcome", "jsonl", lambda f: (f.sql("DELETE FROM outcome WHERE custom_id = 'r1'", "DELETE FROM reply WHERE no = 2"), status(put("completed", 8))(f)), 6, "1 row has no outcome in the journal"),
    ("a reply without its outcome", "jsonl", lambda f: (f.sql("DELETE FROM outcome WHERE custom_id = 'r1'"), (f.run / "status.json").unlink()), 6, "the answer of a row (its number 2), but not that row's outcome"),
    ("no reply", "jsonl", sql("DELETE FROM reply WHERE no = 3"), 6, "the answer of 'r2' is missing from the journal"),
    # replies and their columns
    ("tokens", "jsonl", sql("UPDATE outcome SET prompt_tokens = 9999 WHERE custom_id = 'r1'"), 6, "for prompt_tokens, the outcome 9999"),
    ("a finish reason", "jsonl", sql("UPDATE outcome SET finish_reason = 'length' WHERE custom_id = 'r1'"), 6, "says 'stop' for finish_reason, the outcome 'length'"),
    ("a served model", "jsonl", sql("UPDATE outcome SET served_model = 'other' WHERE custom_id = 'r1'"), 6, "for served_model, the outcome 'other'"),
    ("a reply of rot, of version 1", "jsonl", sql("UPDATE reply SET body = X'7B7D7D', crc = NULL WHERE no = 2"), 6, "the kept answer of 'r1' is no JSON"),
    ("a reply that is no answer", "jsonl", sql("UPDATE reply SET body = CAST('{\"error\": 1}' AS BLOB), crc = NULL WHERE no = 2"), 6, "the kept answer of 'r1' is no answer"),
    ("a form", "jsonl", sql("UPDATE reply SET form = 'xml' WHERE no = 2"), 6, "the unknown form 'xml'"),
    ("a vector", "jsonl", sql("UPDATE reply SET form = 'float32', body = X'0000C07F', crc = NULL WHERE no = 2"), 6, "the kept vector of 'r1' is none"),
    # money
    ("a changed cost", "jsonl", sql("UPDATE outcome SET cost = cost + 1 WHERE custom_id = 'r1'"), 6, "USD were spent, the journal's totals say 1.00"),
    ("a negative cost", "jsonl", sql("UPDATE outcome SET cost = -1 WHERE custom_id = 'r1'"), 6, "the row 'r1' has a cost that is no amount of money"),
    ("an endless cost", "jsonl", sql("UPDATE outcome SET cost = 9e999 WHERE custom_id = 'r1'"), 6, "the row 'r1' has a cost that is no amount of money"),
    ("0 for unknown", "jsonl", sql("UPDATE outcome SET cost = 0, cost_source = 'unknown' WHERE custom_id = 'r1'"), 6, "the row 'r1' has a cost of unknown source; unknown is null"),
    ("no cost for known", "jsonl", sql("UPDATE outcome SET cost = NULL WHERE custom_id = 'r1'"), 6, "the row 'r1' has no cost, although its source is known"),
    ("a copy that cost", "jsonl", sql("UPDATE outcome SET cost_source = 'reused' WHERE custom_id = 'r1'"), 6, "the row 'r1' is a copy that cost money, took tokens or was sent"),
    ("negative tokens", "jsonl", sql("UPDATE outcome SET cached_tokens = -1 WHERE custom_id = 'r1'"), 6, "the row 'r1' has cached_tokens that are no count"),
    # runs
    ("a request left in flight", "jsonl", in_flight, 6, "the in-flight table still names 1 request (r3), though the last run ended"),
    ("a run that did not end", "jsonl", sql("UPDATE run SET ended_at = NULL, how = NULL"), 75, "was killed: run the same command again"),
    ("an earlier one", "jsonl", sql("INSERT INTO run SELECT 0, 'p0', started_at, NULL, NULL, host, pid, boot_id FROM run"), 6, "run 0 did not end, and others came after it"),
    ("a time", "jsonl", sql("UPDATE outcome SET completed_at = 0 WHERE custom_id = 'r1'"), 6, "the outcome of 'r1' has a time that cannot be"),
    ("an end before its start", "jsonl", sql("UPDATE run SET started_at = started_at + 80000, ended_at = ended_at - 80000"), 6, "run 1 has a time that cannot be"),
    ("an outage", "jsonl", sql("INSERT INTO outage SELECT ended_at, ended_at - 200000, 'http_503', 1 FROM run"), 6, "the outage 'http_503' has a time that cannot be"),
    ("a run that is none", "jsonl", sql("UPDATE outcome SET run = 7 WHERE custom_id = 'r1'"), 6, "an outcome ('r1') is of run 7, which there was not"),
    ("a killed try that is not lost", "jsonl", sql("INSERT INTO attempt SELECT 'r1', fingerprint, (SELECT name FROM run) || '-2-1', 'killed', 0, NULL, NULL, 'USD', 'unknown', completed_at, 1 FROM outcome WHERE custom_id = 'r1'"), 6, "in flight when a run was killed is not booked as lost"),
    # status.json and meta.json
    ("a status that lies", "jsonl", status(put("completed", 8)), 6, "status.json says 8 for completed, the journal 9"),
    ("a status of another cost", "jsonl", status(put("cost", {"USD": 5.0})), 6, "say that 5 USD were spent"),
    ("a status that names more", "jsonl", status(put("recovered", ["r1", "r2"])), 6, "names 2 requests that were cut off, 0 are booked"),
    ("totals of the sheet", "parquet", meta(lambda sheet: sheet["totals"].__setitem__("prompt_tokens", 1)), 6, "meta.json says 1 for totals.prompt_tokens"),
    ("the digest of the sheet", "csv", meta(lambda sheet: sheet["inputs"][0].__setitem__("blake2b", "00")), 6, "its digest is not that in"),
    ("a prompt of the sheet", "csv", meta(put("prompt", "other")), 6, "meta.json has another prompt than the journal"),
    ("no sheet", "jsonl", lambda f: (f.path / "out.jsonl.meta.json").unlink(), 6, "meta.json is not there"),
    # results
    ("no results", "parquet", lambda f: f.output.unlink(), 6, "all rows are done, but"),
    ("a row less", "jsonl", lines(lambda rows: rows[:-1]), 6, "ends after 9 rows, the journal has more"),
    ("a row less inside", "jsonl", lines(lambda rows: [*rows[:4], *rows[5:]]), 6, "row 5 is 'r5' in the column 'custom_id', the journal says 'r4'"),
    ("a row twice", "jsonl", lines(lambda rows: [*rows[:4], rows[3], *rows[4:]]), 6, "row 5 is 'r3' in the column 'custom_id'"),
    ("a row more", "jsonl", lines(lambda rows: [*rows, rows[-1]]), 6, "has more rows than the journal has for it (10)"),
    ("another order", "jsonl", lines(lambda rows: rows[::-1]), 6, "row 1 is 'none' in the column 'custom_id', the journal says 'r0'"),
    ("a torn line", "jsonl", lines(lambda rows: [*rows[:-1], rows[-1][:40]]), 6, "row 10 is not valid JSON"),
    ("an answer", "jsonl", lines(lambda rows: [rows[0].replace(b"say ", b"SAY "), *rows[1:]]), 6, "row 1 is not what the journal says in the column 'content'"),
    ("a number", "jsonl", lines(lambda rows: [rows[0].replace(b'"attempts":1', b'"attempts":2'), *rows[1:]]), 6, "row 1 is 2 in the column 'attempts', the journal says 1"),
    ("a cell of CSV", "csv", csv_cell, 6, "row 3 is '7777' in the column 'completion_tokens'"),
    ("the head of CSV", "csv", lines(lambda rows: [rows[0].replace(b"cost_unit", b"cost_unxt"), *rows[1:]]), 6, "row 0 is 'cost_unxt'"),
    ("the end of CSV", "csv", lines(lambda rows: rows[:-1]), 6, "ends after 9 rows, the journal has more"),
    ("a cell of Parquet", "parquet", parquet_cell, 6, "row 5 is 0.001"),
    ("a time of Parquet", "parquet", parquet_time, 6, "row 1 is 4611686018427387904"),
    ("rows of Parquet", "parquet", parquet_rows(lambda table: table.slice(1)), 6, "row 1 is 'r1' in the column 'custom_id', the journal says 'r0'"),
    ("the end of Parquet", "parquet", parquet_rows(lambda table: table.slice(0, 8)), 6, "ends after 8 rows, the journal has more"),
    ("more of Parquet", "parquet", parquet_rows(lambda table: pa.concat_tables([table, table])), 6, "has more rows than the journal has for it (10)"),
    ("a column of Parquet", "parquet", parquet_rows(lambda table: table.drop_columns(["cost"])), 6, "are not those of the journal: it lacks ['cost']"),
    ("a type of Parquet", "parquet", parquet_rows(lambda table: table.set_column(table.column_names.index("attempts"), "attempts", table["attempts"].cast("int32"))), 6, "has the type int32, it was written as int64"),
    ("half a Parquet", "parquet", half_the_parquet, 6, "cannot be read as Parquet"),
    ("a line of a batch", "batch", lines(lambda rows: [*rows[:3], rows[3].replace(b'"status_code":200', b'"status_code":201'), *rows[4:]]), 6, "row 4 is not what the journal says in the column 'response'"),
    ("no error file", "batch", lambda f: (f.path / "out.error.jsonl").unlink(), 6, "out.error.jsonl is not there"),
    ("an error less", "batch", lambda f: (f.path / "out.error.jsonl").write_bytes(b""), 6, "out.error.jsonl ends after 0 rows, the journal has more"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "damage", "code", "says"), [case[1:] for case in SAYS], ids=[f"{case[1]}: {case[0]}" for case in SAYS]
)
def test_each_damage_is_found_and_has_a_next_step(
    ended: Callable[[str], Folder], form: str, damage: Callable[[Folder], object], code: int, says: str
) -> None:
    folder = ended(form)
    damage(folder)
    found, text = folder.verify()
    assert says in text
    assert found == code, text
    for line in text.splitlines():
        if line.startswith("found: "):
            assert any(word in line for word in ("again", "put back", "put the input back")), line
        assert "number\n" not in line


def test_a_touched_input_is_the_same_and_an_edited_one_is_said_to_be_changed(tmp_path: Path, gateway: Server) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    job = job_in(tmp_path, gateway.url, "jsonl")
    run(job)
    folder = Folder(path=tmp_path, format="jsonl")
    folder.input.touch()
    assert folder.verify()[0] == 0
    write_jsonl(folder.input, [*ROWS[:3], ROWS[3] | {"text": "other"}, *ROWS[4:]])
    code, text = folder.verify()
    assert (code, "in.jsonl:4 is not the row that was indexed there; the file was changed since" in text) == (6, True)
    run(job, Wishes(accept_changes=True))
    assert folder.verify()[0] == 0


def test_findings_quote_no_prompt_and_no_answer(ended: Callable[[str], Folder]) -> None:
    folder = ended("jsonl")
    folder.sql("UPDATE reply SET body = replace(CAST(body AS TEXT), 'row', 'ROW'), crc = NULL")
    folder.lines(lambda rows: [row.replace(b"say row", b"SAY row") for row in rows])
    code, text = folder.verify()
    assert code == 6
    assert "say row" not in text.lower()


# ---------------------------------------------------------------- not over


def killed_run(folder: Path, server: Simulated, *more: str) -> None:
    """A run that is killed when some rows are done."""
    words = ["run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id", "-c", "4"]  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words, *more],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )
    until = time.monotonic() + 30
    try:
        while _shown(folder) < 5:
            assert time.monotonic() < until
            assert child.poll() is None
            time.sleep(0.05)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def _shown(folder: Path) -> int:
    try:
        return int(orjson.loads((folder / "out.jsonl.run" / "status.json").read_bytes()).get("completed") or 0)
    except FileNotFoundError:
        return 0


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose run was killed; its gateway is gone, too."""
    folder = tmp_path_factory.mktemp("killed")
    write_jsonl(folder / "in.jsonl", [{"id": f"r{n}", "text": f"row {n}"} for n in range(1000)])
    with simulated(Settings(latency_s=0.05)) as server:
        killed_run(folder, server)
    return folder


@pytest.fixture
def killed(cut_off: Path, tmp_path: Path) -> Folder:
    """A copy of it."""
    shutil.copytree(cut_off, tmp_path, dirs_exist_ok=True)
    return Folder(path=tmp_path, format="jsonl")


def test_a_killed_run_is_no_damage_but_a_lost_wal_is(killed: Folder, pipeline: Pipeline) -> None:
    code, text = killed.verify()
    assert code == 75, text
    assert "not over: the run of" in text
    assert "was killed, with " in text
    assert "0 findings" in text
    whole = pipeline("verify", "out.jsonl", "--json")
    report = orjson.loads(whole.out)
    assert (whole.code, report["findings"], len(report["unfinished"])) == (75, [], 1)
    assert (killed.run / "journal.sqlite-wal").stat().st_size > 0
    (killed.run / "journal.sqlite-wal").unlink()
    (killed.run / "journal.sqlite-shm").unlink()
    code, text = killed.verify()
    assert code == 6, text
    assert "is not whole" in text
    again = pipeline("run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://127.0.0.1:1/v1", "-m", "sim/echo", "-p", "{{ text }}", "--id", "id")  # fmt: skip
    assert again.code == 2, "nothing is bought again because a file is gone"
    assert "is not whole" in again.err
    assert "--accept-changes" in again.err


@pytest.mark.slow
def test_what_a_killed_run_named_is_booked(killed: Folder, pipeline: Pipeline) -> None:
    table = (killed.run / "inflight").read_bytes()
    again = pipeline("try", "-n", "1", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", "http://127.0.0.1:1/v1", "-m", "sim/echo", "-p", "{{ text }}", "--id", "id", "--set", "limits.max_outage=1")  # fmt: skip
    assert again.code != 1, again.err
    status_path = killed.run / "status.json"
    assert orjson.loads(status_path.read_bytes())["recovered"]
    assert killed.verify()[0] == 75
    (killed.run / "inflight").write_bytes(table)  # as it is when the next start is killed behind the booking
    assert killed.verify()[0] == 75
    (killed.run / "inflight").write_bytes(b"")
    killed.sql("DELETE FROM attempt WHERE code = 'killed'")
    code, text = killed.verify()
    assert (code, "requests that were cut off, 0 are booked as tries that may have been billed" in text) == (6, True)


@pytest.mark.parametrize(
    ("form", "name"), [("jsonl", "out.jsonl.meta.json"), ("batch", "out.error.jsonl"), ("batch", "out.jsonl")]
)
def test_whatever_of_the_results_is_deleted_is_written_anew(
    ended: Callable[[str], Folder], gateway: Server, form: str, name: str
) -> None:
    """As ``verify`` says it will be."""
    folder = ended(form)
    assert run(job_in(folder.path, gateway.url, form)).exit_code == 3
    (folder.path / name).unlink()
    code, text = folder.verify()
    assert (code, f"{name} is not there: run the same command again, which writes it anew" in text) == (6, True), text
    asked = gateway.ledger()["totals"]["requests"]
    assert run(job_in(folder.path, gateway.url, form)).exit_code == 3
    assert gateway.ledger()["totals"]["requests"] == asked
    assert folder.verify()[0] == 0, folder.verify()[1]
    written = folder.output.stat().st_mtime_ns
    assert run(job_in(folder.path, gateway.url, form)).exit_code == 3
    assert folder.output.stat().st_mtime_ns == written, "once is enough"


def test_a_job_of_another_version_is_gone_on_with_and_said_where_it_cannot_be_read(
    tmp_path: Path, gateway: Server, pipeline: Pipeline
) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    job = job_in(tmp_path, gateway.url, "jsonl")
    folder = Folder(path=tmp_path, format="jsonl")
    run(job)
    folder.sql("UPDATE meta SET value = json_set(value, '$.request.novel', 1) WHERE key = 'job'")
    looked = pipeline("verify", "out.jsonl")
    assert (looked.code, "Traceback" in looked.err) == (2, False), looked.err
    assert "request.novel" in looked.err
    assert "run the same command again" in looked.err
    folder.sql("UPDATE meta SET value = '/elsewhere/in.jsonl' WHERE key = 'input'")
    with pytest.raises(RunFolderError, match=r"belongs to the input /elsewhere/in\.jsonl"):
        run(job)
    folder.sql(f"UPDATE meta SET value = '{tmp_path / 'in.jsonl'}' WHERE key = 'input'")
    assert (run(job).sent, folder.verify()[0]) == (0, 0)


def test_rows_that_are_pending_and_results_that_are_to_be_written_are_not_over(
    tmp_path: Path, gateway: Server, ended: Callable[[str], Folder]
) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    job = job_in(tmp_path, gateway.url, "jsonl")
    run(job, Wishes(most=4, publish=False))
    report = verify(job.run_folder)
    assert (report.exit_code, report.pending, report.findings, report.unfinished) == (75, 6, [], [])
    run(job, Wishes(most=10, publish=False))
    report = verify(job.run_folder)
    assert (report.exit_code, report.pending, report.findings) == (75, 0, [])
    assert "is not there; the results are to be written yet" in report.unfinished[0]
    run(job)
    assert verify(job.run_folder).exit_code == 0


# ---------------------------------------------------------------- size


def many(folder: Path, rows: int) -> Path:
    """The run folder of a job of which all rows are answered, the first as ever, the others as it; results in Parquet."""
    folder.mkdir()
    line = '{"id":%d,"title":"a title","text":"some words of a short row","x":0.5}\n'
    source = numbered(folder / "in.jsonl", rows, line)
    job = job_for(source, folder / "out.parquet", input__id="id", request__prompt="{{ title }} {{ text }}")
    with workspace(job, lambda request: answered(request, "an answer of a few words, as they are"), most=1) as space:
        own = {"no": "i.no", "custom_id": "i.custom_id", "fingerprint": "i.fingerprint"}
        for table in ("outcome", "reply"):
            names = [name for (name,) in space.journal.db.execute(f"SELECT name FROM pragma_table_info('{table}')")]
            values = ", ".join(own.get(name, f"t.{name}") for name in names)
            space.journal.db.execute(
                f"INSERT INTO {table} SELECT {values} FROM input i, {table} t WHERE t.no = 1 AND i.no > 1"
            )
        export(space, path=job.output.path, output_format="parquet")
    return job.run_folder


@pytest.mark.slow
def test_ten_times_the_rows_are_verified_in_little_more_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for rows in (5_000, 50_000):
        folder = many(tmp_path / str(rows), rows)
        found[rows] = one = measured(tmp_path, "verify", folder, timeout=300)
        shutil.rmtree(tmp_path / str(rows))
        with capsys.disabled():
            print(f" {rows:,} rows verified in {one.seconds:.1f} s, {one.peak / MB:.0f} MB;", end=" ")
    assert found[50_000].peak - found[5_000].peak < 60 * MB


def test_a_report_is_what_json_tells(pipeline: Pipeline, originals: dict[str, Path]) -> None:
    ended = pipeline("verify", originals["parquet"] / "out.parquet", "--json")
    found = orjson.loads(ended.out)
    assert ended.code == 0
    assert found.keys() == {"rows", "pending", "checked", "findings", "unfinished"}
    assert isinstance(verify(originals["parquet"] / "out.parquet.run"), Report)
    assert read_jsonl(originals["jsonl"] / "out.jsonl")[0]["status"] == "succeeded"


# ---------------------------------------------------------------- rot: a bit here or there


_SHOWN = "no, custom_id, fingerprint, status, error_code, prompt_tokens, completion_tokens, round(cost, 9), cost_unit, sent, lost, run"


def kept_in(journal: Path) -> object:
    """What a journal has promised to keep. The results, where they have columns for it, tell of the rest of an outcome."""
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True)) as db:
        db.text_factory = bytes
        kept: dict[str, list[Any]] = {
            table: db.execute(f"SELECT * FROM {table}").fetchall() for table in ("input", "attempt", "outage")
        }
        kept["outcome"] = db.execute(f"SELECT {_SHOWN} FROM outcome").fetchall()
        kept["run"] = db.execute("SELECT run, ended_at IS NULL FROM run").fetchall()
        kept["file"] = db.execute("SELECT file, path, place, rows, columns FROM file").fetchall()
        kept["reply"] = db.execute("SELECT no, body, form FROM reply").fetchall()
        kept["meta"] = db.execute("SELECT * FROM meta WHERE key IN ('input', 'output')").fetchall()
    return kept


def results_in(path: Path) -> object:
    return pq.read_table(path) if path.suffix == ".parquet" else path.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
def test_one_flipped_bit_is_found_where_it_matters(ended: Callable[[str], Folder], form: str) -> None:
    """In what is promised. Free room in the journal's pages and in the in-flight table, the log and the words of the sheets
    may rot unseen; nothing may end in a traceback."""
    folder, chance = ended(form), random.Random(form)
    results = [folder.output, *([folder.path / "out.error.jsonl"] if form == "batch" else [])]
    files = [folder.input, *results, *(path for path in folder.run.iterdir() if path.stat().st_size)]
    files += [folder.path / f"{folder.output.name}.meta.json", *[folder.journal] * 8]
    tally = Counter[tuple[str, bool]]()
    for _ in range(160):
        path = chance.choice(files)
        data = path.read_bytes()
        at = chance.choice([place for place, byte in enumerate(data) if byte])
        before = kept_in(folder.journal), [results_in(one) for one in results]
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :])
        code, text = folder.verify()
        tally[path.name, bool(code)] += 1
        if not code:
            assert path != folder.input, (at, text)
            after = kept_in(folder.journal), [results_in(one) for one in results]
            assert after == before, (path.name, at)
        path.write_bytes(data)
    print(dict(tally))
    assert folder.verify()[0] == 0
    assert sum(count for (_, found), count in tally.items() if found) > 80

"""The journal by itself: group commit and its bounds, the in-flight table, recovery, a power cut, versions."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import Bench, Pipeline
from hypothesis import given
from hypothesis import strategies as st

from pipeline import Wishes
from pipeline.errors import IncompleteError, RunFolderError
from pipeline.ground.disk import file_system_of
from pipeline.journal import Journal, Record, Recovered
from pipeline.journal.inflight import ENTRY, MAGIC, InFlightTable
from pipeline.records import Attempt, Completion, Cost, Outcome, Request, Usage


def request(number: int, custom_id: str = "") -> Request:
    return Request(
        custom_id=custom_id or f"r{number}", index=number, endpoint="/x", model="m", body=b"{}",
        fingerprint=number.to_bytes(16, "big"), estimated_tokens=1,
    )  # fmt: skip


def outcome(number: int) -> Outcome:
    completion = Completion(content="x", finish_reason="stop", model="m", usage=Usage(), raw=b'{"a": 1}')
    return Outcome(
        custom_id=f"r{number}", index=number, fingerprint=number.to_bytes(16, "big"), status="succeeded", completion=completion
    )  # fmt: skip


def lost(number: int, call_id: str) -> Attempt:
    return Attempt(
        custom_id=f"r{number}", fingerprint=number.to_bytes(16, "big"), call_id=call_id, code="timeout", lost=True, model="m", cost=Cost(), at=1.0
    )  # fmt: skip


def test_a_record_is_counted_only_when_another_process_can_read_it(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, slots=4)
    journal.start_run()
    other = sqlite3.connect(tmp_path / "journal.sqlite")
    counted: list[int] = []

    def kept(records: Sequence[Record]) -> None:
        counted.append(len(records))
        there = other.execute("SELECT count(*) FROM outcome").fetchone()[0]
        assert there == sum(counted), "counted before it was durable"

    async def main() -> None:
        writer = journal.writer(slots=4, kept=kept)
        task = asyncio.create_task(writer.write())
        for number in range(1, 50):
            entry = writer.enter(request(number), f"call-{number}")
            await writer.keep([outcome(number)], [entry])
            assert writer.undurable <= 4
        writer.close()
        await task

    asyncio.run(main())
    assert sum(counted) == 49
    assert journal.table.left == []
    other.close()
    journal.close()


def test_whoever_has_one_more_waits_for_the_disk(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, slots=2)
    journal.start_run()

    async def main() -> None:
        writer = journal.writer(slots=2, kept=lambda _: None)
        await writer.keep([outcome(1)])
        await writer.keep([outcome(2)])
        third = asyncio.create_task(writer.keep([outcome(3)]))
        await asyncio.sleep(0.05)
        assert not third.done()
        task = asyncio.create_task(writer.write())
        await third
        writer.close()
        await task

    asyncio.run(main())
    journal.close()


def test_a_finished_row_is_written_even_if_its_worker_is_cancelled_while_it_waits(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, slots=1)
    journal.start_run()

    async def main() -> None:
        writer = journal.writer(slots=1, kept=lambda _: None)
        await writer.keep([outcome(1)])
        second = asyncio.create_task(writer.keep([outcome(2)]))
        await asyncio.sleep(0.01)
        second.cancel()
        await asyncio.wait([second])
        writer.close()
        await writer.write()

    asyncio.run(main())
    assert journal.db.execute("SELECT count(*) FROM outcome").fetchone()[0] == 2
    journal.close()


def test_a_disk_that_cannot_be_written_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, slots=2)
    journal.start_run()
    journal.db.execute("PRAGMA max_page_count = 1")  # what a full disk looks like to SQLite

    async def main() -> None:
        writer = journal.writer(slots=2, kept=lambda _: None)
        entry = writer.enter(request(1), "call-1")
        big = Completion(content="x", finish_reason="stop", model="m", usage=Usage(), raw=b"x" * 10_000_000)
        await writer.keep(
            [Outcome(custom_id="r1", index=1, fingerprint=b"1" * 16, status="succeeded", completion=big)], [entry]
        )
        writer.close()
        await writer.write()

    with pytest.raises(IncompleteError, match="make room on that disk"):
        asyncio.run(main())
    assert [left.custom_id for left in journal.table.left] == ["r1"], "what was paid for and not saved is named"
    journal.close()


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=300), st.integers(1, 2**32 - 1), st.binary(min_size=16, max_size=16)),
        max_size=6,
    )
)
def test_the_in_flight_table_gives_back_what_was_entered(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("t") / "inflight"
    rows = [(name.encode(errors="ignore").decode(), index, fingerprint) for name, index, fingerprint in rows]
    table = InFlightTable(path, slots=4)
    entries = [table.enter(name, index, fingerprint, f"call-{index}") for name, index, fingerprint in rows]
    for entry in entries[::2]:
        table.clear(entry)
    table.close()
    left = InFlightTable(path, slots=1)
    assert sorted((one.index, one.fingerprint, one.call_id) for one in left.left) == sorted(
        (index, fingerprint, f"call-{index}") for _, index, fingerprint in rows[1::2]
    )
    for one in left.left:
        assert any(name.startswith(one.custom_id) for name, *_ in rows)
    left.forget_left()
    assert left.left == []
    left.close()
    assert path.stat().st_size % ENTRY.size == 0
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_is_no_in_flight_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "inflight").write_bytes(b"something else" * 100)
    with pytest.raises(RunFolderError, match="no in-flight table"):
        InFlightTable(tmp_path / "inflight", slots=1)
    assert (tmp_path / "inflight").read_bytes().startswith(b"something else")


def test_an_in_flight_table_whose_first_page_a_power_cut_has_eaten_is_taken_up(tmp_path: Path) -> None:
    path = tmp_path / "inflight"
    table = InFlightTable(path, slots=40)
    for number in range(1, 41):
        table.enter(f"r{number}", number, bytes(16), f"call-{number}")
    table.close()
    path.write_bytes(bytes(4096) + path.read_bytes()[4096:])
    again = InFlightTable(path, slots=40)
    left = {entry.custom_id for entry in again.left}
    again.close()
    assert 10 < len(left) < 40
    assert path.read_bytes().startswith(MAGIC)


def test_a_journal_that_is_not_in_wal_mode_is_put_into_it(tmp_path: Path) -> None:
    Journal.open(tmp_path, slots=1).close()
    with sqlite3.connect(tmp_path / "journal.sqlite") as db:
        assert db.execute("PRAGMA journal_mode = DELETE").fetchone() == ("delete",)
    db.close()
    journal = Journal.open(tmp_path, slots=1)
    assert journal.db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert journal.db.execute("PRAGMA synchronous").fetchone() == (2,)
    journal.close()


@pytest.mark.parametrize("torn", [b"", bytes(500), b'{\n  "state": "run'])
def test_what_a_torn_status_told_is_told_from_the_journal(bench: Bench, pipeline: Pipeline, torn: bytes) -> None:
    bench.write([{"id": "a", "text": "x"}, {"id": "b", "text": "y"}])
    bench.run(Wishes(most=1, publish=False))
    (bench.folder / "out.jsonl.run" / "status.json").write_bytes(torn)
    found = pipeline("status", "out.jsonl")
    assert found.code == 0, found.err
    assert found.out.startswith(f"{bench.folder / 'out.jsonl'}: was killed; run the same command again")
    assert "1 succeeded, 0 failed, 1 left, of 2" in found.out
    (bench.folder / "out.jsonl.run" / "journal.sqlite").unlink()
    assert "cannot read the status" in pipeline("status", "out.jsonl.run").err


def _killed(folder: Path) -> None:
    """A run that died: row 1 is durable but not cleared, row 2's attempt too, row 3 was out, row 4 was cleared."""
    journal = Journal.open(folder, slots=4)
    journal.start_run()

    async def main() -> None:
        writer = journal.writer(slots=4, kept=lambda _: None)
        for number in (1, 2, 3):
            writer.enter(request(number), f"call-{number}")
        writer.clear(writer.enter(request(4), "call-4"))
        await writer.keep([outcome(1)])
        await writer.keep([lost(2, "call-2")])
        writer.close()
        await writer.write()

    asyncio.run(main())
    journal.close()


def test_recovery_names_exactly_what_has_no_end_on_disk(tmp_path: Path) -> None:
    _killed(tmp_path)
    journal = Journal.open(tmp_path, slots=4)
    found = journal.recover()
    assert found is not None
    assert (found.in_flight, found.may_be_incomplete) == (["r3"], False)
    assert journal.db.execute("SELECT custom_id, code, lost FROM attempt ORDER BY 1").fetchall() == [
        ("r2", "timeout", 1),
        ("r3", "killed", 1),
    ]
    assert journal.recover() is None, "told once, booked once"
    journal.close()


def test_a_crash_during_recovery_books_nothing_twice(tmp_path: Path) -> None:
    _killed(tmp_path)
    before = (tmp_path / "inflight").read_bytes()
    journal = Journal.open(tmp_path, slots=4)
    journal.recover()
    journal.close()
    (tmp_path / "inflight").write_bytes(before)  # as if it had died between COMMIT and clearing the table
    journal = Journal.open(tmp_path, slots=4)
    found = journal.recover()
    assert found is None or found.in_flight == []
    assert journal.db.execute("SELECT count(*) FROM attempt").fetchone()[0] == 2
    journal.close()


def test_what_was_left_is_named_before_it_is_booked(tmp_path: Path) -> None:
    """Who is killed in between names it again; booked first, it would be named to nobody."""
    _killed(tmp_path)
    journal = Journal.open(tmp_path, slots=4)
    named: list[Recovered] = []

    def killed_here(left: Recovered) -> None:
        named.append(left)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        journal.recover(tell=killed_here)
    journal.close()
    journal = Journal.open(tmp_path, slots=4)
    assert journal.db.execute("SELECT count(*) FROM attempt WHERE code = 'killed'").fetchone()[0] == 0
    journal.recover(tell=named.append)
    journal.close()
    assert [left.in_flight for left in named] == [["r3"], ["r3"]]


def test_after_a_power_cut_the_list_is_said_to_be_incomplete(bench: Bench) -> None:
    bench.write([{"id": "a", "text": "x"}])
    bench.run()
    journal = Journal.open(bench.folder / "out.jsonl.run", slots=1)
    journal.start_run()
    journal.db.execute("UPDATE run SET boot_id = 'another start of the machine' WHERE ended_at IS NULL")
    journal.close()
    journal = Journal.open(bench.folder / "out.jsonl.run", slots=1)
    found = journal.recover()
    journal.close()
    assert found is not None
    assert found.may_be_incomplete


def test_a_newer_schema_is_refused_and_an_index_is_fast_to_take_up_again(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": "x"} for n in range(20_000)])
    bench.run(Wishes(most=1, publish=False))
    started = time.monotonic()
    bench.run(Wishes(most=1, publish=False))
    assert time.monotonic() - started < 1.0, "an input that did not change is not read again"
    path = bench.folder / "out.jsonl.run" / "journal.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    before = path.read_bytes()
    with pytest.raises(RunFolderError, match="schema version 99, this pipeline reads version"):
        bench.run()
    assert path.read_bytes() == before


def test_the_file_system_of_a_path_is_known() -> None:
    assert file_system_of(Path("/proc/self")) in ("proc", "")

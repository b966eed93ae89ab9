"""A journal of an older version: raised by the next run, read as it is by those who only read, its answers kept."""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

import pytest
from aged import VERSION_1, columns_of, to_version_1
from conftest import Bench, Pipeline

from pipeline.journal import Journal, migrate, reader, store

JOURNAL = Path("out.jsonl.run") / "journal.sqlite"


def _version(path: Path) -> int:
    with sqlite3.connect(path) as db:
        found = int(db.execute("PRAGMA user_version").fetchone()[0])
    db.close()
    return found


def _bodies(path: Path) -> list[bytes]:
    with sqlite3.connect(path) as db:
        found = [body for (body,) in db.execute("SELECT body FROM reply ORDER BY no")]
    db.close()
    return found


def _crcs(path: Path) -> list[tuple[bytes, int | None]]:
    with sqlite3.connect(path) as db:
        found = db.execute("SELECT body, crc FROM reply ORDER BY no").fetchall()
    db.close()
    return found


@pytest.fixture
def old(bench: Bench) -> Bench:
    """A finished run folder of two rows, as version 1 left it."""
    bench.write([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}])
    assert bench.run()[0].exit_code == 0
    to_version_1(bench.folder / JOURNAL)
    return bench


def test_the_schema_of_a_raised_journal_is_that_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    db = sqlite3.connect(tmp_path / "old" / "journal.sqlite", isolation_level=None)
    db.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1}")
    db.close()
    (tmp_path / "new").mkdir()
    Journal.open(tmp_path / "new", slots=1).close()
    Journal.open(tmp_path / "old", slots=1).close()
    old, new = tmp_path / "old" / "journal.sqlite", tmp_path / "new" / "journal.sqlite"
    assert columns_of(old) == columns_of(new)
    assert (_version(old), _version(new)) == (store.VERSION, store.VERSION)


def test_every_version_since_the_first_has_its_steps() -> None:
    versions = set(range(2, store.VERSION + 1))
    assert set(migrate._RAISE) == set(migrate._SEE) == versions


def test_a_reply_has_the_crc_of_its_bytes_and_a_copy_that_of_its_source(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"{n % 2}"} for n in range(6)])
    bench.run(request__dedupe=True)
    replies = _crcs(bench.folder / JOURNAL)
    assert len(replies) == 6
    assert all(crc == zlib.crc32(body) for body, crc in replies)


def test_a_run_raises_it_and_keeps_what_is_there(old: Bench) -> None:
    path = old.folder / JOURNAL
    before = _bodies(path)
    old.write([{"id": "a", "text": "one"}, {"id": "b", "text": "two"}, {"id": "c", "text": "three"}])
    summary, sent = old.run()
    assert (summary.kept, sent, _version(path)) == (2, 1, store.VERSION)
    assert _bodies(path)[:2] == before
    replies = _crcs(path)
    assert [crc for _, crc in replies] == [None, None, zlib.crc32(replies[2][0])]


@pytest.mark.parametrize(
    "command",
    [
        "status out.jsonl",
        "verify out.jsonl",
        "export out.jsonl -o again.jsonl",
        "export out.jsonl -o some.csv --partial",
    ],
)
def test_who_only_reads_reads_it_as_it_is(old: Bench, pipeline: Pipeline, command: str) -> None:
    path = old.folder / JOURNAL
    before = path.read_bytes()
    ended = pipeline(*command.split())
    assert ended.code == 0, ended.err
    assert (path.read_bytes(), _version(path)) == (before, 1)


def test_a_reader_is_not_disturbed_by_a_run_that_raises_it_meanwhile(old: Bench) -> None:
    journal = Journal.read(old.folder / "out.jsonl.run")
    read = "SELECT crc, count(*) FROM reply GROUP BY crc"
    assert journal.db.execute(read).fetchall() == [(None, 2)]
    Journal.open(old.folder / "out.jsonl.run", slots=1).close()
    assert journal.db.execute(read).fetchall() == [(None, 2)]
    assert reader.totals(journal.db).completed == 2
    journal.close()


def test_looking_at_an_old_one_still_finds_replies_by_number(old: Bench) -> None:
    journal = Journal.read(old.folder / "out.jsonl.run")
    plan = journal.db.execute(
        "EXPLAIN QUERY PLAN SELECT o.no, r.body, r.crc FROM input i LEFT JOIN outcome o ON o.no = i.no LEFT JOIN reply r ON r.no = i.no"
    ).fetchall()
    journal.close()
    assert [row[3] for row in plan if "INTEGER PRIMARY KEY" in row[3]], plan
    assert len([row for row in plan if row[3].startswith("SCAN")]) == 1, plan


def test_a_step_that_is_cut_off_leaves_the_old_version(old: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old.folder / JOURNAL
    before = columns_of(path)
    monkeypatch.setattr(migrate, "_RAISE", {2: (*migrate._RAISE[2], "ALTER TABLE nothing ADD COLUMN x INTEGER")})
    with pytest.raises(Exception, match="syntax error"):
        Journal.open(old.folder / "out.jsonl.run", slots=1)
    assert (columns_of(path), _version(path)) == (before, 1)


def test_a_journal_of_a_million_replies_is_raised_at_once(tmp_path: Path) -> None:
    """Nothing is rewritten: as many pages change for many replies as for few."""
    pages = []
    for rows in (10, 20_000):
        folder = tmp_path / str(rows)
        folder.mkdir()
        journal = Journal.open(folder, slots=1)
        with store.transaction(journal.db):
            journal.db.executemany(
                "INSERT INTO reply (no, body, form) VALUES (?, zeroblob(1100), 'json')",
                [(n,) for n in range(1, rows + 1)],
            )
        journal.close()
        to_version_1(folder / "journal.sqlite")
        journal = Journal.open(folder, slots=1)
        pages.append((folder / "journal.sqlite-wal").stat().st_size)
        journal.close()
    assert pages[0] == pages[1], pages


def test_a_journal_that_a_run_is_only_making_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "journal.sqlite").touch()
    with pytest.raises(Exception, match="nothing has been run there"):
        Journal.read(tmp_path)

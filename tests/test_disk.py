"""Full disks, at every stage of a run: a sentence and exit 75, what was paid for is kept or named, the next run goes on."""

from __future__ import annotations

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Ended, read_jsonl, write_jsonl
from disks import MB, Kind, SmallDisk, small_disk
from reconcile import bill_of, reconcile
from simulated import Simulated, simulated

from pipeline.journal import reserve
from pipeline.simulator import Settings

NO_ROOM = re.compile(r"(no room to write|cannot write) [^(]*/(\w[\w.-]*) \([^)]*\): [\d.,]+ (bytes|kB|MB|GB) are free on /")


@pytest.fixture
def sim() -> Iterator[Simulated]:
    """A gateway that counts what it bills."""
    with simulated(Settings(latency_s=0.01)) as server:
        yield server


def rows_of(count: int, each: int = 20) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"{n} ".ljust(each, "x")} for n in range(count)]


def words(sim: Simulated, disk: SmallDisk, *more: str, slots: int = 8, output: str | Path = "out.jsonl") -> list[str]:
    return [
        "run", "-i", "in.jsonl", "-o", str(output), "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id",
        "-c", str(slots), "--run-dir", str(disk.folder / "run"), *more,
    ]  # fmt: skip


def said(ended: Ended) -> str:
    """The sentence about the disk; the file that it names."""
    assert ended.code == 75, ended.err
    assert "Traceback" not in ended.err
    found = NO_ROOM.search(ended.err)
    assert found, ended.err
    return found.group(2)


def agree(disk: SmallDisk, sim: Simulated, count: int, named: list[str]) -> None:
    """Everything is in the results and in the books; nothing was bought twice but what had been named."""
    bills = [entry for entry in sim.entries if entry.billed]
    reckoning = reconcile(disk.folder / "run", [bill_of(bill) for bill in bills], results=disk.cwd / "out.jsonl")
    found = read_jsonl(disk.cwd / "out.jsonl")
    assert [row["id"] for row in found] == [f"r{n}" for n in range(count)]
    assert {row["status"] for row in found} == {"succeeded"}
    twice = sum(times - 1 for times in Counter(bill.body_digest for bill in bills).values())
    print(f"{disk.how}: {reckoning.line}; {len(named)} named, {twice} bought twice")
    assert twice <= len(named)
    assert reckoning.lost == len(named)


# ---------------------------------------------------------------- while answers come in


@pytest.mark.parametrize("kind", ["tmpfs", "ext4", "rlimit"])
def test_a_disk_that_fills_up_in_the_middle_costs_nothing_that_was_paid_for(
    tmp_path: Path, sim: Simulated, kind: Kind
) -> None:
    count = 1200
    write_jsonl(tmp_path / "in.jsonl", rows_of(count, each=4000))
    with small_disk(tmp_path, 16 * MB, kind) as disk:
        disk.fill(left=4 * MB)
        ended = disk.pipeline(*words(sim, disk, "--json"))
        summary = orjson.loads(ended.out)
        assert summary["exit_code"] == ended.code == 75, ended.err
        assert "Traceback" not in ended.err
        assert re.search(r"(no room to write|cannot write) the journal \S*/journal.sqlite \(", summary["reason"])
        assert re.search(r" are free on /.*about [\d.]+ MB are needed.*make room", summary["reason"]), summary["reason"]
        assert 0 < summary["completed"] < count
        named = summary["in_flight"]
        assert summary["completed"] + len(named) == sum(entry.billed for entry in sim.entries)
        if disk.how == "rlimit":  # a bound on each file: no other file can hold room for the journal
            assert len(named) <= 2 * 8
        else:
            assert named == [], "the reserve holds what was in flight"
        assert not (disk.folder / "run" / reserve.FILE_NAME).exists()
        status = disk.pipeline("status", str(disk.folder / "run"))
        assert summary["reason"] in status.out
        assert f"{summary['completed']:,} succeeded, 0 failed, {count - summary['completed']:,} left" in status.out
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, named)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_what_not_even_the_reserve_holds_is_named(
    tmp_path: Path, sim: Simulated, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are far larger than any before, and somebody else takes what room is left."""
    count = 60
    write_jsonl(tmp_path / "in.jsonl", rows_of(20) + [{"id": f"r{n}", "text": f"{n} " * 100_000} for n in range(20, 60)])
    with small_disk(tmp_path, 24 * MB, kind) as disk:
        disk.fill(left=3 * MB)
        ended = disk.pipeline(*words(sim, disk, "--json", slots=16))
        summary = orjson.loads(ended.out)
        assert summary["exit_code"] == 75, ended.err
        named = summary["in_flight"]
        billed = sum(entry.billed for entry in sim.entries)
        assert billed == summary["completed"] + len(named), "what is neither kept nor named is lost"
        assert disk.how == "rlimit" or 0 < len(named) <= 2 * 16
        assert summary["lost_attempts"] in (0, len(named)), "booked now, or by the next run"
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, named)


# ---------------------------------------------------------------- before anything is sent


def at_the_start(tmp_path: Path, sim: Simulated, left: int, count: int = 300) -> str:
    """A run on a disk with so little free: it ends before it sends, or else does it all. Returns the file it named."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(count))
    with small_disk(tmp_path, 4 * MB) as disk:
        disk.fill(left=left)
        ended = disk.pipeline(*words(sim, disk))
        named = said(ended)
        assert sim.asked == 0, "nothing was paid for"
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, [])
    return named


@pytest.mark.parametrize("left", [0, 64 << 10, 200 << 10])
def test_too_little_room_to_begin_is_said_before_anything_is_sent(tmp_path: Path, sim: Simulated, left: int) -> None:
    print(left, at_the_start(tmp_path, sim, left))

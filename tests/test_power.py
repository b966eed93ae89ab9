"""Promises 1 and 2 through power cuts, at any moment of what a shim saw runs do to their disk.

The short form is part of ``make test``; ``make test-power`` cuts the power at ten times as many moments.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from beds import Bed, digest_of, rows_of
from disk import BOUNDARIES, NAMING, Disk, Op, Operation, built_shim, can_preload, laid_out, read_log, watched
from simulated import Simulated, simulated

from pipeline.errors import PipelineError
from pipeline.journal import Journal
from pipeline.journal.inflight import ENTRY, MAGIC
from pipeline.simulator import Settings
from pipeline.status import status_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_preload(), reason="preloading the shim takes Linux and a C compiler"),
]

LONG = os.environ.get("POWER") == "long"
PAGE = 4096


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulated]:
    with simulated(Settings(latency_s=0.004, jitter=0.5)) as server:
        yield server


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What a power cut has left in the journal: the ids of rows with an outcome, and whether a run had begun and not ended."""

    ids: frozenset[str] = frozenset()
    cut_off: bool = False


# Recording


@dataclass(kw_only=True)
class Recording:
    """What a bed's runs did to the disk, and the count that was shown from each position of the log on."""

    operations: list[Operation]
    results: set[bytes] = field(default_factory=set)
    positions: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    def shown_at(self, position: int) -> int:
        """The largest count that anybody may have been shown before this operation."""
        at = bisect_right(self.positions, position)
        return self.counts[at - 1] if at else 0


def _recorded(bed: Bed, log: Path) -> Recording:
    operations = read_log(log)
    recording = Recording(operations=operations, results={bed.results.read_bytes()})
    most = 0
    for at, what in enumerate(operations, 1):
        if what.op == Op.WRITE and what.path == str(bed.root / "shown"):
            most = max(most, int(what.data))
            recording.positions.append(at)
            recording.counts.append(most)
    return recording


def _record(bed: Bed, shim: Path, log: Path) -> Recording:
    """A run that is stopped in good order, one that is killed, and one that ends."""
    env = watched(shim, bed.root, log)
    count = len(bed.rows)
    before = bed.sim.asked
    process = bed.start(env)
    _wait_for(bed.sim, before + count // 3, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert process.stderr is not None
    process.stderr.close()
    syncs = sum(what.op in BOUNDARIES for what in read_log(log))
    killed = {**env, "SHIM_KILL": f"after:{max(syncs // 2, 12)}"}
    assert bed.run(killed, again=True)[0] == -signal.SIGKILL
    code, said = bed.run(env, again=True)
    assert code == 0, said
    assert "was cut off" in said
    recording = _recorded(bed, log)
    _check_replay(bed, recording)
    bed.check_end(said)
    return recording


def _wait_for(sim: Simulated, asked: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 60
    while sim.asked < asked:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)


def _check_replay(bed: Bed, recording: Recording) -> None:
    """All of the log makes the very folder there is: nothing that was done to it escaped the shim."""
    disk = Disk(bed.root)
    for what in recording.operations:
        disk.play(what)
    mapped = (str(bed.folder / "inflight"),)  # written through memory; it is never synced
    real = {str(path): None if path.is_dir() else path.read_bytes() for path in bed.root.rglob("*")}
    live = disk.live()
    assert live.keys() == real.keys()
    assert [path for path in real if path not in mapped and live[path] != real[path]] == []
    wal = [what for what in recording.operations if what.path.endswith("journal.sqlite-wal") and what.op == Op.WRITE]
    assert len(wal) > 100


# Cutting


def _points(recording: Recording, chance: random.Random, count: int) -> list[int]:
    """Moments to cut at: half anywhere, half right before or after names change or something is synced; and when all is said."""
    length = len(recording.operations)
    edges = [at for at, what in enumerate(recording.operations) if what.op in NAMING or what.op == Op.SYNC]
    anywhere = [chance.randrange(length) for _ in range(count // 2)]
    at_edges = [chance.choice(edges) + chance.randrange(2) for _ in range(count - count // 2 - 4)]
    return sorted([*anywhere, *at_edges, *[length] * 4])


def _check_survivors(bed: Bed, recording: Recording, found: dict[str, bytes | None], shown: int, place: Path) -> Kept:
    """What was shown is there, and results are whole or absent."""
    results, sheet = (found.get(str(bed.results) + more) for more in ("", ".meta.json"))
    assert results is None or results in recording.results
    assert sheet is None or orjson.loads(sheet)["totals"]
    inside = f"{bed.folder}/"
    if str(bed.folder) not in found:
        assert shown == 0, f"{shown} rows had been shown as done, and the run folder is not there"
        return Kept()
    laid_out({path: content for path, content in found.items() if path.startswith(inside)}, bed.folder, place)
    if not (place / "journal.sqlite").exists():
        assert shown == 0, f"{shown} rows had been shown as done, and the journal is not there"
        return Kept()
    status = status_of(place) if shown else {}
    assert status.get("completed", 0) >= shown
    journal = Journal.open(place, slots=bed.slots)
    try:
        assert journal.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        ids = frozenset(name for (name,) in journal.db.execute("SELECT custom_id FROM outcome JOIN reply USING (no)"))
        outcomes, cut_off = journal.db.execute(
            "SELECT (SELECT count(*) FROM outcome), (SELECT count(*) FROM run WHERE ended_at IS NULL)"
        ).fetchone()
        assert len(ids) == outcomes >= shown, f"{shown} rows had been shown as done, {outcomes} are there"
    finally:
        journal.close()
    return Kept(ids=ids, cut_off=bool(cut_off))


def _with_table(bed: Bed, found: dict[str, bytes | None], chance: random.Random) -> None:
    """The in-flight table, whose pages the disk may have or not: entries of rows that are done, and of some that are not."""
    path = str(bed.folder / "inflight")
    if not found.get(path):
        return
    table = bytearray(ENTRY.size * (2 * bed.slots + 1))
    table[: len(MAGIC)] = MAGIC
    for entry in range(1, 2 * bed.slots + 1):
        number = chance.randrange(len(bed.rows))
        name = f"r{number}".encode()
        ENTRY.pack_into(
            table, entry * ENTRY.size, chance.randrange(2), len(name), number, bytes(16), b"p0-%d-1" % number, name
        )
    for at in range(0, len(table), PAGE):
        if chance.random() < 0.5:
            table[at : at + PAGE] = bytes(len(table[at : at + PAGE]))
    found[path] = bytes(table)


def _check_resume(bed: Bed, found: dict[str, bytes | None], kept: Kept) -> None:
    """A run goes on to the end from there, and sends just what is not kept."""
    laid_out(found, bed.root)
    before = len(bed.sim.entries)
    code, said = bed.run(boot="the one after the power cut", again=bool(kept.ids))
    assert code == 0, said
    bed.check_end(said)
    sent = Counter(entry.body_digest for entry in bed.sim.entries[before:] if entry.method == "POST")
    wanted = Counter(digest_of(row["text"]) for row in bed.rows if row["id"] not in kept.ids)
    assert sent == wanted, f"{len(kept.ids)} rows were kept; {sum(sent.values())} were sent\n{said}"
    assert ("The machine was restarted since" in said) >= kept.cut_off, said


@pytest.mark.parametrize(
    ("piped", "output", "count", "slots"),
    [(False, "results/of/run/out.jsonl", 1000, 4), (True, "night/out.parquet", 250, 8)],
)
def test_what_was_shown_survives_a_power_cut(
    tmp_path: Path, shim: Path, sim: Simulated, piped: bool, output: str, count: int, slots: int
) -> None:
    rows = rows_of(count, 900 if piped else 2500)
    bed = Bed(root=tmp_path / "disk", rows=rows, sim=sim, output=output, piped=piped, slots=slots)
    recording = _record(bed, shim, tmp_path / "log")
    checkpoints = sum(what.op == Op.SYNC and what.path.endswith("/journal.sqlite") for what in recording.operations)
    assert checkpoints > 3 or piped, "the journal was never checkpointed while it ran"
    chance = random.Random(count)
    points = _points(recording, chance, (4000 if LONG else 400) if not piped else (2000 if LONG else 200))
    resumed = set(chance.sample(range(len(points)), (30 if LONG else 4) if not piped else (15 if LONG else 3)))
    resumes = []
    disk, played = Disk(bed.root), 0
    started = time.monotonic()
    for number, point in enumerate(points):
        for what in recording.operations[played:point]:
            disk.play(what)
        played = point
        ordered = number % 2 == 0
        found = disk.survivors(chance, ordered=ordered)
        shown = recording.shown_at(point)
        where = (
            f"cut before operation {point} of {len(recording.operations)}, names {'in order' if ordered else 'in any'}"
        )
        try:
            kept = _check_survivors(bed, recording, found, shown, tmp_path / "cut")
            assert point < len(recording.operations) or str(bed.results) in found, (
                "the run had said where the results are"
            )
        except (AssertionError, PipelineError) as exc:
            raise AssertionError(f"{where}: {exc}") from exc
        if number in resumed:
            _with_table(bed, found, chance)
            resumes.append((where, found, kept))
    cut_s = time.monotonic() - started
    for where, found, kept in resumes:
        try:
            _check_resume(bed, found, kept)
        except AssertionError as exc:
            raise AssertionError(f"{where}: {exc}") from exc
    print(
        f"{len(points)} power cuts in {len(recording.operations)} operations with {checkpoints} checkpoints in {cut_s:.0f} s; "
        f"{len(resumes)} resumes in {time.monotonic() - started - cut_s:.0f} s"
    )

"""Promises 2, 3 and 10 on a disk that fails: an I/O error at every place where a run writes, and one at a sync that nobody repeats."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from beds import Bed, rows_of
from disk import Disk, Op, built_shim, can_preload, failing, laid_out, read_log, watched
from reconcile import reconcile
from simulated import Simulated, simulated

from pipeline.journal import Journal
from pipeline.simulator import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_preload(), reason="preloading the shim takes Linux and a C compiler"),
]

LONG = os.environ.get("POWER") == "long"
NOTHING_SENT = (2, 75)
STOPPED = (75,)
DONE = (0,)
SAID = ("Input/output error", "disk I/O error", "unable to open database file")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulated]:
    with simulated(Settings(latency_s=0.003)) as server:
        yield server


# (operation, end of the path, which one, whether all later ones fail, exit codes, what of the path is named)
PLACES = [
    ("mkdir", "out.jsonl.run", 1, True, NOTHING_SENT, "out.jsonl.run"),
    ("sync", "/new", 1, True, NOTHING_SENT, "out.jsonl.run"),
    ("open", "/lock", 1, False, NOTHING_SENT, "out.jsonl.run"),
    ("write", "/lock", 1, False, NOTHING_SENT, "lock"),
    ("open", "/journal.sqlite", 1, False, NOTHING_SENT, "journal.sqlite"),
    ("open", "-wal", 1, False, NOTHING_SENT, "journal.sqlite"),
    ("write", "-wal", 1, False, NOTHING_SENT, "journal.sqlite"),
    ("sync", "-wal", 1, False, NOTHING_SENT, "journal.sqlite"),
    ("sync", "out.jsonl.run", 1, True, NOTHING_SENT, "cannot write the run folder"),
    ("open", "/inflight", 1, False, NOTHING_SENT, "inflight"),
    ("allocate", "/inflight", 1, False, NOTHING_SENT, "inflight"),
    ("open", "status.json.partial", 1, False, STOPPED, "status.json"),
    ("write", "status.json.partial", 1, False, STOPPED, "status.json"),
    ("sync", "status.json.partial", 1, False, STOPPED, "status.json"),
    ("rename", "status.json", 2, True, STOPPED, "status.json"),
    ("write", "-wal", 60, False, STOPPED, "journal.sqlite"),
    ("write", "-wal", 60, True, STOPPED, "journal.sqlite"),
    ("sync", "-wal", 9, False, STOPPED, "journal.sqlite"),
    ("sync", "-wal", 9, True, STOPPED, "journal.sqlite"),
    ("open", ".out.jsonl.partial", 1, False, STOPPED, "out.jsonl"),
    ("write", ".out.jsonl.partial", 1, False, STOPPED, "out.jsonl"),
    ("sync", ".out.jsonl.partial", 1, False, STOPPED, "out.jsonl"),
    ("rename", "/out.jsonl", 1, False, STOPPED, "out.jsonl"),
    ("sync", ".meta.json.partial", 1, False, STOPPED, "out.jsonl.meta.json"),
    ("open", "run.log", 1, True, DONE, None),
    ("write", "run.log", 1, True, DONE, None),
    ("write", "/journal.sqlite", 2, True, DONE, None),  # checkpoints only: the log beside it has all
    ("truncate", "/lock", 2, False, NOTHING_SENT, "lock"),  # its holder, and whose folder it is
    ("truncate", "/lock", 3, False, DONE, None),
]
SHORT = {0, 3, 6, 8, 10, 12, 14, 16, 17, 20, 22, 23, 25}


@pytest.mark.parametrize(
    ("op", "ending", "at", "on", "codes", "named"),
    [place for number, place in enumerate(PLACES) if LONG or number in SHORT],
)
def test_an_io_error_is_told_and_loses_nothing(
    tmp_path: Path, shim: Path, sim: Simulated, op: str, ending: str, at: int, on: bool, codes: tuple[int, ...], named: str | None
) -> None:  # fmt: skip
    bed = Bed(root=tmp_path / "disk", rows=rows_of(24, 100), sim=sim, output="new/out.jsonl", slots=4)
    since, asked = len(sim.entries), sim.asked
    code, said = bed.run(failing(shim, bed.root, op, ending, at=at, on=on))
    assert code in codes, said
    if named is not None:
        assert any(f"{named}" in line and any(why in line for why in SAID) for line in said.splitlines()), said
    if codes == NOTHING_SENT:
        assert sim.asked == asked, "a run that could not be kept was paid for"
    else:
        assert _outcomes(bed.folder) >= bed.shown()
    assert bed.go_on().exit_code == 0
    bed.check_end()
    reconcile(bed.folder, bed.bills(since), results=bed.results)


def test_prompts_that_cannot_be_kept_are_not_sent(tmp_path: Path, shim: Path, sim: Simulated) -> None:
    bed = Bed(root=tmp_path / "disk", rows=rows_of(24, 100), sim=sim, output="new/out.jsonl", piped=True)
    asked = sim.asked
    places = [
        ("open", "stdin.jsonl.partial"),
        ("write", "stdin.jsonl.partial"),
        ("sync", "stdin.jsonl.partial"),
        ("rename", "stdin.jsonl"),
    ]
    for op, ending in places if LONG else places[2:3]:
        code, said = bed.run(failing(shim, bed.root, op, ending))
        assert code in NOTHING_SENT
        assert "stdin.jsonl: Input/output error" in said
    assert sim.asked == asked
    assert bed.run()[0] == 0
    bed.check_end()


def _outcomes(folder: Path) -> int:
    """How many rows are kept, for somebody who opens the journal anew."""
    journal = Journal.open(folder, slots=4)
    try:
        assert journal.db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return int(journal.db.execute("SELECT count(*) FROM outcome JOIN reply USING (no)").fetchone()[0])
    finally:
        journal.close()


@pytest.mark.parametrize(
    ("op", "ending", "at", "code"),
    [
        ("sync", "-wal", 12, errno.EIO),
        ("sync", "/journal.sqlite", 1, errno.EIO),  # while it is changed to WAL
        ("write", "/journal.sqlite", 2, errno.EIO),
        ("sync", "/journal.sqlite", 2, errno.EIO),  # a checkpoint
        ("write", "-wal", 90, errno.ENOSPC),
    ],
)
def test_what_a_failed_sync_left_unwritten_was_never_shown(
    tmp_path: Path, shim: Path, sim: Simulated, op: str, ending: str, at: int, code: int
) -> None:
    """After a failed sync the kernel forgets what it could not write, and the next sync succeeds: then the power goes, too."""
    bed = Bed(
        root=tmp_path / "disk", rows=rows_of(300 if at == 2 else 60, 3000), sim=sim, output="new/out.jsonl", slots=4
    )
    log = tmp_path / "log"
    env = {**watched(shim, bed.root, log), **failing(shim, bed.root, op, ending, at=at, code=code)}
    started = time.monotonic()
    ended, said = bed.run(env)
    assert ended in (0, 2, 75), said
    if ended:
        ended, said = bed.run(watched(shim, bed.root, log))
        assert ended == 0, said
    operations = read_log(log)
    if op == "sync":
        assert any(what.op == Op.SYNC_FAILED for what in operations), "nothing has failed"
    chance = random.Random(at)
    points = sorted([*(chance.randrange(len(operations)) for _ in range(600 if LONG else 80)), *[len(operations)] * 4])
    disk, played, shown = Disk(bed.root), 0, 0
    for number, point in enumerate(points):
        for what in operations[played:point]:
            disk.play(what)
            if what.op == Op.WRITE and what.path == str(bed.root / "shown"):
                shown = max(shown, int(what.data))
        played = point
        found = disk.survivors(chance, ordered=number % 2 == 0)
        if shown:
            inside = {path: content for path, content in found.items() if path.startswith(f"{bed.folder}/")}
            laid_out(inside, bed.folder, tmp_path / "cut")
            assert _outcomes(tmp_path / "cut") >= shown, f"cut before operation {point} of {len(operations)}"
    bed.check_end()
    print(f"{op} {ending} {at}: {len(points)} power cuts, {time.monotonic() - started:.0f} s")

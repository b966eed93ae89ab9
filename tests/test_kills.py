"""Promises 1 to 4 through kills right before and right after each sync and rename, of a run, of its resume, of an export."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from beds import Bed, rows_of
from disk import BOUNDARIES, built_shim, can_preload, killing, read_log, watched
from reconcile import reconcile
from simulated import Simulated, simulated

from pipeline.export import export_folder
from pipeline.simulator import Settings

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_preload(), reason="preloading the shim takes Linux and a C compiler"),
]

LONG = os.environ.get("POWER") == "long"
MOST = 120
ROWS = 8
Moment = tuple[Literal["before", "after"], int]


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture(scope="module")
def sim() -> Iterator[Simulated]:
    with simulated(Settings(latency_s=0.003)) as server:
        yield server


def _bed(tmp_path: Path, sim: Simulated) -> Bed:
    shutil.rmtree(tmp_path / "disk", ignore_errors=True)
    return Bed(root=tmp_path / "disk", rows=rows_of(ROWS, 40), sim=sim, output="new/out.jsonl", slots=2)


def _moments(log: Path, some: int) -> list[Moment]:
    """All of them in the long form, at most ``MOST``; else some."""
    boundaries = sum(what.op in BOUNDARIES for what in read_log(log))
    moments: list[Moment] = [(moment, number) for number in range(1, boundaries + 1) for moment in ("before", "after")]
    assert len(moments) > 5, "nothing is synced here"
    return random.Random(boundaries).sample(moments, min(MOST if LONG else some, len(moments)))


def _check_after_kill(bed: Bed, code: int, said: str, since: int) -> None:
    """Killed or, where it had fewer boundaries this time, at its end: the next run is whole, and the ledger agrees."""
    assert code in (-signal.SIGKILL, 0), said
    if bed.results.exists():
        assert len(bed.found()) == ROWS, "under the final name before it was complete"
    assert bed.go_on().exit_code == 0
    bed.check_end()
    reconcile(bed.folder, bed.bills(since), results=bed.results)


def test_a_run_killed_at_its_syncs_and_renames_goes_on(tmp_path: Path, shim: Path, sim: Simulated) -> None:
    bed = _bed(tmp_path, sim)
    assert bed.run(watched(shim, bed.root, tmp_path / "log"))[0] == 0
    moments = _moments(tmp_path / "log", 7)
    started, killed = time.monotonic(), 0
    for moment, number in moments:
        bed = _bed(tmp_path, sim)
        since = len(sim.entries)
        code, said = bed.run(killing(shim, bed.root, moment, number))
        killed += code != 0
        try:
            _check_after_kill(bed, code, said, since)
        except AssertionError as exc:
            raise AssertionError(f"killed {moment} boundary {number}: {exc}") from exc
    assert killed >= len(moments) // 2
    print(f"{killed} kills at {len(moments)} moments of a run in {time.monotonic() - started:.0f} s")


def test_a_resume_killed_at_its_syncs_and_renames_goes_on(tmp_path: Path, shim: Path, sim: Simulated) -> None:
    bed = _bed(tmp_path, sim)
    assert bed.run(watched(shim, bed.root, tmp_path / "whole"))[0] == 0
    half = sum(what.op in BOUNDARIES for what in read_log(tmp_path / "whole")) // 2
    bed = _bed(tmp_path, sim)
    since = len(sim.entries)
    assert bed.run(killing(shim, bed.root, "after", half))[0] == -signal.SIGKILL
    bills = len(sim.entries)
    shutil.copytree(bed.root, tmp_path / "half")
    assert bed.run(watched(shim, bed.root, tmp_path / "log"))[0] == 0
    moments = _moments(tmp_path / "log", 4)
    started, killed = time.monotonic(), 0
    for moment, number in moments:
        shutil.rmtree(bed.root)
        shutil.copytree(tmp_path / "half", bed.root)
        again = len(sim.entries)
        code, said = bed.run(killing(shim, bed.root, moment, number))
        killed += code != 0
        assert code in (-signal.SIGKILL, 0), said
        assert bed.go_on().exit_code == 0
        bed.check_end()
        of_both = [*bed.bills(again), *bed.bills(since)[: bills - since]]
        reconcile(bed.folder, of_both, results=bed.results)
    assert killed >= len(moments) // 2
    print(f"{killed} kills at {len(moments)} moments of a resume in {time.monotonic() - started:.0f} s")


def test_an_export_killed_at_its_syncs_and_renames_leaves_nothing_half(
    tmp_path: Path, shim: Path, sim: Simulated
) -> None:
    bed = _bed(tmp_path, sim)
    assert bed.go_on().exit_code == 0
    target = bed.root / "export" / "more.jsonl"

    def export(env: dict[str, str]) -> int:
        words = [sys.executable, "-m", "pipeline", "export", str(bed.results), "-o", str(target)]
        return subprocess.run(words, env=env, timeout=60, capture_output=True).returncode

    def export_again() -> None:
        export_folder(bed.folder, target, output_format=None, selection="all", results_only=False, input_path=None)

    assert export(watched(shim, bed.root, tmp_path / "log")) == 0
    whole = target.read_bytes()
    moments = _moments(tmp_path / "log", 4)
    started = time.monotonic()
    for moment, number in moments:
        shutil.rmtree(target.parent)
        assert export(killing(shim, bed.root, moment, number)) == -signal.SIGKILL
        assert not target.exists() or target.read_bytes() == whole
        export_again()
        assert target.read_bytes() == whole
        assert sorted(path.name for path in target.parent.iterdir()) == ["more.jsonl", "more.jsonl.meta.json"]
    print(f"{len(moments)} kills of an export in {time.monotonic() - started:.0f} s")

"""The benchmarks work; what they measure is for ``make bench``, on a machine that does nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
BY_HAND = {name: value for name, value in os.environ.items() if not name.startswith("PIPELINE_")}


def told_by(folder: Path, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / words[0]), *words[1:]], cwd=folder, env=BY_HAND, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_the_ways_to_hand_outcomes_over_can_be_compared(tmp_path: Path) -> None:
    lines = told_by(tmp_path, "handover.py", "300")
    assert len(lines) == 4
    assert all("rows/s" in line for line in lines)


@pytest.mark.slow
def test_a_benchmark_can_be_had_alone(tmp_path: Path) -> None:
    lines = told_by(tmp_path, "bench.py", "B5", "--small", "--rounds", "1", "--results", str(tmp_path / "RESULTS.md"))
    assert any("seconds to the first request" in line for line in lines)
    assert "seconds for --help" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")

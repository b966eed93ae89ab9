"""Flow control in real time, against the simulator: what a gateway allows is used, an outage is sat out, a stop is clean.

Figures are read from the gateway's own ledger and printed (``pytest -s``). The same controllers on a virtual clock, exactly:
``test_slots.py``, ``test_rates.py``, ``test_pool.py``.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Bench, Pipeline, Server, clean_environment, write_jsonl

from pipeline import Job, Wishes, run

Simulate = Callable[..., Server]
Start = Callable[..., subprocess.Popen[str]]


def rows(count: int) -> list[dict[str, str]]:
    return [{"id": f"r{n}", "text": f"row {n}"} for n in range(count)]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Start simulators with any ``Settings``, each in a process of its own; see ``simulated.py``."""
    processes: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> Server:
        script = Path(__file__).with_name("simulated.py")
        process = subprocess.Popen([sys.executable, script, json.dumps(settings)], stderr=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "http://" in line, line + process.stderr.read()
        return Server(process, line.split("serving on ")[1].split()[0])

    yield start
    _end(processes)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start runs as a user would, each over its own rows: ``start("one", server, 600, "-c", "5")``."""
    processes: list[subprocess.Popen[str]] = []

    def started(name: str, server: Server, count: int, *more: str, key: str | None = None) -> subprocess.Popen[str]:
        write_jsonl(tmp_path / f"{name}.in.jsonl", [{"id": f"{name}{n}", "text": f"{name} {n}"} for n in range(count)])
        words = ["run", "-i", f"{name}.in.jsonl", "-o", f"{name}.jsonl", "--id", "id", "--base-url", server.url]
        words += ["-m", "lbl/cborg-mini", "-p", "{{ text }}", *more]
        env = {"LUMEN_API_KEY": key} if key else {}
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "pipeline", *words],
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), **env},
        )
        processes.append(process)
        return process

    yield started
    _end(processes)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a gateway's ledger tells of the requests for answers. Times are Unix seconds."""

    entries: list[dict[str, Any]]

    @classmethod
    def of(cls, server: Server) -> Asked:
        entries = server.ledger()["requests"]
        return cls(entries=[entry for entry in entries if entry["path"].endswith("/chat/completions")])

    @property
    def began_at(self) -> float:
        return min(entry["at"] for entry in self.entries)

    @property
    def let_in(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["status"] == 200]

    def refused(self, *, after: float = 0.0) -> int:
        """How many 429s, ``after`` so many seconds."""
        return sum(entry["status"] == 429 and entry["at"] >= self.began_at + after for entry in self.entries)

    def used(self, slots: int, *, since: float | None = None, until: float | None = None) -> float:
        """The share of ``slots`` in which requests were served, from the first request to the last answer unless told."""
        first = self.began_at if since is None else since
        last = max(entry["ended_at"] for entry in self.let_in) if until is None else until
        served = (min(entry["ended_at"], last) - max(entry["at"], first) for entry in self.let_in)
        return sum(seconds for seconds in served if seconds > 0) / slots / (last - first)

    def windows(self) -> list[float]:
        """When the gateway's windows began, each with the first request after the one before was over."""
        begins: list[float] = []
        for entry in sorted(self.let_in, key=lambda entry: entry["at"]):
            if not begins or entry["at"] >= begins[-1] + WINDOW_S:
                begins.append(entry["at"])
        return begins

    def at_once(self, at: float) -> int:
        """How many were served at this moment."""
        return sum(entry["at"] <= at < entry["ended_at"] for entry in self.let_in)


def _all_finish(runs: Sequence[subprocess.Popen[str]]) -> None:
    for process in runs:
        errors = process.communicate(timeout=300)[1]
        assert process.returncode == 0, errors


def log_of(folder: Path, output: str = "out.jsonl") -> str:
    return (folder / f"{output}.run" / "run.log").read_text()


# the gateway's parallel slots


@pytest.mark.slow
def test_five_slots_that_nobody_announced_are_found_and_used(bench: Bench, simulate: Simulate) -> None:
    bench.server = simulate(max_parallel=5, latency_s=0.15)
    bench.write(rows(600))
    summary, _ = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=16)
    asked = Asked.of(bench.server)
    print(f"{asked.refused()} of {len(asked.entries)} requests refused, {asked.used(5):.1%} of 5 slots used")
    assert (summary.exit_code, summary.completed) == (0, 600)
    assert asked.refused() <= 0.02 * 600
    assert asked.used(5) >= 0.95
    assert "of 8 in flight 3 were refused" in log_of(bench.folder), "every change is told with its reason"


@pytest.mark.parametrize("where", ["in the key's info", "in the headers of answers"])
def test_slots_that_are_announced_are_never_exceeded(bench: Bench, simulate: Simulate, where: str) -> None:
    hidden = [{"fault": 404, "path": "/key/info"}] if "headers" in where else []
    bench.server = simulate(dialect="litellm", latency_s=0.1, faults=hidden)
    bench.settings |= {"gateway.preset": "litellm", "gateway.base_url": bench.server.url, "model": "lbl/cborg-mini"}
    bench.write(rows(60))
    summary, _ = bench.run(gateway__concurrency=16)
    asked = Asked.of(bench.server)
    print(f"announced {where}: {asked.refused()} of {len(asked.entries)} refused, {asked.used(5):.1%} of 5 slots used")
    assert (summary.exit_code, asked.refused()) == (0, 0)
    assert bench.server.ledger()["totals"]["peak_parallel"] == 5


# the gateway's rates

WINDOW_S = 60.0
LUMEN = ("-g", "lumen", "-m", "dummy")
RATES: dict[str, tuple[dict[str, Any], int, int, tuple[str, ...]]] = {
    # what: the gateway's settings, requests a window, runs that share the key, their options
    "30/min, untold": ({"key": {"rpm": 30}}, 30, 1, ("-c", "8")),
    "600/min, untold": ({"key": {"rpm": 600}}, 600, 1, ("-c", "16")),
    "lumen, 30/min as assumed": ({"dialect": "lumen"}, 30, 1, LUMEN),
    "lumen, 20/min instead": ({"dialect": "lumen", "key": {"rpm": 20, "coins": 1.0}}, 20, 1, LUMEN),
    "two runs on lumen's 30/min": ({"dialect": "lumen"}, 30, 2, LUMEN),
}


@pytest.mark.slow
def test_a_rate_is_learned_in_its_first_window_and_then_used_up_but_not_exceeded(
    simulate: Simulate, start: Start
) -> None:
    """All at the same time, for three windows of a minute each."""
    servers, runs = {}, []
    for number, (what, (settings, rpm, members, options)) in enumerate(RATES.items()):
        servers[what] = simulate(latency_s=0.1, **settings)
        count = (3 * rpm + 4) // members
        runs += [start(f"r{number}{n}", servers[what], count, *options, key=f"key-{number}") for n in range(members)]
    _all_finish(runs)
    for what, server in servers.items():
        asked, rpm = Asked.of(server), RATES[what][1]
        windows = asked.windows()
        later = [entry for entry in asked.entries if entry["at"] >= windows[1]]
        refused = sum(entry["status"] == 429 for entry in later)
        whole = windows[1:-1]
        let_in = sum(windows[1] <= entry["at"] < windows[-1] for entry in asked.let_in)
        used = let_in / rpm / ((windows[-1] - windows[1]) / WINDOW_S)
        print(
            f"{what}: {asked.refused()} refused in the first window, then {refused} of {len(later)}; "
            f"{used:.1%} of {len(whole)} whole windows used"
        )
        assert len(whole) == 2
        assert used >= 0.95
        assert refused <= 0.02 * len(later)
        if "as assumed" in what or "two runs" in what:
            assert asked.refused() == 0


# outages


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "503"])
def test_twenty_seconds_of_outage_cost_nothing_and_end_at_once(bench: Bench, simulate: Simulate, kind: str) -> None:
    fault = {"refused": {"fault": "refused", "seconds": 20, "between": [60, 60]}, "503": {"fault": 503, "during": [2, 22]}}
    bench.server = simulate(latency_s=0.3, faults=[fault[kind]])
    bench.write(rows(400))
    summary, _ = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=16, limits__max_attempts=1)
    asked = Asked.of(bench.server)
    gone = next(entry for entry in asked.entries if entry["fault"])
    back_at = gone["at"] + 20.0 if kind == "refused" else asked.began_at + 22.0
    first = min(entry["at"] for entry in asked.let_in if entry["at"] >= back_at and "witness" not in entry["call_id"])
    full = next(at for at in (back_at + step / 100 for step in range(1000)) if asked.at_once(at) >= 0.9 * 16)
    print(f"{kind}: first row {first - back_at:.2f} s after it was back, 90 % of 16 slots busy after {full - back_at:.2f} s")
    assert (summary.exit_code, summary.completed, summary.failed) == (0, 400, 0)
    assert {row["attempts"] for row in bench.results()} == {1}, "no row was charged an attempt"
    assert [(round((end or 0) - begin) // 5, cause[:4]) for begin, end, cause in summary.outages] == [
        (4, {"refused": "conn", "503": "http"}[kind])
    ]
    assert first - back_at < 2.0
    assert full - back_at < 3.0

"""Flow control in real time, against the simulator: what a gateway allows is used, an outage is sat out, a stop is clean.

Figures are read from the gateway's own ledger and printed (``pytest -s``). The same controllers on a virtual clock, exactly:
``test_slots.py``, ``test_rates.py``, ``test_pool.py``.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Bench, Server, clean_environment, write_jsonl

from pipeline import Job, Wishes, run
from pipeline.progress import Snapshot

Simulate = Callable[..., Server]
Start = Callable[..., subprocess.Popen[str]]
USED = 0.9  # of what is allowed, where clients, gateway and another file of tests share two cores; alone it is 0.95 to 0.98


def rows(count: int) -> list[dict[str, str]]:
    return [{"id": f"r{n}", "text": f"row {n}"} for n in range(count)]


@pytest.fixture
def simulate() -> Iterator[Simulate]:
    """Start simulators with any ``Settings``, each in a process of its own; see ``served.py``."""
    processes: list[subprocess.Popen[str]] = []

    def start(**settings: Any) -> Server:
        script = Path(__file__).with_name("served.py")
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
    """Start runs as a user would, each over its own rows: ``start("one", server.url, 600, "-c", "5")``."""
    processes: list[subprocess.Popen[str]] = []

    def started(name: str, url: str, count: int, *more: str, key: str | None = None) -> subprocess.Popen[str]:
        write_jsonl(tmp_path / f"{name}.in.jsonl", [{"id": f"{name}{n}", "text": f"{name} {n}"} for n in range(count)])
        words = ["run", "-i", f"{name}.in.jsonl", "-o", f"{name}.jsonl", "--id", "id", "--base-url", url]
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
    def ended_at(self) -> float:
        return max(entry["ended_at"] for entry in self.let_in)

    @property
    def let_in(self) -> list[dict[str, Any]]:
        return [entry for entry in self.entries if entry["status"] == 200]

    def refused(self, *, after: float = 0.0) -> int:
        """How many 429s, ``after`` so many seconds."""
        return sum(entry["status"] == 429 and entry["at"] >= self.began_at + after for entry in self.entries)

    def used(self, slots: int, *, since: float | None = None, until: float | None = None) -> float:
        """The share of ``slots`` in which requests were served, from the first request to the last answer unless told."""
        first = self.began_at if since is None else since
        last = self.ended_at if until is None else until
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
    bench.server = simulate(max_parallel=5, latency_s=0.2)
    bench.write(rows(600))
    summary, _ = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=16)
    asked = Asked.of(bench.server)
    print(f"{asked.refused()} of {len(asked.entries)} requests refused, {asked.used(5):.1%} of 5 slots used")
    assert (summary.exit_code, summary.completed) == (0, 600)
    assert asked.refused() <= 0.02 * 600
    assert asked.used(5) >= USED
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
    "two runs, 30/min, untold": ({"key": {"rpm": 30}}, 30, 2, ("-c", "8")),
    "lumen without its preset": ({"dialect": "lumen"}, 30, 1, ("-m", "dummy", "-c", "8")),
    "lumen, 30/min as assumed": ({"dialect": "lumen"}, 30, 1, LUMEN),
    "lumen, 20/min instead": ({"dialect": "lumen", "key": {"rpm": 20, "coins": 1.0}}, 20, 1, LUMEN),
    "two runs on lumen, as assumed": ({"dialect": "lumen"}, 30, 2, LUMEN),
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
        runs += [
            start(f"r{number}{n}", servers[what].url, count, *options, key=f"sk-SECRET-{number}-0123456789")
            for n in range(members)
        ]
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
        assert len(whole) >= 2
        assert used >= USED
        assert refused <= 0.02 * len(later)
        assert asked.refused() == 0 or "as assumed" not in what


# outages


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["refused", "503"])
def test_twenty_seconds_of_outage_cost_nothing_and_end_at_once(bench: Bench, simulate: Simulate, kind: str) -> None:
    fault = {
        "refused": {"fault": "refused", "seconds": 20, "between": [60, 60]},
        "503": {"fault": 503, "during": [2, 22]},
    }
    bench.server = simulate(latency_s=0.3, faults=[fault[kind]])
    bench.write(rows(250))
    summary, _ = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=16, limits__max_attempts=1)
    asked = Asked.of(bench.server)
    gone = next(entry for entry in asked.entries if entry["fault"])
    back_at = gone["at"] + 20.0 if kind == "refused" else asked.began_at + 22.0
    first = min(entry["at"] for entry in asked.let_in if entry["at"] >= back_at and "witness" not in entry["call_id"])
    full = next(at for at in (back_at + step / 100 for step in range(1000)) if asked.at_once(at) >= 0.9 * 16)
    print(
        f"{kind}: first row {first - back_at:.2f} s after it was back, 90 % of 16 slots busy after {full - back_at:.2f} s"
    )
    assert (summary.exit_code, summary.completed, summary.failed) == (0, 250, 0)
    assert {row["attempts"] for row in bench.results()} == {1}, "no row was charged an attempt"
    assert [(round((end or 0) - begin) // 5, cause[:4]) for begin, end, cause in summary.outages] == [
        (4, {"refused": "conn", "503": "http"}[kind])
    ]
    assert first - back_at < 2.0
    assert full - back_at < 3.0


# runs that share a key


LITELLM = ("-g", "litellm", "-c", "5")


@pytest.mark.slow
def test_runs_of_one_key_share_its_slots(simulate: Simulate, start: Start) -> None:
    used = {}
    for members in (1, 2, 4):
        server = simulate(dialect="litellm", latency_s=0.2)
        _all_finish([start(f"of{members}n{n}", server.url, 320 // members, *LITELLM) for n in range(members)])
        asked = Asked.of(server)
        used[members] = asked.used(5, since=asked.began_at + 3, until=asked.ended_at - 1)
        print(
            f"{members} runs: {asked.refused(after=3)} of {len(asked.entries)} refused, {used[members]:.1%} of 5 slots used"
        )
        assert len(asked.let_in) == 320
        assert asked.refused(after=3) == 0
    assert min(used.values()) >= USED * used[1]


@pytest.mark.slow
def test_a_killed_run_leaves_its_slots_at_once(simulate: Simulate, start: Start) -> None:
    """What it had asked goes on at the gateway, so that the other is refused for a moment. A run that is merely silent
    keeps its slots for 15 s (``SILENT_S``)."""
    server = simulate(dialect="litellm", latency_s=0.2)
    killed, left = start("killed", server.url, 300, *LITELLM), start("left", server.url, 400, *LITELLM)
    _wait_for(server, 60)
    killed.send_signal(signal.SIGKILL)
    killed_at = time.time()
    _all_finish([left])
    asked = Asked.of(server)
    taken = next(step / 100 for step in range(20, 1500) if asked.at_once(killed_at + step / 100) == 5)
    used = asked.used(5, since=killed_at + 8, until=asked.ended_at - 0.5)
    print(f"kill -9: all five slots were taken {taken:.2f} s later; {used:.1%} of 5 used from 8 s on")
    assert taken < 8
    assert used >= USED
    assert asked.refused(after=killed_at + 8 - asked.began_at) == 0


@pytest.mark.slow
def test_without_a_lease_the_same_runs_are_refused(simulate: Simulate, start: Start) -> None:
    server = simulate(dialect="litellm", latency_s=0.2)
    _all_finish([start(name, server.url, 180, *LITELLM, "--no-lease") for name in ("one", "two")])
    asked = Asked.of(server)
    print(f"two runs without a lease: {asked.refused()} of {len(asked.entries)} refused")
    assert asked.refused() > 0


def _wait_for(server: Server, requests: int) -> None:
    deadline = time.monotonic() + 20
    while server.ledger()["totals"]["requests"] < requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# money, for ever, never


@pytest.mark.parametrize("dialect", ["litellm", "lumen"])
def test_a_budget_that_ends_in_the_middle_ends_the_run_with_exact_books(
    bench: Bench, simulate: Simulate, monkeypatch: pytest.MonkeyPatch, dialect: str
) -> None:
    key = {"litellm": {"max_parallel": 5, "max_budget": 1e-4}, "lumen": {"max_parallel": 10, "coins": 2e-3}}
    bench.server = simulate(dialect=dialect, latency_s=0.05, key=key[dialect])
    bench.settings |= _budgeted(bench, monkeypatch, dialect)
    bench.write(rows(200))
    summary, _ = bench.run()
    asked, totals = Asked.of(bench.server), bench.server.ledger()["totals"]
    unit = totals["unit"]
    print(
        f"{dialect}: {summary.completed} of 200 rows bought, {summary.cost[unit]:.6f} {unit}, {len(asked.entries)} requests"
    )
    assert (summary.exit_code, summary.failed) == (5, 0)
    assert 10 < summary.completed == totals["billed"] < 200
    assert summary.completed + summary.pending == 200
    assert summary.cost == {unit: pytest.approx(totals["cost"])}
    assert "the gateway's budget is used up" in summary.reason


def test_coins_that_come_back_are_waited_for(bench: Bench, simulate: Simulate, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes a second and a half after the start."""
    key = {"max_parallel": 10, "coins": 1e-3, "coins_per_hour": 1.0}
    bench.server = simulate(dialect="lumen", latency_s=0.05, key=key, hour_after=1.5)
    bench.settings |= _budgeted(bench, monkeypatch, "lumen")
    bench.write(rows(16))
    summary, _ = bench.run(limits__on_budget="wait", limits__max_budget_wait=5)
    print([(cause[:60], round(end - begin, 1)) for begin, end, cause in summary.outages if end])
    assert (summary.exit_code, summary.completed) == (0, 16)
    assert len(summary.outages) == 1
    assert {row["attempts"] for row in bench.results()} == {1}


def test_coins_that_do_not_come_back_end_the_run(
    bench: Bench, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server = simulate(dialect="lumen", key={"max_parallel": 10, "coins": 1e-3})
    bench.settings |= _budgeted(bench, monkeypatch, "lumen")
    bench.write(rows(16))
    summary, _ = bench.run(limits__on_budget="wait", limits__max_budget_wait=1)
    assert (summary.exit_code, summary.failed) == (5, 0)
    assert summary.pending > 0


def _budgeted(bench: Bench, monkeypatch: pytest.MonkeyPatch, dialect: str) -> dict[str, Any]:
    monkeypatch.setenv("LUMEN_API_KEY", "sk-SECRET-key")
    model = {"litellm": "lab/priced", "lumen": "dummy"}[dialect]
    return {"gateway.preset": dialect, "gateway.base_url": bench.server.url, "gateway.rpm": 6000, "model": model}


@pytest.mark.slow
@pytest.mark.parametrize(("dialect", "let_in"), [("litellm", 0), ("openai", 20)])
def test_a_proxy_that_refuses_for_ever_is_asked_little_until_the_deadline(
    tmp_path: Path, simulate: Simulate, start: Start, dialect: str, let_in: int
) -> None:
    fault: dict[str, Any] = {"fault": "requests", "path": "/chat/completions"}
    if let_in:
        fault["after"] = let_in
    server = simulate(dialect=dialect, latency_s=0.05, key={"rpm": 600}, faults=[fault])
    process = start("ever", server.url, 100, "-g", dialect, "-c", "5", "--deadline", "10s")
    time.sleep(8)
    status = orjson.loads((tmp_path / "ever.jsonl.run" / "status.json").read_bytes())
    errors = process.communicate(timeout=20)[1]
    asked = Asked.of(server)
    print(f"429 after {let_in}: {asked.refused()} refused in 10 s, and {status['doing']!r}")
    assert len(asked.let_in) == let_in
    assert 1 <= asked.refused() <= 5
    assert "the rate limit is used up: all wait" in status["doing"]
    assert (process.returncode, status["failed"]) == (75, 0), errors
    assert "the deadline, " in errors
    assert "Last trouble: rate_limited" in errors
    assert f"{let_in} succeeded, 0 failed, {100 - let_in} left" in errors


def test_an_outage_longer_than_max_outage_ends_the_run_and_the_next_one_goes_on(
    bench: Bench, simulate: Simulate
) -> None:
    bench.server = simulate(latency_s=0.05, faults=[{"fault": 503, "during": [0.3, 2.0]}])
    bench.write(rows(60))
    summary, _ = bench.run(gateway__base_url=bench.server.url, limits__max_outage=0.8, limits__max_attempts=1)
    assert (summary.exit_code, summary.failed) == (75, 0)
    assert "longer than limits.max_outage allows" in summary.reason
    assert 0 < summary.completed < 60
    time.sleep(
        max(0.0, Asked.of(bench.server).began_at + 2.2 - time.time())
    )  # a fault is timed from the first request on
    summary, sent = bench.run(gateway__base_url=bench.server.url)
    assert (summary.exit_code, summary.completed, summary.failed, sent) == (0, 60, 0, summary.sent)


@pytest.mark.slow
def test_wait_waits_for_a_gateway_that_nobody_has_reached_yet(simulate: Simulate, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = start("early", f"http://127.0.0.1:{port}/v1", 20, "--wait")
    time.sleep(3)
    assert process.poll() is None
    server = simulate(port=port)
    _all_finish([process])
    assert len(Asked.of(server).let_in) == 20


# a broken job, a hanging request


def test_rows_that_all_fail_alike_stop_the_run_while_it_is_cheap(bench: Bench, simulate: Simulate) -> None:
    bench.server = simulate(
        latency_s=0.02, faults=[{"fault": 400, "body": {"error": {"message": "no such parameter"}}}]
    )
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 4}
    bench.write(rows(100))
    summary, sent = bench.run()
    print(f"all alike: stopped after {sent} requests")
    assert (summary.exit_code, summary.completed) == (6, 0)
    assert 5 <= summary.failed == sent <= 5 + 3
    assert "the first 5 rows all failed alike" in summary.reason
    assert "no such parameter" in summary.reason
    summary, sent = bench.run(Wishes(keep_going=True))
    assert (summary.exit_code, summary.failed, summary.pending) == (3, 100, 0)


def test_rows_that_fail_alike_after_others_succeeded_do_not(bench: Bench, simulate: Simulate) -> None:
    bench.server = simulate(faults=[{"fault": 400, "after": 3}])
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 4}
    bench.write(rows(40))
    assert bench.run(Wishes(most=3))[0].completed == 3
    summary, _ = bench.run()
    assert (summary.exit_code, summary.completed, summary.failed) == (3, 3, 37)


@pytest.mark.parametrize(("most", "count"), [("10%", 10), (7, 7)])
def test_more_failures_than_allowed_end_the_run(bench: Bench, simulate: Simulate, most: str | int, count: int) -> None:
    bench.server = simulate(latency_s=0.01, faults=[{"fault": 400, "every": 3}])
    bench.write(rows(100))
    summary, _ = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=4, limits__max_failures=most)
    assert summary.exit_code == 6
    assert count < summary.failed <= count + 4
    assert summary.completed > 10
    assert f"{count + 1} rows failed in this run, more than limits.max_failures allows" in summary.reason


class Watched:
    """A display that keeps what it is shown, and what ``status.json`` says then."""

    def __init__(self, status: Path) -> None:
        self._status = status
        self.lines: list[str] = []
        self.doing: list[str] = []

    def show(self, snapshot: Snapshot) -> None:
        self.lines.append(snapshot.line)
        if self._status.exists():
            self.doing.append(orjson.loads(self._status.read_bytes()).get("doing", ""))

    def say(self, text: str) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.slow
def test_requests_that_hang_do_not_keep_the_run_from_ending(bench: Bench, simulate: Simulate) -> None:
    hang = [{"fault": "hang", "match": f"row {n}"} for n in (27, 28, 29)]
    bench.server = simulate(latency_s=0.05, faults=hang)
    bench.write(rows(30))
    bench.settings |= {"gateway.base_url": bench.server.url, "limits.max_attempts": 2}
    bench.settings |= {"gateway.first_byte_timeout": 2, "gateway.idle_timeout": 2}
    shown = Watched(bench.folder / "out.jsonl.run" / "status.json")
    started = time.monotonic()
    summary = run(Job.load(None, overrides=bench.settings), display=shown)
    took = time.monotonic() - started
    left = [line for line in shown.lines if "3 rows left, the oldest takes" in line]
    print(f"3 of 30 rows hang: ended after {took:.1f} s; {left[-1]!r}")
    assert (summary.exit_code, summary.completed, summary.failed) == (3, 27, 3)
    assert {row["error_code"] for row in bench.results()[27:]} == {"timeout"}
    assert any("3 rows left, the oldest takes 1 s" in text for text in shown.doing), "status.json says it, too"
    assert took < 10


def test_a_key_that_is_wrong_has_cost_one_request(
    bench: Bench, simulate: Simulate, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.server = simulate(api_key="sk-SECRET-right")
    monkeypatch.setenv("PIPELINE_API_KEY", "sk-SECRET-wrong")
    bench.write(rows(100))
    summary, sent = bench.run(gateway__base_url=bench.server.url, gateway__concurrency=16)
    assert (summary.exit_code, summary.pending, sent) == (4, 100, 1)

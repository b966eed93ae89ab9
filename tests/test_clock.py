"""Runs by the clock, end to end: a deadline in the middle, a window that is closed, and what is said then."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from conftest import Bench, Pipeline, Server, clean_environment, read_jsonl, window_in, write_jsonl

from pipeline import Job, Summary, Wishes
from pipeline.limits.hours import Window
from pipeline.progress import Snapshot
from pipeline.run import Run

ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(60)]


def command(server: Server, *more: str) -> list[str]:
    return [
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "m", "-p", "{{ text }}", "-c", "4",
        "--id", "id", *more,
    ]  # fmt: skip


def test_a_deadline_in_the_middle(tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline) -> None:
    server = serve("--latency", "0.3")
    write_jsonl(tmp_path / "in.jsonl", ROWS[:36])
    words = command(server, "--deadline", "2s")
    ended = pipeline(*words)
    sent = server.ledger()["totals"]["requests"]
    assert ended.code == 75, ended.err
    assert re.search(r"Stopped after [12] s: the deadline, \d\d:\d\d, leaves no time for new rows\n", ended.err)
    assert f"Left: {36 - sent} rows" in ended.err, "what was in flight was finished and kept"
    again = ended.err.split("Go on with: pipeline ")[1].splitlines()[0]
    assert shlex.split(again) == words, "the same command, to the word"
    assert not (tmp_path / "out.jsonl").exists()
    calls = 1
    while (ended := pipeline(*words)).code == 75:
        calls += 1
        assert calls < 9
    totals = server.ledger()["totals"]
    print(f"deadline of 2 s, answers in 0.3 s, 4 slots: {sent} of 36 rows in the first call, all in {calls + 1}")
    assert ended.code == 0, ended.err
    assert 0 < sent < 36
    assert totals["requests"] == totals["billed"] == 36, "nothing lost, nothing twice"
    assert [row["custom_id"] for row in read_jsonl(tmp_path / "out.jsonl")] == [row["id"] for row in ROWS[:36]]


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.etas_s: list[float] = []

    def show(self, snapshot: Snapshot) -> None:
        """What it does, and for how long."""
        self.texts.append(snapshot.doing)
        self.etas_s.append(snapshot.eta_s or 0.0)

    def say(self, text: str) -> None:
        """Said."""
        self.texts.append(text)

    def close(self) -> None:
        """Nothing."""


def run_at(bench: Bench, moment: float, **limits: str) -> tuple[Summary, float, Seen]:
    """Run the job as if it were ``moment`` now; its summary, how long it took, and what was seen of it."""
    ahead = moment - time.time()
    job = Job.load(None, overrides={**bench.settings, **{f"limits.{key}": value for key, value in limits.items()}})
    seen = Seen()
    run = Run(job, Wishes(), display=seen, wall_clock=lambda: time.time() + ahead)
    began = time.monotonic()
    return asyncio.run(run.live()), time.monotonic() - began, seen


def test_a_run_waits_for_its_window_and_says_so(bench: Bench) -> None:
    bench.write(ROWS[:10])
    opening = Window.parse("20:00-06:00").opening(time.time(), None)
    summary, took, seen = run_at(bench, opening.opens_at - 1.5, window="20:00-06:00")
    assert (summary.exit_code, summary.completed) == (0, 10)
    assert 1.5 <= took < 4
    assert "Waiting: the window 20:00-06:00 opens at 20:00." in seen.texts
    assert "waiting: the window 20:00-06:00 opens at 20:00" in seen.texts


def test_a_window_that_closes_in_the_middle(
    bench: Bench, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.progress.LEAST_WINDOW_S", 0.0)
    bench.server = serve("--latency", "1.0")
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 4}
    bench.write(ROWS)
    closes = Window.parse("20:00-06:00").opening(time.time(), None).closes_at
    summary, took, seen = run_at(bench, closes - 2.8, window="20:00-06:00")
    print(f"window over in 2.8 s, answers in 1 s: {took:.2f} s, {summary.sent} rows sent")
    assert summary.exit_code == 75
    assert 0 < summary.sent < len(ROWS)
    assert summary.sent == bench.server.ledger()["totals"]["billed"]
    lead = "(answers take up to 1 s)"  # as this run found
    assert summary.reason == f"the window 20:00-06:00 leaves no time for new rows {lead}; it opens again at 20:00"
    assert max(seen.etas_s) > 12 * 3600, "the day in between counts"
    assert any(
        re.fullmatch(r"Stopping: .* [1-4] requests? in flight (is|are) finished first\.", text) for text in seen.texts
    )


def test_a_gateway_that_says_no_for_ever_is_left_at_the_deadline(bench: Bench, serve: Callable[..., Server]) -> None:
    bench.server = serve(faults=[{"fault": 429}])
    bench.settings |= {"gateway.base_url": bench.server.url}
    bench.write(ROWS)
    summary, took, seen = run_at(bench, time.time(), deadline="2s")
    requests = bench.server.ledger()["totals"]["requests"]
    print(f"429 for ever, deadline of 2 s: {took:.2f} s, {requests} requests")
    assert (summary.exit_code, summary.pending, summary.failed, summary.attempts) == (75, len(ROWS), 0, 0)
    assert any(text.startswith("the rate limit is used up: all wait") for text in seen.texts)
    assert took < 4
    assert requests < 10


@pytest.mark.slow
def test_what_answers_took_before_is_the_lead_of_the_next_run(bench: Bench, serve: Callable[..., Server]) -> None:
    bench.server = serve("--latency", "1.5")
    bench.settings |= {"gateway.base_url": bench.server.url}
    bench.write(ROWS[:8])
    bench.run(Wishes(most=2, publish=False))
    closes = Window.parse("20:00-06:00").opening(time.time(), None).closes_at
    summary, took, _ = run_at(bench, closes - 1.4, window="20:00-06:00")
    assert (summary.exit_code, summary.sent) == (75, 0)
    assert "(answers take up to 2 s)" in summary.reason
    assert took < 1.4


def test_rows_that_were_the_last_when_the_hours_were_over_are_published(
    bench: Bench, serve: Callable[..., Server]
) -> None:
    bench.server = serve("--latency", "1.0")
    bench.settings |= {"gateway.base_url": bench.server.url}
    bench.write(ROWS[:1])
    summary, _, seen = run_at(bench, time.time(), deadline="1s")
    assert any(text.startswith("Stopping: the deadline") for text in seen.texts)
    assert (summary.exit_code, summary.reason, summary.sent) == (0, "finished", 1)
    assert len(bench.results()) == 1


def test_no_wait_is_exit_75_with_the_sentence_and_asks_nobody(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS[:3])
    before = bench.server.ledger()["totals"]
    window = window_in(120)
    ended = pipeline(*command(bench.server, "--window", window, "--no-wait"))
    assert ended.code == 75
    assert f"Stopped after 0 s: the window {window} opens at {window[:5]}" in ended.err
    assert "Left: 3 rows" in ended.err
    assert f"--window {window} --no-wait" in ended.err.split("Go on with: ")[1].splitlines()[0]
    assert bench.server.ledger()["totals"] == before
    assert pipeline(*command(bench.server)).code == 0
    assert pipeline(*command(bench.server, "--window", window, "--no-wait")).code == 0, "nothing to wait for"


def test_a_deadline_before_the_window_opens_is_not_waited_for(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS[:3])
    window = window_in(120)
    before = bench.server.ledger()["totals"]
    ended = pipeline(*command(bench.server, "--window", window, "--deadline", "1h"))
    assert bench.server.ledger()["totals"] == before
    assert ended.code == 75
    assert f"leaves no time for new rows; the window {window} opens at {window[:5]}" in ended.err


def test_try_heeds_no_hours(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS[:3])
    words = command(bench.server, "--window", window_in(120))[1:]
    ended = pipeline("try", *words, "-n", "2")
    assert ended.code == 0, ended.err
    assert ended.out.count("=>") == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_signals_are_heard_while_it_waits(bench: Bench, number: signal.Signals, code: int) -> None:
    bench.write(ROWS[:3])
    window = window_in(120)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "pipeline", *command(bench.server, "--window", window)],
        cwd=bench.folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip
    status = bench.folder / "out.jsonl.run" / "status.json"
    until = time.monotonic() + 20
    while not status.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    assert orjson.loads(status.read_bytes())["doing"] == f"waiting: the window {window} opens at {window[:5]}"
    process.send_signal(number)
    errors = process.communicate(timeout=10)[1]
    assert process.returncode == code, errors
    assert "Left: 3 rows" in errors
    assert "Go on with: pipeline run" in errors

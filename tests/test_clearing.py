"""What is found out before sending: a run that begins in an outage waits for its end, and then knows prices all the same."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import read_jsonl, write_jsonl

import pipeline.pool.patience
from pipeline import Job, Summary, Wishes, run
from pipeline.status import describe, status_of


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


def lumen_run(folder: Path, port: int, wishes: Wishes | None = None, **changes: Any) -> Summary:
    write_jsonl(folder / "in.jsonl", [{"id": f"r{n}", "text": f"row {n}"} for n in range(4)])
    settings = {
        "input": str(folder / "in.jsonl"),
        "output": str(folder / "out.jsonl"),
        "gateway": {"preset": "lumen", "base_url": f"http://127.0.0.1:{port}", "rpm": 6000.0},
        "model": "dummy",
        "request": {"prompt": "{{ text }}", "params": {"max_tokens": 5}},
        "limits": {"max_cost": 1.0, **changes},
    }
    return run(Job.load(None, overrides=settings), wishes)


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMEN_API_KEY", "sk-SECRET-x")


def test_prices_are_known_and_kept_to_although_the_run_began_in_an_outage(
    tmp_path: Path, serve: Any, key: None
) -> None:
    port = free_port()
    later = threading.Timer(2.5, lambda: serve("--dialect", "lumen", "--port", str(port)))
    later.start()
    summary = lumen_run(tmp_path, port)
    later.join()
    assert (summary.exit_code, summary.completed) == (0, 4), summary.reason
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert {row["cost_source"] for row in rows} == {"price_table"}
    assert all(row["attempts"] == 1 for row in rows)
    [(start, end, cause)] = summary.outages
    assert end is not None and 2 < end - start < 6
    assert cause.startswith("connect_failed")
    assert "The gateway was away for" in describe(status_of(tmp_path / "out.jsonl.run"))


@pytest.mark.slow
def test_a_gateway_never_reached_is_given_up_and_one_that_was_is_bounded_by_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: None
) -> None:
    monkeypatch.setattr(pipeline.pool.patience, "UNREACHED_S", 1.5)
    summary = lumen_run(tmp_path, free_port())
    assert summary.exit_code == 4
    assert "--wait waits for it" in summary.reason
    assert summary.outages[0][1] is None
    summary = lumen_run(tmp_path, free_port(), Wishes(wait=True), max_outage=2.0)
    assert summary.exit_code == 75
    assert "max_outage" in summary.reason
    began = time.monotonic()
    summary = lumen_run(tmp_path, free_port(), Wishes(wait=True), deadline="2s")
    assert (summary.exit_code, "deadline" in summary.reason) == (75, True)
    assert time.monotonic() - began < 6
    assert orjson.loads((tmp_path / "out.jsonl.run" / "status.json").read_bytes())["exit_code"] == 75

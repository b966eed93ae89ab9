"""Promises 1 to 4 through kill -9: nothing lost, one output row each, and the crash is named."""

from __future__ import annotations

import hashlib
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
from conftest import Pipeline, Server, clean_environment, read_jsonl, write_jsonl


def _start(folder: Path, server: Server, slots: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *_command(server, slots)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def _command(server: Server, slots: int) -> list[str]:
    return [
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}",
        "-c", str(slots), "--id", "id",
    ]  # fmt: skip


def _digest(text: str) -> str:
    body = {"messages": [{"content": text, "role": "user"}], "model": "sim/echo"}
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def _named(errors: str) -> int:
    found = re.search(r"cut off with (\d+) requests in flight", errors)
    return int(found.group(1)) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize(("slots", "kills", "count"), [(1, 10, 150), (5, 12, 500), (64, 12, 6000)])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(
    tmp_path: Path, serve: Callable[..., Server], slots: int, kills: int, count: int
) -> None:
    server = serve("--latency", "0.03", "--jitter", "0.8")
    rows = [{"id": f"r{n}", "text": f"row number {n}"} for n in range(count)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    chance = random.Random(slots)
    named = 0
    for _ in range(kills):
        run = _start(tmp_path, server, slots)
        time.sleep(chance.uniform(0.4, 1.0))
        run.send_signal(signal.SIGKILL)
        errors = run.communicate()[1]
        named += _named(errors)
        assert _named(errors) <= 2 * slots
        assert not (tmp_path / "out.jsonl").exists() or len(read_jsonl(tmp_path / "out.jsonl")) == count
    last = _start(tmp_path, server, slots)
    errors = last.communicate(timeout=60)[1]
    named += _named(errors)
    assert last.returncode == 0, errors
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [row["id"] for row in found] == [row["id"] for row in rows]
    assert all(row["status"] == "succeeded" for row in found)
    ledger = server.ledger()["requests"]
    seen = Counter(entry["body_digest"] for entry in ledger)
    assert len(seen) == count
    lost = {row["id"]: row["lost_attempts"] for row in found}
    for row in rows:
        twice = seen[_digest(row["text"])] - 1
        assert twice <= lost[row["id"]], f"{row['id']} was bought again and no start had named it"
    assert sum(lost.values()) == named
    assert named > 0, "no kill hit a request: this test proves nothing"
    assert sum(row["attempts"] for row in found) >= len(ledger)
    print(f"{slots} slots, {kills} kills: {named} requests named, {len(ledger) - count} bought twice")


def test_a_killed_run_leaves_no_partial_results_and_names_what_was_in_flight(
    tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline
) -> None:
    server = serve(faults=[{"fault": "hang", "match": "hold"}])
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "fine"}, {"id": "b", "text": "hold"}])
    run = _start(tmp_path, server, 4)
    deadline = time.monotonic() + 60
    while (totals := server.ledger()["totals"])["requests"] < 1 or totals["in_flight"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert not (tmp_path / "out.jsonl").exists()
    status = pipeline("status", "out.jsonl").out
    assert status.startswith(f"{tmp_path / 'out.jsonl'}: was killed")
    assert "1 succeeded, 0 failed, 1 left, of 2" in status, "what the journal has, not the last status that was written"
    again = _start(tmp_path, server, 4)
    log = tmp_path / "out.jsonl.run" / "run.log"
    while "was cut off" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    again.send_signal(signal.SIGKILL)
    errors = again.communicate()[1]
    assert "cut off with 1 requests in flight" in errors
    assert errors.split("lost_attempts: ")[1].split("\n")[0] == "b"

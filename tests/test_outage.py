"""An outage in real time: the port closes for some seconds, or the server says 503; nothing fails, nothing is charged."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Bench, clean_environment, write_jsonl
from disks import command
from reconcile import bill_of, reconcile
from simulated import simulated

from pipeline.journal import left_in
from pipeline.simulator import Faults, Settings

ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(80)]


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "refused", "seconds": 4, "between": [20, 20]},
        {"fault": 503, "between": [20, 26]},
        {"fault": 500, "between": [20, 26]},
    ],
    ids=["refused", "503", "500"],
)
def test_maintenance_costs_no_row_an_attempt(bench: Bench, serve: Any, fault: dict[str, Any]) -> None:
    bench.server = serve("--latency", "0.05", faults=[fault])
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 8, "limits.max_attempts": 1}
    bench.write(ROWS)
    started = time.monotonic()
    summary, _ = bench.run()
    took = time.monotonic() - started
    print(
        f"{fault['fault']}: {took:.1f} s, outages {[(round(end - start, 1) if end else None) for start, end, _ in summary.outages]}"
    )
    assert (summary.exit_code, summary.failed) == (0, 0)
    # A try that met a connection just as it closed is named as lost, and not charged.
    assert all(row["attempts"] - row["lost_attempts"] == 1 for row in bench.results())
    assert len(summary.outages) >= 1
    assert all(end is not None for _, end, _ in summary.outages)
    if fault["fault"] == "refused":
        start, end, _ = summary.outages[0]
        assert end is not None
        assert 3 < end - start < 6.5, "noticed within two seconds of the port listening again"
        assert took < 9


def test_a_witness_that_is_out_when_its_run_is_killed_is_named(tmp_path: Path) -> None:
    """It is billed like any other request, and belongs to no row."""
    source = write_jsonl(tmp_path / "in.jsonl", ROWS[:10])
    faults = [
        {"fault": "slow_headers", "seconds": 3, "match": "Say yes", "times": 1},
        {"fault": 500, "match": "row 3", "times": 1},
    ]
    with simulated(Settings(latency_s=0.01, faults=Faults.from_list(faults))) as sim:
        line = command(
            "run", "-i", source, "-o", tmp_path / "out.jsonl", "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}",
            "--id", "id", "--json", "-q",
        )  # fmt: skip
        with subprocess.Popen(line, cwd=tmp_path, env=clean_environment(), stdout=subprocess.DEVNULL) as killed:
            until = time.monotonic() + 30
            while "(witness)" not in [left.custom_id for left in left_in(tmp_path / "out.jsonl.run" / "inflight")]:
                assert time.monotonic() < until
                time.sleep(0.02)
            time.sleep(0.1)  # on its way by then
            killed.kill()
        again = subprocess.run(
            line, cwd=tmp_path, env=clean_environment(), stdout=subprocess.PIPE, timeout=60, check=True
        )
        summary = orjson.loads(again.stdout)
        assert "(witness)" in summary["recovered"]
        reckoning = reconcile(
            tmp_path / "out.jsonl.run",
            [bill_of(entry) for entry in sim.entries if entry.billed],
            results=tmp_path / "out.jsonl",
        )
        assert reckoning.unseen == 1
    assert summary["lost_attempts"] == len(summary["recovered"]) - 1, "those of rows"


def test_a_gateway_that_was_never_there_is_told_at_the_end(bench: Bench) -> None:
    """The 60 s are virtual in test_pool.py; here only that Ctrl-C before them says what the trouble was."""
    from pipeline.ending import last_words
    from pipeline.records import Summary

    summary = Summary(
        exit_code=130, reason="interrupted (Ctrl-C)", total=5, completed=0, failed=0, pending=5,
        trouble="connect_failed: cannot connect", outages=[(0.0, None, "connect_failed: cannot connect")],
    )  # fmt: skip
    text = last_words(summary, again="pipeline run x")
    assert "The gateway is still away, since" in text
    assert text.count("connect_failed: cannot connect") == 1, "once is enough"
    assert "Last trouble: http_500: boom" in last_words(
        replace(summary, trouble="http_500: boom"), again="pipeline run x"
    )

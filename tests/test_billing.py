"""Money to the last digit: what lost tries were billed, our sum beside the gateway's ledger, and who is in which sum."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
from canned import canned, key_facts, litellm
from conftest import Pipeline, Server, clean_environment, read_jsonl, write_jsonl

from pipeline import Job, Summary, arun, run
from pipeline import billing as billing_module
from pipeline.billing import reckoning as reckoning_module
from pipeline.billing.reckoning import ledger_since, total
from pipeline.client import Connection
from pipeline.ending import last_words
from pipeline.gateways import LiteLLM
from pipeline.gateways.catalogue import litellm_billed
from pipeline.progress import Tally
from pipeline.records import Attempt, Billed, Cost, Outcome
from pipeline.signals import Signals
from pipeline.simulator import Entry, Faults, Settings, Simulator
from pipeline.simulator.catalogue import Model

ENVIRONMENT = {"PIPELINE_API_KEY": "sk-SECRET-0001-0001-0001"}
PRICES = {"input_per_million": 0.15, "output_per_million": 0.60}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIPELINE_API_KEY", "sk-SECRET-0001-0001-0001")


def job(folder: Path, url: str, rows: list[dict[str, Any]], **changes: Any) -> Job:
    write_jsonl(folder / "in.jsonl", rows)
    settings = {
        "input.path": str(folder / "in.jsonl"), "input.id": "id", "output.path": str(folder / "out.jsonl"),
        "gateway.preset": "litellm", "gateway.base_url": url, "model": "lab/priced", "request.prompt": "{{ text }}",
    }  # fmt: skip
    return Job.load(None, overrides={**settings, **{name.replace("__", "."): value for name, value in changes.items()}})


def rows_of(*texts: str) -> list[dict[str, Any]]:
    return [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)]


def cost_in(results: list[dict[str, Any]]) -> float:
    return math.fsum(row["cost"] or 0.0 for row in results)


def witnesses_in(server: Server) -> float:
    """What was billed for no row."""
    return math.fsum(entry["cost"] for entry in server.ledger()["requests"] if "-witness-" in (entry["call_id"] or ""))


def asked_for(server: Server) -> int:
    """How often the ledger was asked what a request was billed."""
    return sum(entry["path"] == "/spend/logs" for entry in server.ledger()["requests"])


# lost tries


@pytest.mark.parametrize(("attempts", "status"), [(3, "succeeded"), pytest.param(1, "failed", marks=pytest.mark.slow)])
def test_a_timeout_that_was_billed_is_found_to_the_last_digit(
    tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline, attempts: int, status: str
) -> None:
    late = {"fault": "slow_headers", "seconds": 1.0, "match": "slow", "times": 1}
    server = serve("--dialect", "litellm", faults=[late])
    limits = {"limits__max_attempts": attempts, "gateway__timeout": 0.6}
    this = job(tmp_path, server.url, rows_of("fine", "a slow one", "also fine"), **limits)
    first = run(this)
    assert (first.lost_attempts, first.failed) == (1, status == "failed")
    assert first.cost_unknown == (status == "failed"), "a failed row that may be billed is not free"
    billed = {entry["call_id"]: entry for entry in server.ledger()["requests"] if entry["billed"]}
    sum_billed = math.fsum(entry["cost"] for entry in billed.values())
    assert first.cost["USD"] < sum_billed - 1e-9

    told = pipeline("verify", "out.jsonl", "--billing", "--json", env=ENVIRONMENT)
    assert told.code == 0, told.err
    billing = orjson.loads(told.out)["billing"]
    (one,) = billing["tries"]
    assert (billing["billed"], billing["not_billed"], billing["unknown"], billing["why"]) == (1, 0, 0, "")
    assert (one["custom_id"], one["code"], one["told"]) == ("r1", "timeout", "billed")
    entry = billed[one["call_id"]]
    assert (one["cost"], one["prompt_tokens"], one["completion_tokens"]) == (
        entry["cost"], entry["prompt_tokens"], entry["completion_tokens"]
    )  # fmt: skip

    again = run(this)
    found = read_jsonl(tmp_path / "out.jsonl")
    assert again.sent == 0
    assert again.cost["USD"] == pytest.approx(sum_billed, rel=1e-9)
    assert cost_in(found) + witnesses_in(server) == pytest.approx(sum_billed, rel=1e-9), "the results were made again"
    assert (found[1]["status"], found[1]["lost_attempts"], found[1]["cost_source"]) == (status, 1, "gateway")
    assert again.cost_unknown == 0


def test_what_was_not_billed_is_told_apart(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(billing_module, "LEDGER_LATE_S", 2.5)
    monkeypatch.setattr(billing_module, "AGAIN_S", 0.3)
    late = {"fault": "slow_headers", "seconds": 1.0, "match": "slow"}
    server = serve("--dialect", "litellm", faults=[late, {"fault": "hang", "match": "dead"}])
    once = {"limits__max_attempts": 1, "gateway__timeout": 0.6}
    this = job(tmp_path, server.url, rows_of("fine", "slow", "dead"), **once)
    assert run(this).lost_attempts == 2
    said: list[str] = []
    found = asyncio.run(billing_module.billing(this.run_folder, say=said.append))
    waited = time.time() - max(one.at for one in found.tries)
    assert {one.custom_id: one.told for one in found.tries} == {"r1": "billed", "r2": "not billed"}
    assert "asked for again" in said[0]
    assert 2.5 <= waited < 5, f"{waited:.1f} s: what is not there may only be late"
    asked = asked_for(server)
    again = asyncio.run(billing_module.billing(this.run_folder, say=said.append))
    assert asked_for(server) == asked + 1, "what is known is not asked for again"
    lines = list(again.lines)
    words = [*sorted(lines[:2]), *lines[2:]]  # both were given up within the same instant
    assert re.fullmatch(r"  r1 \(timeout, p\w+-\d-1\): billed \$0\.0000\d+", words[0])
    assert re.fullmatch(r"  r2 \(timeout, p\w+-\d-1\): not billed", words[1])
    assert words[2].startswith("2 lost tries: 1 billed ($0.0000")
    assert run(this).sent == 0
    assert read_jsonl(tmp_path / "out.jsonl")[2]["cost"] is None, "not billed so far is not free for ever"


@pytest.mark.slow
def test_after_kill_9_every_named_request_is_accounted_for(
    tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline
) -> None:
    server = serve("--dialect", "litellm", "--latency", "0.4", "--jitter", "0.3")
    write_jsonl(tmp_path / "in.jsonl", rows_of(*(f"row number {number}" for number in range(24))))
    words = (
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "-g", "litellm", "--base-url", server.url, "-m", "lab/priced",
        "-p", "{{ text }}", "--id", "id",
    )  # fmt: skip
    killed = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=tmp_path, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_environment() | ENVIRONMENT,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while (totals := server.ledger()["totals"])["billed"] < 6 or totals["in_flight"] < 3:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    ended = pipeline(*words, "--json", env=ENVIRONMENT)
    assert ended.code == 0, ended.err
    named = orjson.loads(ended.out)["recovered"]
    assert named
    told = pipeline("verify", "out.jsonl", "--billing", "--json", env=ENVIRONMENT)
    assert told.code == 0, told.err
    billing = orjson.loads(told.out)["billing"]
    assert sorted(one["custom_id"] for one in billing["tries"]) == sorted(named)
    assert billing["unknown"] == 0
    costs = {entry["call_id"]: entry["cost"] for entry in server.ledger()["requests"] if entry["billed"]}
    for one in billing["tries"]:
        assert one["cost"] == costs.get(one["call_id"])
    assert pipeline("export", "out.jsonl", "-o", "again.jsonl").code == 0
    found = read_jsonl(tmp_path / "again.jsonl")
    assert cost_in(found) + witnesses_in(server) == pytest.approx(server.ledger()["totals"]["cost"], rel=1e-9)
    assert sum(row["lost_attempts"] for row in found) == len(named)
    print(f"{len(named)} named, {billing['billed']} billed, {billing['not_billed']} not")


def test_the_bill_of_a_lost_pack_is_shared_by_its_rows(tmp_path: Path) -> None:
    model = Model(name="e", upstream="openai/e", mode="embedding", input_cost_per_token=1e-6)
    late = Faults.from_list([{"fault": "slow_headers", "seconds": 0.8, "times": 1, "path": "/embeddings"}])

    async def live() -> tuple[Summary, list[Entry]]:
        async with Simulator(Settings(dialect="litellm", models=(model,), faults=late, spend_lag_s=0)) as simulator:
            more = {"model": "e", "request__endpoint": "embeddings", "gateway__timeout": 0.5}
            this = job(tmp_path, simulator.base_url, rows_of("one", "two", "three"), **more)
            first = await arun(this)
            assert first.lost_attempts == 3
            found = await billing_module.billing(this.run_folder, say=lambda text: None)
            (one,) = found.tries
            assert (one.rows, one.told, found.billed) == (3, "billed", 1)
            assert "and 2 more (timeout" in next(found.lines)
            return await arun(this), simulator.ledger.entries

    summary, entries = asyncio.run(live())
    packs = [entry.cost for entry in entries if "-witness-" not in (entry.call_id or "")]
    assert summary.cost["USD"] == pytest.approx(math.fsum(entry.cost for entry in entries), rel=1e-9)
    assert cost_in(read_jsonl(tmp_path / "out.jsonl")) == pytest.approx(math.fsum(packs), rel=1e-9)


@pytest.mark.parametrize("dialect", ["openai", pytest.param("litellm", marks=pytest.mark.slow)])
def test_a_gateway_that_cannot_tell_is_said_to(
    tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline, dialect: str
) -> None:
    """A proxy without a database answers that question with a 500."""
    hang = {"fault": "hang", "match": "row"}
    no_database = [{"fault": 500, "path": "/spend/logs"}] if dialect == "litellm" else []
    server = serve("--dialect", dialect, faults=[hang, *no_database])
    once = {"limits__max_attempts": 1, "gateway__timeout": 0.3, "gateway__preset": dialect}
    summary = run(job(tmp_path, server.url, rows_of("fine", *(f"row {number}" for number in range(12))), **once))
    assert summary.lost_attempts == 12
    offline = pipeline("verify", "out.jsonl", env=ENVIRONMENT)
    assert asked_for(server) == 0, "without --billing nobody is asked"
    asked = pipeline("verify", "out.jsonl", "--billing", env=ENVIRONMENT)
    assert asked.code == offline.code
    reasons = {
        "openai": "The gateway 'openai' does not tell what a request was billed; LiteLLM proxies (CBorg) do.",
        "litellm": f"{server.url} could not tell: HTTP 500: Scripted fault.",
    }
    assert reasons[dialect] in asked.err
    assert f"{summary.lost_attempts} cannot be told" in asked.err
    most = billing_module.MOST_FAILURES + billing_module.ASKED_AT_ONCE - 1 if dialect == "litellm" else 0
    assert asked_for(server) <= most


def test_nothing_lost_is_nothing_asked(tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline) -> None:
    server = serve("--dialect", "litellm")
    run(job(tmp_path, server.url, rows_of("fine")))
    told = pipeline("verify", "out.jsonl", "--billing")
    assert (told.code, asked_for(server)) == (0, 0)
    assert "No try was lost" in told.err


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ([], (0, 0.0)),
        ([None], (0, 0.0)),
        ([{"request_id": "chatcmpl-1", "spend": 2.1000000000000002e-06, "prompt_tokens": 12, "completion_tokens": 5, "status": "success"}], (1, 2.1000000000000002e-06)),
        ([{"spend": 0.25}, {"spend": "0.5"}], (2, 0.75)),
        ([{"spend": 0.0, "status": "failure"}], (0, 0.0)),
        ([{"spend": None}], None),
        ({"error": {"message": "Database not connected"}}, None),
        (None, None),
    ],
)  # fmt: skip
def test_the_spend_log_is_read_as_measured(body: Any, told: tuple[int, float] | None) -> None:
    billed = litellm_billed(body)
    assert (None if billed is None else (billed.calls, billed.cost)) == told


def test_tokens_are_told_with_the_bill() -> None:
    row = {"spend": 1e-3, "prompt_tokens": 110, "completion_tokens": 5}
    assert litellm_billed([row, row]) == Billed(calls=2, cost=2e-3, prompt_tokens=220, completion_tokens=10)


# the sum of a run


def priced(name: str, each: float) -> Model:
    return Model(name=name, upstream=f"openai/{name}", input_cost_per_token=each, output_cost_per_token=3 * each)


def test_at_the_end_our_sum_stands_beside_the_ledgers(tmp_path: Path) -> None:
    models = (priced("lbl/x", 1.7e-6), priced("lbl/y", 3.1e-7))
    faults = Faults.from_list(
        [
            {"fault": "truncated_json", "match": "torn", "per_body": 1},
            {"fault": "upstream_500", "match": "broken", "per_body": 1},
        ]
    )

    async def live() -> tuple[Summary, Summary, float]:
        settings = Settings(dialect="litellm", models=models, faults=faults, spend_lag_s=0.4)
        async with Simulator(settings) as simulator:
            rows = rows_of("torn", "broken", *(f"row {number}" for number in range(20)))
            for row in rows[::3]:
                row["params"] = {"model": "lbl/y"}
            first = await arun(job(tmp_path, simulator.base_url, rows, model="lbl/x"))
            billed = simulator.ledger.totals.cost
            more = job(tmp_path, simulator.base_url, [*rows, {"id": "new", "text": "new"}], model="lbl/x")
            second = await arun(more)
            return first, second, billed

    first, second, billed = asyncio.run(live())
    assert (first.exit_code, second.exit_code, second.sent) == (0, 0, 1)
    assert total(first.spent) == pytest.approx(billed, rel=1e-9), "witnesses and torn answers are in it"
    assert first.ledger == pytest.approx(billed, rel=1e-9)
    assert set(first.spent) == {"lbl/x", "lbl/y"}
    assert set(second.spent) == {"lbl/x"}, "a run's own money only"
    assert second.ledger == pytest.approx(total(second.spent), rel=1e-9)
    assert second.cost["USD"] == pytest.approx(billed + total(second.spent), rel=1e-9)
    words = last_words(first, again="pipeline run x")
    assert re.search(
        r"This run cost \$0\.\d+ by our books \(lbl/x \$[\d.]+, lbl/y \$[\d.]+\); the gateway's ledger says the same",
        words,
    )
    print(f"ours {total(first.spent):.12f}, ledger {first.ledger:.12f}")


@pytest.mark.parametrize(
    ("ledger", "words"),
    [
        (None, None),
        (0.0123, "This run cost $0.0123 by our books; the gateway's ledger says the same"),
        (0.0125, "says $0.0125 for this key in that time, $0.0002000 more: other runs with this key, or tries whose answers were lost"),
        (0.0100, "says $0.0100 for this key in that time, $0.0023000 less: it is written late"),
    ],
)  # fmt: skip
def test_a_difference_is_said_in_words(ledger: float | None, words: str | None) -> None:
    spent = {"lbl/x": {"USD": 0.0123}}
    summary = Summary(
        exit_code=0, reason="finished", total=1, completed=1, failed=0, pending=0, sent=1, spent=spent, ledger=ledger
    )
    text = last_words(summary, again="pipeline run x")
    assert words in text if words else "ledger" not in text


def test_the_ledger_is_waited_for_a_while_and_not_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reckoning_module, "LEDGER_LATE_S", 0.8)
    said: list[str] = []

    async def wait(url: str, ours: float, before: float, signals: Signals) -> tuple[float | None, float]:
        connection = Connection(base_url=url, api_key="sk-SECRET-0001-0001-0001", timeout_s=5, connect_timeout_s=5)
        started = time.monotonic()
        moved = await ledger_since(
            connection, LiteLLM(), before=before, ours=ours, over=lambda: signals.error is not None, say=said.append
        )
        return moved, time.monotonic() - started

    with canned(litellm(key=(200, {"info": key_facts(spend=2.0)}))) as server:
        moved, took = asyncio.run(wait(server.url, 0.5, 2.0, Signals()))
        assert moved == 0.0
        assert 0.5 < took < 2
        assert len(said) == 1
        moved, took = asyncio.run(wait(server.url, 0.5, 1.5, Signals()))
        assert (moved, took < 0.4) == (0.5, True)
        assert asyncio.run(wait(server.url, 0.5, 3.0, Signals()))[0] is None, "its budget began anew"
        server.seen.clear()
        stopped = Signals()
        stopped.abort()
        assert asyncio.run(wait(server.url, 0.5, 1.5, stopped))[0] is None
        assert asyncio.run(wait(server.url, 0.0, 1.5, Signals()))[0] is None
        assert server.seen == [], "nobody asks when a signal came, or nothing was billed"


# who is in which sum


def test_what_witnesses_cost_is_in_the_total(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(faults=[{"fault": 500, "match": "bad"}])
    more = {"gateway__preset": "openai", "limits__max_attempts": 2, "model": "m", "prices": {"m": PRICES}}
    summary = run(job(tmp_path, server.url, rows_of("fine", "bad", "good"), **more))
    ledger = server.ledger()
    assert sum("-witness-" in (entry["call_id"] or "") for entry in ledger["requests"]) >= 1
    assert summary.cost["USD"] == pytest.approx(ledger["totals"]["cost"], rel=1e-9)
    assert total(summary.spent) == pytest.approx(ledger["totals"]["cost"], rel=1e-9)
    assert cost_in(read_jsonl(tmp_path / "out.jsonl")) < summary.cost["USD"], "it is no row's cost"
    assert summary.ledger is None


def test_coins_stay_coins_when_no_row_is_done(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LUMEN_API_KEY", "sk-SECRET-0001-0001-0001")
    server = serve("--dialect", "lumen", faults=[{"fault": "empty_choices"}])
    more = {"gateway__preset": "lumen", "model": "dummy", "limits__max_attempts": 2}
    summary = run(job(tmp_path, server.url, rows_of("one"), **more))
    billed = server.ledger()["totals"]["cost"]
    assert (summary.completed, summary.cost) == (0, {"coins": pytest.approx(billed, rel=1e-9)})
    assert billed > 0
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [(row["attempts"], row["cost"]) for row in found] == [(2, pytest.approx(billed, rel=1e-9))]
    assert {(row["cost_unit"], row["cost_source"]) for row in found} == {("coins", "price_table")}


def test_a_failed_rows_earlier_tries_are_in_its_cost(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """Billed, but torn; then an error that costs nothing."""
    torn = {"fault": "empty_choices", "match": "bad", "per_body": 1}
    server = serve("--dialect", "litellm", faults=[torn, {"fault": "upstream_400", "match": "bad"}])
    summary = run(job(tmp_path, server.url, rows_of("bad", "fine")))
    billed = server.ledger()["totals"]["cost"]
    found = read_jsonl(tmp_path / "out.jsonl")
    assert (found[0]["status"], found[0]["attempts"], found[0]["cost_source"]) == ("failed", 2, "gateway")
    assert found[0]["cost"] > 0
    assert cost_in(found) == pytest.approx(billed, rel=1e-9)
    assert (summary.cost["USD"], summary.cost_unknown) == (pytest.approx(billed, rel=1e-9), 0)


def test_the_progress_line_counts_what_every_try_cost() -> None:
    coins = Cost(amount=2.0, unit="coins", source="price_table")
    own: dict[str, Any] = {"custom_id": "a", "fingerprint": bytes(16)}
    tally = Tally(total=3, completed=0, failed=0)
    tried = Attempt(call_id="p-1-1", code="no_choices", lost=False, model="m", cost=coins, at=1.0, **own)
    lost = Outcome(index=1, status="failed", error_code="timeout", lost=True, **own)
    tally.kept([tried, lost, Outcome(index=2, status="failed", error_code="http_400", **own)])
    assert (tally.cost, tally.cost_unknown, tally.failed) == ({"coins": 2.0}, 1, 2)

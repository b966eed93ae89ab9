"""``plan``: what a run would do, without paying and without leaving anything changed behind."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import tracemalloc
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
from canned import PRICED, canned, completion, deployment, key_facts, litellm, lumen, lumen_model
from conftest import Bench, Pipeline, write_jsonl

from pipeline import Job, Redo, Wishes
from pipeline.errors import JobError, LockedError
from pipeline.ground.wording import money
from pipeline.journal import Lock
from pipeline.plan import Plan, plan
from pipeline.plan.forecast import Measured, Span
from pipeline.plan.words import described

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
PRICES = {"prices": {"sim/echo": {"input_per_million": 1.0, "output_per_million": 2.0}}}


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"id": f"r{n}", "text": " ".join(WORDS[: 1 + n * 7 % 10] * (1 + n % 4)) + f" {n}"}
        for n in range(start, start + count)
    ]


def planned(bench: Bench, *, show: int = 0, **changes: Any) -> Plan:
    overrides = {**bench.settings, **{key.replace("__", "."): value for key, value in changes.items()}}
    before = bench.server.ledger()["totals"]["billed"]
    found = asyncio.run(plan(Job.load(None, overrides=overrides), show=show))
    assert bench.server.ledger()["totals"]["billed"] == before, "a plan costs nothing"
    return found


def inside(span: Span, truth: float) -> bool:
    return span.low <= truth and (span.high is None or truth <= span.high)


def outcomes(bench: Bench) -> list[Any]:
    with sqlite3.connect(bench.folder / "out.jsonl.run" / "journal.sqlite") as db:
        found = db.execute("SELECT * FROM outcome ORDER BY no").fetchall()
        found += (
            db.execute("SELECT * FROM run").fetchall() + db.execute("SELECT * FROM meta WHERE key = 'job'").fetchall()
        )
    db.close()
    return found


def test_before_the_first_run_it_guesses_and_says_so(bench: Bench) -> None:
    bench.write([*rows(50), {"id": "twin", "text": rows(1)[0]["text"]}])
    found = planned(bench, request__params={"max_tokens": 100}, **PRICES)
    assert (found.rows, found.new, found.pending, found.copies, found.measured_on) == (51, 51, 51, 1, 0)
    assert found.completion_tokens == Span(low=51, high=5100)
    assert found.seconds is None
    text = described(found)
    assert "a guess until 5 rows are answered: pipeline try" in text
    assert "ok      the gateway answers\n" in text, "no key was given that it could take"
    assert "1 of those asks just what another one asks" in text
    planned_bodies = planned(bench, show=51, request__params={"max_tokens": 100}).bodies
    summary, sent = bench.run(request__params={"max_tokens": 100}, **PRICES)
    assert (summary.exit_code, sent) == (0, 51)
    size = sum(len(orjson.dumps(body.body)) for body in planned_bodies)
    assert found.prompt_tokens == Span(low=size // 5, high=-(-size // 3)), "a fifth to a third of the bytes"
    assert inside(found.completion_tokens, summary.completion_tokens)


def test_without_a_bound_there_is_none(bench: Bench) -> None:
    bench.write(rows(5))
    found = planned(bench)
    assert found.completion_tokens.high is None
    assert found.cost_unknown == 5
    assert "set max_tokens for a bound" in described(found)
    assert "the price of 5 rows is unknown" in described(found)


@pytest.mark.parametrize("sample", [True, False])
def test_the_calibrated_range_contains_the_truth(bench: Bench, sample: bool) -> None:
    bench.write(rows(600))
    tried, _ = bench.run(Wishes(most=60, sample=sample, publish=False), **PRICES)
    found = planned(bench, **PRICES)
    assert (found.measured_on, found.pending, found.succeeded) == (60, 540, 60)
    summary, _ = bench.run(**PRICES)
    used = {
        "prompt": (found.prompt_tokens, summary.prompt_tokens - tried.prompt_tokens),
        "completion": (found.completion_tokens, summary.completion_tokens - tried.completion_tokens),
        "cost": (found.cost["USD"], summary.cost["USD"] - tried.cost["USD"]),
    }
    for name, (span, truth) in used.items():
        assert inside(span, truth), (name, span, truth)
        assert span.high is not None and span.high - span.low < 0.5 * truth, f"{name}: a range that says nothing"
    assert found.seconds is not None
    assert "from 60 answers" in described(found)


def test_grown_and_changed_input(bench: Bench) -> None:
    bench.write(rows(40))
    bench.run()
    before = outcomes(bench)
    grown = rows(60)
    grown[3]["text"] = "something else"
    bench.write(grown)
    found = planned(bench)
    assert (found.rows, found.succeeded, found.new, found.changed, found.pending) == (60, 39, 20, 1, 21)
    assert outcomes(bench) == before
    _, sent = bench.run()
    assert sent == 21


def test_another_prompt_leaves_the_journal_as_it_was(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(rows(40))
    bench.run()
    before = outcomes(bench)
    found = planned(bench, request__prompt="now {{ text }}")
    assert (found.changed, found.pending) == (40, 40)
    last = described(found).splitlines()[-1]
    assert last.startswith("ASKS    40 of 40 done rows changed and would be paid for again: a run asks first")
    assert last.endswith("stops with exit 2; to have them sent, run with --accept-changes")
    assert found.exit_code == 0
    assert found.measured_on == 0
    assert outcomes(bench) == before
    exported = pipeline("export", "out.jsonl", "-o", "again.jsonl")
    assert (exported.code, "40 rows written" in exported.err) == (0, True), (
        "plan must not spoil what an earlier run left"
    )
    assert bench.run()[1] == 0


def test_failed_rows_and_rows_to_do_again(bench: Bench) -> None:
    bench.write([*rows(4), {"id": "null", "text": None}])
    bench.run()
    found = planned(bench)
    assert (found.succeeded, found.failed, found.pending) == (4, 1, 0)
    assert "Tokens" not in described(found)
    bench.write([*rows(4), {"id": "null", "text": None}, {"id": "null2", "text": None}])
    found = planned(bench)
    assert (found.failing, found.pending) == (1, 1)
    assert "1 row cannot be sent and will fail, e.g. null2" in described(found)
    assert "in.jsonl:6: the column" in described(planned(bench, input__id=None)), "no fingerprint"
    bench.run(Wishes(redo=Redo(columns=("status=succeeded",)), most=1, publish=False))
    assert planned(bench).redo == 3


def test_show_prints_what_would_be_sent(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(rows(3))
    found = planned(bench, show=2)
    assert [body.custom_id for body in found.bodies] == ["r0", "r1"]
    assert found.bodies[0].body == {"messages": [{"content": "say alpha 0", "role": "user"}], "model": "sim/echo"}
    assert '--- r0 -> /chat/completions\n{"messages":[{"content":"say alpha 0","role":"user"}],"model":"sim/echo"}' in described(found)  # fmt: skip
    with canned(lumen(lumen_model())) as server:
        ended = pipeline(
            "plan", "-i", "in.jsonl", "-o", "x.jsonl", "-g", "lumen", "--base-url", server.url, "-m", "dummy", "-p",
            "{{ text }}", "--set", "request.params.top_k=5", "--show", "1", "--json", env={"LUMEN_API_KEY": "sk-SECRET-0001-0001-0001"},
        )  # fmt: skip
    assert ended.code == 0, ended.err
    assert orjson.loads(ended.out)["bodies"][0]["body"]["extra_body"] == {"top_k": 5}, "as that gateway wants it"
    assert server.paid == 0


def test_a_folder_in_use_and_a_clash_of_columns(bench: Bench) -> None:
    bench.write(rows(3))
    planned(bench)
    with Lock(bench.folder / "out.jsonl.run"), pytest.raises(LockedError):
        planned(bench)
    bench.write([{"id": "a", "text": "x", "content": "mine"}])
    with pytest.raises(JobError, match="content"):
        planned(bench)


def litellm_plan(folder: Path, url: str, model: str = "lab/priced", **more: Any) -> Plan:
    settings = {
        "input.path": str(folder / "in.jsonl"), "output.path": str(folder / "out.jsonl"), "gateway.preset": "litellm",
        "gateway.base_url": url, "model": model, "request.prompt": "{{ text }}", "request.params": {"max_tokens": 100},
    }  # fmt: skip
    return asyncio.run(plan(Job.load(None, overrides={**settings, **more})))


def test_prices_budget_and_context_of_a_gateway(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [*rows(20), {"id": "long", "text": "word " * 8000}])
    key = (200, {"key": "x", "info": key_facts(max_budget=0.251, max_parallel_requests=2)})
    with canned(litellm(key=key)) as server:
        found = litellm_plan(tmp_path, server.url)
        text = described(found)
    assert (found.exit_code, found.slots, found.budget_left) == (0, 2, pytest.approx(0.001))
    assert found.cost["USD"].high is not None
    assert "the key's budget does not suffice" in text or "the key's budget may not suffice" in text
    assert "too long: the longest request" in text
    assert "estimated" in text
    assert server.paid == 0
    with canned(litellm()) as server:
        short = litellm_plan(tmp_path, server.url, **{"limits.max_cost": 1e-6})
    assert "limits.max_cost does not suffice" in described(short)


def test_a_free_model_costs_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(20))
    with canned(litellm()) as server:
        found = litellm_plan(tmp_path, server.url, "lbl/cborg-chat")
    assert found.cost == {"USD": Span(low=0.0, high=0.0)}


@pytest.mark.parametrize(
    ("changes", "model", "code"),
    [
        ({"models": (401, {"error": {"message": "Authentication Error", "type": "auth_error", "code": "401"}})}, "lab/priced", 4),
        ({}, "nope", 4),
        ({}, "nomic-embed-text", 2),
        ({"key": (200, {"info": key_facts(spend=21.0)})}, "lab/priced", 5),
    ],
)  # fmt: skip
def test_a_stop_is_the_exit_code(
    tmp_path: Path, pipeline: Pipeline, changes: dict[str, Any], model: str, code: int
) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(3))
    with canned(litellm(**changes)) as server:
        ended = pipeline(
            "plan", "-i", "in.jsonl", "-o", "out.jsonl", "-g", "litellm", "--base-url", server.url, "-m", model, "-p",
            "{{ text }}", env={"PIPELINE_API_KEY": "sk-SECRET-0001-0001-0001"},
        )  # fmt: skip
    assert (ended.code, "STOP" in ended.out, "3 to send" in ended.out) == (code, True, True), ended.err
    assert server.paid == 0


def test_an_unreachable_gateway_is_said_and_stops_nothing(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(3))
    found = litellm_plan(tmp_path, "http://127.0.0.1:9")
    assert found.exit_code == 0
    last = described(found).splitlines()[-1]
    assert last.startswith(
        "AWAY    the gateway was not reached, so what it would say is not known (connect_failed); a run waits for it 60 s, with --wait"
    )


def test_rows_that_name_models_nobody_has(tmp_path: Path) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    lines = [
        {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": {**body, "model": name}}
        for name in ("lab/priced", "lab/gone")
    ]
    write_jsonl(tmp_path / "in.jsonl", lines)
    with canned(litellm()) as server:
        settings = {"input.path": str(tmp_path / "in.jsonl"), "output.path": str(tmp_path / "out.jsonl")}
        more = {"gateway.preset": "litellm", "gateway.base_url": server.url}
        found = asyncio.run(plan(Job.load(None, overrides={**settings, **more})))
    assert "will fail: lab/gone" in described(found)
    assert (found.cost_unknown, list(found.cost)) == (1, ["USD"])


def test_the_clock_of_a_key_with_a_rate(tmp_path: Path, pipeline: Pipeline) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(100))
    info = (200, {"data": [deployment("lab/priced", "openai/p", **PRICED)]})
    words = ("-i", "in.jsonl", "-o", "out.jsonl", "-g", "litellm", "-m", "lab/priced", "-p", "{{ text }}", "--base-url")
    env = {"PIPELINE_API_KEY": "sk-SECRET-0001-0001-0001"}
    with canned(litellm(info=info, chat=(200, completion()))) as server:  # no rate yet: that would take a minute
        tried = pipeline("try", *words, server.url, "-n", "10", env=env)
    assert tried.code == 0, tried.err
    with canned(litellm(info=info, key=(200, {"key": "x", "info": key_facts(rpm_limit=10)}))) as server:
        ended = pipeline("plan", *words, server.url, "--deadline", "8m", "--json", env=env)
        told = pipeline("plan", *words, server.url, "--deadline", "8m", env=env)
    found = orjson.loads(ended.out)
    assert found["seconds"] == {"low": 540.0, "high": 540.0}
    assert found["measured_on"] == 10
    finish = found["finish"]
    assert (finish["bound"], finish["per_minute"], finish["openings"], finish["in_time"]) == ("requests", 10, 1, False)
    assert finish["at"] == {"low": finish["begun_at"] + 540, "high": finish["begun_at"] + 540}
    assert finish["by"] == finish["begun_at"] + 480
    assert "Time    90 rows at 10/min: 9 min 0 s; will not finish by " in told.out


def timed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    now: str,
    count: int = 10_000,
    key: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Plan, str]:
    """The plan of so many rows, begun ``now`` in New York, and its line about the time."""
    monkeypatch.setenv("TZ", "EST5EDT,M3.2.0,M11.1.0")
    time.tzset()
    write_jsonl(folder / "in.jsonl", [{"text": f"row {n}"} for n in range(count)])
    begun = datetime.fromisoformat(now).timestamp()
    paths = {"input.path": str(folder / "in.jsonl"), "output.path": str(folder / "out.jsonl")}
    more = {name.replace("__", "."): value for name, value in settings.items()}
    info = (200, {"data": [deployment("lab/priced", "openai/p", **PRICED)]})
    with canned(litellm(info=info, key=(200, {"key": "x", "info": key_facts(**(key or {}))}))) as server:
        gateway = {"gateway.preset": "litellm", "gateway.base_url": server.url, "model": "lab/priced"}
        job = Job.load(None, overrides={**paths, **gateway, "request.prompt": "{{ text }}", **more})
        found = asyncio.run(plan(job, wall_clock=lambda: begun))
    line = next((line for line in described(found).splitlines() if line.startswith("Time")), "")
    monkeypatch.undo()
    time.tzset()
    return found, line.removeprefix("Time").strip()


@pytest.mark.parametrize(
    ("now", "limits", "says"),
    [
        ("2026-11-24 21:00", {}, "10,000 rows at 30/min: 5 h 34 min or more, not before 2026-11-25 02:33 if begun now"),
        ("2026-11-24 21:00", {"deadline": "8h"}, "10,000 rows at 30/min: 5 h 34 min or more; may not finish by 05:00"),
        ("2026-11-25 01:00", {"deadline": "06:00"}, "10,000 rows at 30/min: 5 h 34 min or more; will not finish by 06:00"),
        ("2026-11-25 01:00", {"window": "20:00-06:00"}, "10,000 rows at 30/min: 5 h 34 min or more; will not finish by 06:00: 2 nights, not before 2026-11-25 20:33"),
        ("2026-11-24 12:00", {"window": "22:00-24:00"}, "10,000 rows at 30/min: 5 h 34 min or more; will not finish by 00:00: 3 nights, not before 2026-11-26 23:33"),
        ("2026-11-24 12:00", {"window": "12:00-14:00"}, "10,000 rows at 30/min: 5 h 34 min or more; will not finish by 14:00: 3 days, not before 2026-11-26 13:33"),
    ],
)  # fmt: skip
def test_whether_it_will_finish_in_its_hours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: str, limits: dict[str, str], says: str
) -> None:
    """Before anything was answered the rate alone tells, and only the least."""
    given = {f"limits__{name}": value for name, value in limits.items()}
    found, line = timed(tmp_path, monkeypatch, now, gateway__rpm=30, **given)
    assert line == f"{says} (an estimate)"
    assert found.seconds == Span(low=20_000.0, high=None)
    assert found.finish is not None and (found.finish.bound, found.finish.per_minute) == ("requests", 30.0)


def test_a_rate_that_takes_until_the_end_of_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = timed(tmp_path, monkeypatch, "2026-11-24 21:00", gateway__rpm=1e-6)
    assert "not before 9987-" in line


@pytest.mark.parametrize(
    ("job_rpm", "key_rpm", "tpm", "bound", "per_minute"),
    [
        (None, None, None, None, None),
        (60, None, None, "requests", 60.0),
        (None, 20, None, "requests", 20.0),
        (60, 20, None, "requests", 20.0),
        (10, 20, None, "requests", 10.0),
        (6000, None, 100, "tokens", 100.0),
    ],
)
def test_the_least_rate_that_anybody_named_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job_rpm: int, key_rpm: int, tpm: int, bound: str, per_minute: float
) -> None:
    rates = {"gateway__rpm": job_rpm, "gateway__tpm": tpm}
    given = {name: value for name, value in rates.items() if value is not None}
    found, line = timed(tmp_path, monkeypatch, "2026-11-24 21:00", 600, {"rpm_limit": key_rpm}, **given)
    if bound is None:
        assert found.finish is None and line.startswith("unknown until")
        return
    assert found.finish is not None
    assert (found.finish.bound, found.finish.per_minute) == (bound, per_minute)
    assert f"at {per_minute:g}{' tokens' if bound == 'tokens' else ''}/min" in line


def test_lumen_is_known_to_grant_30_a_minute(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows(90))
    with canned(lumen(lumen_model())) as server:
        settings = {
            "gateway.preset": "lumen",
            "gateway.base_url": server.url,
            "model": "dummy",
            "request.prompt": "{{ text }}",
        }
        paths = {"input.path": str(tmp_path / "in.jsonl"), "output.path": str(tmp_path / "out.jsonl")}
        job = Job.load(None, overrides={**settings, **paths, "gateway.api_key_env": "LUMEN_TEST_KEY"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUMEN_TEST_KEY", "sk-SECRET-0001-0001-0001")
            found = asyncio.run(plan(job))
    assert found.seconds == Span(low=180.0, high=None)


def test_slots_bind_where_the_rate_does_not_and_the_night_is_long_enough(bench: Bench) -> None:
    bench.write(rows(60))
    bench.run(Wishes(most=20, publish=False))
    evening = datetime.now().replace(hour=20, minute=0, second=0).timestamp()
    job = Job.load(None, overrides={**bench.settings, "limits.window": "20:00-06:00", "gateway.rpm": 1e6})
    found = asyncio.run(plan(job, wall_clock=lambda: evening))
    assert found.finish is not None and (found.finish.bound, found.finish.in_time) == ("slots", True)
    assert "40 rows with 8 requests at once: " in described(found)
    assert "; will finish by 06:00 (an estimate)" in described(found)


def test_what_is_left_of_max_cost_total(bench: Bench) -> None:
    bench.write(rows(60))
    spent = bench.run(Wishes(most=20, publish=False), **PRICES)[0].cost["USD"]
    enough = planned(bench, limits__max_cost_total=10 * spent, **PRICES)
    assert "max_cost_total" not in described(enough)
    short = planned(bench, limits__max_cost_total=2 * spent, **PRICES)
    assert f"limits.max_cost_total does not suffice: {money({'USD': spent})} are left" in described(short)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        write_jsonl(tmp_path / f"{count}.jsonl", [{"text": f"row {n} " + "x" * 200} for n in range(count)])
        settings = {"gateway.preset": "simulator", "model": "m", "request.prompt": "{{ text }}"}
        paths = {"input.path": str(tmp_path / f"{count}.jsonl"), "output.path": str(tmp_path / f"{count}.out.jsonl")}
        job = Job.load(None, overrides={**settings, **paths})
        tracemalloc.start()
        assert asyncio.run(plan(job)).pending == count
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(100)
    small, large = peak(4_000), peak(16_000)
    assert large < small + 2_000_000


def test_a_line_is_found_and_a_few_equal_rows_are_not_certain() -> None:
    line = Measured()
    for x in range(100, 300):
        line.add(x, 20 + 0.25 * x + (x % 3 - 1))
    span = line.forecast(1000, 1000 * 500)
    assert span is not None and span.high is not None
    assert inside(span, 1000 * (20 + 0.25 * 500))
    assert span.high - span.low < 0.05 * span.high
    equal = Measured(grain=1.0)
    for _ in range(20):
        equal.add(100, 1)
    certain = equal.forecast(1000, 100_000)
    assert certain is not None and certain.high is not None and certain.high > 1050
    assert Measured().forecast(10, 10) is None

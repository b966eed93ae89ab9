"""``request.dedupe``: rows that ask the same are sent once, whatever comes between; the others are given the answer."""

from __future__ import annotations

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench, Pipeline, Server, clean_environment, read_jsonl, write_jsonl
from filled import answered, failed, job_for, workspace
from test_plan import PRICES, inside, planned

import pipeline.sending
from pipeline import Job, Redo, Summary, Wishes
from pipeline.journal import copies
from pipeline.plan.words import described
from pipeline.progress import Activity, Tally
from pipeline.records import Request
from pipeline.run import Run
from pipeline.signals import Signals
from pipeline.trial import shown_rows
from pipeline.verify import verify

DEDUPE = {"request__dedupe": True, **PRICES}
TWELVE = [{"id": f"r{n}", "text": f"text {n % 4}"} for n in range(12)]


def again(bench: Bench, wishes: Wishes | None = None, **changes: Any) -> tuple[Summary, int]:
    return bench.run(wishes, **{**DEDUPE, **changes})


def sources(bench: Bench) -> list[str]:
    return [row["cost_source"] for row in bench.results()]


def proven(bench: Bench) -> None:
    assert verify(bench.folder / "out.jsonl.run").findings == []


@pytest.mark.parametrize("id_column", ["id", None])
def test_rows_that_ask_the_same_are_sent_once_and_the_copies_say_so(bench: Bench, id_column: str | None) -> None:
    bench.write(TWELVE)
    summary, sent = again(bench, input__id=id_column)
    assert (summary.exit_code, summary.completed, summary.sent, summary.reused, sent) == (0, 12, 4, 8, 4)
    rows = bench.results()
    assert [row["id"] for row in rows] == [row["id"] for row in TWELVE]
    assert len({row["custom_id"] for row in rows}) == 12
    for copy in rows[4:]:
        first = rows[int(copy["id"][1:]) % 4]
        for same in ("status", "content", "finish_reason", "model", "served_model", "fingerprint", "request_id", "completed_at", "cost_unit"):  # fmt: skip
            assert copy[same] == first[same] is not None, same
        assert (copy["cost"], copy["cost_source"], copy["attempts"], copy["lost_attempts"]) == (0, "reused", 0, 0)
        assert (copy["prompt_tokens"], copy["completion_tokens"], copy["total_tokens"], copy["latency_s"]) == (
            0,
            0,
            0,
            None,
        )
    bought = rows[:4]
    assert all(row["cost_source"] == "price_table" and row["attempts"] == 1 for row in bought)
    assert (
        summary.prompt_tokens
        == sum(row["prompt_tokens"] for row in rows)
        == sum(row["prompt_tokens"] for row in bought)
    )
    assert summary.cost["USD"] == pytest.approx(sum(row["cost"] for row in bought))
    proven(bench)
    assert again(bench, input__id=id_column)[1] == 0


def test_without_it_equal_rows_are_as_many_answers(bench: Bench) -> None:
    bench.write(TWELVE)
    summary, sent = bench.run(**PRICES)
    assert (summary.reused, sent, set(sources(bench))) == (0, 12, {"price_table"})


def test_a_copy_of_unknown_cost_is_free_and_hides_nothing(bench: Bench) -> None:
    bench.write(TWELVE)
    summary, _ = bench.run(request__dedupe=True)
    assert (summary.cost, summary.cost_unknown) == ({}, 4)
    assert [row["cost"] for row in bench.results()] == [None] * 4 + [0.0] * 8


@pytest.mark.parametrize("batches", [0, 1, 2])
def test_a_run_that_dies_before_its_copies_are_done_buys_nothing_again(
    bench: Bench, batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    give = copies.give

    def dying(*given: Any) -> Iterator[copies.Given]:
        for _, batch in zip(range(batches), give(*given), strict=False):
            yield batch

    bench.write(TWELVE)
    monkeypatch.setattr(copies, "BATCH_ROWS", 3)
    monkeypatch.setattr(copies, "give", dying)
    summary, sent = again(bench)
    assert (summary.exit_code, summary.pending, sent) == (75, 8 - 3 * batches, 4)
    monkeypatch.undo()
    summary, sent = again(bench)
    assert (summary.exit_code, summary.completed, summary.sent, sent) == (0, 12, 0, 0)
    assert sources(bench) == ["price_table"] * 4 + ["reused"] * 8
    proven(bench)


@pytest.mark.slow
def test_killed_at_random_moments_every_request_is_bought_once(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve("--latency", "0.02", "--jitter", "0.8")
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": f"text {n % 300}"} for n in range(3000)])
    words = [
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}", "-c", "4",
        "--id", "id", "--set", "request.dedupe=true",
    ]  # fmt: skip
    chance = random.Random(4)
    kills = 0

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline", *words], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, env=clean_environment(),
        )  # fmt: skip

    for _ in range(10):
        run = started()
        time.sleep(chance.uniform(0.5, 1.0))
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
    last = started()
    errors = last.communicate(timeout=60)[1]
    assert last.returncode == 0, errors
    rows = read_jsonl(tmp_path / "out.jsonl")
    assert [row["content"] for row in rows] == [rows[n % 300]["content"] for n in range(3000)]
    assert Counter(row["cost_source"] == "reused" for row in rows) == {False: 300, True: 2700}
    seen = Counter(entry["body_digest"] for entry in server.ledger()["requests"])
    lost = sum(row["lost_attempts"] for row in rows)
    print(f"{kills} kills: {sum(seen.values())} requests for 300 different ones, {lost} of them named as lost")
    assert kills > 1
    assert len(seen) == 300
    assert sum(seen.values()) - 300 <= lost <= 2 * 4 * kills


FAULT = {"fault": 400, "match": "text 2"}


def test_the_copies_of_a_failed_row_fail_too_and_one_retry_is_for_all(bench: Bench, serve: Any) -> None:
    bench.server = serve(faults=[{**FAULT, "times": 1}])
    bench.settings["gateway.base_url"] = bench.server.url
    bench.write(TWELVE)
    summary, sent = again(bench)
    assert (summary.exit_code, summary.failed, summary.reused, sent) == (3, 3, 8, 4)
    bad = [row for row in bench.results() if row["status"] == "failed"]
    assert len({(row["error_code"], row["error_message"]) for row in bad}) == 1
    assert [row["attempts"] for row in bad] == [1, 0, 0]
    assert again(bench)[1] == 0
    summary, sent = again(bench, Wishes(redo=Redo(failed=True)))
    assert (summary.exit_code, summary.failed, sent) == (0, 0, 1)
    assert [row["attempts"] for row in bench.results() if row["text"] == "text 2"] == [2, 0, 0]
    proven(bench)


def test_an_accepted_failure_is_accepted_of_its_copies(bench: Bench, serve: Any) -> None:
    bench.server = serve(faults=[FAULT])
    bench.settings["gateway.base_url"] = bench.server.url
    bench.write(TWELVE[:4])
    assert again(bench)[0].exit_code == 3
    assert again(bench, Wishes(accept_failed=True))[0].exit_code == 0
    bench.write(TWELVE)
    summary, sent = again(bench)
    assert (summary.exit_code, summary.failed, summary.accepted, sent) == (0, 3, 3, 0)


def test_what_was_answered_in_an_earlier_run_is_reused_also_of_rows_that_are_gone(bench: Bench) -> None:
    bench.write(TWELVE[:3])
    again(bench)
    bench.write([*TWELVE[4:], {"id": "new", "text": "text 0"}])
    summary, sent = again(bench)
    assert (summary.new, summary.kept, summary.reused, sent) == (9, 0, 8, 1), "only text 3 was never answered"
    assert [row["id"] for row in bench.results() if row["cost_source"] != "reused"] == ["r7"]
    proven(bench)


def test_a_succeeded_answer_goes_before_a_failed_one(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"id": name, "q": "same"} for name in "ab"])
    job = job_for(source, tmp_path / "out.jsonl", input__id="id")

    def mixed(request: Request) -> Any:
        return answered(request) if request.custom_id == "a" else failed(request)

    with workspace(job, mixed):
        pass
    write_jsonl(source, [{"id": name, "q": "same"} for name in "abc"])
    with workspace(job, lambda _: None) as space:
        assert space.journal.index().find_copies(hold=True) == 1
        assert list(copies.give(space.journal.db)) == [copies.Given(succeeded=1, failed=0)]


def test_turned_on_and_off_between_runs(bench: Bench) -> None:
    bench.write(TWELVE[:6])
    assert bench.run(**PRICES)[1] == 6
    bench.write(TWELVE[:10])
    assert again(bench)[1] == 0
    assert sources(bench) == ["price_table"] * 6 + ["reused"] * 4
    bench.write(TWELVE)
    assert bench.run(**PRICES)[1] == 2, "off again: what was reused stays, what is new is sent"
    assert sources(bench) == ["price_table"] * 6 + ["reused"] * 4 + ["price_table"] * 2
    summary, sent = bench.run(Wishes(redo=Redo(columns=("cost_source=reused",))), **PRICES)
    assert (summary.reused, sent) == (0, 4)


def only(bench: Bench, *names: str) -> Wishes:
    (bench.folder / "ids").write_text("\n".join(names))
    return Wishes(redo=Redo(ids=bench.folder / "ids"))


def test_a_row_that_is_done_again_is_sent_and_equal_ones_among_those_once(bench: Bench) -> None:
    bench.write(TWELVE)
    again(bench)
    assert again(bench, only(bench, "r4"))[1] == 1, "a copy"
    assert [row["cost_source"] for row in bench.results() if row["text"] == "text 0"] == [
        "price_table",
        "price_table",
        "reused",
    ]
    assert again(bench, only(bench, "r1"))[1] == 1, "an original"
    assert [row["attempts"] for row in bench.results() if row["text"] == "text 1"] == [2, 0, 0]
    summary, sent = again(bench, only(bench, *(row["id"] for row in TWELVE)))
    assert (summary.exit_code, summary.sent, sent) == (0, 4, 4)
    rows = bench.results()
    assert [row["cost_source"] for row in rows] == ["price_table"] * 4 + ["reused"] * 8
    assert [row["attempts"] for row in rows[:6]] == [2, 3, 2, 2, 1, 0], "r4 was bought once, and is a copy now"
    assert rows[4]["cost"] > 0, "what it cost then is not forgotten"
    assert len({row["request_id"] for row in rows}) == 4
    assert summary.cost["USD"] == pytest.approx(sum(row["cost"] for row in rows))
    proven(bench)


def test_an_interrupted_redo_takes_no_answer_from_before(bench: Bench) -> None:
    bench.write(TWELVE)
    again(bench)
    before = {row["id"]: row["request_id"] for row in bench.results()}
    wishes = only(bench, "r0", "r1", "r4", "r5")
    summary, sent = again(bench, Wishes(redo=wishes.redo, most=1, publish=False))
    assert (summary.pending, sent) == (2, 1), "r0 was sent, r4 took its answer"
    bench.write([*TWELVE, {"id": "new", "text": "text 1"}])
    summary, sent = again(bench, Wishes(most=1, sample=True, publish=False))
    assert sent == 1, "r1: there are answers from before the redo, good enough for the new row only"
    summary, sent = again(bench)
    assert (summary.exit_code, sent) == (0, 0)
    after = {row["id"]: row["request_id"] for row in bench.results()}
    assert {name for name in before if before[name] != after[name]} == {"r0", "r1", "r4", "r5"}
    assert after["r4"] == after["r0"]
    assert after["r5"] == after["r1"] == after["new"]
    proven(bench)


def stopped(bench: Bench, wishes: Wishes | None = None) -> Summary:
    """A run that stops before it sends anything, but sees to its copies."""

    async def nothing(*_: Any) -> pipeline.sending.Sent:
        return pipeline.sending.Sent()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.sending.Sending, "_sent", nothing)
        return again(bench, wishes)[0]


def test_a_new_row_does_not_pass_an_old_answer_on_to_one_that_is_done_again(bench: Bench) -> None:
    bench.write(TWELVE[:8])
    again(bench)
    bench.write(TWELVE[::-1])
    assert stopped(bench, only(bench, "r0")).pending == 1, "r8 has the answer of r4, r0 waits"
    assert again(bench)[1] == 1
    bench.write([{"id": "front", "text": "text 0"}, *TWELVE])
    summary, sent = again(bench, only(bench, "r0"))
    assert (summary.exit_code, sent) == (0, 1), "an equal row before it that is a copy does not stand in for it"


def test_rows_that_wait_to_be_done_again_lend_no_answer_and_lose_nothing(bench: Bench) -> None:
    bench.write(TWELVE[:5])
    bench.run(**PRICES)
    bench.write(TWELVE)
    assert stopped(bench, only(bench, "r0", "r3", "r4")).pending == 6, "r8 waits for r0, r7 and r11 for r3"
    bench.write([row for row in TWELVE if row["id"] != "r3"])
    summary, sent = again(bench)
    assert (summary.exit_code, sent) == (0, 2), "for r0, and for r7 since r3 is gone"
    found = {row["id"]: (row["attempts"], row["cost_source"]) for row in bench.results()}
    assert (found["r0"], found["r4"], found["r8"]) == ((2, "price_table"), (1, "reused"), (0, "reused"))
    assert (found["r7"], found["r11"]) == ((1, "price_table"), (0, "reused"))
    proven(bench)


def test_a_second_signal_leaves_the_copies_to_the_next_run(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    signals = Signals()
    reuse = Tally.reuse

    def interrupted(tally: Tally, **given: int) -> None:
        reuse(tally, **given)
        signals.receive(signal.SIGTERM)

    bench.write(TWELVE)
    monkeypatch.setattr(copies, "BATCH_ROWS", 2)
    monkeypatch.setattr(Tally, "reuse", interrupted)
    overrides = {**bench.settings, "request.dedupe": True}
    summary = asyncio.run(Run(Job.load(None, overrides=overrides), Wishes(), signals=signals).live())
    assert (summary.exit_code, summary.reused) == (75, 4)
    monkeypatch.undo()
    assert again(bench)[1] == 0


def test_a_disk_that_fills_up_under_the_copies_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> copies.Given:
        raise sqlite3.OperationalError("database or disk is full")

    bench.write(TWELVE)
    monkeypatch.setattr(copies, "_given", full)
    summary, _ = again(bench)
    assert (summary.exit_code, summary.completed, summary.pending) == (75, 4, 8)
    assert "make room on that disk" in summary.reason
    monkeypatch.undo()
    assert again(bench)[1] == 0


def test_a_row_that_cannot_be_sent_is_no_copy_of_its_like(bench: Bench) -> None:
    bench.write([{"text": None}, {"text": None}, {"text": "fine"}, {"text": "fine"}])
    summary, sent = again(bench, input__id=None)
    assert (summary.exit_code, summary.failed, summary.reused, sent) == (3, 2, 1, 1)
    rows = bench.results()
    assert [(row["cost"], row["cost_source"], row["error_code"]) for row in rows[:2]] == [
        (None, "unknown", "null_field")
    ] * 2


def test_vectors_are_reused_to_the_last_bit(bench: Bench) -> None:
    bench.write(TWELVE)
    changes = {"request__endpoint": "embeddings", "request__pack": 3}
    summary, sent = again(bench, **changes)
    assert (summary.exit_code, summary.reused, sent) == (0, 8, 2), "4 texts in packs of 3"
    rows = bench.results()
    assert [row["embedding"] for row in rows] == [rows[n % 4]["embedding"] for n in range(12)]
    assert len(rows[0]["embedding"]) > 1
    assert sum(row["prompt_tokens"] for row in rows) == summary.prompt_tokens
    assert [row["usage_estimated"] for row in rows[4:]] == [False] * 8


def test_a_budget_pays_for_what_is_sent(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"text {n % 2}"} for n in range(40)])
    dear = {"prices": {"sim/echo": {"input_per_million": 1000.0, "output_per_million": 1000.0}}}
    limits = {"limits__max_cost": 0.15, "request__params": {"max_tokens": 8}, "gateway__concurrency": 1, **dear}
    summary, sent = bench.run(**limits)
    assert summary.exit_code == 5
    assert 2 < sent < 40, "enough for two, not for all"
    bench.settings["output.path"] = str(bench.folder / "other.jsonl")
    summary, sent = again(bench, **limits)
    assert (summary.exit_code, summary.reused, sent) == (0, 38, 2)


def test_copies_of_what_was_answered_are_done_also_when_the_budget_stops_the_run(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"text {n % 20}"} for n in range(60)])
    dear = {"prices": {"sim/echo": {"input_per_million": 1000.0, "output_per_million": 1000.0}}}
    limits = {"limits__max_cost": 0.15, "request__params": {"max_tokens": 8}, "gateway__concurrency": 1, **dear}
    summary, sent = again(bench, **limits)
    assert summary.exit_code == 5
    assert (summary.completed, summary.reused) == (3 * sent, 2 * sent)


def test_try_sends_different_rows_and_shows_those(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"text {n // 3}"} for n in range(12)])
    summary, sent = again(bench, Wishes(most=3, publish=False))
    assert (summary.sent, summary.completed, sent) == (3, 9, 3)
    assert [row.custom_id for row in shown_rows(bench.folder / "out.jsonl.run", 3)] == ["r0", "r3", "r6"]


def test_many_changed_rows_that_ask_what_was_asked_need_no_yes(bench: Bench) -> None:
    bench.write(TWELVE)
    again(bench)
    bench.write([{**row, "text": "text 0"} for row in TWELVE])
    summary, sent = again(bench)
    assert (summary.exit_code, summary.changed, sent) == (0, 9, 0)


def test_the_words_and_the_way_to_100_percent(bench: Bench, pipeline: Pipeline) -> None:
    bench.write([{"id": f"r{n}", "text": f"text {n % 500}"} for n in range(1500)])
    words = (
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--base-url",
        bench.server.url,
        "-m",
        "sim/echo",
        "-p",
        "{{ text }}",
        "--id",
        "id",
    )
    ended = pipeline("run", *words, "-c", "32", "--set", "request.dedupe=true")
    assert ended.code == 0, ended.err
    assert "500 rows to send; 1,000 ask just what another one asks and get its answer." in ended.err
    assert "500 rows sent." in ended.err
    assert "Rows: 1,500 succeeded, 0 failed, 0 left, of 1,500; 1,000 reused." in ended.err
    assert "Rows: 1,500 succeeded, 0 failed, 0 left, of 1,500; 1,000 reused." in pipeline("status", "out.jsonl").out
    assert pipeline("verify", "out.jsonl").code == 0


def test_copies_take_no_time_and_are_counted_when_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.progress.LEAST_WINDOW_S", 0.0)
    tally = Tally(total=100, completed=0, failed=0, copies=60, cost={"USD": 0.0})
    tally.snapshot(Activity())
    tally.completed = tally.sent = 20
    tally.cost["USD"] = 1.0
    shown = tally.snapshot(Activity(busy=4))
    assert shown.eta_s == pytest.approx(20 / shown.rows_per_s), "20 rows to send are left, and 60 copies"
    assert shown.projected_cost == {"USD": 2.0}
    tally.completed = tally.sent = 38
    assert tally.snapshot(Activity(busy=2)).doing.startswith("2 rows left")
    tally.completed = tally.sent = 40
    tally.reuse(succeeded=59, failed=1)
    shown = tally.snapshot(Activity())
    assert (shown.completed, shown.failed, shown.pending, shown.reused, shown.eta_s) == (99, 1, 0, 60, 0)
    assert "100/100 rows, 1 failed, 60 reused" in shown.line


def test_the_plan_says_what_it_would_save_and_then_leaves_it_out(bench: Bench) -> None:
    text = [{"id": f"r{n}", "text": f"{n % 30} " + "word " * (n % 30)} for n in range(90)]
    bench.write(text)
    off = planned(bench, request__params={"max_tokens": 10}, **PRICES)
    assert (off.pending, off.copies, off.dedupe) == (90, 60, False)
    assert off.copies_share == pytest.approx(2 / 3, abs=0.01)
    assert "60 of those ask just what another one asks: request.dedupe = true would send these once and save about 67% of the cost" in described(off)  # fmt: skip
    assert "67% of the tokens" in described(planned(bench))
    on = planned(bench, request__params={"max_tokens": 10}, **DEDUPE)
    assert (on.pending, on.new, on.copies, on.copies_share, on.dedupe) == (30, 90, 60, 0, True)
    assert "60 of them are not sent" in described(on)
    assert off.prompt_tokens.low == pytest.approx(3 * on.prompt_tokens.low, abs=3)
    summary, sent = again(bench, request__params={"max_tokens": 10})
    assert sent == on.pending
    assert summary.completed == 90


def test_a_plan_is_calibrated_on_what_was_bought(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"some words of row {n % 20}"} for n in range(60)])
    again(bench, Wishes(most=10, publish=False))
    found = planned(bench, **DEDUPE)
    assert (found.succeeded, found.measured_on, found.pending, found.copies) == (30, 10, 10, 20)
    summary, _ = again(bench)
    assert inside(found.prompt_tokens, summary.prompt_tokens // 2)

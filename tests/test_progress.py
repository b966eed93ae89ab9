"""What a person is shown of a run: one line, whole figures, what matters most first."""

from __future__ import annotations

import io
import re
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import Pipeline, write_jsonl
from pyarrow import parquet

from pipeline import Job, run
from pipeline.ending import last_words
from pipeline.ground.wording import in_one_line, number, outage, plural
from pipeline.progress import Activity, Snapshot, Tally
from pipeline.progress.display import Lines, Logged, Silent
from pipeline.records import Summary
from pipeline.verify import Finding, Report, told


def shown(*, rpm: float | None = 12_000.0, trouble: str | None = None, waiting: int = 0) -> Snapshot:
    tally = Tally(total=1_000, completed=200, failed=7, tokens=56_789, cost={"USD": 0.0123})
    tally._marks.append((time.monotonic() - 10.0, 0, 0))
    tally.sent = 100
    return tally.snapshot(Activity(busy=3, slots=5, rpm=rpm, trouble=trouble, waiting=waiting))


def test_a_narrow_terminal_gets_whole_figures_and_those_that_matter() -> None:
    snapshot = shown()
    whole = "207/1,000 rows, 7 failed, 1 min 19 s left, 10.0 rows/s, 3/5 slots at 12,000/min, cost $0.0123 of about $0.0594, 56,789 tokens (0/s)"
    assert (snapshot.line, snapshot.fitting(200)) == (whole, whole)
    assert snapshot.fitting(56) == "207/1,000 rows, 7 failed, 1 min 19 s left, 10.0 rows/s"
    for columns in range(len("207/1,000 rows, 7 failed"), len(whole)):
        assert len(snapshot.fitting(columns)) <= columns
        assert whole.startswith(f"{snapshot.fitting(columns)}, ")


def test_trouble_comes_first_and_in_one_line() -> None:
    snapshot = shown(trouble="http_500: boom\n\nand\tmore", waiting=4)
    assert snapshot.fitting(80) == "207/1,000 rows, 7 failed, 4 rows wait to try again (http_500: boom and more)"
    assert snapshot.fitting(40) == "207/1,000 rows, 7 failed, 4 rows wait..."
    assert snapshot.line.endswith(", 4 rows wait to try again (http_500: boom and more)")


def test_nobody_knows_how_long_it_takes_before_it_has_begun_in_earnest() -> None:
    tally = Tally(total=1_000, completed=0, failed=0)
    tally.snapshot(Activity())
    tally.completed = tally.sent = 1
    assert tally.snapshot(Activity(busy=1, slots=1, rpm=30.0)).eta_s is None


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (27.25, "27.2"), (30.0, "30"), (100.4, "100"), (1_000_000.0, "1,000,000")]
)
def test_numbers_have_no_exponents(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("code", "words"), [(75, "\nGo on with: p"), (130, "\nGo on with: p"), (2, "Mend that, then go on with: p")]
)
def test_the_next_command_does_not_promise_what_it_cannot(code: int, words: str) -> None:
    summary = Summary(
        exit_code=code, reason="x", total=5, completed=0, failed=0, pending=5, outages=[(0.0, 60.0, "http_500: a\n\nb")]
    )
    text = last_words(summary, again="p")
    assert words in text
    assert "The gateway was away for 1 min 0 s, from" in text
    assert "(http_500: a b)" in text


def test_rows_that_never_were_requests_are_not_to_be_tried_again_as_they_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": None}, {"text": "fine"}])
    settings = {
        "input.path": str(tmp_path / "in.jsonl"), "output.path": str(tmp_path / "out.jsonl"), "gateway.preset": "simulator",
        "model": "sim/echo", "request.prompt": "{{ text }}",
    }  # fmt: skip
    summary = run(Job.load(None, overrides=settings))
    assert (summary.failed, summary.unsent) == (1, 1)
    words = last_words(summary, again="pipeline run x")
    assert "They never became requests: mend the template or the data, then: pipeline run x" in words
    assert "--retry-failed" not in words
    assert "pipeline run x --accept-failed" in words


def test_an_outage_that_lasts_is_said_once_and_so_is_its_end(tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    display, now = Logged(Heard(), tmp_path), time.time()
    at_work = shown()
    for outages in ([], [(now - 1, None, "refused")], [(now - 9, None, "refused")], [(now - 9, None, "refused")]):
        display.show(replace(at_work, outages=outages))
    assert [text.partition(",")[0] for text in said] == ["The gateway is still away"]
    assert said[0].endswith("(refused)")
    for outages in (
        [(now - 9, now, "refused")],
        [(now - 9, now, "refused")],
        [(now - 9, now, "refused"), (now, now, "short")],
    ):
        display.show(replace(at_work, outages=outages))
    assert said[1:] == [outage(now - 9, now, "refused")]
    assert (tmp_path / "run.log").read_text().count("refused") == 2


def test_the_end_of_an_outage_is_said_also_where_the_next_began_at_once(tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    display, now = Logged(Heard(), tmp_path), time.time()
    for outages in ([(now - 9, None, "one")], [(now - 9, now - 1, "one"), (now - 1, None, "two")]):
        display.show(replace(shown(), outages=outages))
    assert said[1:] == [outage(now - 9, now - 1, "one")]


def test_outages_of_several_models_are_said_once_each(tmp_path: Path) -> None:
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    display, now = Logged(Heard(), tmp_path), time.time()
    for end in (None, None, now, now):
        display.show(replace(shown(), outages=[(now - 9, end, "one"), (now - 8, None, "two")]))
    assert said == [outage(now - 9, None, "one"), outage(now - 8, None, "two"), outage(now - 9, now, "one")]


def test_what_is_cut_off_says_so() -> None:
    assert outage(0.0, None, "html_reply: " + "word " * 40).endswith(" word ...)")
    assert outage(0.0, 9.0, "budget_exceeded: no money").startswith("The budget was used up for 9 s, from ")
    assert not outage(0.0, 9.0, "budget_exceeded: no money", is_said=True).endswith(")")
    assert in_one_line("a\n b", 3) == "a b"
    assert in_one_line("abcdefgh", 7) == "abc ..."


def test_where_nothing_is_done_there_is_nothing_to_look_at() -> None:
    nothing = Summary(exit_code=4, reason="x", total=2, completed=0, failed=0, pending=2, run_folder="out.run")
    assert last_words(nothing, again="p").endswith("\nLeft: 2 rows.\nMend that, then go on with: p")
    one = last_words(replace(nothing, completed=1, pending=1), again="p")
    assert "\nLeft: 1 row. What is done is kept in out.run\n" in one
    assert one.endswith("\nLook at what is there: pipeline export out.run --partial -o partial.jsonl")


def test_a_redo_of_empty_answers_is_said_to_take_failed_rows_along() -> None:
    summary = Summary(exit_code=0, reason="x", total=3, completed=3, failed=0, pending=0, empty=2)
    assert "2 answers are empty: --redo content= sends these rows again\n" in last_words(summary, again="p") + "\n"
    failed = replace(summary, exit_code=3, completed=2, failed=1)
    assert "sends these rows again, and the failed ones, which have none" in last_words(failed, again="p")


def test_one_is_not_said_as_many() -> None:
    assert [plural(count, "row") for count in (0, 1, 2, 1_000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    ones = Summary(
        exit_code=75, reason="x", total=2, completed=1, failed=0, pending=1, cut_off=1, empty=1, refusals=1, lost_attempts=1,
        in_flight=["r1"], cost_unknown=1,
    )  # fmt: skip
    report = Report(rows=1, pending=1, checked={"runs": 1}, findings=[Finding(check="a", what="b", do="c")])
    failed = replace(ones, exit_code=3, sent=1, failed=1, pending=0)
    for text in (last_words(ones, again="p"), last_words(failed, again="p"), "\n".join(told(report))):
        assert not re.search(
            r"\b1 (?:[a-z]+ ){0,2}(?:rows|answers|tries|requests|findings|refusals|runs|are|were|have)\b", text
        ), text
    assert "1 row checked (runs: 1); 1 finding." in "\n".join(told(report))
    assert "\nLeft: 1 row. " in last_words(ones, again="p")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (4, "the gateway was not reached for 60 s (http_500): HTTP 500: boom. Check the base URL"),
        (6, "the first 5 rows all failed alike (http_500: HTTP 500: boom)."),
    ],
)
def test_what_stopped_a_run_is_said_once_in_full(code: int, reason: str) -> None:
    cause = "http_500: HTTP 500: boom"
    summary = Summary(
        exit_code=code, reason=reason, total=9, completed=0, failed=5, pending=4, trouble=cause, outages=[(0.0, None, cause)],
        failures=[("http_500", 5, ["r1"], "HTTP 500: boom")],
    )  # fmt: skip
    text = last_words(summary, again="p")
    assert text.count("HTTP 500: boom") == 1
    assert text.startswith(f"Stopped after 0 s: {reason}\n")
    assert "\nThe gateway is still away, since " in text
    assert "\n  5 x http_500 (r1, ...)\n" in text
    finished = last_words(replace(summary, exit_code=3), again="p")
    assert "5 x http_500: HTTP 500: boom (r1, ...)" in finished, "there is no reason in its headline"


@pytest.mark.parametrize(
    ("name", "columns", "found"),
    [
        ("in.jsonl", ["text"], ["in.jsonl:2", "in.jsonl:3"]),
        ("in.parquet", ["text"], ["in.parquet row 2", "in.parquet row 3"]),
        ("in.jsonl", ["text", "custom_id"], ["b", "c"]),
    ],
)
def test_a_failed_row_is_named_so_that_it_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, columns: list[str], found: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "fine", "custom_id": "a"}, {"text": None, "custom_id": "b"}, {"text": None, "custom_id": "c"}]
    table = pa.Table.from_pylist([{column: row[column] for column in columns} for row in rows])
    parquet.write_table(table, name) if name.endswith("parquet") else write_jsonl(Path(name), table.to_pylist())
    settings = {
        "input.path": name, "output.path": "out.jsonl", "gateway.preset": "simulator", "model": "sim/echo",
        "request.prompt": "{{ text }}",
    }  # fmt: skip
    summary = run(Job.load(None, overrides=settings))
    assert [names for _, _, names, _ in summary.failures] == [found]
    assert "  2 x null_field: " in last_words(summary, again="p")
    assert f"({', '.join(found)})" in last_words(summary, again="p")


def test_a_line_in_a_log_has_date_and_time() -> None:
    stream = io.StringIO()
    Lines(stream).say("waiting: a\x1b[2Jb")
    Lines(stream, every_s=0.0).show(shown())
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert all(re.match(r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines), lines


@pytest.mark.parametrize(
    ("params", "hint"),
    [
        ({"max_tokens": 1}, "2 answers were cut off by max_tokens = 1 (finish_reason length): set a higher max_tokens in [request] params, or --set request.params.max_tokens=N"),
        ({"max_completion_tokens": 1}, "cut off by max_completion_tokens = 1 (finish_reason length): set a higher max_completion_tokens in"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_try_says_that_answers_were_cut_off(
    tmp_path: Path, pipeline: Pipeline, params: dict[str, int], hint: str | None
) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "many words, all of them to be said"}] * 2)
    words = ("-i", "in.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}")
    more = [word for name, most in params.items() for word in ("--set", f"request.params.{name}={most}")]
    for on_length in ("keep", "fail"):
        told = pipeline("try", *words, *more, "-o", f"{on_length}.jsonl", "--set", f"request.on_length={on_length}")
        assert told.code == 0, told.err
        assert hint in told.err if hint else "cut off" not in told.err

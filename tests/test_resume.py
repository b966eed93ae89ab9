"""Promise 3: a re-run sends only what has no final outcome for the same request, however the input moved meanwhile."""

from __future__ import annotations

import gzip
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Bench, Pipeline, Server, read_jsonl, write_jsonl
from filled import answered, failed, job_for, workspace

from pipeline import PipelineError, Redo, Wishes
from pipeline.errors import UsageError
from pipeline.journal import store
from pipeline.records import Outcome, Request
from pipeline.results import export
from pipeline.trial import shown_rows
from pipeline.verify import verify

ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(20)]


def _ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["id"] for row in rows]


def test_a_second_run_sends_nothing_says_so_and_leaves_the_file_alone(bench: Bench) -> None:
    bench.write(ROWS)
    first, sent = bench.run()
    assert (first.exit_code, first.completed, sent) == (0, 20, 20)
    stamp = (bench.folder / "out.jsonl").stat().st_mtime_ns
    second, sent = bench.run()
    assert (second.exit_code, second.sent, sent) == (0, 0, 0)
    assert (bench.folder / "out.jsonl").stat().st_mtime_ns == stamp


def test_an_untouched_input_is_walked_few_times_and_not_sorted(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in steps of SQLite's own: 84 a row, where it was 161 with each walk and each sorting that is not needed."""
    rows, steps = 2_000, 0

    def step() -> int:
        nonlocal steps
        steps += 100
        return 0

    def counted(*args: Any, **settings: Any) -> sqlite3.Connection:
        db = connect(*args, **settings)
        db.set_progress_handler(step, 100)
        return db

    bench.write([{"id": f"r{n}", "text": f"row {n}"} for n in range(rows)])
    assert bench.run()[1] == rows
    connect = store.connect
    monkeypatch.setattr(store, "connect", counted)
    assert bench.run()[1] == 0
    assert steps / rows < 110


@pytest.mark.parametrize("id_column", ["id", None])
def test_a_shuffled_input_sends_nothing_and_the_results_follow_it(bench: Bench, id_column: str | None) -> None:
    bench.write(ROWS)
    bench.run(input__id=id_column)
    shuffled = ROWS.copy()
    random.Random(3).shuffle(shuffled)
    bench.write(shuffled)
    summary, sent = bench.run(input__id=id_column)
    assert (summary.exit_code, sent) == (0, 0)
    assert _ids(bench.results()) == _ids(shuffled)
    assert all(row["text"] in row["content"] for row in bench.results())


@pytest.mark.parametrize("id_column", ["id", None])
def test_a_grown_input_sends_what_is_new(bench: Bench, id_column: str | None) -> None:
    bench.write(ROWS[:12])
    bench.run(input__id=id_column)
    bench.write(ROWS[15:] + ROWS[:15])
    summary, sent = bench.run(input__id=id_column)
    assert (summary.new, summary.changed, summary.kept, sent) == (8, 0, 12, 8)
    assert _ids(bench.results()) == _ids(ROWS[15:] + ROWS[:15])


@pytest.mark.parametrize("id_column", ["id", None])
def test_an_edited_row_is_sent_again_and_only_it(bench: Bench, id_column: str | None) -> None:
    bench.write(ROWS)
    bench.run(input__id=id_column)
    edited = [{**row, "text": "new text"} if row["id"] == "r7" else row for row in ROWS]
    bench.write(edited)
    summary, sent = bench.run(input__id=id_column)
    assert (summary.changed, sent) == (1, 1)
    assert "new text" in bench.results()[7]["content"]
    bench.write(ROWS)
    _, sent = bench.run(input__id=id_column)
    assert sent == 0, "the earlier answer is still in the journal"


def test_a_removed_row_leaves_the_results_and_nothing_is_sent(bench: Bench) -> None:
    bench.write(ROWS)
    bench.run()
    bench.write(ROWS[5:])
    _, sent = bench.run()
    assert sent == 0
    assert _ids(bench.results()) == _ids(ROWS[5:])


def test_equal_rows_without_ids_stay_as_many_rows_and_are_all_sent(bench: Bench) -> None:
    same = [{"text": "again"}] * 5 + [{"text": "once"}]
    bench.write(same)
    summary, sent = bench.run(input__id=None)
    assert (summary.completed, sent) == (6, 6)
    ids = [row["custom_id"] for row in bench.results()]
    assert sorted(one.rsplit("-", 1)[1] for one in ids) == ["1", "1", "2", "3", "4", "5"]
    bench.write([{"text": "again"}, *same, {"text": "again"}])
    _, sent = bench.run(input__id=None)
    assert sent == 2
    assert len({row["custom_id"] for row in bench.results()}) == 8


def test_fewer_equal_rows_and_then_more_again_cost_nothing(bench: Bench) -> None:
    (bench.folder / "in").mkdir()
    settings: dict[str, Any] = {"input__id": None, "input__path": str(bench.folder / "in")}
    bench.write([{"text": "again"}] * 2, "in/a.jsonl")
    bench.write([{"text": "again"}] * 2, "in/b.jsonl")
    assert bench.run(**settings)[1] == 4
    (bench.folder / "in" / "a.jsonl").unlink()
    assert bench.run(**settings)[1] == 0
    bench.write([{"text": "again"}] * 2, "in/a.jsonl")
    assert bench.run(**settings)[1] == 0
    results = bench.results()
    assert len({row["custom_id"] for row in results}) == 4
    assert len({row["request_id"] for row in results}) == 4, "two rows share one outcome"


@pytest.mark.parametrize("left", [1, 2])
def test_equal_rows_of_which_some_are_removed_are_not_asked_again(tmp_path: Path, left: int) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"q": "same"}] * 4 + [{"q": "other"}])
    job = job_for(source, tmp_path / "out.jsonl", request__prompt="{{ q }}")

    def some(request: Request) -> Outcome | None:
        """The first two of the equal ones are still to come; of the others, which are done, one failed."""
        occurrence = request.custom_id.rsplit("-", 1)[1]
        if occurrence == "2" or (occurrence == "1" and b"same" in request.body):
            return None
        return failed(request) if occurrence == "3" else answered(request, f"answer {request.custom_id}")

    with workspace(job, some) as space:
        lost = "INSERT INTO attempt SELECT custom_id, fingerprint, 'call', 'timeout', 1, model, 0.5, 'USD', 'gateway', 1.7e9, 1 FROM outcome"
        space.journal.db.execute(lost + " WHERE custom_id LIKE '%-4'")
    write_jsonl(source, [{"q": "other"}] + [{"q": "same"}] * left)
    asked: list[Request] = []
    with workspace(job, asked.append) as space:
        assert asked == []
        export(space, path=job.output.path, output_format="jsonl")
    rows = read_jsonl(job.output.path)
    assert [row["status"] for row in rows] == ["succeeded", "succeeded", "failed"][: left + 1], "the good one first"
    assert [row["cost"] for row in rows[:2]] == [0.25, 0.75], "what its lost attempt cost came along"
    assert [row["custom_id"].rsplit("-", 1)[1] for row in rows] == ["1", "1", "2"][: left + 1]
    assert verify(job.run_folder).findings == []
    write_jsonl(source, [{"q": "other"}] + [{"q": "same"}] * 4)
    with workspace(job, asked.append):
        pass
    assert len(asked) == 2, "4 rows, 2 outcomes"


def test_a_new_file_in_a_folder_in_front_of_the_others(bench: Bench) -> None:
    (bench.folder / "in").mkdir()
    settings = {"input__path": str(bench.folder / "in")}
    bench.write(ROWS[:5], "in/b.jsonl")
    bench.run(**settings)
    bench.write(ROWS[5:9], "in/a.jsonl")
    table = pa.Table.from_pylist(ROWS[9:12])
    pq.write_table(table, bench.folder / "in" / "c.parquet")
    (bench.folder / "in" / "d.jsonl.gz").write_bytes(gzip.compress(b'{"id": "z", "text": "zip"}\n'))
    summary, sent = bench.run(**settings)
    assert (summary.total, sent) == (13, 8)
    assert _ids(bench.results()) == [*_ids(ROWS[5:9]), *_ids(ROWS[:5]), *_ids(ROWS[9:12]), "z"]


@pytest.mark.parametrize("id_column", ["id", None])
@pytest.mark.parametrize(
    ("new", "changed", "kept"), [(104, 12, 1_310), pytest.param(1_204, 12, 48_310, marks=pytest.mark.slow)]
)
def test_a_grown_parquet_folder_sends_what_is_new_or_changed_and_says_so(
    pipeline: Pipeline, gateway: Server, tmp_path: Path, new: int, changed: int, kept: int, id_column: str | None
) -> None:
    folder, output = tmp_path / "in", tmp_path / "out.parquet"
    folder.mkdir()

    def write(name: str, rows: list[dict[str, Any]]) -> None:
        pq.write_table(pa.Table.from_pylist(rows), folder / name)

    rows = [{"id": n, "text": f"row {n}"} for n in range(kept + changed + new)]
    done, fresh = rows[: kept + changed], rows[kept + changed :]
    middle, end = len(done) // 3, 2 * len(done) // 3
    write("b.parquet", done[:middle])
    write("c.parquet", done[middle:end])
    write("d.parquet", done[end:])
    job = job_for(folder, output, input__id=id_column, request__prompt="{{ text }}", gateway__base_url=gateway.url)
    with workspace(
        job, lambda request: answered(request, f"kept answer to {orjson.loads(request.body)['messages'][0]['content']}")
    ) as space:
        export(space, path=output, output_format="parquet")
    assert verify(job.run_folder).findings == []

    write("a.parquet", fresh[: new // 2])  # a new file in front of the others
    shuffled = random.Random(5).sample(done[:middle], middle)
    write("b.parquet", shuffled)
    edited = [
        {**row, "text": row["text"] + ", edited"} if at < changed else row for at, row in enumerate(done[middle:end])
    ]
    write("c.parquet", edited)
    write("d.parquet", [*done[end:], *fresh[new // 2 :]])  # rows at the end of an old file
    now = [*fresh[: new // 2], *shuffled, *edited, *done[end:], *fresh[new // 2 :]]
    seen, stop = [], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            seen.append(pq.read_metadata(output).num_rows)

    looking = threading.Thread(target=look)
    looking.start()
    before = gateway.ledger()["totals"]["requests"]
    words = ("-i", folder, "-o", output, "--base-url", gateway.url, "-m", "asked", "-p", "{{ text }}", "-c", "32")
    ended = pipeline("run", *words, *(("--id", id_column) if id_column else ()))
    stop.set()
    looking.join()
    assert ended.code == 0, ended.err
    assert f"{new:,} new, {changed:,} changed, {kept:,} kept." in ended.err
    assert gateway.ledger()["totals"]["requests"] - before == new + changed
    assert set(seen) <= {len(done), len(rows)}, "there was an old file, or a complete new one, at any time"
    assert seen.count(len(done)) > 0
    results = pq.read_table(output).to_pylist()
    assert [(row["id"], row["text"]) for row in results] == [(row["id"], row["text"]) for row in now]
    again = {row["id"] for row in [*fresh, *edited[:changed]]}
    for row in results:
        assert row["text"] in row["content"]
        assert row["content"].startswith("kept answer") == (row["id"] not in again)
    assert verify(job.run_folder).findings == []


def test_the_same_rows_in_another_format_are_the_same_rows(bench: Bench) -> None:
    bench.write(ROWS)
    bench.run()
    pq.write_table(pa.Table.from_pylist(ROWS), bench.folder / "in.parquet")
    moved = {"input__path": str(bench.folder / "in.parquet")}
    with pytest.raises(PipelineError, match="belongs to the input"):
        bench.run(**moved)
    summary, sent = bench.run(Wishes(accept_changes=True), **moved)
    assert (summary.exit_code, sent) == (0, 0)


def test_a_changed_prompt_is_not_bought_by_accident(bench: Bench) -> None:
    bench.write(ROWS)
    bench.run()
    with pytest.raises(
        UsageError, match=r"20 done rows changed .* of 20 done: to do that, add --accept-changes"
    ) as caught:
        bench.run(request__prompt="shout {{ text }}")
    assert caught.value.exit_code == 2
    summary, sent = bench.run(Wishes(accept_changes=True), request__prompt="shout {{ text }}")
    assert (summary.exit_code, summary.changed, sent) == (0, 20, 20)
    _, sent = bench.run(request__prompt="shout {{ text }}")
    assert sent == 0


@pytest.mark.parametrize("id_column", ["id", None])
def test_the_guard_asks_once_also_when_the_accepted_run_is_cut_short(bench: Bench, id_column: str | None) -> None:
    bench.write(ROWS)
    bench.run(input__id=id_column)
    changed = {"request__prompt": "shout {{ text }}", "input__id": id_column}
    with pytest.raises(UsageError):
        bench.run(**changed)
    bench.run(Wishes(accept_changes=True, most=5, publish=False), **changed)
    summary, sent = bench.run(**changed)
    assert (summary.exit_code, sent) == (0, 15)


@pytest.mark.parametrize("id_column", ["id", None])
def test_a_changed_prompt_can_be_tried_and_the_full_run_still_asks(bench: Bench, id_column: str | None) -> None:
    bench.write(ROWS)
    bench.run(input__id=id_column)
    changed = {"request__prompt": "shout {{ text }}", "input__id": id_column}
    summary, sent = bench.run(Wishes(most=2, publish=False), **changed)
    assert (summary.exit_code, sent) == (75, 2)
    with pytest.raises(UsageError, match="done rows changed"):
        bench.run(**changed)
    summary, sent = bench.run(Wishes(accept_changes=True), **changed)
    assert (summary.exit_code, sent) == (0, len(ROWS) - 2)


@pytest.mark.parametrize(("before", "after"), [(None, "id"), ("id", None), ("id", "other")])
def test_another_id_column_buys_nothing_again(bench: Bench, before: str | None, after: str | None) -> None:
    bench.write([{"id": f"r{n}", "other": f"o{n}", "text": f"row {n // 2}"} for n in range(20)])
    bench.run(Wishes(most=15, publish=False), input__id=before)
    summary, sent = bench.run(input__id=after)
    assert (summary.exit_code, sent) == (0, 5)
    rows = bench.results()
    assert len({row["request_id"] for row in rows}) == 20
    assert all(row["text"] in row["content"] for row in rows)
    assert bench.run(input__id=after)[1] == 0


def test_a_refused_run_leaves_the_journal_as_it_was(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS)
    bench.run()
    with pytest.raises(UsageError, match="done rows changed"):
        bench.run(model="another")
    assert pipeline("verify", "out.jsonl").code == 0
    assert pipeline("export", "out.jsonl", "-o", "again.csv").code == 0
    bench.write([*ROWS, {"id": "r1", "text": "twice"}])
    with pytest.raises(PipelineError, match="stands already at"):
        bench.run()
    bench.write(ROWS)
    assert bench.run()[1] == 0


def test_what_does_not_make_the_request_does_not_change_it(bench: Bench, serve: Any) -> None:
    bench.write(ROWS)
    bench.run()
    other = serve()
    bench.server = other
    _, sent = bench.run(gateway__base_url=other.url, gateway__concurrency=3, gateway__timeout=17.0)
    assert sent == 0


def test_try_counts_for_the_run(bench: Bench) -> None:
    bench.write(ROWS)
    _, sent = bench.run(Wishes(most=3, publish=False))
    assert sent == 3
    assert not (bench.folder / "out.jsonl").exists()
    _, sent = bench.run()
    assert sent == 17


def test_try_can_take_rows_at_random(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": f"row {n}"} for n in range(2000)])
    _, sent = bench.run(Wishes(most=4, sample=True, publish=False))
    assert sent == 4
    bench.settings["output.path"] = str(bench.folder / "other.jsonl")
    bench.run(Wishes(most=4, sample=True, publish=False))
    picked = [
        {row.custom_id for row in shown_rows(bench.folder / name, 4)} for name in ("out.jsonl.run", "other.jsonl.run")
    ]
    assert len(picked[0]) == len(picked[1]) == 4
    assert picked[0] != picked[1]


FAULTY = [{"fault": 400, "match": "row 3", "times": 1}, {"fault": 400, "match": "row 5", "times": 1}]


def test_failed_rows_are_final_until_asked_for_and_all_costs_are_kept(bench: Bench, serve: Any) -> None:
    bench.server = serve(faults=FAULTY)
    bench.settings["gateway.base_url"] = bench.server.url
    bench.write(ROWS[:10])
    first, sent = bench.run()
    assert (first.exit_code, first.failed, sent) == (3, 2, 10)
    assert [row["status"] for row in bench.results()].count("failed") == 2
    failed = bench.results()[3]
    assert (failed["error_code"], failed["content"], failed["attempts"]) == ("scripted", None, 1)
    again, sent = bench.run()
    assert (again.exit_code, sent) == (3, 0)
    with pytest.raises(UsageError):
        bench.run(Wishes(redo=Redo(columns=("nonsense=1",))))
    retried, sent = bench.run(Wishes(redo=Redo(failed="other_code")))
    assert (retried.exit_code, sent) == (3, 0)
    retried, sent = bench.run(Wishes(redo=Redo(failed="scripted")))
    assert (retried.exit_code, retried.failed, sent) == (0, 0, 2)
    assert [row["attempts"] for row in bench.results()] == [1, 1, 1, 2, 1, 2, 1, 1, 1, 1]


def test_accepted_failures_end_with_zero_from_then_on(bench: Bench, serve: Any) -> None:
    bench.server = serve(faults=[{"fault": 400, "match": "row 3"}])
    bench.settings["gateway.base_url"] = bench.server.url
    bench.write(ROWS[:5])
    assert bench.run()[0].exit_code == 3
    assert bench.run(Wishes(accept_failed=True))[0].exit_code == 0
    assert bench.run()[0].exit_code == 0


def test_redo_by_column_and_by_ids(bench: Bench) -> None:
    bench.write(ROWS)
    bench.run(request__params={"max_tokens": 1})
    assert all(row["finish_reason"] == "length" for row in bench.results())
    _, sent = bench.run(Wishes(redo=Redo(columns=("custom_id=r4",))), request__params={"max_tokens": 1})
    assert sent == 1
    assert bench.results()[4]["attempts"] == 2
    (bench.folder / "ids").write_text("r1\nr2\n\n")
    _, sent = bench.run(Wishes(redo=Redo(ids=bench.folder / "ids")), request__params={"max_tokens": 1})
    assert sent == 2
    _, sent = bench.run(Wishes(redo=Redo(columns=("finish_reason!=length",))), request__params={"max_tokens": 1})
    assert sent == 0
    _, sent = bench.run(Wishes(redo=Redo(columns="custom_id=r4")), request__params={"max_tokens": 1})
    assert sent == 1, "one condition is no row of letters"
    _, sent = bench.run(Wishes(redo=Redo(ids=str(bench.folder / "ids"))), request__params={"max_tokens": 1})
    assert sent == 2


def test_an_interrupted_redo_goes_on_with_a_plain_run(bench: Bench) -> None:
    bench.write(ROWS)
    bench.run()
    summary, sent = bench.run(Wishes(redo=Redo(columns=("status=succeeded",)), most=5, publish=False))
    assert (sent, summary.completed, summary.pending) == (5, 5, 15)
    _, sent = bench.run()
    assert sent == 15


def test_rows_on_standard_input_are_kept_for_the_resume(pipeline: Pipeline, gateway: Server, tmp_path: Path) -> None:
    command = (
        "run",
        "-i",
        "-",
        "-o",
        "out.jsonl",
        "--base-url",
        gateway.url,
        "-m",
        "m",
        "-p",
        "{{ text }}",
        "--id",
        "id",
    )
    first = pipeline(*command, stdin='{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\n')
    assert first.code == 0, first.err
    again = pipeline(*command, stdin="")
    assert again.code == 0, again.err
    assert again.err.count("done") == 1, "said once"
    assert "Nothing to send" in again.err
    assert (tmp_path / "out.jsonl.run" / "stdin.jsonl").stat().st_mode & 0o777 == 0o600


def test_an_input_that_changes_while_it_is_read_ends_with_75_and_the_next_run_is_right(
    bench: Bench, monkeypatch: Any
) -> None:
    from pipeline.workspace.feed import Feed

    bench.write(ROWS)
    whole = Feed.index

    def index_then_edit(self: Feed, *args: Any, **more: Any) -> Any:
        found = whole(self, *args, **more)
        write_jsonl(bench.folder / "in.jsonl", [{**row, "text": "edited meanwhile"} for row in ROWS])
        return found

    monkeypatch.setattr(Feed, "index", index_then_edit)
    summary, sent = bench.run()
    assert (summary.exit_code, sent) == (75, 0)
    assert "changed while the run was reading it" in summary.reason
    monkeypatch.undo()
    assert bench.run()[0].exit_code == 0


def test_nothing_to_retry_is_said_in_the_words_that_were_asked(bench: Bench) -> None:
    def says(redo: Redo) -> str:
        bench.run(Wishes(redo=redo))
        return (bench.folder / "out.jsonl.run" / "run.log").read_text(encoding="utf-8").splitlines()[-2][20:]

    bench.write([{"id": "a", "text": "fine"}])
    bench.run()
    assert says(Redo(failed=True)) == "There is no failed row to retry."
    assert says(Redo(failed="timeout")) == "There is no failed row to retry."
    assert says(Redo(failed=True, columns=("content=",))) == "No done row matches."
    bench.write([{"id": "a", "text": "fine"}, {"id": "b", "text": None}])
    bench.run()
    assert (
        says(Redo(failed="timeout")) == "There is no row that failed with 'timeout'; there are rows with: null_field."
    )

"""One run as its users meet it: signals, locks, the Python door, the summary, the contract's exit codes."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Bench, Pipeline, Server, clean_environment, write_jsonl

from pipeline import Job, Wishes, arun, run
from pipeline.journal import Lock
from pipeline.progress import Snapshot
from pipeline.progress.display import Silent
from pipeline.run import Run

MAIN = "from pipeline.cli import main; main()"
ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(60)]


def _started(folder: Path, server: Server, *more: str) -> subprocess.Popen[str]:
    command = [
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "m", "-p", "{{ text }}", "-c", "4",
        "--id", "id", *more,
    ]  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "pipeline", *command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )


def _wait_for(server: Server, requests: int) -> None:
    deadline = time.monotonic() + 20
    while server.ledger()["totals"]["requests"] < requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def a_terminal_that_may_hang_up() -> Iterator[None]:
    """Whoever runs the tests may have had SIGHUP ignored, as nohup does, and children would take that over."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (signal.SIGTERM, 75, "SIGTERM"),
        pytest.param(signal.SIGHUP, 75, "SIGHUP", marks=pytest.mark.slow),
        (signal.SIGINT, 130, "Ctrl-C"),
    ],
)
def test_the_first_signal_drains(
    tmp_path: Path, serve: Callable[..., Server], number: signal.Signals, code: int, words: str
) -> None:
    server = serve("--latency", "0.4")
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    process = _started(tmp_path, server)
    _wait_for(server, 4)
    process.send_signal(number)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == code, errors
    assert words in errors
    left = int(re.search(r"Left: (\d+) rows", errors).group(1))  # type: ignore[union-attr]
    assert left == len(ROWS) - server.ledger()["totals"]["requests"], "what was in flight was finished and kept"
    assert "Go on with: pipeline run -i in.jsonl -o out.jsonl" in errors
    assert "pipeline export" in errors
    assert not (tmp_path / "out.jsonl").exists()
    again = _started(tmp_path, server)
    assert again.communicate(timeout=30)[1].count("Finished") == 1
    assert server.ledger()["totals"]["requests"] == len(ROWS)


def test_a_second_signal_cuts_off_and_names_what_was_in_flight(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(faults=[{"fault": "hang", "match": "row 1"}])
    write_jsonl(tmp_path / "in.jsonl", ROWS[:5])
    process = _started(tmp_path, server)
    _wait_for(server, 4)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None, "the first signal waits for what is in flight"
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=10)[1]
    assert process.returncode == 130
    assert "1 request was in flight and may be billed without an answer: r1" in errors
    log = (tmp_path / "out.jsonl.run" / "run.log").read_text(encoding="utf-8")
    assert "cut off with 1 request in flight: r1" in log, "before it is booked, should the last words never be said"
    status = orjson.loads((tmp_path / "out.jsonl.run" / "status.json").read_bytes())
    assert (status["completed"], status["pending"], status["lost_attempts"]) == (4, 1, 1)


@pytest.mark.slow
def test_two_runs_on_one_folder(tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline) -> None:
    server = serve("--latency", "1.5")
    write_jsonl(tmp_path / "in.jsonl", ROWS[:20])
    first = _started(tmp_path, server)
    _wait_for(server, 1)
    second = _started(tmp_path, server)
    errors = second.communicate(timeout=20)[1]
    assert second.returncode == 75
    assert (
        f"another run works in {tmp_path / 'out.jsonl.run'}: host {os.uname().nodename}, pid {first.pid}, since 20"
        in errors
    )
    assert "running on" in pipeline("status", "out.jsonl").out
    first.communicate(timeout=30)
    assert first.returncode == 0
    assert server.ledger()["totals"]["requests"] == 20


def test_a_lock_ends_with_its_process_and_names_the_holder(tmp_path: Path) -> None:
    with Lock(tmp_path) as lock:
        assert Lock(tmp_path).is_held()
        assert lock.holder()["pid"] == os.getpid()
    assert not Lock(tmp_path).is_held()
    assert lock.holder() == {}


def test_a_look_at_the_lock_of_a_killed_run_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b'{"host": "here", "pid": 999999}')
    looking = os.open(tmp_path / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as ``status --watch`` does, for an instant
    timer = threading.Timer(0.05, os.close, [looking])
    timer.start()
    with Lock(tmp_path) as lock:
        assert lock.holder()["pid"] == os.getpid()
    timer.join()


def test_run_works_inside_a_running_loop_as_in_a_notebook(bench: Bench) -> None:
    bench.write(ROWS[:5])
    job = Job.load(None, overrides=bench.settings)

    async def cell() -> tuple[int, int]:
        first = run(job)
        second = await arun(job)
        return first.sent, second.sent

    assert asyncio.run(cell()) == (5, 0)


def test_a_closed_terminal_drains(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """One that tells no size, and then is gone: the bar was not drawn, and what was in flight was lost."""
    server = serve("--latency", "0.4")
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    ours, theirs = pty.openpty()
    words = [
        "run",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--base-url",
        server.url,
        "-m",
        "m",
        "-p",
        "{{ text }}",
        "-c",
        "4",
    ]
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{MAIN}", *words],
        cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=clean_environment(),
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b" rows/s" not in seen:
        seen += os.read(ours, 10_000)
    _wait_for(server, 4)
    os.close(ours)
    assert process.wait(timeout=20) == 75
    status = orjson.loads((tmp_path / "out.jsonl.run" / "status.json").read_bytes())
    assert (status["reason"], status["completed"]) == ("stopped by SIGHUP", server.ledger()["totals"]["requests"])


NOTEBOOK = """
import asyncio, signal, sys
from pipeline import Job, run

signal.signal(signal.SIGINT, signal.default_int_handler)  # as a notebook's kernel has it while a cell works

async def cell():
    summary = run(Job.load("job.toml"))
    print(summary.exit_code, summary.reason, summary.pending, run(Job.load("job.toml")).completed, sep=", ")

asyncio.new_event_loop().run_until_complete(cell())
"""


def test_a_notebooks_stop_button_drains_the_run(tmp_path: Path, serve: Callable[..., Server]) -> None:
    """It worked on in its thread, paying, while the cell looked stopped and the next one met its lock."""
    server = serve("--latency", "0.2")
    write_jsonl(tmp_path / "in.jsonl", ROWS[:20])
    (tmp_path / "job.toml").write_text(
        f'model = "m"\n[gateway]\nbase_url = "{server.url}"\nconcurrency = 4\n[input]\npath = "in.jsonl"\n'
        '[request]\nprompt = "{{ text }}"\n[output]\npath = "out.jsonl"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", NOTEBOOK], cwd=tmp_path, text=True, env=clean_environment(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _wait_for(server, 4)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=30)
    code, reason, pending, completed = said.strip().split(", ")
    assert (code, reason, completed) == ("130", "interrupted (Ctrl-C)", "20"), errors
    assert 0 < int(pending) < 20
    assert server.ledger()["totals"]["requests"] == 20, "what was in flight was finished and kept"


def test_a_job_made_in_python(bench: Bench) -> None:
    bench.write(ROWS[:3])
    job = Job(
        model="sim/echo",
        gateway={"base_url": bench.server.url, "concurrency": 2},  # type: ignore[arg-type]
        input=str(bench.folder / "in.jsonl"),  # type: ignore[arg-type]
        request={"prompt": "{{ text }}"},  # type: ignore[arg-type]
        output=bench.folder / "api.jsonl",  # type: ignore[arg-type]
    )
    summary = run(job)
    assert (summary.exit_code, summary.completed, summary.results) == (0, 3, str(bench.folder / "api.jsonl"))


def test_files_may_be_given_as_paths_in_python(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bench.folder)
    bench.write(ROWS[:3])
    (bench.folder / "prompt.txt").write_text("Say {{ text }}", encoding="utf-8")
    settings = {key: value for key, value in bench.settings.items() if key != "request.prompt"}
    names = {"input.path": "in.jsonl", "output.path": "api.jsonl", "request.prompt_file": "prompt.txt", "run_dir": "r"}
    job = Job.load(overrides=settings | {key: Path(name) for key, name in names.items()})
    assert job == Job.load(overrides=settings | names)
    assert run(job).completed == 3
    again = Job(
        model="sim/echo",
        gateway={"base_url": bench.server.url},  # type: ignore[arg-type]
        input={"path": Path("in.jsonl")},  # type: ignore[arg-type]
        request={"prompt": "{{ text }}"},  # type: ignore[arg-type]
        output={"path": Path("other.jsonl")},  # type: ignore[arg-type]
    )
    assert run(again).completed == 3


def test_the_summary_counts_empty_cut_off_and_refused_answers(bench: Bench, serve: Callable[..., Server]) -> None:
    faults = [
        {"fault": "empty_content", "match": "row 1"},
        {"fault": "refusal", "match": "row 2"},
        {"fault": "no_usage", "match": "row 3"},
    ]
    bench.server = serve(faults=faults)
    bench.write(ROWS[:5])
    summary, _ = bench.run(
        gateway__base_url=bench.server.url,
        request__params={"max_tokens": 2},
        prices={"sim/echo": {"input_per_million": 1.0, "output_per_million": 2.0}},
    )
    assert (summary.empty, summary.refusals, summary.cut_off, summary.cost_unknown) == (1, 1, 3, 1)
    rows = bench.results()
    assert (rows[3]["prompt_tokens"], rows[3]["cost"], rows[3]["cost_source"]) == (None, None, "unknown")
    assert rows[0]["cost_source"] == "price_table"
    ledger = bench.server.ledger()["requests"]
    assert sum(row["cost"] or 0 for row in rows) == pytest.approx(
        sum(
            entry["prompt_tokens"] * 1e-6 + entry["completion_tokens"] * 2e-6
            for entry in ledger
            if entry["fault"] != "no_usage"
        ),
        abs=1e-12,
    )


def test_json_is_one_object_on_stdout_and_nothing_else(pipeline: Pipeline, gateway: Server, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS[:3])
    command = ("run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", gateway.url, "-m", "m", "-p", "{{ text }}")
    done = pipeline(*command, "--json")
    assert orjson.loads(done.out)["completed"] == 3
    status = pipeline("status", "out.jsonl", "--json")
    assert orjson.loads(status.out)["state"] == "ended"
    assert pipeline(*command, "-q").err == ""
    wrong = pipeline(*command, "--json", "-q", "-c", "0")
    assert (wrong.code, wrong.out) == (2, "") and "concurrency" in wrong.err


def test_options_environment_and_job_file_in_this_order(pipeline: Pipeline, gateway: Server, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS[:1])
    (tmp_path / "job.toml").write_text(
        f'model = "from-file"\n[gateway]\nbase_url = "{gateway.url}"\n[input]\npath = "in.jsonl"\n'
        '[request]\nprompt = "{{ text }}"\n[output]\npath = "out.jsonl"\n'
    )

    def asked(*words: str, env: dict[str, str] | None = None) -> str:
        done = pipeline("run", "job.toml", "--accept-changes", *words, env=env)
        assert done.code == 0, done.err
        return str(orjson.loads((tmp_path / "out.jsonl").read_bytes())["model"])

    assert asked() == "from-file"
    assert asked(env={"PIPELINE_MODEL": "from-env"}) == "from-env"
    assert asked("-m", "from-option", env={"PIPELINE_MODEL": "from-env"}) == "from-option"
    assert asked("--set", "model=from-set") == "from-set"


def test_try_shows_prompt_answer_tokens_and_cost(pipeline: Pipeline, gateway: Server, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    done = pipeline(
        "try", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", gateway.url, "-m", "m", "-p", "{{ text }}", "-n", "2"
    )
    assert done.code == 0, done.err
    assert done.out.count("---") == 4
    assert "user: row 1" in done.out
    assert "tokens, cost unknown" in done.out
    assert not (tmp_path / "out.jsonl").exists()


def test_a_try_of_a_row_that_cannot_be_sent(pipeline: Pipeline, gateway: Server, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": None}, *ROWS])
    words = ("try", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", gateway.url, "-m", "m", "-p", "{{ text }}")
    done = pipeline(*words, "-n", "1")
    assert (done.code, "stopped" in done.err) == (0, False), "all that was to be tried has been"
    assert "=> FAILED null_field: " in done.out
    assert done.out.endswith("\n   (not sent)\n\n"), "nothing is unknown of a row that was never sent"
    away = pipeline(*words, "--base-url", "http://127.0.0.1:9/v1", "-n", "1", "--json", "--set", "limits.max_outage=1")
    assert (away.code, orjson.loads(away.out)["exit_code"]) == (75, 75), "--json tells the code of the command"


def test_keys_come_from_the_environment_and_are_nowhere_else(
    pipeline: Pipeline, serve: Callable[..., Server], tmp_path: Path
) -> None:
    key = "sk-SECRET-very-0123456789"
    server = serve(faults=[{"fault": 400, "body": f"your key {key} is odd", "match": "row 1"}])
    write_jsonl(tmp_path / "in.jsonl", ROWS[:3])
    command = ("run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "m", "-p", "{{ text }}")
    done = pipeline(*command, "--api-key-env", "MY_KEY", env={"MY_KEY": key})
    assert done.code == 3
    assert "your key [key] is odd" in done.err
    for path in tmp_path.rglob("*"):
        if path.is_file() and "faults" not in path.name:
            assert key.encode() not in path.read_bytes(), path
    assert key not in done.err + done.out


def test_the_embedded_simulator_needs_no_network(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS[:5])
    overrides: dict[str, Any] = {
        "gateway": "simulator", "model": "sim/echo", "input": str(tmp_path / "in.jsonl"),
        "request.prompt": "{{ text }}", "output": str(tmp_path / "out.parquet"),
    }  # fmt: skip
    assert run(Job.load(None, overrides=overrides)).completed == 5


def test_verify_proves_a_good_run_and_finds_each_damage(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS[:10])
    bench.run()
    assert pipeline("verify", "out.jsonl").code == 0
    lines = (bench.folder / "out.jsonl").read_bytes().splitlines(keepends=True)
    (bench.folder / "out.jsonl").write_bytes(b"".join(lines[:-1]))
    short = pipeline("verify", "out.jsonl")
    assert (short.code, "ends after 9 rows" in short.err) == (6, True)
    (bench.folder / "out.jsonl").write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    swapped = pipeline("verify", "out.jsonl")
    assert (swapped.code, "row 1 is" in swapped.err) == (6, True)
    (bench.folder / "out.jsonl").unlink()
    assert pipeline("verify", "out.jsonl").code == 6
    assert bench.run()[1] == 0
    assert pipeline("verify", "out.jsonl").code == 0
    bench.write(ROWS[:11])
    grown = pipeline("verify", "out.jsonl")
    assert (grown.code, "was changed since the last run" in grown.err) == (6, True)


def test_verify_of_an_unfinished_run_says_to_go_on(bench: Bench, pipeline: Pipeline) -> None:
    bench.write(ROWS[:10])
    bench.run(Wishes(most=4, publish=False))
    done = pipeline("verify", "out.jsonl.run")
    assert done.code == 75
    assert "6 rows are still to be sent" in done.err


def test_a_display_that_breaks_costs_nothing(bench: Bench) -> None:
    from pipeline.entry import run as run_it
    from pipeline.progress.display import Steady

    class Broken:
        """As a closed pipe, or a log on a full disk."""

        def show(self, snapshot: object) -> None:
            """Fails."""
            raise BrokenPipeError

        say = close = show  # type: ignore[assignment]

    bench.write(ROWS[:5])
    bench.write([{"id": "x", "text": "first"}], "in.jsonl")
    summary = run_it(Job.load(None, overrides=bench.settings), display=Steady(Broken()))  # type: ignore[arg-type]
    assert (summary.exit_code, summary.completed) == (0, 1)


@pytest.mark.parametrize(
    "steps", [pytest.param(None, marks=pytest.mark.slow), 1, pytest.param(3, marks=pytest.mark.slow)]
)  # of the loop, until it is cancelled once more
def test_a_cancelled_arun_keeps_what_is_finished_and_closes_in_order(
    bench: Bench, serve: Callable[..., Server], steps: int | None
) -> None:
    bench.server = serve("--latency", "0.2")
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 4}
    bench.write(ROWS)

    async def main() -> set[str]:
        running = asyncio.create_task(arun(Job.load(None, overrides=bench.settings)), name="run")
        await asyncio.sleep(1.0)
        running.cancel()
        for _ in range(steps or 0):
            await asyncio.sleep(0)
        if steps is not None:
            running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        return {task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert asyncio.run(main()) == set()
    summary, _ = bench.run()
    assert summary.exit_code == 0
    assert 0 < summary.kept < 60
    assert summary.sent == 60 - summary.kept
    assert len(summary.recovered) <= 8


def test_a_display_that_fails_ends_the_run_in_order(bench: Bench, serve: Callable[..., Server]) -> None:
    """With it goes the watch on the run folder: better stop than send half a night unwatched."""

    class Failing(Silent):
        def show(self, snapshot: Snapshot) -> None:
            if snapshot.completed:
                raise ZeroDivisionError

    bench.server = serve("--latency", "0.2")
    bench.settings |= {"gateway.base_url": bench.server.url, "gateway.concurrency": 2}
    bench.write(ROWS)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(Run(Job.load(None, overrides=bench.settings), Wishes(), display=Failing()).live())
    summary, _ = bench.run()
    assert (summary.exit_code, summary.recovered) == (0, [])
    assert 0 < summary.kept < 60


def test_arun_cancelled_while_it_indexes_ends_in_order(bench: Bench) -> None:
    bench.write([{"id": f"r{n}", "text": "x"} for n in range(100_000)])

    async def main() -> None:
        async with asyncio.timeout(0.4):
            await arun(Job.load(None, overrides=bench.settings))

    with pytest.raises(TimeoutError):
        asyncio.run(main())
    bench.write(ROWS[:3])
    assert bench.run()[0].completed == 3

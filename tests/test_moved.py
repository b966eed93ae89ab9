"""A run folder that was copied or moved: nothing is bought again; a copy of one at work is used or known to be damaged."""

from __future__ import annotations

import asyncio
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Ended, Server, clean_environment, read_jsonl, write_jsonl

from pipeline import Job, run
from pipeline.billing import billing
from pipeline.errors import InputError, RunFolderError
from pipeline.export import export_folder
from pipeline.journal import Lock
from pipeline.plan import plan
from pipeline.progress.status_file import shown_in
from pipeline.status import describe, status_of
from pipeline.verify import verify

ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(30)]


def call(folder: Path, *words: str) -> Ended:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pipeline", *words],
        cwd=folder,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        timeout=60,
        env=clean_environment(),
    )
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


def command(url: str, source: str = "in.jsonl", output: str = "out.jsonl", *more: str) -> list[str]:
    return ["run", "-i", source, "-o", output, "--base-url", url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id", "-q", *more]  # fmt: skip


def of_another_host(run_folder: Path) -> None:
    """As if another machine had written it, in another start."""
    with closing(sqlite3.connect(run_folder / "journal.sqlite", isolation_level=None)) as db:
        db.execute("UPDATE run SET host = 'elsewhere', boot_id = 'another', pid = 1")
    lock = run_folder / "lock"
    if lock.read_bytes():
        lock.write_bytes(orjson.dumps(orjson.loads(lock.read_bytes()) | {"host": "elsewhere", "boot_id": "another"}))


LAYOUTS = {
    "beside": ("in.jsonl", "out.jsonl"),
    "in folders": ("data/in.jsonl", "results/deep/out.jsonl"),
    "a pattern": ("data/*.jsonl", "results/out.jsonl"),
    "a folder": ("data", "out.jsonl"),
}


def job_in(folder: Path, url: str, source: str = "in.jsonl", output: str = "out.jsonl", **more: Any) -> Job:
    """The job that ``command`` describes, in this folder."""
    settings = {
        "input.path": str(folder / source),
        "input.id": "id",
        "output.path": str(folder / output),
        "gateway.base_url": url,
        "gateway.concurrency": 32,
        "model": "sim/echo",
        "request.prompt": "{{ text }}",
    }
    return Job.load(None, overrides=settings | {name.replace("__", "."): value for name, value in more.items()})


def moved(here: Path, there: Path, output: str) -> None:
    """A copy elsewhere, and nothing left where it was."""
    there.parent.mkdir(exist_ok=True)
    shutil.copytree(here, there)
    shutil.rmtree(here)
    of_another_host(there / f"{output}.run")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_moved_goes_on_and_buys_nothing_again(tmp_path: Path, gateway: Server, layout: str) -> None:
    source, output = LAYOUTS[layout]
    here, there = tmp_path / "here", tmp_path / "another" / "place"
    path = here / ("data/in.jsonl" if source.startswith("data") else source)
    path.parent.mkdir(parents=True)
    write_jsonl(path, ROWS)
    assert run(job_in(here, gateway.url, source, output)).completed == len(ROWS)
    before = read_jsonl(here / output)
    moved(here, there, output)
    asked = gateway.ledger()["totals"]["requests"]
    folder = there / f"{output}.run"
    assert describe(status_of(folder)).startswith(f"{there / output}: finished")
    for input_path in (None, str(there / source)):
        report = verify(folder, input_path=input_path)
        assert (report.exit_code, report.findings) == (0, [])
        more = there.parent / "more.jsonl"
        options: Any = {"output_format": None, "selection": "all", "results_only": False}
        assert export_folder(folder, more, input_path=input_path, **options) == (len(ROWS), 0)
        assert read_jsonl(more) == before
    for _ in range(2):
        summary = run(job_in(there, gateway.url, source, output))
        assert (summary.exit_code, summary.sent, summary.kept) == (0, 0, len(ROWS))
    assert read_jsonl(there / output) == before
    assert verify(folder).exit_code == 0
    assert gateway.ledger()["totals"]["requests"] == asked


def test_the_same_commands_work_where_it_was_moved(tmp_path: Path, gateway: Server) -> None:
    here, there = tmp_path / "here", tmp_path / "there" / "deep"
    here.mkdir()
    write_jsonl(here / "in.jsonl", ROWS)
    words = command(gateway.url)
    assert call(here, *words).code == 0
    moved(here, there, "out.jsonl")
    asked = gateway.ledger()["totals"]["requests"]
    assert f"{there / 'out.jsonl'}: finished" in call(there, "status", "out.jsonl").out
    assert call(there, "verify", "out.jsonl", "-i", "in.jsonl").code == 0
    assert call(there, "export", "out.jsonl", "-i", "in.jsonl", "-o", "../more.jsonl").code == 0
    ended = call(there, *words, "--json")
    assert (ended.code, orjson.loads(ended.out)["sent"]) == (0, 0), ended.err
    assert gateway.ledger()["totals"]["requests"] == asked


def test_an_input_that_stayed_where_it_was_is_still_the_same(tmp_path: Path, gateway: Server) -> None:
    """Only the results' folder moved; and the run folder may have a name of its own."""
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    source = str(write_jsonl(tmp_path / "in.jsonl", ROWS))
    assert run(job_in(here, gateway.url, source, run_dir=str(here / "journal"))).exit_code == 0
    here.rename(there)
    assert verify(there / "journal").exit_code == 0
    assert run(job_in(there, gateway.url, source, run_dir=str(there / "journal"))).sent == 0


def test_a_run_folder_that_moved_alone_left_its_results_where_they_were(tmp_path: Path, gateway: Server) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    assert run(job_in(tmp_path, gateway.url, run_dir=str(tmp_path / "runs" / "journal"))).exit_code == 0
    folder = tmp_path / "kept" / "for" / "later"
    folder.parent.mkdir(parents=True)
    (tmp_path / "runs" / "journal").rename(folder)
    assert status_of(folder)["output"] == str(tmp_path / "out.jsonl")
    assert verify(folder).exit_code == 0


def test_a_folder_of_another_input_is_refused_as_ever(tmp_path: Path, gateway: Server) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_jsonl(here / "in.jsonl", ROWS)
    assert run(job_in(here, gateway.url)).exit_code == 0
    shutil.copytree(here, there)
    write_jsonl(there / "other.jsonl", ROWS)
    says = f"belongs to the input {here / 'in.jsonl'}, this job's is {there / 'other.jsonl'}"
    with pytest.raises(RunFolderError, match=re.escape(says)):
        run(job_in(there, gateway.url, "other.jsonl"))
    link = tmp_path / "link"
    link.symlink_to(here)
    assert verify(link / "out.jsonl.run").exit_code == 0, "the same folder by another name"


def test_a_changed_row_is_found_where_the_folder_moved(tmp_path: Path, gateway: Server) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_jsonl(here / "in.jsonl", ROWS)
    assert run(job_in(here, gateway.url)).exit_code == 0
    here.rename(there)
    write_jsonl(there / "in.jsonl", [*ROWS[:4], ROWS[4] | {"text": "edited"}, *ROWS[5:]])
    says = f"{there / 'in.jsonl'}:5 is not the row that was indexed there"
    assert verify(there / "out.jsonl.run").findings[0].what == says
    options: Any = {"output_format": None, "selection": "all", "results_only": False, "input_path": None}
    with pytest.raises(RunFolderError, match=re.escape(says)):
        export_folder(there / "out.jsonl.run", there / "x.csv", **options)
    assert run(job_in(there, gateway.url)).sent == 1


# ---------------------------------------------------------------- a copy of a run at work


def start(folder: Path, words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=clean_environment(),
    )


def backed_up(source: Path, target: Path) -> None:
    """As ``sqlite3 journal.sqlite ".backup copy.sqlite"`` does it."""
    target.mkdir(mode=0o700)
    with (
        closing(sqlite3.connect(source / "journal.sqlite")) as one,
        closing(sqlite3.connect(target / "journal.sqlite")) as other,
    ):
        one.backup(other)


def copied(source: Path, target: Path, order: list[str], pause_s: float) -> None:
    """File by file, some time apart: as slow copies of large folders are."""
    target.mkdir(mode=0o700, exist_ok=True)
    for name in order:
        for path in source.glob(name):
            if path.name.endswith(".partial") or (target / path.name).exists():
                continue
            try:
                shutil.copy2(path, target / path.name)
            except FileNotFoundError:
                continue
        time.sleep(pause_s)


ORDERS = {
    "without the wal": (["journal.sqlite", "[a-il-z]*"], 0.0),  # the first: all is in there still
    "a backup": ([], 0.0),
    "at once": (["*"], 0.0),
    "journal first": (["journal.sqlite", "journal.sqlite-wal", "*"], 0.4),
    "journal last": (["status.json", "journal.sqlite-wal", "journal.sqlite", "*"], 0.4),
}


@pytest.mark.slow
def test_a_hot_copy_is_used_or_known_to_be_damaged(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve("--latency", "0.03")  # so slow that the first copies come before the log is written back
    rows = [{"id": f"r{n}", "text": f"row {n} " + "x" * 3000} for n in range(2000)]
    here = tmp_path / "here"
    here.mkdir()
    write_jsonl(here / "in.jsonl", rows)
    at_work = start(here, [*command(server.url), "-c", "2"])
    copies = []
    try:
        until = time.monotonic() + 60
        while shown_in(here / "out.jsonl.run") < 50:
            assert time.monotonic() < until
            time.sleep(0.05)
        for name, (order, pause_s) in ORDERS.items():
            folder = tmp_path / name
            folder.mkdir()
            shutil.copy2(here / "in.jsonl", folder / "in.jsonl")
            if name == "a backup":
                backed_up(here / "out.jsonl.run", folder / "out.jsonl.run")
            copied(here / "out.jsonl.run", folder / "out.jsonl.run", order, pause_s)
            copies.append(folder)
        assert at_work.poll() is None, "the copies were to be made while it works"
    finally:
        at_work.send_signal(signal.SIGKILL)
        at_work.wait()
    told = Counter(_what_becomes_of(folder, server.url, len(rows)) for folder in copies)
    print(told)
    assert told["refused"] >= 1, "a copy without its -wal lacks rows that were shown"
    assert told["went on"] >= 1
    assert not (tmp_path / "a backup").exists(), "it is whole, and went on"


def _what_becomes_of(folder: Path, url: str, count: int) -> str:
    before = verify(folder / "out.jsonl.run")
    try:
        summary = run(job_in(folder, url))
    except RunFolderError as exc:
        assert re.search(r"is not whole.*If this is a copy|is damaged", str(exc))
        assert before.exit_code == 6
        assert not (folder / "out.jsonl").exists()
        return "refused"
    assert (summary.exit_code, summary.completed) == (0, count)
    assert before.exit_code == 75, before.findings
    assert [row["id"] for row in read_jsonl(folder / "out.jsonl")] == [f"r{n}" for n in range(count)]
    assert verify(folder / "out.jsonl.run").exit_code == 0
    shutil.rmtree(folder)
    return "went on"


def test_the_status_of_a_backup_is_what_its_journal_tells(tmp_path: Path, gateway: Server) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": f"row {n}"} for n in range(5)])
    assert run(job_in(tmp_path, gateway.url)).sent == 5
    backed_up(tmp_path / "out.jsonl.run", tmp_path / "kept.run")
    ended = call(tmp_path, "status", "kept.run")
    assert ended.code == 0, ended.err
    assert "5 succeeded, 0 failed, 0 left, of 5" in ended.out


def test_a_copy_whose_pages_do_not_fit_is_refused(tmp_path: Path, gateway: Server) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    write_jsonl(here / "in.jsonl", ROWS)
    assert run(job_in(here, gateway.url)).exit_code == 0
    shutil.copytree(here, there)
    run_folder = there / "out.jsonl.run"
    for path in (run_folder / "status.json", there / "out.jsonl"):
        path.unlink()
    (run_folder / "lock").write_bytes(orjson.dumps({"host": "elsewhere", "pid": 1, "inode": 1}))  # as of a run at work
    with closing(sqlite3.connect(run_folder / "journal.sqlite", isolation_level=None)) as db:
        db.execute("DELETE FROM outcome WHERE no = 3")
    write_jsonl(there / "in.jsonl", [*ROWS, {"id": "new", "text": "new"}])
    says = "is damaged (1 answer without its row). If this is a copy, make it again when no run works"
    job, asked = job_in(there, gateway.url), gateway.ledger()["totals"]["requests"]
    for look in (run, _planned, run, _billed, run):  # whoever is refused, or only looks, leaves it known as a copy
        with pytest.raises(RunFolderError, match=re.escape(says)) if look is not _billed else nullcontext():
            look(job)
    assert gateway.ledger()["totals"]["requests"] == asked
    with closing(sqlite3.connect(run_folder / "journal.sqlite", isolation_level=None)) as db:
        db.execute("DELETE FROM reply WHERE no = 3")
    assert run(job).sent == 2, "mended, it goes on"
    assert not (run_folder / "lock").read_bytes()


def test_a_copy_stays_known_as_one_after_an_error_of_the_job(tmp_path: Path, gateway: Server) -> None:
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    folder = tmp_path / "out.jsonl.run"
    folder.mkdir()
    note = orjson.dumps({"host": "elsewhere", "pid": 1, "inode": 1})
    (folder / "lock").write_bytes(note)
    with pytest.raises(InputError):
        run(job_in(tmp_path, gateway.url, "missing.jsonl"))
    assert (folder / "lock").read_bytes() == note
    with Lock(folder) as lock:
        assert lock.copied
        assert lock.holder()["inode"] == 1, "killed now, it is still known"
        lock.is_whole()
        assert lock.holder()["inode"] == (folder / "lock").stat().st_ino
    assert not (folder / "lock").read_bytes()


def _planned(job: Job) -> None:
    asyncio.run(plan(job))


def _billed(job: Job) -> None:
    asyncio.run(billing(job.run_folder, say=lambda text: None))

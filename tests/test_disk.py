"""Full disks, at every stage of a run: a sentence and exit 75, what was paid for is kept or named, the next run goes on."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Ended, clean_environment, read_jsonl, write_jsonl
from disks import MB, Kind, SmallDisk, command, small_disk
from filled import answered, job_for, workspace
from reconcile import bill_of, reconcile
from simulated import Simulated, simulated

from pipeline import Wishes, run
from pipeline.errors import IncompleteError
from pipeline.ground.disk import cannot_write, tried
from pipeline.journal import Journal, reserve, room
from pipeline.progress.display import Logged, Silent
from pipeline.progress.status_file import StatusFile
from pipeline.records import Completion, Outcome, Request, Usage
from pipeline.results import export
from pipeline.simulator import Settings

NO_ROOM = re.compile(
    r"(no room to write|cannot write) [^(]*/(\w[\w.-]*) \([^)]*\): [\d.,]+ (bytes|kB|MB|GB) are free on /"
)


@pytest.fixture
def sim() -> Iterator[Simulated]:
    """A gateway that counts what it bills."""
    with simulated(Settings(latency_s=0.01)) as server:
        yield server


def rows_of(count: int, each: int = 20) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"{n} ".ljust(each, "x")} for n in range(count)]


def words(sim: Simulated, disk: SmallDisk, *more: str, slots: int = 8, output: str | Path = "out.jsonl") -> list[str]:
    return [
        "run", "-i", "in.jsonl", "-o", str(output), "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id",
        "-c", str(slots), "--run-dir", str(disk.folder / "run"), *more,
    ]  # fmt: skip


def said(ended: Ended) -> str:
    """The sentence about the disk; the file that it names."""
    assert ended.code == 75, ended.err
    assert "Traceback" not in ended.err
    found = NO_ROOM.search(ended.err)
    assert found, ended.err
    return found.group(2)


def agree(disk: SmallDisk, sim: Simulated, count: int, named: list[str]) -> None:
    """Everything is in the results and in the books; nothing was bought twice but what had been named."""
    bills = [entry for entry in sim.entries if entry.billed]
    reckoning = reconcile(disk.folder / "run", [bill_of(bill) for bill in bills], results=disk.cwd / "out.jsonl")
    found = read_jsonl(disk.cwd / "out.jsonl")
    assert [row["id"] for row in found] == [f"r{n}" for n in range(count)]
    assert {row["status"] for row in found} == {"succeeded"}
    twice = sum(times - 1 for times in Counter(bill.body_digest for bill in bills).values())
    print(f"{disk.how}: {reckoning.line}; {len(named)} named, {twice} bought twice")
    assert twice <= len(named)
    assert reckoning.lost == len(named)


# ---------------------------------------------------------------- while answers come in


SLOW = pytest.mark.slow


@pytest.mark.parametrize("kind", ["tmpfs", pytest.param("ext4", marks=SLOW), pytest.param("rlimit", marks=SLOW)])
def test_a_disk_that_fills_up_in_the_middle_costs_nothing_that_was_paid_for(
    tmp_path: Path, sim: Simulated, kind: Kind
) -> None:
    count = 600
    write_jsonl(tmp_path / "in.jsonl", rows_of(count, each=4000))
    with small_disk(tmp_path, 16 * MB, kind) as disk:
        disk.fill(left=5 * MB // 2)
        ended = disk.pipeline(*words(sim, disk, "--json"))
        summary = orjson.loads(ended.out)
        assert summary["exit_code"] == ended.code == 75, ended.err
        assert "Traceback" not in ended.err
        assert re.search(r"(no room to write|cannot write) the journal \S*/journal.sqlite \(", summary["reason"])
        assert re.search(r" are free on /.*about [\d.]+ MB are needed.*make room", summary["reason"]), summary["reason"]
        assert 0 < summary["completed"] < count
        named = summary["in_flight"]
        assert summary["completed"] + len(named) == sum(entry.billed for entry in sim.entries)
        if disk.how == "rlimit":  # a bound on each file: no other file can hold room for the journal
            assert len(named) <= 2 * 8
        else:
            assert named == [], "the reserve holds what was in flight"
        assert not (disk.folder / "run" / reserve.FILE_NAME).exists()
        status = disk.pipeline("status", str(disk.folder / "run"))
        assert summary["reason"] in status.out
        assert f"{summary['completed']:,} succeeded, 0 failed, {count - summary['completed']:,} left" in status.out
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, named)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ext4"])
def test_what_not_even_the_reserve_holds_is_named(tmp_path: Path, sim: Simulated, kind: Kind) -> None:
    """Answers that are far larger than any before, and somebody else takes what room is left."""
    count = 60
    write_jsonl(
        tmp_path / "in.jsonl", rows_of(20) + [{"id": f"r{n}", "text": f"{n} " * 100_000} for n in range(20, 60)]
    )
    with small_disk(tmp_path, 24 * MB, kind) as disk:
        disk.fill(left=3 * MB)
        ended = disk.pipeline(*words(sim, disk, "--json", slots=16))
        summary = orjson.loads(ended.out)
        assert summary["exit_code"] == 75, ended.err
        named = summary["in_flight"]
        billed = sum(entry.billed for entry in sim.entries)
        assert billed == summary["completed"] + len(named), "what is neither kept nor named is lost"
        assert disk.how == "rlimit" or 0 < len(named) <= 2 * 16
        assert summary["lost_attempts"] in (0, len(named)), "booked now, or by the next run"
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, named)


# ---------------------------------------------------------------- before anything is sent


def at_the_start(tmp_path: Path, sim: Simulated, left: int, count: int = 100) -> str:
    """A run on a disk with so little free: it ends before it sends, or else does it all. Returns the file it named."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(count))
    with small_disk(tmp_path, 16 * MB) as disk:
        disk.fill(left=left)
        ended = disk.pipeline(*words(sim, disk))
        if disk.how == "rlimit" and left:  # each file has so much: it may do
            assert ended.code in (0, 75), ended.err
            return ""
        named = said(ended)
        assert sim.asked == 0, "nothing was paid for"
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, [])
    return named


@pytest.mark.parametrize("left", [0, pytest.param(200 << 10, marks=SLOW)])
def test_too_little_room_to_begin_is_said_before_anything_is_sent(tmp_path: Path, sim: Simulated, left: int) -> None:
    print(left, at_the_start(tmp_path, sim, left))


def test_no_room_for_another_folder(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(2))
    with small_disk(tmp_path, MB, options=",nr_inodes=2") as disk:
        (disk.folder / "one").touch()
        if disk.how == "rlimit":
            disk.fill(left=1)
        ended = disk.pipeline(*words(sim, disk))
        assert said(ended) in ("run", "lock")
        assert disk.how == "rlimit" or "where no more files fit" in ended.err
        assert sim.asked == 0


@pytest.mark.slow
def test_an_index_that_does_not_fit_leaves_the_journal_as_it_was(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(30_000))
    with small_disk(tmp_path, 16 * MB) as disk:
        disk.fill(left=400 << 10)
        assert said(disk.pipeline(*words(sim, disk))) == "journal.sqlite"
        assert sim.asked == 0
        with sqlite3.connect(disk.folder / "run" / "journal.sqlite") as db:
            assert db.execute("SELECT count(*) FROM input").fetchone() == (0,)
        db.close()
        disk.make_room()
        again = disk.pipeline("try", *words(sim, disk)[1:], "-n", "3")
        assert again.code == 0, again.err
        assert sim.asked == 3


@pytest.mark.slow
def test_sorting_that_finds_no_room_names_the_folder_of_temporary_files(tmp_path: Path, sim: Simulated) -> None:
    rows = [{"id": f"r{n}", "text": f"{n // 2}"} for n in range(120_000)]
    write_jsonl(tmp_path / "in.jsonl", rows)
    with small_disk(tmp_path, MB) as disk:
        disk.fill(left=64 << 10)
        line = words(sim, disk, "--set", "request.dedupe=true", output="out.jsonl")
        line[line.index("--run-dir") + 1] = str(tmp_path / "run")
        ended = disk.pipeline(*line, env={"SQLITE_TMPDIR": str(disk.folder)})
        assert said(ended) == "journal.sqlite"
        assert disk.how == "rlimit" or re.search(r" bytes are free on \S*/disk \(tmpfs\), where its temp", ended.err)
        assert "SQLITE_TMPDIR names another folder" in ended.err or disk.how == "rlimit"
        assert sim.asked == 0


def test_standard_input_that_does_not_fit(tmp_path: Path, sim: Simulated) -> None:
    text = "".join(orjson.dumps(row).decode() + "\n" for row in rows_of(2000, each=1000))
    with small_disk(tmp_path, 4 * MB) as disk:
        disk.fill(left=MB)
        line = [word if word != "in.jsonl" else "-" for word in words(sim, disk)]
        ended = disk.pipeline(*line, stdin=text)
        assert said(ended) == "stdin.jsonl"
        assert "what came on standard input" in ended.err
        assert sorted(path.name for path in (disk.folder / "run").iterdir()) == ["lock"]
        assert sim.asked == 0


def test_standard_input_that_cannot_be_read_is_not_called_a_full_disk(tmp_path: Path, sim: Simulated) -> None:
    line = ["run", "-i", "-", "-o", "out.jsonl", "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}"]
    with Path("/proc/self/mem").open("rb") as broken:  # reading at its begin is an I/O error
        done = subprocess.run(
            command(*line),
            cwd=tmp_path,
            env=clean_environment(),
            stdin=broken,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 2, done.stderr
    assert "cannot read standard input: Input/output error" in done.stderr
    assert "Traceback" not in done.stderr
    assert sim.asked == 0


@pytest.mark.parametrize("kind", ["ext4"])
def test_a_disk_that_becomes_read_only_while_standard_input_is_kept(tmp_path: Path, sim: Simulated, kind: Kind) -> None:
    with small_disk(tmp_path, 8 * MB, kind) as disk:
        line = [word if word != "in.jsonl" else "-" for word in words(sim, disk)]
        run = subprocess.Popen(
            disk.command(*line), cwd=tmp_path, env=clean_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        with run:
            assert run.stdin is not None
            run.stdin.write(orjson.dumps({"id": "r0", "text": "x" * (1 << 17)}) + b"\n")
            run.stdin.flush()
            wait_for(lambda: any((disk.folder / "run").glob("*stdin*.partial")))
            if disk.how == "ext4":
                subprocess.run(["mount", "-o", "remount,abort", disk.folder], check=True)
            else:
                (disk.folder / "run").rename(tmp_path / "gone")
            err = run.communicate(timeout=60)[1].decode()
        assert "Traceback" not in err
        assert run.returncode == 75, err
        assert "cannot write what came on standard input to " in err
        assert sim.asked == 0


def test_a_disk_that_answers_nothing_any_more_is_put_into_words_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are asked where there is trouble already: another error must not take the place of the first."""

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    full_disk = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ground.disk.os.statvfs", stale)
        said = cannot_write(tmp_path / "file", full_disk, what="the journal")
    assert "No space left on device): how much is free there cannot be told (Stale file handle); make room" in said
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.ground.disk.Path.unlink", stale)
        assert tried(tmp_path) is None


# ---------------------------------------------------------------- while it works, by somebody else


def kept_by(folder: Path) -> int:
    try:
        return int(orjson.loads((folder / "status.json").read_bytes())["completed"])
    except (OSError, ValueError):
        return 0


@pytest.mark.parametrize("kind", ["ext4"])
@pytest.mark.slow
def test_a_disk_that_somebody_else_fills_lets_the_run_drain(tmp_path: Path, kind: Kind) -> None:
    """Answers that are on their way then are kept, and told of in status and log."""
    count = 200
    write_jsonl(tmp_path / "in.jsonl", rows_of(count, each=4000))
    with simulated(Settings(latency_s=0.2)) as sim, small_disk(tmp_path, 16 * MB, kind) as disk:
        run = subprocess.Popen(
            disk.command(*words(sim, disk, "--json", slots=16)), cwd=tmp_path, env=clean_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        folder = disk.folder / "run"
        wait_for(lambda: kept_by(folder) >= 20)
        run.send_signal(
            signal.SIGSTOP
        )  # a filler that is still at work would take the reserve too, the moment it is given back
        disk.fill(left=0)
        run.send_signal(signal.SIGCONT)
        out, err = run.communicate(timeout=60)
        assert run.returncode == (0 if disk.how == "rlimit" else 75), err
        assert "Traceback" not in err
        summary = orjson.loads(out)
        assert summary["in_flight"] == []
        assert summary["completed"] == sum(entry.billed for entry in sim.entries)
        assert disk.how == "rlimit" or re.search(r"no room to write the (status|journal) ", summary["reason"])
        assert summary["reason"] in disk.pipeline("status", str(folder)).out
        partial = disk.pipeline("export", str(folder), "--partial", "-o", str(tmp_path / "partial.jsonl"))
        assert partial.code == 0, partial.err
        disk.make_room()
        again = disk.pipeline(*words(sim, disk))
        assert again.code == 0, again.err
        agree(disk, sim, count, [])


def wait_for(it: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not it():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_disk_that_is_full_already_still_has_an_end_of_the_run(
    tmp_path: Path, sim: Simulated, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the first thing that finds no room is the note that results there are will be out of date."""
    source = write_jsonl(tmp_path / "in.jsonl", rows_of(3))
    job = job_for(source, tmp_path / "out.jsonl", gateway__base_url=sim.url)
    assert run(job, wishes=Wishes(most=1, publish=False)).completed == 1
    with closing(sqlite3.connect(job.run_folder / "journal.sqlite")) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON meta WHEN NEW.key = 'results' "
            "BEGIN SELECT RAISE(FAIL, 'database or disk is full'); END"
        )
    summary = run(job)
    assert summary.exit_code == 75
    assert "make room on that disk" in summary.reason
    assert (summary.sent, sim.asked) == (0, 1)
    with closing(sqlite3.connect(job.run_folder / "journal.sqlite")) as db:
        assert db.execute("SELECT how FROM run WHERE run = 2").fetchone() == (summary.reason,)
        db.execute("DROP TRIGGER full")
    assert run(job).exit_code == 0


@pytest.mark.parametrize("left", [MB, 3 * MB])
def test_room_of_the_size_that_was_named_is_enough(tmp_path: Path, sim: Simulated, left: int) -> None:
    """Nobody is to make room again and again; the results lie on that disk, too."""
    count = 1_500
    write_jsonl(tmp_path / "in.jsonl", rows_of(count, each=1_000))
    with small_disk(tmp_path, 64 * MB) as disk:
        output = disk.folder / "results" / "out.jsonl"
        disk.fill(left=left)
        first = disk.pipeline(*words(sim, disk, output=output))
        assert first.code == 75, first.err
        found = re.search(r"about ([\d.]+) MB are needed", first.err)
        assert found, first.err
        if disk.how == "rlimit":
            pytest.skip("the bound of a file is not the room of a disk")
        disk.make_room()
        disk.fill(left=int(float(found[1]) * 1e6))
        again = disk.pipeline(*words(sim, disk, output=output))
        assert again.code == 0, again.err
        print(
            f"{left:,} bytes were free, {found[1]} MB were named, {disk.free / 1e6:.1f} MB of them are free at the end"
        )
        assert len(read_jsonl(output)) == count


@pytest.mark.slow
def test_why_a_run_stops_is_said_once(tmp_path: Path) -> None:
    """On a full disk the status finds no room, and then the journal."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(400, each=20_000))
    with small_disk(tmp_path, 16 * MB) as disk, simulated(Settings(latency_s=3)) as sim:
        run = subprocess.Popen(
            disk.command(*words(sim, disk)), cwd=tmp_path, env=clean_environment(), stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        with run:
            wait_for(lambda: sim.asked > 8)
            time.sleep(0.3)  # the first ones are kept by then, and the next ones are out
            disk.fill(left=0)
            err = run.communicate(timeout=60)[1]
        assert run.returncode in ((0, 75) if disk.how == "rlimit" else (75,)), err
        assert disk.how == "rlimit" or err.count("Stopping: ") == 1, err


@pytest.mark.slow
def test_at_whatever_byte_the_disk_is_full_nothing_is_lost(tmp_path: Path, sim: Simulated) -> None:
    """One journal, and more and more room: each time it ends in order, and the last time it is complete."""
    count, named, codes = 400, [], Counter[int]()
    write_jsonl(tmp_path / "in.jsonl", rows_of(count, each=2000))
    with small_disk(tmp_path, 16 * MB) as disk:
        for left in [*range(0, 300 << 10, 100 << 10), *range(3 * MB // 2, 6 * MB, MB)]:
            disk.make_room()
            disk.fill(left=max(left - used(disk.folder / "run"), 0))
            ended = disk.pipeline(*words(sim, disk, "--json"))
            assert "Traceback" not in ended.err
            codes[ended.code] += 1
            if ended.code == 75:
                named += orjson.loads(ended.out)["in_flight"] if ended.out else []
                assert "make room on that disk" in ended.err + ended.out, ended.err
            else:
                assert ended.code == 0, ended.err
        disk.make_room()
        assert disk.pipeline(*words(sim, disk)).code == 0
        agree(disk, sim, count, named)
    print(codes)
    assert codes[75] > 4


def used(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir()) if folder.exists() else 0


@pytest.mark.slow
def test_copies_that_find_no_room_are_given_their_answers_later(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"id": f"r{n}", "text": "same " * 20_000} for n in range(60)])
    with small_disk(tmp_path, 4 * MB) as disk:
        more = ("--set", "request.dedupe=true")
        ended = disk.pipeline(*words(sim, disk, *more))
        assert said(ended) == "journal.sqlite"
        if disk.how == "tmpfs":
            subprocess.run(["mount", "-o", "remount,size=64m", disk.folder], check=True)
        disk.make_room()
        again = disk.pipeline(*words(sim, disk, *more))
        assert again.code == 0, again.err
        assert len(read_jsonl(tmp_path / "out.jsonl")) == 60
    assert sum(entry.billed for entry in sim.entries) == 1


# ---------------------------------------------------------------- results, and what else is written


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet", "output.jsonl"])
def test_results_that_do_not_fit(tmp_path: Path, name: str) -> None:
    """On a disk of their own: what stood there stays, and they are written, there, when there is room."""
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": n, "noise": os.urandom(200).hex()} for n in range(1500)])
    with small_disk(tmp_path, 4 * MB) as disk:
        batch = "batch" if name == "output.jsonl" else None
        job = job_for(source, disk.folder / name, output__format=batch, run_dir=str(tmp_path / "run"))
        (disk.folder / name).write_text("older")
        with workspace(job, lambda request: answered(request, os.urandom(200).hex())) as space:
            write = partial(export, space, path=job.output.path, output_format=job.output_format)
            with (
                full(disk, left=200 << 10),
                pytest.raises(IncompleteError, match=r"no room to write results to .* free on"),
            ):
                write()
            assert (disk.folder / name).read_text() == "older"
            assert sorted(path.name for path in disk.folder.iterdir()) == [name]
            assert write() == 1500


def test_the_sheet_beside_the_results_that_does_not_fit(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", [{"n": n} for n in range(500)])
    with small_disk(tmp_path, 4 * MB) as disk:
        if disk.how == "rlimit":
            pytest.skip("a bound on every file cannot spare the larger of two")
        job = job_for(source, disk.folder / "out.jsonl", run_dir=str(tmp_path / "run"))
        with workspace(job) as space:
            write = partial(export, space, path=job.output.path, output_format="jsonl")
            write()
            room = used(disk.folder) - 4096
            for path in disk.folder.iterdir():
                path.unlink()
            with (
                full(disk, left=room),
                pytest.raises(IncompleteError, match=r"no room to write results to \S*meta.json"),
            ):
                write()
            assert len(read_jsonl(job.output.path)) == 500, "they are whole"
            write()


@contextmanager
def full(disk: SmallDisk, left: int) -> Iterator[None]:
    """Full also for this process, where the disk is only a bound on files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    disk.fill(left=left)
    if disk.how == "rlimit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        disk.make_room()


@pytest.mark.slow
def test_a_run_whose_results_do_not_fit_pays_for_nothing_again(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(100, each=4000))
    with small_disk(tmp_path, 4 * MB) as disk:
        disk.fill(left=100 << 10)
        line = words(sim, disk, output=disk.folder / "out.jsonl")
        line[line.index("--run-dir") + 1] = str(tmp_path / "run")
        if disk.how == "rlimit":
            disk.bound = 4 * MB
            assert disk.pipeline(*line).code == 0
            return
        ended = disk.pipeline(*line)
        assert said(ended) == "out.jsonl"
        assert not (disk.folder / "out.jsonl").exists()
        assert "no room to write results to" in disk.pipeline("status", str(tmp_path / "run")).out
        disk.make_room()
        assert disk.pipeline(*line).code == 0
        assert len(read_jsonl(disk.folder / "out.jsonl")) == 100
    assert sim.asked == 100


def test_the_status_and_the_log_that_do_not_fit(tmp_path: Path) -> None:
    with small_disk(tmp_path, MB) as disk:
        status = StatusFile(disk.folder, {"output": "x" * 9000})
        status.write(None, state="running")
        before = (disk.folder / "status.json").read_bytes()
        log = Logged(Silent(), disk.folder)
        with full(disk, left=0):
            with pytest.raises(IncompleteError, match=r"no room to write the status .* free on .*make room"):
                status.write(None, state="ended")
            log.say("is no reason to stop")
        assert (disk.folder / "status.json").read_bytes() == before
        assert not (disk.folder / ".status.json.partial").exists()


@pytest.mark.slow
def test_a_lease_that_does_not_fit_is_done_without(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(3))
    with small_disk(tmp_path, MB) as disk:
        disk.fill(left=0)
        line = words(sim, disk)
        line[line.index("--run-dir") + 1] = str(tmp_path / "run")
        if disk.how == "rlimit":
            disk.bound = None
        ended = disk.pipeline(*line, env={"PIPELINE_STATE_DIR": str(disk.folder)})
        assert ended.code == 0, ended.err
        assert disk.how == "rlimit" or "cannot be shared with other runs" in ended.err
        assert disk.how == "rlimit" or "PIPELINE_STATE_DIR" in ended.err


# ---------------------------------------------------------------- the reserve


def test_the_reserve_is_room_and_nothing_but_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, 4 * MB) as disk:
        held = reserve.Reserve(disk.folder)
        assert not held.release()
        free = disk.free
        held.hold(2 * MB)
        assert (held.held, held.path.stat().st_mode & 0o777) == (2 * MB, 0o600)
        assert disk.how == "rlimit" or free - disk.free == 2 * MB
        held.hold(MB)
        assert held.held == 2 * MB, "more, never less"
        held.try_to_hold(100 * MB)
        assert disk.how == "rlimit" or held.held == 2 * MB, "what is not there is done without"
        assert held.release()
        assert held.held == reserve.LAST
        assert not held.release()
        assert held.release_last()
        assert not held.release_last()
        held.close()
        assert list(disk.folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["ext4", "tmpfs"])
def test_a_reserve_that_grows_takes_no_room_from_a_commit(tmp_path: Path, kind: Kind) -> None:
    """Allocating more than is free takes all there is before it fails, and a COMMIT may run in that instant."""
    with small_disk(tmp_path, 24 * MB, kind) as disk:
        db = sqlite3.connect(disk.folder / "journal.sqlite", isolation_level=None, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE reply (body BLOB)")
        held, failed = reserve.Reserve(disk.folder), []

        def commits() -> None:
            try:
                for _ in range(200):
                    db.execute("INSERT INTO reply VALUES (?)", (os.urandom(20_000),))
            except sqlite3.OperationalError as exc:
                failed.append(exc)

        with closing(db), full(disk, left=14 * MB):
            held.hold(MB)
            committing = threading.Thread(target=commits)
            committing.start()
            while committing.is_alive():
                held.try_to_hold(64 * MB)
            committing.join()
            assert failed == [], f"{disk.free:,} bytes are free"
            assert disk.how == "rlimit" or held.held == MB
            assert disk.how == "rlimit" or disk.free > 4 * MB
            held.try_to_hold(5 * MB // 4)
            assert disk.how == "rlimit" or held.held == 5 * MB // 4, "where there is room it grows all the same"
            held.close()


def test_a_reserve_that_once_could_not_grow_does_not_try_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota shows only so: what is free on the disk does not tell it."""
    held, tries = reserve.Reserve(tmp_path), []
    held.hold(MB)

    def over_quota(*what: int) -> None:
        tries.append(what)
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("pipeline.journal.reserve.os.posix_fallocate", over_quota)
    held.try_to_hold(2 * MB)
    held.try_to_hold(3 * MB)
    assert len(tries) == 1
    assert held.held == MB
    held.close()


def test_what_the_reserve_has_given_back_it_does_not_take_again(tmp_path: Path) -> None:
    """While the run drains, its display still asks for a larger reserve."""
    held = reserve.Reserve(tmp_path)
    held.hold(2 * MB)
    assert held.release()
    held.try_to_hold(2 * MB)
    assert held.held == reserve.LAST
    assert held.path.stat().st_size == reserve.LAST
    held.close()


def test_a_try_is_told_the_room_of_a_try(tmp_path: Path, sim: Simulated, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends a few rows and writes no results."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(reserve.Reserve, "_allocate", full)
    source = write_jsonl(tmp_path / "in.jsonl", rows_of(4_000, each=1_000))
    job = job_for(source, tmp_path / "out.jsonl", gateway__base_url=sim.url)

    def named(wishes: Wishes) -> float:
        found = re.search(r"about ([\d.]+) MB are needed", run(job, wishes=wishes).reason)
        assert found
        return float(found[1])

    a_try, all_rows = named(Wishes(most=5, publish=False)), named(Wishes())
    least = (room.LOG_BYTES + reserve.bytes_for(5, None)) / MB
    assert a_try == pytest.approx(least, rel=0.1)
    assert all_rows > a_try + 8
    assert sim.asked == 0


def test_the_index_is_not_counted_among_what_the_rows_take(tmp_path: Path) -> None:
    """The journal of a first run grows by the index before anything is sent."""
    with closing(Journal.open(tmp_path, slots=8)) as journal:
        index = journal.index()
        index.begin("spec", ["in.jsonl"])
        with journal.all_or_nothing():
            rows = ((n, f"row-{n}", n.to_bytes(16, "big")) for n in range(1, 200_001))
            index.replace_file("in.jsonl", 0, "mark", rows, [])
        assert journal.path.stat().st_size > 8 * MB
        journal.start_run()
        journal.room.hold(rows_at_once=4, to_send=200_000, results=False)

        async def main() -> None:
            writer = journal.writer(slots=8, kept=lambda _: None)
            for number in range(1, 9):
                await writer.keep([large(number, f"call-{number}", 1000)])
            writer.close()
            await writer.write()

        asyncio.run(main())
        needed = journal.room.needed(left=1000, kept=8)
        said = 1000 * (1000 + room.ROW_BYTES) + room.LOG_BYTES
        assert needed == pytest.approx(said), "as the replies tell, while the journal has hardly grown"
        held = journal.reserve.held
        journal.room.keep_up(rows_at_once=1000, kept=8)
        assert journal.reserve.held == held


def test_of_a_group_that_does_not_fit_what_fits_is_kept(tmp_path: Path) -> None:
    """Call by call: what one call holds goes in together or not at all."""
    with small_disk(tmp_path, 8 * MB) as disk, closing(Journal.open(disk.folder, slots=64)) as journal:
        journal.start_run()
        journal.reserve.hold(MB)
        told: list[str] = []

        async def main() -> None:
            stopped: list[str] = []
            writer = journal.writer(
                slots=64,
                kept=lambda records: told.extend(one.custom_id for one in records),
                full=lambda why: stopped.append(str(why)),
            )
            for number in range(1, 9):  # four calls of two rows
                entry = writer.enter(request(number), f"call-{(number - 1) // 2}")
                await writer.keep([large(number, f"call-{(number - 1) // 2}", 150_000)], [entry])
            writer.close()
            with pytest.raises(IncompleteError, match="make room on that disk"):
                await writer.write()
            assert len(stopped) == 1

        with full(disk, left=0):
            asyncio.run(main())
        kept = {name for (name,) in journal.db.execute("SELECT custom_id FROM outcome")}
        named = {left.custom_id for left in journal.cut_off()}
        print(disk.how, "kept", sorted(kept), "named", sorted(named))
        assert set(told) == kept
        assert kept | named == {f"r{n}" for n in range(1, 9)}
        assert not kept & named
        assert disk.how == "rlimit" or 2 <= len(kept) <= 6
        assert all((f"r{n}" in kept) == (f"r{n + 1}" in kept) for n in range(1, 9, 2)), "no half of a call"


def request(number: int) -> Request:
    return Request(
        custom_id=f"r{number}", index=number, endpoint="/chat/completions", model="m", body=b"{}",
        fingerprint=bytes([number] * 16), estimated_tokens=1,
    )  # fmt: skip


def large(number: int, call_id: str, size: int) -> Outcome:
    return answered(
        request(number),
        call_id=call_id,
        completion=Completion(content="x", finish_reason="stop", model="m", usage=Usage(), raw=os.urandom(size)),
    )


def test_the_reserve_follows_the_size_of_answers() -> None:
    assert reserve.bytes_for(2, None) == reserve.LEAST
    assert reserve.bytes_for(128, None) == 128 * reserve.REPLY_BYTES * reserve.OVERHEAD + reserve.LAST
    assert reserve.bytes_for(128, 50_000) == 128 * 50_000 * reserve.OVERHEAD + reserve.LAST
    assert reserve.bytes_for(2000, 1e6) == reserve.MOST


def test_what_a_killed_run_held_is_room_for_the_next(tmp_path: Path) -> None:
    reserve.Reserve(tmp_path).hold(MB)
    with closing(Journal.open(tmp_path, slots=2)) as journal:
        assert not journal.reserve.path.exists()
        journal.reserve.hold(MB)
    assert not journal.reserve.path.exists()


def test_a_reserve_that_belongs_to_another_run_stays(tmp_path: Path) -> None:
    mine = reserve.Reserve(tmp_path)
    mine.hold(MB)
    mine.path.unlink()
    mine.path.write_text("another's")
    mine.close()
    assert mine.path.read_text() == "another's"


# ---------------------------------------------------------------- what is told


def test_a_log_disk_that_is_full_takes_no_exit_code_away(tmp_path: Path, sim: Simulated) -> None:
    """As with ``>> cron.log`` where that has no room: the words are lost, the code is not; a program's answer must be whole."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(2))
    run = ["run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}"]
    lines = [run, [*run, "-i", "none.jsonl"], ["export", "out.jsonl", "-o", "again.csv"], ["verify", "out.jsonl"]]
    codes = tmp_path / "codes"
    script = (
        "import json, pathlib, sys\nfrom pipeline.cli import main\n"
        "for line in json.loads(sys.argv[1]):\n    sys.argv[1:] = line\n    try:\n        main()\n"
        "    except SystemExit as ended:\n        pathlib.Path('codes').open('a').write(f'{ended.code} ')\n"
    )
    with Path("/dev/full").open("w") as nowhere:
        told = subprocess.run(
            [sys.executable, "-c", script, orjson.dumps(lines).decode()],
            cwd=tmp_path, env=clean_environment(), stdin=subprocess.DEVNULL, stderr=nowhere, timeout=60,
        )  # fmt: skip
        assert (codes.read_text(), told.returncode) == ("0 2 0 0 ", 0)
        asked = subprocess.run(
            [sys.executable, "-m", "pipeline", "status", "out.jsonl", "--json"],
            cwd=tmp_path, env=clean_environment(), stdout=nowhere, stderr=subprocess.PIPE, text=True, timeout=60,
        )  # fmt: skip
    assert asked.returncode == 75
    assert asked.stderr.startswith("pipeline: cannot write to standard output: No space left on device")
    assert "Traceback" not in asked.stderr
    assert "Exception ignored" not in asked.stderr

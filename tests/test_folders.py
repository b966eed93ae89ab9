"""Folders and files that go wrong while a run works: deleted, moved, replaced, closed to it; and those of a network."""

from __future__ import annotations

import errno
import gzip
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Ended, Pipeline, clean_environment, read_jsonl, write_jsonl
from disks import MB, command, ended, on_a_network, small_disk, without_rights
from reconcile import bill_of, reconcile
from simulated import Simulated, simulated

from pipeline import Job, run
from pipeline.errors import RunFolderError
from pipeline.ground.disk import file_system_of
from pipeline.journal import Journal, Lock, store
from pipeline.journal.inflight import InFlightTable
from pipeline.simulator import Settings
from pipeline.verify import verify
from pipeline.workspace.footing import Footing


@pytest.fixture
def sim() -> Iterator[Simulated]:
    """A gateway that takes its time."""
    with simulated(Settings(latency_s=0.15)) as server:
        yield server


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "text": f"row number {n}"} for n in range(count)]


def words(sim: Simulated, *more: str, source: str = "in.jsonl", slots: int = 4) -> list[str]:
    return [
        "run", "-i", source, "-o", "out.jsonl", "--base-url", sim.url, "-m", "sim/echo", "-p", "{{ text }}", "--id", "id",
        "-c", str(slots), *more,
    ]  # fmt: skip


Start = Callable[[list[str]], subprocess.Popen[str]]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Start]:
    """Start commands; none outlives its test."""
    with ExitStack() as stack:

        def start(line: list[str]) -> subprocess.Popen[str]:
            run = subprocess.Popen(
                line, cwd=tmp_path, env=clean_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(run)
            stack.callback(run.kill)
            return run

        yield start


def end_of(run: subprocess.Popen[str]) -> Ended:
    out, err = run.communicate(timeout=60)
    assert "Traceback" not in err, err
    return Ended(code=run.returncode, out=out, err=err)


def wait_for(it: Callable[[], bool], seconds: float = 40) -> None:
    until = time.monotonic() + seconds
    while not it():
        assert time.monotonic() < until
        time.sleep(0.02)


def settled(folder: Path, sim: Simulated, cwd: Path, count: int) -> None:
    """Complete, and in agreement with what was billed; nothing was lost, so nothing was bought twice."""
    bills = [entry for entry in sim.entries if entry.billed]
    reckoning = reconcile(folder, [bill_of(bill) for bill in bills], results=cwd / "out.jsonl")
    assert (reckoning.rows, reckoning.lost, len(bills)) == (count, 0, count)
    assert [row["id"] for row in read_jsonl(cwd / "out.jsonl")] == [f"r{n}" for n in range(count)]


# ---------------------------------------------------------------- the run folder


def _deleted(folder: Path) -> None:
    subprocess.run(["rm", "-rf", folder], check=True)


def _moved(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def _replaced(folder: Path) -> None:
    _deleted(folder)
    folder.mkdir(mode=0o700)
    (folder / "journal.sqlite").write_text("another's")
    (folder / "journal.sqlite-wal").write_text("another's")
    (folder / "status.json").write_text("another's")
    (folder / "reserve").write_text("another's")


@pytest.mark.slow
@pytest.mark.parametrize("happens", [_moved, _replaced])
def test_a_run_does_not_go_on_paying_into_a_journal_that_is_gone(
    tmp_path: Path, started: Start, sim: Simulated, happens: Callable[[Path], None]
) -> None:
    """It is seen within seconds, and the answers there are can be had: moved back, they are not bought again."""
    count = 200
    write_jsonl(tmp_path / "in.jsonl", rows_of(count))
    folder = tmp_path / "out.jsonl.run"
    run = started(command(*words(sim, "--json")))
    wait_for(lambda: sim.asked > 10)
    happens(folder)
    gone_at = time.monotonic()
    done = end_of(run)
    assert time.monotonic() - gone_at < 20
    assert done.code == 6, done.err
    summary = orjson.loads(done.out)
    assert f"the run folder {folder} was " in summary["reason"]
    assert 0 < summary["completed"] < count
    assert summary["in_flight"] == []
    assert summary["completed"] == sum(entry.billed for entry in sim.entries), "what was in flight was kept"
    assert not (tmp_path / "out.jsonl").exists()
    saved = Path(summary["run_folder"])
    assert str(saved) in summary["reason"]
    assert saved != folder
    if happens is _replaced:
        names = ("journal.sqlite", "journal.sqlite-wal", "status.json", "reserve")
        assert [(folder / name).read_text() for name in names] == ["another's"] * 4
        _deleted(folder)
    saved.rename(folder)
    again = ended(command(*words(sim, slots=64)), tmp_path)
    assert again.code == 0, again.err
    settled(folder, sim, tmp_path, count)


@pytest.mark.parametrize("name", ["lock", "inflight", "journal.sqlite", "journal.sqlite-wal"])
def test_a_file_of_the_run_folder_that_is_gone(tmp_path: Path, name: str) -> None:
    with Lock(tmp_path), closing(Journal.open(tmp_path, slots=2)) as journal, closing(Footing(journal)) as footing:
        assert footing.gone() is None
        kept = (tmp_path / name).rename(tmp_path / "kept")
        gone = footing.gone()
        assert gone is not None
        assert gone.exit_code == 6
        assert f"{tmp_path} ({name}) was deleted or replaced" in str(gone) or "was moved to" in str(gone)
        (tmp_path / name).write_bytes(kept.read_bytes())
        assert footing.gone() is not None, "another in its place"
        kept.replace(tmp_path / name)
        assert footing.gone() is None
        (tmp_path / name).unlink()
        assert "was deleted or replaced while this run worked" in str(footing.gone())


@pytest.mark.parametrize("name", [".nfs00000000000a1b2c00000001", "other"])
def test_a_journal_that_goes_by_another_name_is_saved(tmp_path: Path, name: str) -> None:
    """On its own client NFS renames a file that is deleted while it is open: that is no journal's name, and goes in the end."""
    folder = tmp_path / "run"
    folder.mkdir()
    with Lock(folder), closing(Journal.open(folder, slots=2)) as journal, closing(Footing(journal)) as footing:
        journal.start_run()
        journal.put("fact", "kept")
        (folder / "journal.sqlite").rename(folder / name)
        assert "was deleted or replaced while this run worked" in str(footing.gone())
        saved, advice = footing.rescue()
        assert saved == tmp_path / f"run.rescued-{journal.name}"
        assert f"was saved in {saved}: move that to {folder}" in advice
    with closing(Journal.read(saved)) as rescued:
        assert rescued.get("fact") == "kept"


def test_a_folder_that_nobody_can_ask_about_any_more_is_lost_not_a_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of files that was set up anew: every question is answered with ESTALE."""
    folder = tmp_path / "run"
    folder.mkdir()
    with Lock(folder), closing(Journal.open(folder, slots=2)) as journal, closing(Footing(journal)) as footing:
        journal.start_run()
        _deleted(folder)

        def stale(*_: object) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        monkeypatch.setattr("pipeline.workspace.footing.os.fstat", stale)
        gone = footing.gone()
        monkeypatch.undo()
        assert gone is not None
        assert gone.exit_code == 6
        assert "was deleted or replaced" in str(gone)


def test_a_rescued_journal_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names of all folders above it are synced, too."""
    synced, really = [], os.fsync

    def watched(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        really(fd)

    (tmp_path / "run").mkdir()
    saved = tmp_path / "far" / "saved"
    with closing(Journal.open(tmp_path / "run", slots=2)) as journal:
        monkeypatch.setattr("pipeline.ground.folders.os.fsync", watched)
        journal.save_to(saved)
        with pytest.raises(FileExistsError):
            journal.save_to(saved)
    assert {str(saved), str(tmp_path / "far"), str(tmp_path)} <= set(synced)
    assert (saved / "journal.sqlite").exists()
    assert saved.stat().st_mode & 0o777 == 0o700


def test_a_journal_that_cannot_be_saved_whole_leaves_nothing_half(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with closing(Journal.open(tmp_path / "run", slots=2)) as journal, small_disk(tmp_path, MB) as disk:
        journal.put("fact", "x" * (4 * MB))
        if disk.how == "rlimit":
            (disk.folder / "saved").mkdir()  # stands in for whatever lets it fail
        with pytest.raises((sqlite3.OperationalError, FileExistsError)):
            journal.save_to(disk.folder / "saved")
        assert disk.how == "rlimit" or not (disk.folder / "saved").exists()


def test_a_run_folder_that_is_gone_at_the_end_is_not_called_finished(
    tmp_path: Path, started: Start, sim: Simulated
) -> None:
    """Too short a run for a look in between."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(6))
    run = started(command(*words(sim, slots=1)))
    wait_for(lambda: sim.asked >= 3)
    _deleted(tmp_path / "out.jsonl.run")
    done = end_of(run)
    assert done.code == 6, done.err
    assert "was deleted or replaced while this run worked" in done.err
    assert not (tmp_path / "out.jsonl").exists()
    (saved,) = tmp_path.glob("out.jsonl.run.rescued-*")
    assert saved.stat().st_mode & 0o777 == 0o700
    saved.rename(tmp_path / "out.jsonl.run")
    assert ended(command(*words(sim)), tmp_path).code == 0
    settled(tmp_path / "out.jsonl.run", sim, tmp_path, 6)


@pytest.mark.slow
def test_try_says_what_became_of_its_run_folder(tmp_path: Path, started: Start, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(6))
    trying = started(command("try", "-n", "6", *words(sim, slots=1)[1:]))
    wait_for(lambda: sim.asked >= 3)
    _deleted(tmp_path / "out.jsonl.run")
    done = end_of(trying)
    assert done.code == 6, done.err
    assert "was deleted or replaced while this run worked" in done.err
    (saved,) = tmp_path.glob("out.jsonl.run.rescued-*")
    assert str(saved) in done.err
    assert "=> row number 0" in done.out, "what was paid for is shown"


def test_a_run_folder_that_becomes_read_only(tmp_path: Path, started: Start, sim: Simulated) -> None:
    """As a disk does that has errors. A bound on rights stands in where nothing can be mounted."""
    count = 200
    write_jsonl(tmp_path / "in.jsonl", rows_of(count))
    with small_disk(tmp_path, 16 * MB, "ext4") as disk:
        folder = disk.folder / "run"
        line = words(sim, "--json", "--run-dir", str(folder))
        run = started(without_rights(line))
        wait_for(lambda: sim.asked > 10)
        if disk.how == "ext4":
            subprocess.run(["mount", "-o", "remount,abort", disk.folder], check=True)
        else:
            folder.chmod(0o500)
        done = end_of(run)
        assert "exit 75" in done.err, done.err
        summary = orjson.loads(done.out) if done.out else {"reason": done.err, "completed": 0, "in_flight": []}
        assert re.search(
            r"cannot write the (status|journal) \S+: (Read-only|Permission denied|Input/output)", summary["reason"]
        )
        billed = sum(entry.billed for entry in sim.entries)
        assert billed == summary["completed"] + len(summary["in_flight"]), "kept, or named"
        assert len(summary["in_flight"]) <= 2 * 4
        assert billed < count, "it stopped"
        look = ended(without_rights(["status", str(folder)]), tmp_path)
        assert "Traceback" not in look.err
        assert ("exit 0" in look.err, f"{summary['completed']:,} succeeded" in look.out) == (True, True), (
            look.out + look.err
        )


# ---------------------------------------------------------------- the output's folder


@pytest.mark.slow
def test_an_output_folder_that_is_deleted_meanwhile_is_made_again(
    tmp_path: Path, started: Start, sim: Simulated
) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(5))
    (tmp_path / "far").mkdir()
    line = words(sim, "--run-dir", str(tmp_path / "run"), slots=1)
    line[line.index("out.jsonl")] = "far/out.jsonl"
    run = started(command(*line))
    wait_for(lambda: sim.asked >= 2)
    (tmp_path / "far").rmdir()
    done = end_of(run)
    assert done.code == 0, done.err
    assert len(read_jsonl(tmp_path / "far" / "out.jsonl")) == 5


def test_a_linked_output_on_another_disk_is_written_there(tmp_path: Path, sim: Simulated) -> None:
    """Renamed on its own file system, through the link; the run folder, a link too, stays one."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(3))
    with small_disk(tmp_path, 4 * MB) as disk:
        (disk.folder / "run").mkdir()
        (tmp_path / "out.jsonl.run").symlink_to(disk.folder / "run")
        (tmp_path / "out.jsonl").symlink_to(disk.folder / "real.jsonl")
        done = ended(command(*words(sim)), tmp_path)
        assert done.code == 0, done.err
        assert (tmp_path / "out.jsonl").is_symlink()
        assert (tmp_path / "out.jsonl.run").is_symlink()
        assert len(read_jsonl(disk.folder / "real.jsonl")) == 3
        assert {path.name for path in disk.folder.iterdir()} <= {"run", "real.jsonl", "lost+found"}
        assert ended(command("status", "out.jsonl"), tmp_path).code == 0
        assert ended(command("verify", "out.jsonl"), tmp_path).code == 0


def test_a_run_folder_that_is_a_link_to_nothing(tmp_path: Path, sim: Simulated) -> None:
    write_jsonl(tmp_path / "in.jsonl", rows_of(3))
    (tmp_path / "out.jsonl.run").symlink_to(tmp_path / "nowhere")
    done = ended(command(*words(sim)), tmp_path)
    assert done.code == 2, done.err
    assert f"{tmp_path / 'out.jsonl.run'} is a link to {tmp_path / 'nowhere'}, where there is nothing" in done.err
    assert sim.asked == 0


# ---------------------------------------------------------------- the input


def write_input(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(b"".join(orjson.dumps(row) + b"\n" for row in rows), mtime=0))
    elif path.suffix == ".csv":
        path.write_text("id,text\n" + "".join(f"{row['id']},{row['text']}\n" for row in rows))
    else:
        write_jsonl(path, rows)


INPUTS = ["in.jsonl", "in.jsonl.gz", "in.csv", "in.parquet"]
CHANGES = ["edited", "cut", "replaced", "deleted"]


def change(path: Path, how: str, rows: list[dict[str, Any]]) -> None:
    if how == "deleted":
        path.unlink()
    elif how == "cut":
        os.truncate(path, path.stat().st_size * 2 // 3)
    elif how == "edited":  # in place, the same size
        with path.open("r+b") as file:
            data = file.read().replace(b"row number", b"ROW NUMBER")
            file.seek(0)
            file.write(data[:-1] + b"~" if path.suffix == ".gz" else data)
    else:
        other = path.with_name(f"other{''.join(path.suffixes)}")
        write_input(other, [row | {"text": f"other {row['text']}"} for row in rows])
        other.replace(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("how", CHANGES)
def test_an_input_that_changes_while_it_is_read_is_noticed_and_said(tmp_path: Path, name: str, how: str) -> None:
    """No answer ever stands beside another row's data, and with the input as it was the run goes on."""
    count = 250
    source = tmp_path / name
    rows = [{"id": f"r{n}", "text": f"row number {n} {os.urandom(5000).hex()}"} for n in range(count)]
    write_input(source, rows)
    kept, stat = source.read_bytes(), source.stat()
    with simulated(Settings(latency_s=0.002)) as sim:

        def change_it() -> None:
            wait_for(lambda: sim.asked >= 20)
            change(source, how, rows)

        job = Job.load(None, overrides={
            "input.path": str(source), "input.id": "id", "output.path": str(tmp_path / "out.jsonl"),
            "gateway.base_url": sim.url, "gateway.concurrency": 2, "model": "sim/echo", "request.prompt": "{{ text }}",
        })  # fmt: skip
        changing = threading.Thread(target=change_it)
        changing.start()
        summary = run(job)
        changing.join()
        assert summary.exit_code == 75, summary
        assert name in summary.reason
        assert re.search(r"while the run was reading it|no longer what it was|No such file", summary.reason), summary
        assert not (tmp_path / "out.jsonl").exists()
        assert summary.completed == sum(entry.billed for entry in sim.entries)
        source.write_bytes(kept)
        os.utime(source, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert run(job).exit_code == 0
        settled(tmp_path / "out.jsonl.run", sim, tmp_path, count)


# ---------------------------------------------------------------- rights


def each(done: Ended) -> list[tuple[int, str]]:
    """Exit code and words of each command of ``without_rights``."""
    assert "Traceback" not in done.err, done.err
    return [(int(code), text) for text, code in re.findall(r"(.*?)exit (\d+)\n", done.err, re.DOTALL)]


def test_what_is_not_permitted_is_said(tmp_path: Path, sim: Simulated) -> None:
    """Exit 2 and nothing sent; a state folder that cannot be used is done without."""
    places = {name: tmp_path / name for name in ("in.jsonl", "far", "run", "key", "state")}
    write_jsonl(places["in.jsonl"], rows_of(2))
    write_jsonl(tmp_path / "fine.jsonl", rows_of(2))
    for name in ("far", "run", "state"):
        places[name].mkdir()
    places["key"].write_text("sk-1234")
    for place in places.values():
        place.chmod(0)
    fine = words(sim, source="fine.jsonl")
    lines = {
        "in.jsonl": words(sim),
        "far": [word if word != "out.jsonl" else "far/out.jsonl" for word in fine],
        "run": [*fine, "--run-dir", str(places["run"])],
        "key": [*fine, "--set", f"gateway.api_key_file={places['key']}"],
        "look": ["status", "run"],
        "state": fine,
    }
    environment = {"PIPELINE_STATE_DIR": str(places["state"])}
    found = dict(zip(lines, each(ended(without_rights(*lines.values()), tmp_path, env=environment)), strict=True))
    for place in places.values():
        place.chmod(0o700)
    assert {name: code for name, (code, _) in found.items()} == dict.fromkeys(lines, 2) | {"state": 0}, found
    for name, (_, text) in found.items():
        assert re.search("[Pp]ermission", text), (name, text)
        assert str(places.get(name, places["run"])) in text or f" {name}: " in text, (name, text)
    assert sim.asked == 2


@pytest.mark.parametrize("name", ["inflight", ".status.json.partial"])
def test_a_file_of_the_run_folder_that_is_not_permitted_is_no_matter_of_time(
    tmp_path: Path, sim: Simulated, name: str
) -> None:
    """As for lock and journal: exit 2 and nothing sent, for the same command will never do."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(2))
    folder = tmp_path / "out.jsonl.run"
    folder.mkdir(mode=0o700)
    (folder / name).touch(mode=0)
    ((code, text),) = each(ended(without_rights(words(sim)), tmp_path))
    assert code == 2, text
    assert re.search(
        r"cannot write the (in-flight table|status) \S+/out.jsonl.run/.*Permission denied: check its", text
    )
    assert sim.asked == 0


def test_a_run_folder_that_can_only_be_read_can_be_read(tmp_path: Path, sim: Simulated) -> None:
    """An archive: status, verify and export work; a run says why it does not."""
    write_jsonl(tmp_path / "in.jsonl", rows_of(3))
    assert ended(command(*words(sim)), tmp_path).code == 0
    folder = tmp_path / "out.jsonl.run"
    for path in (*folder.iterdir(), folder):
        path.chmod(0o500 if path == folder else 0o400)
    looks = [["status", "out.jsonl"], ["verify", "out.jsonl"], ["export", "out.jsonl", "-o", "again.csv"]]
    *looked, (code, text) = each(ended(without_rights(*looks, words(sim)), tmp_path))
    folder.chmod(0o700)
    assert [look[0] for look in looked] == [0, 0, 0], looked
    assert code == 2, text
    assert f"cannot write in the run folder {folder}: Permission denied" in text
    assert sim.asked == 3


# ---------------------------------------------------------------- file systems of a network


@pytest.mark.slow
def test_a_whole_life_on_a_network_file_system(tmp_path: Path, started: Start) -> None:
    """Run, look, refuse a second one, kill -9, resume, export: and never shared memory beside the journal."""
    count = 60
    write_jsonl(tmp_path / "in.jsonl", rows_of(count))
    with simulated(Settings(latency_s=0.3)) as sim, small_disk(tmp_path, 16 * MB) as disk:
        folder = disk.folder / "run"
        line = words(sim, "--run-dir", str(folder), slots=1)
        part = ["export", str(folder), "--partial", "-o", "part.jsonl"]
        run = started(on_a_network(line))
        wait_for(lambda: sim.asked > 3 and (folder / "status.json").exists())
        look = ended(on_a_network(["status", str(folder)], line, part), tmp_path)
        _, second, early = each(look)
        assert "running on" in look.out
        assert second[0] == 75
        assert "another run works in" in second[1]
        assert early[0] == 75
        assert "is in use by another process" in early[1]
        assert not (folder / "journal.sqlite-shm").exists()
        run.send_signal(signal.SIGKILL)
        run.communicate()
        look = ended(on_a_network(["status", str(folder)], part), tmp_path)
        assert "was killed" in look.out
        assert [code for code, _ in each(look)] == [0, 0], look.err
        assert len(read_jsonl(tmp_path / "part.jsonl")) > 0
        assert not (folder / "journal.sqlite-shm").exists()
        looks = (["verify", str(folder)], ["export", str(folder), "-o", "out.csv"])
        last = ended(on_a_network([*line, "--json", "-c", "32"], *looks), tmp_path)
        assert [code for code, _ in each(last)] == [0, 0, 0], last.err
        named = orjson.loads(last.out)["recovered"]
        assert 0 < len(named) <= 2
        assert not (folder / "journal.sqlite-shm").exists()
        bills = [bill_of(entry) for entry in sim.entries if entry.billed]
        reckoning = reconcile(folder, bills, results=tmp_path / "out.jsonl")
        assert (reckoning.rows, reckoning.lost) == (count, len(named))


def test_what_a_killed_run_has_lost_is_found_across_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated(Settings(latency_s=0.0)) as sim:
        write_jsonl(tmp_path / "in.jsonl", rows_of(6))
        assert ended(command(*words(sim)), tmp_path).code == 0
        folder = tmp_path / "out.jsonl.run"
        with closing(sqlite3.connect(folder / "journal.sqlite", isolation_level=None)) as db:
            db.execute("UPDATE run SET ended_at = NULL, how = NULL")
            db.execute("DELETE FROM outcome WHERE no = 3")
            db.execute("DELETE FROM reply WHERE no = 3")
        status = orjson.loads((folder / "status.json").read_bytes())
        (folder / "status.json").write_bytes(orjson.dumps(status | {"state": "running"}))
        monkeypatch.setattr(store, "NETWORK_FILE_SYSTEMS", {file_system_of(folder)})
        (finding,) = verify(folder).findings
        assert "6 rows were done as status.json beside it says, the journal has 5" in finding.what
        asked = sim.asked
        again = ended(on_a_network(words(sim)), tmp_path)
        assert [code for code, _ in each(again)] == [2], again.err
        assert sim.asked == asked
        assert "is not whole" in again.err


def test_an_in_flight_table_without_shared_memory_is_as_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some network file systems (9p) map nothing that can be written."""

    def none(*_: object) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr("pipeline.journal.inflight.mmap.mmap", none)
    table = InFlightTable(tmp_path / "inflight", slots=2)
    entries = [table.enter(f"r{n}", n, bytes([n] * 16), f"call-{n}") for n in range(3)]
    table.clear(entries[1])
    monkeypatch.undo()  # another process, killed or not, finds it in the file
    left = InFlightTable(tmp_path / "inflight", slots=2)
    assert sorted(one.custom_id for one in left.left) == ["r0", "r2"]
    left.close()
    table.forget_left()
    assert not any(table.left)
    assert not any((tmp_path / "inflight").read_bytes()[256 * 2 :])
    table.close()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pipeline.journal.lock.fcntl.flock", refuse)
    with pytest.raises(RunFolderError, match=r"cannot be locked \(.*gives no locks.*--run-dir"), Lock(tmp_path):
        pass
    assert not Lock(tmp_path).is_held()


def test_a_folder_that_is_made_for_the_results_is_named(pipeline: Pipeline, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "x"}])
    words = ("-i", "in.jsonl", "-g", "simulator", "-m", "sim/echo", "-p", "{{ text }}")
    said = f"The output's folder {tmp_path / 'reslts'} was not there: it is made."
    first = pipeline("run", *words, "-o", "reslts/out.jsonl")
    again = pipeline("run", *words, "-o", "reslts/out.jsonl")
    assert (first.code, first.err.count(said), again.err.count(said)) == (0, 1, 0)
    apart = pipeline("run", *words, "-o", "other/out.jsonl", "--run-dir", "journal")
    assert f"folder {tmp_path / 'other'} was not there" in apart.err
    plan = pipeline("plan", *words, "-o", "planned/out.jsonl")
    assert f"note    The output's folder {tmp_path / 'planned'} was not there: it is made." in plan.out
    away = pipeline("plan", *words, "-o", "later/out.jsonl", "--run-dir", "journal_2")
    assert f"note    The output's folder {tmp_path / 'later'} was not there: it will be made." in away.out
    assert not (tmp_path / "later").exists()

"""Promise 7: memory does not grow with the input, neither while rows are sent nor while results are written."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Server, clean_environment
from filled import answered, job_for, workspace

from pipeline.errors import IncompleteError

MB = 1024 * 1024
# What getrusage says of a child includes the process it was forked from; the kernel's own mark of the child does not.
MEASURED = """
import atexit, resource, sys

def peak():
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
    except FileNotFoundError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

atexit.register(lambda: print("peak", peak(), flush=True))
from pipeline.cli import main
main()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """How much memory a command took at most (bytes), and how long."""

    peak: int
    seconds: float


def measured(folder: Path, *words: str | Path, timeout: float) -> Measured:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, words)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        env=clean_environment(),
    )
    assert done.returncode == 0, done.stderr
    return Measured(peak=int(done.stdout.split("peak ")[1]), seconds=time.monotonic() - begun)


def numbered(path: Path, rows: int, line: str, different: int | None = None) -> Path:
    with path.open("w") as file:
        file.writelines(line % (number % (different or rows)) for number in range(rows))
    return path


OF_ITS_OWN = {
    "no": "i.no",
    "custom_id": "i.custom_id",
    "fingerprint": "i.fingerprint",
    "request_id": "t.request_id || i.no",
    "body": "CAST(replace(CAST(t.body AS TEXT), 'NUMBER', i.no) AS BLOB)",
}


@pytest.fixture
def million(tmp_path: Path) -> Iterator[Path]:
    """The run folder of a job whose million rows are all answered: the first as ever, the others as copies of it."""
    line = '{"id":%d,"title":"a title","text":"some words of a short row","x":0.5}\n'
    rows = numbered(tmp_path / "in.jsonl", 1_000_000, line)
    job = job_for(rows, tmp_path / "out.jsonl", input__id="id", request__prompt="{{ title }} {{ text }}")
    with workspace(job, lambda request: answered(request, "the answer to row NUMBER, in a few words"), most=1) as space:
        db = space.journal.db
        for table in ("outcome", "reply"):
            names = [name for (name,) in db.execute(f"SELECT name FROM pragma_table_info('{table}')")]
            values = ", ".join(OF_ITS_OWN.get(name, f"t.{name}") for name in names)
            db.execute(f"INSERT INTO {table} SELECT {values} FROM input i, {table} t WHERE t.no = 1 AND i.no > 1")
    yield job.run_folder
    rows.unlink()  # pytest keeps the folders of three runs


@pytest.mark.slow
def test_a_million_results_are_written_in_little_memory(
    tmp_path: Path, million: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = measured(tmp_path, "export", million, "-o", "out.parquet", timeout=300)
    with capsys.disabled():
        rate = 1_000_000 / found.seconds
        print(f" a million rows from JSONL to Parquet: {found.peak / MB:.0f} MB, {rate:,.0f} rows/s", end=" ")
    metadata = pq.read_metadata(tmp_path / "out.parquet")
    groups = {metadata.row_group(at).num_rows for at in range(metadata.num_row_groups - 1)}
    assert metadata.num_rows == 1_000_000
    assert min(groups) >= 65_536
    assert found.peak < 300 * MB
    for path in (tmp_path / "out.parquet", million / "journal.sqlite"):
        path.unlink()


def test_an_input_that_was_cut_is_noticed_without_reading_what_lacks(tmp_path: Path) -> None:
    """All rows behind the cut are pending, and there may be millions."""
    source = numbered(tmp_path / "in.jsonl", 20_000, '{"t":"question %d"}\n')
    with workspace(job_for(source, tmp_path / "out.jsonl"), lambda _: None, most=1) as space:
        with source.open("r+b") as file:
            file.truncate(len(file.readline()))

        async def walk() -> None:
            async for _ in space.feed.items(space.journal.index()):
                pass

        tracemalloc.start()
        try:
            with pytest.raises(IncompleteError, match=r"in\.jsonl.* and what followed it went while the run"):
                asyncio.run(walk())
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 3 * MB


@pytest.mark.slow
@pytest.mark.parametrize("dedupe", [False, True])
def test_ten_times_the_rows_take_no_more_memory(
    tmp_path: Path, serve: Callable[..., Server], capsys: pytest.CaptureFixture[str], dedupe: bool
) -> None:
    server = serve()
    found = {}
    for rows in (20_000, 200_000):
        source = numbered(tmp_path / f"{rows}.jsonl", rows, '{"t":"question %d"}\n', rows // 20 if dedupe else None)
        output = tmp_path / f"out{rows}.jsonl"
        words = [
            "run",
            "-i",
            source,
            "-o",
            output,
            "--base-url",
            server.url,
            "-m",
            "sim/echo",
            "-p",
            "{{ t }}",
            "-c",
            "64",
            "-q",
            "--set",
            f"request.dedupe={str(dedupe).lower()}",
        ]
        found[rows] = measured(tmp_path, *words, timeout=400)
        with output.open("rb") as lines:
            assert sum(1 for _ in lines) == rows
        with capsys.disabled():
            one = found[rows]
            print(f" {rows:,} rows: {one.peak / MB:.0f} MB, {rows / one.seconds:,.0f} rows/s;", end=" ")
        for path in (source, output, Path(f"{output}.run") / "journal.sqlite"):
            path.unlink()
    assert found[200_000].peak - found[20_000].peak < 25 * MB

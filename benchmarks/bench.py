"""The engine's own cost, as ratios to a bare aiohttp + uvloop loop in the same run: ``make bench``.

    python benchmarks/bench.py [NAME ...] [--rounds N] [--small] [--results FILE]

Rounds of the bare loop and of ``pipeline`` alternate, figures are medians. The server is a process of its own, on another
core where there is one. ``--small`` takes fewer rows, for ``make bench-check``.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
CLIENT_CORE, SERVER_CORE = (CORES[0], CORES[-1]) if len(CORES) > 1 else (None, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Took:
    """One process: seconds on the wall and of processor, peak of memory in MB; requests seen by the server, in how long."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    requests: int
    span_s: float
    first_s: float


@dataclass(slots=True, kw_only=True)
class Figure:
    """One line of the results: ``value`` to be compared with ``target`` (``at_least`` or at most)."""

    name: str
    what: str
    value: float
    target: float | None
    at_least: bool = True
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        if self.target is None:
            return True
        return self.value >= self.target if self.at_least else self.value <= self.target


@dataclass(slots=True, kw_only=True)
class Bench:
    """Where it works, and how large."""

    folder: Path
    rounds: int
    small: bool
    figures: list[Figure] = field(default_factory=list)

    def rows(self, full: int, small: int) -> int:
        """How many rows to take."""
        return small if self.small else full

    def jsonl(self, rows: int, start: int = 0, name: str = "in.jsonl") -> Path:
        """So many rows of about 100 bytes."""
        path = self.folder / f"{rows}-{start}-{name}"
        if not path.exists():
            with path.open("w") as file:
                for number in range(start, start + rows):
                    text = f"row {number} asks what the weather is like in a town whose name has not been told yet"
                    file.write(f'{{"id":"r{number}","text":"{text}"}}\n')
        return path

    def add(self, **facts: Any) -> None:
        """One more figure, shown at once."""
        figure = Figure(**facts)
        self.figures.append(figure)
        sign = "    " if figure.target is None else "ok  " if figure.met else "MISS"
        goal = "" if figure.target is None else f" (target {'>=' if figure.at_least else '<='} {figure.target:g})"
        print(f"{sign} {figure.name:<4} {figure.what}: {figure.value:.4g}{goal}  {figure.detail}", flush=True)


@contextmanager
def server(latency_s: float = 0.0) -> Iterator[str]:
    """A static server on the other core."""
    process = subprocess.Popen(
        _pinned([sys.executable, str(HERE / "static_server.py"), str(latency_s)], SERVER_CORE), stdout=subprocess.PIPE, text=True
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def _pinned(words: list[str], core: int | None) -> list[str]:
    return words if core is None or shutil.which("taskset") is None else ["taskset", "-c", str(core), *words]


def stats(url: str) -> dict[str, Any]:
    """What the server saw."""
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:
        found: dict[str, Any] = orjson.loads(answer.read())
    return found


def reset(url: str) -> None:
    """Have the server count anew."""
    urllib.request.urlopen(urllib.request.Request(url.removesuffix("/v1") + "/reset", data=b"", method="POST")).close()


def timed(words: list[str], url: str | None, *, core: int | None = CLIENT_CORE, codes: tuple[int, ...] = (0,)) -> Took:
    """Run a command to its end."""
    if url is not None:
        reset(url)
    environment = {**os.environ, "PIPELINE_STATE_DIR": tempfile.mkdtemp()}
    started = time.monotonic()
    process = subprocess.Popen(_pinned(words, core), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall_s = time.monotonic() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stderr.close()
    if process.returncode not in codes:
        raise SystemExit(f"{words} ended with {process.returncode}: {said.decode()[-2000:]}")
    seen = stats(url) if url is not None else {"requests": 0, "first_at": 0.0, "last_at": 0.0}
    return Took(
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_mb=usage.ru_maxrss / 1024,
        requests=seen["requests"],
        span_s=seen["last_at"] - seen["first_at"],
        first_s=seen["first_at"] - started,
    )


def pipeline(*words: str | Path) -> list[str]:
    """The command under test."""
    return [sys.executable, "-m", "pipeline", *map(str, words)]


def bare(source: Path, url: str, slots: int, mode: str = "chat") -> list[str]:
    """The loop it is measured against."""
    return [sys.executable, str(HERE / "bare.py"), str(source), url, str(slots), mode]


def run_of(source: Path | str, output: Path, url: str, slots: int, *more: str) -> list[str]:
    """A run that asks one question a row; what an earlier round left is taken away."""
    for path in (output, Path(f"{output}.meta.json")):
        path.unlink(missing_ok=True)
    shutil.rmtree(f"{output}.run", ignore_errors=True)
    return pipeline(
        "run", "-i", source, "--id", "id", "-o", output, "--base-url", url, "-m", "m", "-p", "{{ text }}",
        "-c", str(slots), "-q", *more,
    )  # fmt: skip


def ratios(bench: Bench, ours: Callable[[], Took], theirs: Callable[[], Took]) -> tuple[list[Took], list[Took]]:
    """Rounds of both, alternating; the first of each warms up the machine and is not counted."""
    ours(), theirs()
    pairs = [(theirs(), ours()) for _ in range(bench.rounds)]
    return [pair[1] for pair in pairs], [pair[0] for pair in pairs]


def median(values: Iterator[float]) -> float:
    """The median."""
    return statistics.median(list(values))


def b1(bench: Bench) -> None:
    """B1 throughput and B2 processor time."""
    rows = bench.rows(40_000, 15_000)
    source = bench.jsonl(rows)
    with server() as url:
        ours, theirs = ratios(
            bench,
            lambda: timed(run_of(source, bench.folder / "b1.jsonl", url, 64), url),
            lambda: timed(bare(source, url, 64), url),
        )
    rate, bare_rate = median(rows / took.span_s for took in ours), median(rows / took.span_s for took in theirs)

    def best(side: list[Took]) -> float:
        return max(rows / took.span_s for took in side)

    whole, bare_whole = median(rows / took.wall_s for took in ours), median(rows / took.wall_s for took in theirs)
    bench.add(
        name="B1", what="rows/s while sending, of the bare loop's", value=rate / bare_rate, target=0.80,
        detail=f"{rate:,.0f} of {bare_rate:,.0f} rows/s; the best rounds {best(ours):,.0f} of {best(theirs):,.0f}",
    )  # fmt: skip
    bench.add(
        name="B1", what="rows/s of the whole process, of the bare loop's", value=whole / bare_whole, target=0.70,
        detail=f"{whole:,.0f} of {bare_whole:,.0f} rows/s, start and export of {rows:,} rows included",
    )  # fmt: skip
    cpu, bare_cpu = (median(took.cpu_s / rows * 1000 for took in side) for side in (ours, theirs))
    bench.add(
        name="B2", what="processor seconds per 1,000 rows", value=cpu, target=0.20, at_least=False,
        detail=f"bare loop {bare_cpu:.3f}; whole processes",
    )  # fmt: skip
    bench.add(
        name="B2", what="processor time of the bare loop, of ours", value=bare_cpu / cpu, target=None,
        detail="where others use the server's core, both wait for it and only this ratio tells",
    )  # fmt: skip


def b3(bench: Bench) -> None:
    """B3 efficiency at 5 slots."""
    rows, latency_s, slots = 2_000, 0.02, 5
    source = bench.jsonl(rows)
    with server(latency_s) as url:
        ours, theirs = ratios(
            bench,
            lambda: timed(run_of(source, bench.folder / "b3.jsonl", url, slots), url),
            lambda: timed(bare(source, url, slots), url),
        )
    ideal_s = rows * latency_s / slots
    sending, bare_sending = (median(ideal_s / took.span_s for took in side) for side in (ours, theirs))
    whole = median(ideal_s / took.wall_s for took in ours)
    bench.add(
        name="B3", what="efficiency at 5 slots of 20 ms", value=sending, target=0.96, detail=f"bare loop {bare_sending:.3f}"
    )  # fmt: skip
    bench.add(name="B3", what="efficiency at 5 slots, of the bare loop's", value=sending / bare_sending, target=None)
    bench.add(name="B3", what="the same with process start and export", value=whole, target=0.93)


def b5(bench: Bench) -> None:
    """B5 start."""
    source = bench.jsonl(100)
    with server() as url:
        took = [timed(run_of(source, bench.folder / "b5.jsonl", url, 8), url) for _ in range(max(5, bench.rounds))]
    bench.add(
        name="B5", what="seconds to the first request", value=median(t.first_s for t in took), target=0.5, at_least=False
    )  # fmt: skip
    help_s = median(timed(pipeline("--help"), None).wall_s for _ in range(max(5, bench.rounds)))
    bench.add(name="B5", what="seconds for --help", value=help_s, target=0.2, at_least=False)


def b4_b6_b7(bench: Bench) -> None:
    """B4 memory by rows; of the largest journal B6 resume and B7 export."""
    rows, more = bench.rows(1_000_000, 100_000), 1_000
    output = bench.folder / "b4.jsonl"
    peaks: dict[int, float] = {}
    with server() as url:
        for count in (20_000, 200_000, rows) if rows > 200_000 else (20_000, rows):
            folder = bench.folder / f"b4-{count}"
            folder.mkdir()
            shutil.copyfile(bench.jsonl(count), folder / "a.jsonl")
            command = run_of(folder, output, url, 64)
            peaks[count] = timed(command, url).peak_mb
        untouched = timed(command, url)
        shutil.copyfile(bench.jsonl(more, start=rows), folder / "b.jsonl")
        resumed = timed(command, url)
    export = timed(pipeline("export", output, "-o", bench.folder / "b7.parquet"), None)
    shown = ", ".join(f"{count:,} rows {peak:.0f} MB" for count, peak in peaks.items())
    bench.add(name="B4", what="peak memory in MB", value=max(peaks.values()), target=120, at_least=False, detail=shown)
    growth = (peaks[rows] - peaks[20_000]) / (rows - 20_000) * 100_000
    bench.add(name="B4", what="growth in MB per 100,000 rows", value=growth, target=3.0, at_least=False)
    scale = rows / 1_000_000
    bench.add(
        name="B6", what=f"seconds to the first request with {rows:,} rows done and {more:,} new", value=resumed.first_s,
        target=max(20 * scale, 1.0), at_least=False, detail=f"{resumed.wall_s:.1f} s with the export",
    )  # fmt: skip
    bench.add(name="B6", what="peak memory in MB", value=resumed.peak_mb, target=150, at_least=False)
    bench.add(
        name="B6", what="seconds for untouched input", value=untouched.wall_s, target=max(3 * scale, 1.0), at_least=False
    )  # fmt: skip
    bench.add(
        name="B7", what="rows/s exported to Parquet", value=(rows + more) / export.wall_s, target=50_000,
        detail=f"{export.wall_s:.1f} s, start included",
    )  # fmt: skip
    bench.add(name="B7", what="peak memory in MB", value=export.peak_mb, target=300, at_least=False)


def b8(bench: Bench) -> None:
    """B8 streams."""
    rows = bench.rows(8_000, 3_000)
    source = bench.jsonl(rows)
    with server() as url:
        ours, theirs = ratios(
            bench,
            lambda: timed(run_of(source, bench.folder / "b8.jsonl", url, 64, "--set", "gateway.stream=true"), url),
            lambda: timed(bare(source, url, 64, "stream"), url),
        )
    rate, bare_rate = median(rows / took.span_s for took in ours), median(rows / took.span_s for took in theirs)
    bench.add(
        name="B8", what="streams/s of 200 events, of the bare loop's", value=rate / bare_rate, target=0.5,
        detail=f"{rate:,.0f} of {bare_rate:,.0f}",
    )  # fmt: skip


def b9(bench: Bench) -> None:
    """B9 embeddings."""
    rows = bench.rows(64_000, 16_000)
    source = bench.jsonl(rows)
    wishes = ("--set", "request.endpoint=embeddings", "--set", "request.pack=64")
    with server() as url:
        ours, theirs = ratios(
            bench,
            lambda: timed(run_of(source, bench.folder / "b9.parquet", url, 8, *wishes), url),
            lambda: timed(bare(source, url, 8, "embeddings"), url),
        )
    rate, bare_rate = median(rows / took.span_s for took in ours), median(rows / took.span_s for took in theirs)
    bench.add(
        name="B9", what="vectors/s of 768 floats, of the bare loop's", value=rate / bare_rate, target=0.5,
        detail=f"{rate:,.0f} of {bare_rate:,.0f}",
    )  # fmt: skip


# In a process of its own: this one's memory would count as that of the next command.
WRITE_PARQUET = """
import sys
import pyarrow as pa, pyarrow.parquet as pq
rows = int(sys.argv[2])
columns = {f"c{n}": [f"text {row} of {n}" for row in range(rows)] for n in range(3)}
pq.write_table(pa.table({"id": [f"r{row}" for row in range(rows)], "n": list(range(rows)), **columns}), sys.argv[1])
"""


def b10(bench: Bench) -> None:
    """B10 index pass over Parquet: until the first request is seen, then the run is asked to stop."""
    rows = bench.rows(1_000_000, 100_000)
    path = bench.folder / "b10.parquet"
    subprocess.run([sys.executable, "-c", WRITE_PARQUET, str(path), str(rows)], check=True)
    with server() as url:
        command = run_of(path, bench.folder / "b10.jsonl", url, 64)
        command[command.index("{{ text }}")] = "{{ c0 }} and {{ c1 }}: {{ n }}"
        started = time.monotonic()
        process = subprocess.Popen(_pinned(command, CLIENT_CORE), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not stats(url)["requests"]:
            time.sleep(0.02)
        first_s = stats(url)["first_at"] - started
        process.terminate()
        process.wait()
    bench.add(
        name="B10", what="rows/s rendered, fingerprinted and indexed", value=rows / first_s, target=50_000,
        detail=f"{first_s:.1f} s, start included",
    )  # fmt: skip


def b11(bench: Bench) -> None:
    """B11 four runs on one lease against one."""
    rows, latency_s = 2_000, 0.05
    sources = [bench.jsonl(rows // 4, start=number * rows) for number in range(4)]
    alone = bench.jsonl(rows)
    environment = {**os.environ, "PIPELINE_STATE_DIR": tempfile.mkdtemp(), "PIPELINE_API_KEY": "sk-bench"}
    with server(latency_s) as url:
        one = timed(run_of(alone, bench.folder / "b11.jsonl", url, 8), url)
        reset(url)
        runs = [
            subprocess.Popen(run_of(source, bench.folder / f"b11-{number}.jsonl", url, 8), env=environment, stderr=subprocess.DEVNULL)
            for number, source in enumerate(sources)
        ]  # fmt: skip
        assert [run.wait() for run in runs] == [0, 0, 0, 0]
        seen = stats(url)
    together = seen["requests"] / (seen["last_at"] - seen["first_at"])
    bench.add(
        name="B11", what="rows/s of four runs on one key, of one run's", value=together / (one.requests / one.span_s), target=0.95,
        detail=f"8 slots, {latency_s * 1000:.0f} ms",
    )  # fmt: skip


ALL = {"B1": b1, "B3": b3, "B5": b5, "B8": b8, "B9": b9, "B11": b11, "B10": b10, "B4": b4_b6_b7}


def results(bench: Bench, seconds: float) -> str:
    """The figures as a page."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("aiohttp", "uvloop", "pyarrow", "orjson"))
    lines = [
        "# Results of `make bench`",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {len(CORES) or os.cpu_count()} cores, {platform.system()} "
        f"{platform.release()}, Python {platform.python_version()}, {packages}. {bench.rounds} rounds, {seconds / 60:.0f} min. "
        "Figures are medians; ratios are to `benchmarks/bare.py` in the same run.",
        "",
        f"Load average when it ended: {', '.join(f'{load:.1f}' for load in os.getloadavg())}; the benchmark alone makes about 2 of "
        "it. Above that, other work shared the cores: seconds, rows a second and memory are then worse than the machine's own, "
        "ratios less so.",
        "",
        "| | what | figure | target | |",
        "|---|---|---|---|---|",
    ]
    for one in bench.figures:
        goal = "" if one.target is None else f"{'>=' if one.at_least else '<='} {one.target:g}"
        lines.append(
            f"| {one.name} | {one.what} | {one.value:.4g} | {goal}{'' if one.met else ' (missed)'} | {one.detail} |"
        )
    return "\n".join(lines) + "\n"


def check(bench: Bench, path: Path) -> int:
    """Compare ratios with the last results, generously: 0.8 of them."""
    last = {}
    for line in path.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0].startswith("B"):
            last[cells[0], cells[1]] = float(cells[2])
    worse = [one for one in bench.figures if (before := last.get((one.name, one.what))) and ("of the bare" in one.what or "of ours" in one.what) and one.value < 0.8 * before]  # fmt: skip
    for one in worse:
        print(f"{one.name} {one.what}: {one.value:.3f} is less than 0.8 of {last[one.name, one.what]:.3f}")
    return 1 if worse else 0


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*ALL, []], help="which; all unless given")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--results", type=Path, help="write the figures there")
    parser.add_argument("--check", type=Path, help="compare the ratios with these results")
    given = parser.parse_args()
    started = time.monotonic()
    # With it each start compiles all of pipeline, which an installed one does not.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder=Path(folder), rounds=given.rounds, small=given.small)
        for name in given.names or ALL:
            ALL[name](bench)
    if given.results is not None:
        given.results.write_text(results(bench, time.monotonic() - started))
    return check(bench, given.check) if given.check is not None else 0


if __name__ == "__main__":
    sys.exit(main())

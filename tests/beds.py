"""A job on a disk that is watched: its folder, its rows, its gateway, and what must hold at the end."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
from conftest import clean_environment, read_jsonl, write_jsonl
from reconcile import Bill, bill_of
from simulated import Simulated

from pipeline import Job, Summary, run
from pipeline.verify import verify

COUNTED = str(Path(__file__).with_name("counted.py"))


def digest_of(text: str) -> str:
    """What the gateway's ledger calls a row's request."""
    body = {"messages": [{"content": text, "role": "user"}], "model": "sim/echo"}
    return hashlib.blake2b(orjson.dumps(body, option=orjson.OPT_SORT_KEYS), digest_size=16).hexdigest()


def rows_of(count: int, size: int) -> list[dict[str, Any]]:
    """So many rows, of about so many bytes."""
    return [{"id": f"r{n}", "text": f"row number {n} {'and some more ' * (size // 14)}"} for n in range(count)]


@dataclass(kw_only=True)
class Bed:
    """A job over ``rows`` whose results and run folder lie on the disk ``root``, in folders that are not there at first."""

    root: Path
    rows: list[dict[str, Any]]
    sim: Simulated
    output: str = "results/of/run/out.jsonl"
    piped: bool = False
    slots: int = 8

    def __post_init__(self) -> None:
        self.root.mkdir()
        write_jsonl(self.input, self.rows)

    @property
    def input(self) -> Path:
        return self.root.parent / "in.jsonl"

    @property
    def results(self) -> Path:
        return self.root / self.output

    @property
    def folder(self) -> Path:
        return self.root / f"{self.output}.run"

    def start(self, env: dict[str, str], *, boot: str = "", again: bool = False) -> subprocess.Popen[str]:
        """Start a run; ``again``: with nothing on standard input."""
        source = "-" if self.piped else str(self.input)
        words = [
            "run", "-i", source, "-o", str(self.results), "--base-url", self.sim.url, "-m", "sim/echo", "-p", "{{ text }}",
            "-c", str(self.slots), "--id", "id", "--no-lease",
        ]  # fmt: skip
        given = self.input if self.piped and not again else Path(os.devnull)
        with given.open("rb") as stdin:
            return subprocess.Popen(
                [sys.executable, "-W", "error", COUNTED, str(self.root / "shown"), boot, *words],
                stdin=stdin, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=env,
            )  # fmt: skip

    def run(self, env: dict[str, str] | None = None, *, boot: str = "", again: bool = False) -> tuple[int, str]:
        """Run to the end: how it ended, and what it said."""
        process = self.start(env or clean_environment(), boot=boot, again=again)
        said = process.communicate(timeout=120)[1]
        assert "Traceback" not in said, said
        return process.returncode, said

    def go_on(self) -> Summary:
        """The next run, of a disk that is well again, in this process: that is quicker."""
        settings = {
            "input.path": str(self.input),
            "input.id": "id",
            "output.path": str(self.results),
            "gateway.base_url": self.sim.url,
            "gateway.concurrency": self.slots,
            "model": "sim/echo",
            "request.prompt": "{{ text }}",
        }
        return run(Job.load(None, overrides=settings))

    def found(self) -> list[dict[str, Any]]:
        """The results."""
        if self.results.suffix == ".parquet":
            table: list[dict[str, Any]] = pq.read_table(self.results).to_pylist()
            return table
        return read_jsonl(self.results)

    def check_end(self, said: str = "") -> None:
        """One row of output for each of the input, in order, and nothing that verify finds."""
        found = self.found()
        assert [row["id"] for row in found] == [row["id"] for row in self.rows], said
        assert all(row["status"] == "succeeded" for row in found), said
        report = verify(self.folder)
        assert (report.findings, report.pending, report.rows) == ([], 0, len(self.rows)), f"{report.findings}\n{said}"

    def bills(self, since: int) -> list[Bill]:
        """What the gateway billed from this line of its ledger on."""
        return [bill_of(entry) for entry in self.sim.entries[since:] if entry.billed]

    def shown(self) -> int:
        """The largest count of done rows that anybody may have been shown."""
        path = self.root / "shown"
        return max(map(int, path.read_text().split()), default=0) if path.exists() else 0

"""Promises 1 to 4 through kill -9, over every phase of every command that writes: the crash matrix.

``make test-crash`` plays all of it, ``make test`` a short form. ``PIPELINE_CRASH_SEED`` plays the same moments again, as far as the
machine's timing does; each test prints the seed it had.
"""

from __future__ import annotations

import os
import random
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from aged import to_version_1
from conftest import Pipeline, Server, read_jsonl, write_jsonl
from filled import every_third_failed, job_for, workspace
from killing import (
    PHASES,
    Child,
    Durations,
    Found,
    Tally,
    deck,
    found_in,
    kill_in,
    mark_of,
    measured,
    nothing_else,
    nothing_is_damaged,
    rows_in,
    shown_is_kept,
    whole,
)
from reconcile import bill_of, reconcile

from pipeline.results import export
from pipeline.simulator import Entry
from pipeline.verify import verify

FULL = os.environ.get("PIPELINE_CRASH") == "full"
SEED = os.environ.get("PIPELINE_CRASH_SEED") or str(secrets.randbelow(10**9))
BASE_ROWS = (400, 900)[FULL]
NEED = {1: 60, 5: 200, 64: 700}  # pending calls that a kill while sending wants: about half a second's
EXPORTED_ROWS = (6_000, 12_000)[FULL]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is killed. ``words`` go with the run that is killed, and ``faults`` strike rows with "odd" in them.

    ``kills`` are those of the short form and of the whole one; 0 leaves it to the whole one. ``aged``: before each start the
    journal is made one of version 1 again. So many rows ``alike`` ask the same.
    """

    name: str
    kills: tuple[int, int]
    slots: int = 5
    job: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    fault: dict[str, Any] | None = None
    phases: tuple[str, ...] = PHASES
    aged: bool = False
    alike: int = 1
    need: int | None = None

    @property
    def pack(self) -> int:
        """Rows in one call."""
        return int(self.job.get("request", {}).get("pack", 1))

    @property
    def count(self) -> int:
        """How many kills."""
        return self.kills[FULL]


STREAM = {"gateway": {"stream": True}}
PACKED = {"request": {"endpoint": "embeddings", "pack": 8}}
DEDUPE = {"request": {"dedupe": True}}
KINDS = (
    Kind(name="chat-1", slots=1, kills=(0, 24)),
    Kind(name="chat-5", slots=5, kills=(0, 24)),
    Kind(name="chat-64", slots=64, kills=(6, 30)),
    Kind(name="stream-1", slots=1, kills=(6, 24), job=STREAM),
    Kind(name="stream-5", slots=5, kills=(0, 24), job=STREAM),
    Kind(name="stream-64", slots=64, kills=(0, 24), job=STREAM),
    Kind(name="packed-1", slots=1, kills=(0, 24), job=PACKED, need=400),
    Kind(name="packed-5", slots=5, kills=(6, 24), job=PACKED, need=500),
    Kind(name="packed-64", slots=64, kills=(0, 24), job=PACKED, need=1500),
    Kind(name="retry-failed", kills=(6, 24), words=("--retry-failed",), fault={"fault": 400, "per_body": 1}),
    Kind(name="redo", slots=64, kills=(0, 24), words=("--redo", "content="), fault={"fault": "empty_content", "per_body": 1}),
    Kind(name="dedupe", kills=(0, 24), job=DEDUPE, alike=3),
    Kind(name="migration", kills=(4, 36), aged=True, phases=("index", "index", "index", "index", "sending", "end")),
)  # fmt: skip
PLAYED = [kind for kind in KINDS if kind.count]


class Series:
    """A job whose input grows, run and killed again and again."""

    def __init__(self, kind: Kind, folder: Path, server: Server, chance: random.Random) -> None:
        self.kind, self.folder, self.server, self.chance = kind, folder, server, chance
        self.run_folder, self.output = folder / "out.jsonl.run", folder / "out.jsonl"
        self.rows: list[dict[str, Any]] = []
        self.sizes = {0}
        self.durations = Durations()
        self.tally = Tally()
        self.found = Found(version=0, outcomes={}, named=0, replaced=0)
        self._checked = mark_of(self.output)
        self._write_job()

    def _write_job(self) -> None:
        lines = [
            'model = "sim/echo"', '[input]\npath = "in.jsonl"\nid = "id"', '[output]\npath = "out.jsonl"',
            '[prices."sim/echo"]\ninput_per_million = 0.15\noutput_per_million = 0.6',
        ]  # fmt: skip
        tables = {
            "gateway": {"preset": "openai", "base_url": self.server.url, "concurrency": self.kind.slots} | self.kind.job.get("gateway", {}),
            "request": {"prompt": "say {{ text }}"} | self.kind.job.get("request", {}),
        }  # fmt: skip
        for name, table in tables.items():
            lines.append(f"[{name}]")
            lines += [f"{key} = {orjson.dumps(value).decode()}" for key, value in table.items()]
        (self.folder / "job.toml").write_text("\n".join(lines), encoding="utf-8")

    def grow(self, count: int) -> None:
        """So many more rows in the input; every second one is odd where the gateway has a fault for such."""
        odd = ("", " odd") if self.kind.fault else ("",)
        first = len(self.rows)
        self.rows += [
            {"id": f"r{n}", "text": f"row number {n // self.kind.alike}{odd[n % len(odd)]}"} for n in range(first, first + count)
        ]  # fmt: skip
        self.sizes.add(len(self.rows))
        write_jsonl(self.folder / "in.jsonl", self.rows)

    def start(self, *words: str) -> Child:
        """The run, going on where it is."""
        if self.kind.aged and self.found.version > 1:
            to_version_1(self.run_folder / "journal.sqlite")
        return Child(("run", "job.toml", *words), self.folder, self.output, self.run_folder)

    def calibrate(self) -> None:
        """A first run that is left alone; with many slots, for it only has to be over."""
        self.grow(BASE_ROWS)
        child = self.start("-c", "32")
        self.durations = measured(child)
        assert child.code in (0, 3), child.errors
        if self.kind.aged:  # it is raised just after the lock is taken
            self.durations.index = min(self.durations.index, 0.01)
        self.look(child)

    def kill(self, phase: str) -> str | None:
        """One start, killed in a phase, and all that must hold after it."""
        self._make_ready(phase)
        words = self.kind.words if self.chance.random() < 0.7 else ()
        child = self.start(*words)
        hit = kill_in(child, phase, self.durations, self.chance)
        if hit is None:
            assert child.code in (0, 3, 75), child.errors
            self.tally.late += 1
            self.durations.shorten(phase)
        else:
            self.tally.hit[hit] += 1
        self.look(child)
        if self.kind.aged and hit == "index":
            self.tally.versions[self.found.version] += 1
        return hit

    def _make_ready(self, phase: str) -> None:
        """Have something to do in that phase."""
        need = self.kind.need or NEED[self.kind.slots]
        pending = len(self.rows) - len(self.found.outcomes)
        if phase in ("sending", "draining") and pending < need:
            self.grow(need)
        elif phase == "index" or pending == 0:
            self.grow(5)

    def look(self, child: Child) -> None:
        """What is there now, whether it was killed or has ended."""
        self._results_are_whole()
        before, now = self.found, found_in(self.run_folder, self.folder / "scratch")
        self.found = now = now or before
        self._nothing_is_lost(before, now)
        self._it_is_named(child, now.named - before.named)
        shown_is_kept(self.run_folder, len(now.outcomes))
        nothing_is_damaged(self.run_folder)
        nothing_else(
            self.folder,
            {"in.jsonl", "job.toml", "errors.txt", "scratch", "faults0.json", "out.jsonl.run", *_results("out.jsonl")},
        )

    def _results_are_whole(self) -> None:
        """Promise 1: whole, of the input as it was at one of its sizes, or not there."""
        whole(self.folder / "out.jsonl.meta.json")
        whole(self.run_folder / "status.json")
        if (mark := mark_of(self.output)) != self._checked:
            self._checked = mark
            found = read_jsonl(self.output)
            assert len(found) in self.sizes
            assert [row["id"] for row in found] == [row["id"] for row in self.rows[: len(found)]]

    def _nothing_is_lost(self, before: Found, now: Found) -> None:
        """Promise 2: what has an outcome keeps it."""
        if self.kind.words:
            assert before.outcomes.keys() <= now.outcomes.keys()
        else:
            assert before.outcomes.items() <= now.outcomes.items()

    def _it_is_named(self, child: Child, newly: int) -> None:
        """Promise 4: a start names what the last one left in flight, before it books it, and not too much of it."""
        found = re.search(r"cut off with (\d+) requests? in flight", child.errors)
        said = int(found.group(1)) if found else 0
        assert said == newly or (newly == 0 and child.code == -signal.SIGKILL)
        assert said <= 2 * self.kind.slots * self.kind.pack
        self.tally.named += newly
        self.tally.most_named = max(self.tally.most_named, newly)

    def end(self) -> None:
        """Resume to the end."""
        codes = []
        for words in ((), self.kind.words, self.kind.words):
            child = self.start(*words)
            codes.append(child.end())
            assert codes[-1] in (0, 3), child.errors
            self.look(child)
            if codes[-1] == 0 and (not self.kind.words or len(codes) > 1):
                break
        assert codes[-1] == 0, child.errors

    def reckon(self) -> None:
        """The gateway's ledger, the journal and the results tell the same; verify finds nothing."""
        found = read_jsonl(self.output)
        assert [row["id"] for row in found] == [row["id"] for row in self.rows]
        assert all(row["status"] == "succeeded" for row in found)
        until = time.monotonic() + 20
        while self.server.ledger()["totals"]["in_flight"] and time.monotonic() < until:
            time.sleep(0.05)
        entries = [Entry(**entry) for entry in self.server.ledger()["requests"]]
        bills = [bill_of(entry) for entry in entries if entry.billed]
        reckoning = reconcile(self.run_folder, bills, results=self.output)
        assert sum(row["lost_attempts"] for row in found) == self.tally.named
        assert reckoning.unseen <= reckoning.lost
        report = verify(self.run_folder)
        assert (report.findings, report.pending) == ([], 0)
        assert bool(self.found.replaced) == bool(self.kind.words)
        self.tally.bought_twice, self.tally.rows = reckoning.unseen, len(found)


@pytest.fixture(scope="module")
def told() -> Iterator[dict[str, Tally]]:
    """What each kind came to, and the sum of all at the end."""
    tallies: dict[str, Tally] = {}
    yield tallies
    total = Tally()
    print(f"\nThe crash matrix, PIPELINE_CRASH_SEED={SEED}")
    for name, tally in tallies.items():
        total.add(tally)
        print(f"{name:12} {tally.line}")
    print(f"{'all':12} {total.line}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", PLAYED, ids=lambda kind: kind.name)
def test_killed_at_any_moment_nothing_is_lost_doubled_or_half_written(
    kind: Kind, tmp_path: Path, serve: Callable[..., Server], told: dict[str, Tally]
) -> None:
    print(f"PIPELINE_CRASH_SEED={SEED}")
    chance = random.Random(f"{SEED} {kind.name}")
    faults = [kind.fault | {"match": "odd"}] if kind.fault else []
    began = time.monotonic()
    series = Series(kind, tmp_path, serve("--latency", "0.01", "--jitter", "0.8", faults=faults), chance)
    series.calibrate()
    cards = deck(kind.phases, kind.count, chance)
    aimed_at = next(cards)
    while series.tally.kills < kind.count:
        assert series.tally.late <= 3 * kind.count, "kills come too late: what they should hit is over"
        if series.kill(aimed_at) is not None:
            aimed_at = next(cards)
    series.end()
    series.reckon()
    series.tally.seconds = time.monotonic() - began
    told[kind.name] = series.tally
    print(series.tally.line)
    assert series.tally.named > 0 or not FULL, "no kill hit a request: this proves nothing"


@pytest.mark.slow
def test_an_export_that_is_killed_leaves_what_was_there(tmp_path: Path, told: dict[str, Tally]) -> None:
    print(f"PIPELINE_CRASH_SEED={SEED}")
    chance = random.Random(f"{SEED} export")
    count, began, tally = (6, 45)[FULL], time.monotonic(), Tally(rows=EXPORTED_ROWS)
    run_folder = _finished(tmp_path)
    kept = found_in(run_folder, tmp_path / "scratch")
    outputs = [tmp_path / name for name in ("again.jsonl", "again.parquet", "again.csv")]
    durations = {output: measured(_exporting(tmp_path, output)) for output in outputs}
    cards = deck(
        [(output, phase) for output in outputs for phase in ("start", "export", "export", "end")], count, chance
    )
    while tally.kills < count:
        assert tally.late <= 3 * count
        output, phase = next(cards)
        if chance.random() < 0.3:
            output.unlink()
        before = rows_in(output) if output.exists() else None
        words, rows = chance.choice([((), EXPORTED_ROWS), (("--failed",), EXPORTED_ROWS // 3)])
        child = _exporting(tmp_path, output, *words)
        hit = kill_in(child, phase, durations[output], chance)
        assert hit is not None or child.code == 0, child.errors
        if hit is None:
            tally.late += 1
            durations[output].shorten(phase)
        tally.hit.update([hit] if hit else [])
        assert (rows_in(output) if output.exists() else None) == (rows if hit in ("end", None) else before)
        whole(output.with_name(f"{output.name}.meta.json"))
        results = {name for one in ("out.jsonl", *outputs) for name in _results(Path(one).name)}
        nothing_else(tmp_path, {"in.jsonl", "errors.txt", "scratch", "out.jsonl.run"} | results)
        if not output.exists():
            assert _exporting(tmp_path, output).end() == 0
    assert found_in(run_folder, tmp_path / "scratch") == kept
    assert verify(run_folder).findings == []
    tally.seconds = time.monotonic() - began
    told["export"] = tally
    print(tally.line)


def _results(name: str) -> tuple[str, str]:
    return name, f"{name}.meta.json"


def _finished(folder: Path) -> Path:
    """A run folder that needs no gateway any more."""
    write_jsonl(folder / "in.jsonl", [{"id": f"r{n}", "text": f"row number {n}"} for n in range(EXPORTED_ROWS)])
    job = job_for(folder / "in.jsonl", folder / "out.jsonl", input__id="id", request__prompt="{{ text }}")
    with workspace(job, every_third_failed) as space:
        export(space, path=job.output.path, output_format="jsonl")
    return job.run_folder


def _exporting(folder: Path, output: Path, *words: str) -> Child:
    return Child(("export", "out.jsonl.run", "-o", str(output), *words), folder, output, None)


def test_a_killed_run_leaves_no_partial_results_and_names_what_was_in_flight(
    tmp_path: Path, serve: Callable[..., Server], pipeline: Pipeline
) -> None:
    server = serve(faults=[{"fault": "hang", "match": "hold"}])
    write_jsonl(tmp_path / "in.jsonl", [{"id": "a", "text": "fine"}, {"id": "b", "text": "hold"}])
    words = (
        "run", "-i", "in.jsonl", "-o", "out.jsonl", "--base-url", server.url, "-m", "sim/echo", "-p", "{{ text }}", "-c", "4", "--id", "id"
    )  # fmt: skip
    output, run_folder = tmp_path / "out.jsonl", tmp_path / "out.jsonl.run"
    run = Child(words, tmp_path, output, run_folder)
    deadline = time.monotonic() + 60
    while (totals := server.ledger()["totals"])["requests"] < 1 or totals["in_flight"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    run.kill()
    assert not output.exists()
    status = pipeline("status", "out.jsonl").out
    assert status.startswith(f"{output}: was killed")
    assert "1 succeeded, 0 failed, 1 left, of 2" in status, "what the journal has, not the last status that was written"
    again = Child(words, tmp_path, output, run_folder)
    assert again.reaches(again.has_sent)
    again.kill()
    assert "cut off with 1 request in flight" in again.errors
    assert again.errors.split("lost_attempts: ")[1].split("\n")[0] == "b"

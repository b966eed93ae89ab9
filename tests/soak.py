"""Half an hour of everything at once: ``make soak`` (or ``python tests/soak.py --minutes 5``).

Two jobs on one key share 64 slots of a gateway that refuses, breaks, hangs, lies and goes away; one is killed again and
again (kill -9), the other never. Then both books are held against the gateway's, both run folders are verified, and the
figures are printed: memory, open files and the journal must not have grown with the time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from conftest import clean_environment, write_jsonl
from reconcile import bill_of, reconcile
from simulated import Simulated, simulated

from pipeline.journal import Journal
from pipeline.simulator import Entry, Faults, Key, Settings
from pipeline.verify import verify

SLOTS = 64
LATENCY_S = 0.5
ROWS_PER_S = SLOTS / LATENCY_S
LOOK_EVERY_S = 1.0
WARM_S = 60.0  # until then buffers and caches fill up
MOST_GROWTH_MB = 8.0  # of the run that is never killed, from its first quarter after that to its last one
MOST_OVERHEAD = (
    600  # bytes of a journal for each row that is done, besides its reply; the index has all rows of the input
)
FAULTS = (
    {"fault": 429, "retry_after": 1, "probability": 0.002},
    {"fault": 500, "probability": 0.003},
    {"fault": 503, "between": [20_000, 20_040]},
    {"fault": "refused", "seconds": 5, "between": [9_000, 9_000]},
    {"fault": "refused", "seconds": 20, "between": [60_000, 60_000]},
    {"fault": "reset", "at": "request", "probability": 0.002},
    {"fault": "reset", "at": "reply", "probability": 0.002},
    {"fault": "reset", "at": "body", "probability": 0.002},
    {"fault": "hang", "seconds": 15, "probability": 0.0005},
    {"fault": "slow_body", "seconds": 2, "probability": 0.002},
    {"fault": "truncated_json", "probability": 0.002},
    {"fault": "html", "probability": 0.0005},
    {"fault": "empty_choices", "probability": 0.001},
    {"fault": "no_usage", "probability": 0.001},
    {"fault": 400, "probability": 0.001},
)


@dataclass(slots=True, kw_only=True)
class Member:
    """One of the two jobs. ``sizes``: (when, resident MB, open files, threads) of a process that was left alone."""

    name: str
    folder: Path
    url: str
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    kills: int = 0
    codes: Counter[int] = field(default_factory=Counter)
    sizes: list[tuple[float, float, int, int]] = field(default_factory=list)
    wal_mb: float = 0.0

    @property
    def run_folder(self) -> Path:
        """Where its journal is."""
        return self.folder / f"{self.name}.jsonl.run"

    def start(self) -> None:
        """Run or resume."""
        self.starts += 1
        with (self.folder / f"{self.name}.err").open("ab") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "pipeline", "run", "-i", f"{self.name}.in.jsonl", "-o", f"{self.name}.jsonl", "--id", "id",
                    "-g", "litellm", "--base-url", self.url, "-m", "sim/echo", "-p", "{{ text }}", "-c", str(SLOTS), "--keep-going",
                    "--set", "gateway.first_byte_timeout=10", "--set", "gateway.timeout=20",
                ],
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                env={**clean_environment(), "PIPELINE_API_KEY": "sk-SECRET-of-both-members"},
            )  # fmt: skip

    def look(self, now: float) -> None:
        """Note how large it is; start it again if it has ended before its time."""
        assert self.process is not None
        if self.process.poll() is not None:
            self.codes[self.process.returncode] += 1
            if self.process.returncode not in (0, 3):
                self.start()
            return
        seen = psutil.Process(self.process.pid)
        try:
            self.sizes.append((now, seen.memory_info().rss / 2**20, seen.num_fds(), seen.num_threads()))
        except psutil.NoSuchProcess:
            return
        wal = self.run_folder / "journal.sqlite-wal"
        if wal.exists():
            self.wal_mb = max(self.wal_mb, wal.stat().st_size / 2**20)

    def kill(self) -> None:
        """kill -9, and start anew."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self.start()

    def end(self) -> int:
        """Ask it to stop in good order."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()


def soak(folder: Path, minutes: float, seed: int) -> list[str]:
    """The whole of it; returns what is wrong."""
    chance = random.Random(seed)
    rows = round(minutes * 60 * ROWS_PER_S)  # more than both can do
    settings = Settings(
        dialect="litellm", models=("sim/echo",), key=Key(max_parallel=SLOTS), latency_s=LATENCY_S, jitter=0.4, seed=seed,
        faults=Faults.from_list(FAULTS),
    )  # fmt: skip
    with simulated(settings) as gateway:
        steady, killed = (Member(name=name, folder=folder, url=gateway.url) for name in ("steady", "killed"))
        for member in (steady, killed):
            write_jsonl(
                folder / f"{member.name}.in.jsonl",
                [
                    {"id": f"{member.name}-{n}", "text": f"{member.name} row {n} asks for some words"}
                    for n in range(rows)
                ],
            )
            member.start()
        most_busy = _watch(gateway, steady, killed, minutes * 60, chance)
        codes = [steady.end(), killed.end()]
        entries = gateway.entries
    print(f"{minutes:g} minutes, seed {seed}: {len(entries):,} requests, {_faults(entries)}")
    wrong = [f"ended with {code}, not 75" for code in codes if code not in (75, 0, 3)]
    print(f"at most {most_busy} requests at once at the gateway, what killed runs had left there included")
    if most_busy > SLOTS:
        wrong.append(f"the gateway had {most_busy} requests at once, of {SLOTS} that it takes")
    for member in (steady, killed):
        wrong += _books(member, entries)
    return wrong + _growth(steady)


def _watch(gateway: Simulated, steady: Member, killed: Member, seconds: float, chance: random.Random) -> int:
    started = time.monotonic()
    next_kill, most_busy = chance.expovariate(1 / 20), 0
    while (now := time.monotonic() - started) < seconds:
        for member in (steady, killed):
            member.look(now)
        most_busy = max(most_busy, gateway.in_flight)
        if now >= next_kill:
            killed.kill()
            next_kill = now + 2 + chance.expovariate(1 / 20)
        time.sleep(LOOK_EVERY_S)
    return most_busy


def _faults(entries: list[Entry]) -> str:
    struck = Counter(entry.fault for entry in entries if entry.fault)
    return f"{sum(struck.values()):,} of them struck by a fault ({', '.join(f'{n} {fault}' for fault, n in struck.most_common())})"


def _books(member: Member, entries: list[Entry]) -> list[str]:
    """Its journal against the gateway's books and against itself."""
    journal = Journal.read(member.run_folder)
    names = {name for (name,) in journal.db.execute("SELECT name FROM run")}
    done = journal.db.execute("SELECT count(*) FROM outcome").fetchone()[0]
    named = journal.db.execute("SELECT count(*) FROM attempt WHERE code = 'killed'").fetchone()[0]
    replies = journal.db.execute("SELECT sum(length(body)) FROM reply").fetchone()[0] or 1
    journal.close()
    mine = [entry for entry in entries if (entry.call_id or "").split("-")[0] in names]
    reckoning = reconcile(member.run_folder, [bill_of(entry) for entry in mine if entry.billed])
    report = verify(member.run_folder)
    size = (member.run_folder / "journal.sqlite").stat().st_size
    print(
        f"{member.name}: {member.starts} starts, {member.kills} kills, exit codes {dict(member.codes)}; {done:,} rows done, "
        f"{named} requests named after kills, {reckoning.line}; journal {size / 2**20:,.1f} MB, "
        f"{(size - replies) / max(done, 1):,.0f} bytes a row besides its reply, "
        f"log of it at most {member.wal_mb:.1f} MB; {len(report.findings)} findings"
    )
    wrong = [f"{member.name}: {finding}" for finding in report.findings]
    if (size - replies) / max(done, 1) > MOST_OVERHEAD + 4e6 / max(done, 1):
        wrong.append(
            f"{member.name}: the journal takes {(size - replies) / max(done, 1):,.0f} bytes a row besides its reply"
        )
    return wrong


def _growth(member: Member) -> list[str]:
    """Memory and open files of the one that was left alone."""
    warm = [size for size in member.sizes if size[0] >= WARM_S] or member.sizes
    quarter = max(len(warm) // 4, 1)
    first, last = warm[:quarter], warm[-quarter:]
    before, after = (statistics.median(size[1] for size in part) for part in (first, last))
    files = [max(size[2] for size in part) for part in (first, last)]
    threads = [max(size[3] for size in part) for part in (first, last)]
    print(
        f"{member.name}: resident {before:.1f} MB in the first quarter, {after:.1f} MB in the last (most {max(s[1] for s in warm):.1f}); "
        f"open files at most {files[0]} and {files[1]}; threads {threads[0]} and {threads[1]}"
    )
    wrong = []
    if after - before > MOST_GROWTH_MB:
        wrong.append(f"memory grew from {before:.1f} to {after:.1f} MB")
    if files[1] > files[0] + SLOTS or threads[1] > threads[0] + 2:
        wrong.append("open files or threads grew")
    return wrong


def main() -> int:
    """Soak, and say what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PIPELINE_STATE_DIR"] = folder
        wrong = soak(Path(folder), given.minutes, given.seed)
    for one in wrong:
        print(f"WRONG: {one}")
    print("soaked well" if not wrong else f"{len(wrong)} things are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

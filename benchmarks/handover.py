"""How the pool hands outcomes to the journal: three ways, on a loop that is as busy as a real run's.

    .venv/bin/python benchmarks/handover.py [ROWS]

64 workers each spend 60 us of the loop's time on a row (what an HTTP exchange costs it) and then hand over an outcome
with a 1.1 KB reply. Printed: rows/s, microseconds a row on top of the same loop without a journal, and the longest
time the loop was not served.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from pipeline.journal import Journal, Writer
from pipeline.journal.tight import Handed, Tight
from pipeline.records import Completion, Outcome, Request, Usage

SLOTS = 64
BUSY_S = 60e-6
REPLY = b'{"choices":[{"message":{"content":"' + b"x" * 1000 + b'"},"finish_reason":"stop"}]}'


class AllInThread(Writer):
    """INSERTs and COMMIT in the thread."""

    async def _transaction(self, group: Sequence[Handed]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._thread, self._everything, group)

    def _everything(self, group: Sequence[Handed]) -> None:
        self._insert([record for record, _ in group])
        self._db.execute("COMMIT")


class AllOnLoop(Writer):
    """INSERTs and COMMIT on the loop: the loop stands still during each fsync."""

    async def _transaction(self, group: Sequence[Handed]) -> None:
        self._insert([record for record, _ in group])
        self._db.execute("COMMIT")
        await asyncio.sleep(0)


def outcome(number: int) -> Outcome:
    return Outcome(
        custom_id=f"row-{number}", index=number, fingerprint=number.to_bytes(16, "big"), status="succeeded", model="m",
        completion=Completion(content="x", finish_reason="stop", model="m", usage=Usage(prompt_tokens=1), raw=REPLY),
    )  # fmt: skip


async def measure(kind: type[Writer] | None, rows: int) -> tuple[float, float]:
    """Rows per second and the loop's longest pause in milliseconds."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        journal = Journal.open(Path(folder), slots=SLOTS)
        journal.start_run()
        tight = Tight(journal.db, journal.path, journal.reserve, full=lambda _: None, needed=lambda: None)
        writer = kind and kind(
            journal.db, journal.path, journal.table, run=1, slots=SLOTS, kept=lambda _: None, tight=tight
        )
        numbers = iter(range(rows))
        longest = 0.0

        async def worker() -> None:
            for number in numbers:
                end = time.perf_counter() + BUSY_S
                request = Request(
                    custom_id=f"row-{number}", index=number, endpoint="", model="m", body=b"",
                    fingerprint=number.to_bytes(16, "big"), estimated_tokens=0,
                )  # fmt: skip
                entry = writer.enter(request, "call") if writer else 0
                while time.perf_counter() < end:
                    pass
                await asyncio.sleep(0)
                done = outcome(number)
                if writer:
                    await writer.keep([done], [entry])

        async def watch() -> None:
            nonlocal longest
            while True:
                before = time.perf_counter()
                await asyncio.sleep(0.001)
                longest = max(longest, time.perf_counter() - before - 0.001)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(watch(), name="watch")
            writing = group.create_task(writer.write(), name="journal") if writer else None
            async with asyncio.TaskGroup() as workers:
                for _ in range(SLOTS):
                    workers.create_task(worker(), name="slot")
            watching.cancel()
            if writer and writing:
                writer.close()
                await writing
        took = time.perf_counter() - started
        journal.close()
        return rows / took, longest * 1000


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    ways: dict[str, type[Writer] | None] = {
        "no journal": None,
        "INSERT on the loop, COMMIT in a thread": Writer,
        "all in a thread": AllInThread,
        "all on the loop": AllOnLoop,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for _ in range(5):
            for name, kind in ways.items():
                found[name].append(runner.run(measure(kind, rows)))
    base = statistics.median(rate for rate, _ in found["no journal"])
    for name, runs in found.items():
        rate = statistics.median(rate for rate, _ in runs)
        pause = statistics.median(pause for _, pause in runs)
        print(f"{name:40} {rate:8,.0f} rows/s  {1e6 / rate - 1e6 / base:6.1f} us a row  {pause:6.1f} ms longest pause")


if __name__ == "__main__":
    main()

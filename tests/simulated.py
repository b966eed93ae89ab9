"""A simulator in a thread of its own: its ledger can be read, and its script of faults changed, while others ask it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.simulator import Entry, Faults, Settings, Simulator

_QUIET_WITHIN_S = 10.0


class Simulated:
    """``url``, ``entries`` and ``play`` of a simulator that serves while the block of ``simulated`` runs."""

    def __init__(self, settings: Settings) -> None:
        self._sim = Simulator(settings)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Its base URL."""
        return self._sim.base_url

    @property
    def asked(self) -> int:
        """How many requests for an answer have ended so far."""
        return sum(entry.method == "POST" for entry in self._sim.ledger.entries)

    @property
    def in_flight(self) -> int:
        """How many calls hold a slot now."""
        return self._sim.ledger.totals.in_flight

    @property
    def entries(self) -> list[Entry]:
        """What it was asked for and has finished; it goes on with what a client has left."""
        until = time.monotonic() + _QUIET_WITHIN_S
        while self._sim.ledger.totals.in_flight and time.monotonic() < until:
            time.sleep(0.01)
        return self._sim.ledger.entries

    def play(self, *faults: dict[str, Any]) -> None:
        """Have this script of faults from now on; none at all without rules."""
        self._sim.play(Faults.from_list(faults))

    def serve(self) -> None:
        """The life of the thread."""
        asyncio.run(self._live())

    async def _live(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self._sim:
            self._ready.set()
            await self._over.wait()

    def wait_until_ready(self) -> None:
        """It serves from here on."""
        assert self._ready.wait(10), "the simulator does not start"

    def end(self) -> None:
        """Have ``serve`` return."""
        if self._loop is not None and self._over is not None:
            self._loop.call_soon_threadsafe(self._over.set)


@contextmanager
def simulated(settings: Settings) -> Iterator[Simulated]:
    """Serve while the block runs."""
    server = Simulated(settings)
    thread = threading.Thread(target=server.serve, name="simulator")
    thread.start()
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.end()
        thread.join()

"""The simulator's life: start, serve, stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import TracebackType

from pipeline.simulator.connections import Server
from pipeline.simulator.faults import Faults
from pipeline.simulator.gate import Gate
from pipeline.simulator.gateway import Gateway
from pipeline.simulator.ledger import Ledger
from pipeline.simulator.port import Port
from pipeline.simulator.settings import Settings


class Simulator:
    """``async with Simulator(settings) as sim:`` serves on ``sim.base_url`` until the block ends.

    ``sim.ledger`` stays readable afterwards.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._gate = Gate(self._settings)
        self._ledger = Ledger(self._settings, self._gate)
        self._base_url = ""
        self._gateway: Gateway | None = None
        self._stack = AsyncExitStack()

    @property
    def ledger(self) -> Ledger:
        """What was asked, answered and billed so far."""
        return self._ledger

    @property
    def base_url(self) -> str:
        """Such as ``http://127.0.0.1:41234/v1``; empty before the block begins."""
        return self._base_url

    def play(self, faults: Faults) -> None:
        """Have another script of faults from now on, inside the block; without rules nothing goes wrong any more.

        Requests are counted on from the first there ever was.
        """
        if self._gateway is None:
            raise RuntimeError("the simulator does not serve yet")
        self._gateway.play(faults)

    async def __aenter__(self) -> Simulator:
        server = Server(lambda request: gateway.handle(request))  # noqa: PLW0108  (they know each other)
        port = Port(self._settings.host, self._settings.port, server)
        gateway = self._gateway = Gateway(self._settings, self._gate, self._ledger, server, port)
        await port.open()
        self._stack.push_async_callback(server.stop)
        self._stack.push_async_callback(port.close)
        self._base_url = f"{port.url}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._stack.aclose()


async def serve(settings: Settings, ready: Callable[[str], None]) -> None:
    """Serves until cancelled; ``ready`` is called once with the base URL."""
    async with Simulator(settings) as sim:
        ready(sim.base_url)
        await asyncio.Event().wait()

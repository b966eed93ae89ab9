"""The HTTP server's connections: which of them have a call open, and when a client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

# What an answer that is being written gets at the end. Not 0: aiohttp takes that for "no limit".
_LAST_BYTES_S = 0.1


class Server(web.Server):
    """aiohttp's server, which can also say that a client has left without cancelling the call.

    A gateway goes on with, and bills, a call whose client has left, so calls are not cancelled; but a call that hangs
    must end then, and aiohttp itself has no word for that.
    """

    def __init__(self, handle: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]) -> None:
        super().__init__(self._serve, access_log=None)
        self._handle = handle
        self._calls: dict[web.RequestHandler, asyncio.Task[Any]] = {}
        self._awaited: dict[web.RequestHandler, asyncio.Event] = {}

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self._calls[request.protocol] = request.task
        try:
            return await self._handle(request)
        finally:
            del self._calls[request.protocol]

    def connection_lost(self, handler: web.RequestHandler, exc: BaseException | None = None) -> None:
        """Called by aiohttp."""
        super().connection_lost(handler, exc)
        if event := self._awaited.get(handler):
            event.set()

    async def client_stays(self, request: web.BaseRequest, seconds: float | None) -> bool:
        """Waits so long (None: for ever), or until the client of ``request`` is gone; whether it is still there."""
        if request.transport is None:
            return False
        event = self._awaited[request.protocol] = asyncio.Event()
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return True
        finally:
            del self._awaited[request.protocol]
        return False

    def drop_idle(self) -> None:
        """Closes every connection without an open call."""
        for connection in self.connections:
            if connection not in self._calls:
                connection.force_close()

    async def stop(self) -> None:
        """Ends the open calls and closes every connection."""
        calls = list(self._calls.values())
        for task in calls:
            task.cancel()
        if calls:
            await asyncio.wait(calls)
        self.pre_shutdown()
        await self.shutdown(_LAST_BYTES_S)

"""The listening socket: it can go away for a while and come back under the same number."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from pipeline.errors import UsageError
from pipeline.simulator.connections import Server

_BACKLOG = 4096
# So long after the door closes, idle connections close too. Requests that had arrived by then have become calls,
# and are answered: a gateway that restarts refuses newcomers, it does not drop what it has.
_GRACE_S = 0.02


class Port:
    """Opens, closes and reopens the door of ``server``."""

    def __init__(self, host: str, port: int, server: Server) -> None:
        self._host = host
        self._server = server
        self._number = port
        self._listener: asyncio.Server | None = None
        self._absence: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it listens, or listened."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._number}"

    @property
    def away(self) -> bool:
        """Whether connections are refused now."""
        return self._absence is not None and not self._absence.done()

    async def open(self) -> None:
        """Starts to listen."""
        try:
            await self._listen(self._bind())
        except OSError as exc:
            raise UsageError(
                f"cannot listen on {self._host} port {self._number} ({exc.strerror}): choose another port, or 0 for any"
            ) from exc

    def leave(self, seconds: float) -> None:
        """Stops listening for a while; nothing happens when it is away already."""
        if self._listener is not None and not self.away:
            absence = self._be_away(self._listener, seconds)
            self._absence = asyncio.create_task(absence, name="simulator port away")

    async def close(self) -> None:
        """Stops listening for good."""
        if self._absence is not None:
            self._absence.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._absence
        if self._listener is not None:
            await _shut(self._listener)

    async def _be_away(self, listener: asyncio.Server, seconds: float) -> None:
        await _shut(listener)
        # Bound but deaf, the next socket keeps the number: otherwise the system might give it to somebody else, or to
        # the client's own end of a connection attempt, which then connects to itself.
        placeholder = self._bind()
        try:
            await asyncio.sleep(_GRACE_S)
            self._server.drop_idle()
            await asyncio.sleep(seconds - _GRACE_S)
            await self._listen(placeholder)
        except asyncio.CancelledError:
            placeholder.close()
            raise

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setblocking(False)
            bound.bind((self._host, self._number))
        except OSError:
            bound.close()
            raise
        self._number = bound.getsockname()[1]
        return bound

    async def _listen(self, bound: socket.socket) -> None:
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=bound, backlog=_BACKLOG)


async def _shut(listener: asyncio.Server) -> None:
    """Closes the listening socket, after what it has just accepted has become a connection.

    asyncio fails an assertion, and leaks the socket, where a server closes between the two.
    """
    loop = asyncio.get_running_loop()
    for listening in listener.sockets:
        loop.remove_reader(listening.fileno())
    await asyncio.sleep(0)
    listener.close()

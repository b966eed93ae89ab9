"""Answers that do not simply go out: in pieces, cut off, or as a reset."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web

# RST makes the receiver forget what it has not read yet; so much head start lets it read what was sent before.
_READ_FIRST_S = 0.05
_NO_LINGER = struct.pack("ii", 1, 0)


def reset(request: web.BaseRequest) -> web.Response:
    """Resets the connection (RST). The response returned goes nowhere: aiohttp wants one."""
    transport = request.transport
    if transport is not None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        transport.abort()
    return web.Response()


def hang_up(request: web.BaseRequest) -> web.Response:
    """Closes the connection without a word."""
    if request.transport is not None:
        request.transport.close()
    return web.Response()


async def send(
    request: web.BaseRequest,
    response: web.StreamResponse,
    parts: Sequence[bytes],
    *,
    pause_s: float,
    stay: Callable[[float], Awaitable[bool]],
    finish: Callable[[], None] | None = None,
) -> web.StreamResponse:
    """Sends ``parts``, with a pause before each that ``stay`` makes unless it finds the client gone.

    ``finish`` is called before the last, unless the client has left.
    """
    if not pause_s:
        parts = [b"".join(parts)]
    with contextlib.suppress(ConnectionError):  # nobody is left to be told; the books say what was billed
        await response.prepare(request)
        for number, part in enumerate(parts, start=1):
            if pause_s and not await stay(pause_s):
                return response
            if number == len(parts) and finish is not None and request.transport is not None:
                finish()
            await response.write(part)
        await response.write_eof()
    return response


async def send_half(request: web.BaseRequest, response: web.StreamResponse, body: bytes) -> None:
    """Sends half of ``body``, and gives the client time to read it."""
    with contextlib.suppress(ConnectionError):
        await response.prepare(request)
        await response.write(half(body))
        await asyncio.sleep(_READ_FIRST_S)


def half(body: bytes) -> bytes:
    """The first half."""
    return body[: len(body) // 2]


def pieces(body: bytes) -> list[bytes]:
    """``body`` in a few pieces."""
    size = len(body) // 8 + 1
    return [body[start : start + size] for start in range(0, len(body), size)]

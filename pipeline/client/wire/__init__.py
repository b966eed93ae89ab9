"""HTTP/1.1 on connections of our own: a request is one write, its reply one wake-up. Home of aiohappyeyeballs.

It takes half the processor time that a general client's session does, and knows to the byte what a broken connection
leaves open: whether a request was sent, whether its reply had begun. Where a proxy stands between, ``session`` does the same.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote, urlsplit

import aiohappyeyeballs

from pipeline.client.failures import never_sent
from pipeline.client.wire.connection import KEEP_ALIVE_S, HttpConnection, Times
from pipeline.client.wire.incoming import Answer
from pipeline.records import Failure

__all__ = ["KEEP_ALIVE_S", "Answer", "Times", "Wire"]

ADDRESSES_LAST_S = 60.0
NEXT_ADDRESS_S = 0.25  # until the next of a host's addresses is tried, too: IPv6 is often there and broken
_SAFE_IN_PATH = "/%:@!$&'()*+,;=~-._"


class Wire:
    """``await wire.exchange("POST", path, body, headers, times=...)``; never raises for what the network or the server does.

    ``headers`` go out with every request. ``family`` is the IP version, ``max_reply_bytes`` bounds a reply, unpacked.
    """

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        family: int = socket.AF_UNSPEC,
        max_reply_bytes: int,
    ) -> None:
        url = urlsplit(base_url)
        standard = 443 if url.scheme == "https" else 80
        host = url.hostname or ""
        self._host = host if host.isascii() else host.encode("idna").decode()
        self._port = url.port or standard
        self._path = quote(url.path, safe=_SAFE_IN_PATH)
        self._tls = _tls() if url.scheme == "https" else None
        self._family = family
        self._most = max_reply_bytes
        named = f"[{self._host}]" if ":" in self._host else self._host
        named = named if self._port == standard else f"{named}:{self._port}"
        every = {"Host": named, "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}
        self._headers = _lines({**every, **headers})
        self._starts: dict[str, str] = {}
        self._addresses: list[Any] = []
        self._looked_up_at = 0.0
        self._looking_up: asyncio.Task[list[Any]] | None = None
        self._idle: list[HttpConnection] = []  # the latest last: so those that are too many grow old
        self._all: set[HttpConnection] = set()

    async def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, times: Times, events: bool = False
    ) -> Answer | Failure:
        """Send one request and take in its whole reply. Redirects are not followed. ``events``: it may come in such."""
        connection = self._reusable()
        if connection is None:
            made = await self._connected(times.connect_s)
            if isinstance(made, Failure):
                return made
            connection = made
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = f"{self._start(method, path)}{_lines(headers)}{length}\r\n"
        return await connection.sent(head.encode(), body, times, events=events)

    def _start(self, method: str, path: str) -> str:
        """What all requests to a path begin with; kept for those that are many."""
        start = self._starts.get(path) if method == "POST" else None
        if start is None:
            start = f"{method} {self._path}{path} HTTP/1.1\r\n{self._headers}"
            if method == "POST":
                self._starts[path] = start
        return start

    async def close(self) -> None:
        """Break every connection: whoever waits for a reply is told."""
        if self._looking_up is not None:
            self._looking_up.cancel()
        for connection in list(self._all):
            connection.abort()
            await connection.closed.wait()

    def _reusable(self) -> HttpConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_fresh:
                return connection
            connection.abort()
        return None

    def _gone(self, connection: HttpConnection) -> None:
        self._all.discard(connection)
        with suppress(ValueError):
            self._idle.remove(connection)

    async def _connected(self, within_s: float) -> HttpConnection | Failure:
        try:
            async with asyncio.timeout(within_s):
                connection = await self._connect()
        except TimeoutError:
            return never_sent("connect_timeout", f"nobody answered within {within_s:g} s")
        except socket.gaierror as exc:
            return never_sent("dns_failed", f"the name {self._host} is not known ({exc.strerror})")
        except ssl.SSLError as exc:
            words = getattr(exc, "verify_message", "") or getattr(exc, "reason", "") or str(exc)
            return never_sent("tls_failed", words)
        except (OSError, RuntimeError, ValueError) as exc:  # uvloop and idna have errors of their own
            self._addresses = []
            why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else str(exc) or type(exc).__name__
            return never_sent("connect_failed", f"{self._host}:{self._port}: {why}")
        return connection

    async def _connect(self) -> HttpConnection:
        loop = asyncio.get_running_loop()
        plug = await aiohappyeyeballs.start_connection(
            await self._looked_up(loop), happy_eyeballs_delay=NEXT_ADDRESS_S, interleave=1, loop=loop
        )
        try:
            _, connection = await loop.create_connection(
                lambda: HttpConnection(loop, most_bytes=self._most, free=self._idle.append, gone=self._gone),
                sock=plug,
                ssl=self._tls,
                server_hostname=None if self._tls is None else self._host,
            )
        except BaseException:
            plug.close()
            raise
        self._all.add(connection)
        return connection

    async def _looked_up(self, loop: asyncio.AbstractEventLoop) -> list[Any]:
        """The host's addresses: asked for once, however many connections are being made, and again after a minute."""
        if self._addresses and loop.time() - self._looked_up_at < ADDRESSES_LAST_S:
            return self._addresses
        if self._looking_up is None:
            self._looking_up = loop.create_task(self._look_up(loop), name="addresses")
            self._looking_up.add_done_callback(_heard)  # also where nobody waits any more
        looking_up = self._looking_up
        await asyncio.wait([looking_up])  # awaited itself, it would cancel us when ``close`` cancels it
        if looking_up.cancelled():
            raise ConnectionAbortedError("it was broken off here")
        return looking_up.result()

    async def _look_up(self, loop: asyncio.AbstractEventLoop) -> list[Any]:
        try:
            self._addresses = await loop.getaddrinfo(
                self._host, self._port, family=self._family, type=socket.SOCK_STREAM
            )
            self._looked_up_at = loop.time()
        finally:
            self._looking_up = None
        return self._addresses


def _heard(task: asyncio.Task[list[Any]]) -> None:
    if not task.cancelled():
        task.exception()


def _lines(headers: Mapping[str, str]) -> str:
    """Raises ``ValueError`` for a header that would be two."""
    lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if lines.count("\n") != len(headers) or lines.count("\r") != len(headers):
        raise ValueError("a header holds the end of a line")
    return lines


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context

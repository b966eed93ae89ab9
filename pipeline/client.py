"""One HTTP exchange: a body goes out, a ``Reply`` comes back, whatever happens in between. Home of aiohttp.

Whether the gateway may have billed a request that got no answer is decided here, where it is known if it was sent.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohttp
from aiohttp.client_proto import ResponseHandler

from pipeline.jsonio import dumps, loads
from pipeline.records import Failure, Reply
from pipeline.stream import Assembly

# uvicorn, under both gateways, closes connections idle for 5 s (measured); a pool that keeps them longer races it.
KEEP_ALIVE_S = 4.0
REUSED_DROP_S = 1.0
_FAMILIES = {"auto": socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a gateway. Times in seconds; ``api_key`` never shows in a repr.

    ``first_byte_timeout_s`` bounds the silence before (and within) a plain answer, ``idle_timeout_s`` that of a stream.
    """

    base_url: str
    api_key: str | None
    timeout_s: float
    connect_timeout_s: float
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    ip_version: str | int = "auto"

    def __repr__(self) -> str:
        return f"Connection(base_url={self.base_url!r})"


class Client:
    """``async with Client(connection) as client: reply = await client.send(endpoint, body, headers)``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._key = (connection.api_key or "").encode()

    async def __aenter__(self) -> Self:
        connection = self._connection
        self._timeout = aiohttp.ClientTimeout(
            total=connection.timeout_s,
            connect=connection.connect_timeout_s,
            sock_read=connection.first_byte_timeout_s,
        )
        self._stream_timeout = aiohttp.ClientTimeout(
            total=connection.timeout_s, connect=connection.connect_timeout_s, sock_read=connection.idle_timeout_s
        )
        self._session = self._new_session()
        return self

    def _new_session(self) -> aiohttp.ClientSession:
        connection = self._connection
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, family=_FAMILIES[connection.ip_version], ttl_dns_cache=60
        )
        connector._factory = cast(Any, partial(WatchedConnection, loop=asyncio.get_running_loop()))
        headers = {"Content-Type": "application/json", "User-Agent": "pipeline"}
        if connection.api_key:
            headers["Authorization"] = f"Bearer {connection.api_key}"
        return aiohttp.ClientSession(
            connector=connector,
            headers=headers,
            trust_env=not is_loopback(connection.base_url),  # no proxy can reach this machine's own loopback for us
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def drop(self) -> None:
        """Break every connection: after a sleep of the machine nobody is at their other ends any more."""
        session, self._session = self._session, self._new_session()
        await session.close()

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool = False) -> Reply:
        """POST one request and read its whole answer. Never raises for what the network or the server does.

        With ``stream`` the body asks for events: they are put together into the body that a plain call would have had,
        and silence between them is bounded by ``idle_timeout_s``.
        A reused connection that drops within a second and before any byte of the reply most likely lost a race with the
        server's idle timeout: such a failure is ``stale``.
        """
        started = time.monotonic()
        try:
            async with self._session.post(
                self._connection.base_url + endpoint,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=self._stream_timeout if stream else self._timeout,
            ) as response:
                if stream and response.content_type == "text/event-stream":
                    return await self._assembled(response, started)
                answer = await response.read()
                return self._reply(response, answer, time.monotonic() - started)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            elapsed = time.monotonic() - started
            failure = failure_of(exc, stale=isinstance(exc, StaleConnectionError) and elapsed < REUSED_DROP_S)
            return self._failed(failure, started)

    async def get(self, path: str) -> Reply:
        """GET what costs nothing to ask, such as a list of models. Never raises for what the network or the server does."""
        started = time.monotonic()
        try:
            async with self._session.get(
                self._connection.base_url + path, allow_redirects=False, timeout=self._timeout
            ) as response:
                return self._reply(response, await response.read(), time.monotonic() - started)
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            return self._failed(failure_of(exc), started)

    async def _assembled(self, response: aiohttp.ClientResponse, started: float) -> Reply:
        assembly = Assembly()
        try:
            async for data in response.content.iter_any():
                assembly.feed(data)
            status, body = response.status, assembly.body()
        except (ValueError, TypeError, AttributeError, LookupError) as exc:  # events that are JSON, but not of a chat
            failure = Failure(code="malformed_stream", message=f"the stream makes no sense: {exc}", sent=True)
            return self._failed(failure, started)
        if assembly.error is not None:
            status, body = assembly.error_status(), {"error": assembly.error}
        elif not assembly.complete:
            failure = Failure(code="stream_cut", message="the stream ended before the answer did", sent=True)
            return self._failed(failure, started)
        return self._reply(response, dumps(body), time.monotonic() - started, status=status)

    def _failed(self, failure: Failure, started: float) -> Reply:
        elapsed_s = time.monotonic() - started
        return Reply(status=0, headers={}, body=b"", json=None, elapsed_s=elapsed_s, failure=self._scrubbed(failure))

    def _reply(
        self, response: aiohttp.ClientResponse, body: bytes, elapsed_s: float, *, status: int | None = None
    ) -> Reply:
        status = status or response.status
        if status != 200 and self._key and self._key in body:
            body = body.replace(
                self._key, b"[key]"
            )  # some servers quote the key in their errors; answers stay as they are
        try:
            parsed = loads(body)
        except ValueError:
            parsed = None
        return Reply(
            status=status or response.status, headers=response.headers, body=body, json=parsed, elapsed_s=elapsed_s
        )

    def _scrubbed(self, failure: Failure) -> Failure:
        if not self._connection.api_key:
            return failure
        message = failure.message.replace(self._connection.api_key, "[key]")
        return replace(failure, message=message)


class StaleConnectionError(aiohttp.ServerDisconnectedError):
    """A reused connection broke before any byte of the reply came."""


class WatchedConnection(ResponseHandler):
    """aiohttp's own protocol, which also knows whether it was used before and whether the reply has begun.

    aiohttp says only "server disconnected" for both, and no public hook tells them apart to the byte.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._uses = 0
        self._began = False

    def set_response_params(self, **params: Any) -> None:
        """A new request begins."""
        self._uses += 1
        self._began = False
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Bytes of the reply."""
        self._began = True
        super().data_received(data)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """The exchange has failed. aiohttp's own timeout, an OSError too, is none of a broken connection."""
        broken = isinstance(exc, aiohttp.ServerDisconnectedError | OSError)
        if self._uses > 1 and not self._began and broken and not isinstance(exc, aiohttp.ServerTimeoutError):
            exc = StaleConnectionError(str(exc))
        super().set_exception(exc, *cause)


_NEVER_SENT: tuple[tuple[type[BaseException], str], ...] = (
    (aiohttp.ConnectionTimeoutError, "connect_timeout"),
    (aiohttp.ClientConnectorDNSError, "dns_failed"),
    (aiohttp.ClientConnectorCertificateError, "tls_failed"),
    (aiohttp.ClientSSLError, "tls_failed"),
    (aiohttp.ClientProxyConnectionError, "proxy_failed"),
    (aiohttp.ClientHttpProxyError, "proxy_failed"),
    (aiohttp.ClientConnectorError, "connect_failed"),
)


def failure_of(exc: BaseException, *, stale: bool = False) -> Failure:
    """Name what went wrong on the network, and whether the request may have reached the gateway."""
    words = str(exc) or type(exc).__name__
    for kind, code in _NEVER_SENT:
        if isinstance(exc, kind):
            return Failure(code=code, message=f"cannot connect: {words}", sent=False)
    if stale:
        message = "an idle connection was closed as it was used"
        return Failure(code="disconnected", message=message, sent=True, stale=True)
    if isinstance(exc, TimeoutError):
        return Failure(code="timeout", message="no complete answer within the timeout", sent=True)
    return Failure(
        code="disconnected", message=f"the connection broke before the answer was complete: {words}", sent=True
    )


def is_loopback(base_url: str) -> bool:
    """Whether a base URL points at this machine itself."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

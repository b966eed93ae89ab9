"""One HTTP exchange: a body goes out, a ``Reply`` comes back, whatever happens in between. Home of aiohttp.

Whether the gateway may have billed a request that got no answer is decided here, where it is known if it was sent.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.jsonio import dumps, loads
from pipeline.records import Failure, Reply
from pipeline.secret import Secret
from pipeline.stream import Assembly

# uvicorn, under both gateways, closes connections idle for 5 s (measured); a pool that keeps them longer races it.
KEEP_ALIVE_S = 4.0
UNPAID_S = 20.0  # what costs nothing is answered soon, or nobody is there
UNPAID_CONNECT_S = 10.0
REUSED_DROP_S = 1.0
MAX_REPLY_BYTES = 64 << 20
WORDS_CHARACTERS = 500
NO_SECRET = Secret(None)
_FAMILIES = {"auto": socket.AF_UNSPEC, 4: socket.AF_INET, 6: socket.AF_INET6}


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """How to reach a gateway. Times in seconds; ``api_key`` never shows in a repr.

    ``first_byte_timeout_s`` bounds the silence before (and within) a plain answer, ``idle_timeout_s`` that of a stream.
    A reply of more than ``max_reply_bytes``, unpacked, is read no further.
    """

    base_url: str
    api_key: str | None
    timeout_s: float
    connect_timeout_s: float
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    ip_version: str | int = "auto"
    max_reply_bytes: int = MAX_REPLY_BYTES

    def __repr__(self) -> str:
        return f"Connection(base_url={self.base_url!r})"


class Client:
    """``async with Client(connection) as client: reply = await client.send(endpoint, body, headers)``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._secret = Secret(connection.api_key)
        self._proxy, self._proxy_headers = proxy_of(connection.base_url)
        # With each request, not of the session: aiohttp sends a session's headers, key and all, to a proxy as well.
        self._headers = {"Content-Type": "application/json", "User-Agent": "pipeline"}
        if connection.api_key:
            self._headers["Authorization"] = f"Bearer {connection.api_key}"
        if not connection.base_url.startswith(
            "https:"
        ):  # then there is no tunnel, and the proxy reads the request itself
            self._headers |= self._proxy_headers

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
        self._unpaid_timeout = aiohttp.ClientTimeout(
            total=min(connection.timeout_s, UNPAID_S), connect=min(connection.connect_timeout_s, UNPAID_CONNECT_S)
        )
        self._session = self._new_session()
        return self

    def _new_session(self) -> aiohttp.ClientSession:
        connection = self._connection
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, family=_FAMILIES[connection.ip_version], ttl_dns_cache=60
        )
        connector._factory = cast(Any, partial(WatchedConnection, loop=asyncio.get_running_loop()))
        return aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

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
                headers={**self._headers, **headers},
                allow_redirects=False,
                timeout=self._stream_timeout if stream else self._timeout,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                if stream and response.content_type == "text/event-stream":
                    return await self._assembled(response, started)
                return self._reply(response, await self._whole(response), started)
        except FOREIGN as exc:
            elapsed = time.monotonic() - started
            stale = isinstance(exc, StaleConnectionError) and elapsed < REUSED_DROP_S
            failure = failure_of(exc, stale=stale, secret=self._secret)
            return self._failed(failure, started)

    async def get(self, path: str) -> Reply:
        """GET what costs nothing to ask, such as a list of models. Never raises for what the network or the server does."""
        started = time.monotonic()
        try:
            async with self._session.get(
                self._connection.base_url + path,
                headers=self._headers,
                allow_redirects=False,
                timeout=self._unpaid_timeout,
                proxy=self._proxy,
                proxy_headers=self._proxy_headers,
            ) as response:
                return self._reply(response, await self._whole(response), started)
        except FOREIGN as exc:
            return self._failed(failure_of(exc, secret=self._secret), started)

    async def _take_in(self, response: aiohttp.ClientResponse, take: Callable[[bytes], object]) -> None:
        """Hand over the body piece by piece, and raise when it is over its bound: what was read is let go then."""
        most, size = self._connection.max_reply_bytes, 0
        async for data in response.content.iter_any():
            size += len(data)
            if size > most:
                raise ReplyTooLargeError(
                    f"the reply is over {most:,} bytes (gateway.max_reply_bytes), and was read no further"
                )
            take(data)

    async def _whole(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        await self._take_in(response, body.extend)
        return bytes(body)

    async def _assembled(self, response: aiohttp.ClientResponse, started: float) -> Reply:
        assembly = Assembly()
        try:
            await self._take_in(response, assembly.feed)
            status, body = assembly.whole(response.status)
        except (ValueError, TypeError, AttributeError, LookupError) as exc:  # events that are JSON, but not of a chat
            failure = Failure(code="malformed_stream", message=f"the stream makes no sense: {exc}", sent=True)
            return self._failed(failure, started)
        if body is None:
            failure = Failure(code="stream_cut", message="the stream ended before the answer did", sent=True)
            return self._failed(failure, started)
        return self._reply(response, dumps(body), started, status=status)

    def _failed(self, failure: Failure, started: float) -> Reply:
        failure = replace(failure, message=self._secret.out_of(failure.message))
        elapsed_s = time.monotonic() - started
        return Reply(status=0, headers={}, body=b"", json=None, elapsed_s=elapsed_s, failure=failure)

    def _reply(
        self, response: aiohttp.ClientResponse, body: bytes, started: float, *, status: int | None = None
    ) -> Reply:
        status = status or response.status
        body = self._secret.out_of_body(body, is_answer=status == 200)
        try:
            parsed = loads(body, exact=False)
        except ValueError:
            parsed = None
        headers = self._secret.out_of_headers(response.headers)
        elapsed_s = time.monotonic() - started
        return Reply(status=status, headers=headers, body=body, json=parsed, elapsed_s=elapsed_s)


class ReplyTooLargeError(Exception):
    """A reply has more bytes than it may have."""


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

    def is_connected(self) -> bool:
        """Whether a request can be sent here; not when the server has said what nobody asked for, a second reply to one
        request: it would be taken for that of the next."""
        return super().is_connected() and not self._buffer

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


# What aiohttp lets out on hostile bytes: errors of the parser in a body are no ClientErrors.
FOREIGN = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError, ReplyTooLargeError)


def failure_of(exc: BaseException, *, stale: bool = False, secret: Secret = NO_SECRET) -> Failure:
    """Name what went wrong on the network, and whether the request may have reached the gateway."""
    words = _words(str(exc), secret) or type(exc).__name__
    for kind, code in _NEVER_SENT:
        if isinstance(exc, kind):
            return Failure(code=code, message=f"cannot connect: {words}", sent=False)
    if stale:
        message = "an idle connection was closed as it was used"
        return Failure(code="disconnected", message=message, sent=True, stale=True)
    if isinstance(exc, TimeoutError):
        return Failure(code="timeout", message="no complete answer within the timeout", sent=True)
    if isinstance(exc, ReplyTooLargeError):
        return Failure(code="reply_too_large", message=words, sent=True)
    if isinstance(exc, aiohttp.ClientResponseError | HttpProcessingError):
        words = _words(exc.message, secret)
        return Failure(code="malformed_reply", message=f"what came is no good HTTP: {words}", sent=True)
    return Failure(
        code="disconnected", message=f"the connection broke before the answer was complete: {words}", sent=True
    )


def _words(text: str, secret: Secret) -> str:
    """Cut to a length after the key is out: half of one would be left at the end."""
    return secret.out_of(" ".join(text.split()))[:WORDS_CHARACTERS]


def proxy_of(base_url: str) -> tuple[str | None, dict[str, str]]:
    """The proxy that the environment names for a gateway, and the header that says who we are there.

    aiohttp's own look at the environment takes ~/.netrc for the gateway's key, too, and fails where both are there. No proxy
    can reach this machine's own loopback for us.
    """
    url = urlsplit(base_url)
    found = getproxies().get(url.scheme)
    if not found or is_loopback(base_url) or proxy_bypass(url.hostname or ""):
        return None, {}
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    bare = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    if proxy.username is None:
        return bare, {}
    who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return bare, {"Proxy-Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"}


def is_loopback(base_url: str) -> bool:
    """Whether a base URL points at this machine itself."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

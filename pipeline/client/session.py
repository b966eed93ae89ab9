"""The same exchanges as ``wire``'s through aiohttp's session: where a proxy stands between. Home of aiohttp.

What is known of a connection is less here: an idle one that the gateway has closed is the proxy's affair.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from pipeline.client.failures import disconnected, malformed, never_sent, senseless, timed_out, too_large
from pipeline.client.stream import EVENTS, Assembly
from pipeline.client.wire import KEEP_ALIVE_S, Answer, Times
from pipeline.records import Failure, Proxy

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
FOREIGN = (aiohttp.ClientError, HttpProcessingError, TimeoutError, OSError)


class Session:
    """``await session.exchange(...)`` as a ``Wire`` has it, by way of a proxy."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        *,
        proxy: Proxy,
        family: int = socket.AF_UNSPEC,
        max_reply_bytes: int,
    ) -> None:
        self._base_url = base_url
        self._most = max_reply_bytes
        self._proxy = proxy
        # With each request, not of the session: aiohttp sends a session's headers, key and all, to a proxy as well.
        self._headers = dict(headers)
        if not base_url.startswith("https:"):  # then there is no tunnel, and the proxy reads the request itself
            self._headers |= proxy.headers
        connector = aiohttp.TCPConnector(
            limit=0, keepalive_timeout=KEEP_ALIVE_S, family=socket.AddressFamily(family), ttl_dns_cache=60
        )
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())

    async def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, times: Times, events: bool = False
    ) -> Answer | Failure:
        """See ``Wire.exchange``."""
        try:
            async with self._session.request(
                method,
                self._base_url + path,
                data=body or None,
                headers={**self._headers, **headers},
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=times.total_s, connect=times.connect_s, sock_read=times.silence_s),
                proxy=self._proxy.url,
                proxy_headers=self._proxy.headers,
            ) as response:
                return await self._taken_in(response, events)
        except FOREIGN as exc:
            return failure_of(exc)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return never_sent("connect_failed", "it was broken off here")  # aiohttp's look-up, which ``close`` cancels

    async def _taken_in(self, response: aiohttp.ClientResponse, events: bool) -> Answer | Failure:
        assembly = Assembly() if events and response.content_type == EVENTS else None
        body, size = bytearray(), 0
        async for data in response.content.iter_any():
            size += len(data)
            if size > self._most:
                return too_large(self._most)
            if assembly is None:
                body += data
                continue
            try:
                assembly.feed(data)
            except ValueError as exc:
                return senseless(exc)
        told: dict[str, str] = {}
        for name, value in response.headers.items():
            told.setdefault(name.lower(), value)
        return Answer(status=response.status, headers=told, body=bytes(body), events=assembly)

    async def close(self) -> None:
        """Break every connection."""
        await self._session.close()


def failure_of(exc: BaseException) -> Failure:
    """Name what went wrong on the network, and whether the request may have reached the gateway."""
    words = str(exc) or type(exc).__name__
    for kind, code in _NEVER_SENT:
        if isinstance(exc, kind):
            return never_sent(code, words)
    if isinstance(exc, TimeoutError):
        return timed_out()
    if isinstance(exc, aiohttp.ClientResponseError | HttpProcessingError):
        return malformed(exc.message)
    return disconnected(words)

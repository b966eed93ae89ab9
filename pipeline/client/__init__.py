"""One exchange with the gateway: a body goes out, a ``Reply`` comes back, whatever happens in between.

Whether the gateway may have billed a request that got no answer is decided below, in ``wire``, where it is known if it was sent.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, Self
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from pipeline.client.failures import WORDS_CHARACTERS, cut, senseless
from pipeline.client.stream import Assembly
from pipeline.client.wire import Answer, Times, Wire
from pipeline.ground.jsonio import dumps, loads
from pipeline.ground.secret import Secret
from pipeline.records import Failure, Proxy, Reply

UNPAID_S = 20.0  # what costs nothing is answered soon, or nobody is there
UNPAID_CONNECT_S = 10.0
MAX_REPLY_BYTES = 64 << 20
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


class Way(Protocol):
    """How requests get there: a ``Wire``, or a ``Session`` where a proxy stands between."""

    async def exchange(
        self, method: str, path: str, body: bytes, headers: Mapping[str, str], *, times: Times, events: bool = False
    ) -> Answer | Failure: ...
    async def close(self) -> None: ...


class Client:
    """``async with Client(connection) as client: reply = await client.send(endpoint, body, headers)``."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._secret = Secret(connection.api_key)
        to_connect, total = connection.connect_timeout_s, connection.timeout_s
        self._times = Times(connect_s=to_connect, silence_s=connection.first_byte_timeout_s, total_s=total)
        self._stream_times = Times(connect_s=to_connect, silence_s=connection.idle_timeout_s, total_s=total)
        unpaid_s = min(total, UNPAID_S)
        self._unpaid_times = Times(connect_s=min(to_connect, UNPAID_CONNECT_S), silence_s=unpaid_s, total_s=unpaid_s)

    async def __aenter__(self) -> Self:
        self._way = self._new_way()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._way.close()

    def _new_way(self) -> Way:
        connection = self._connection
        headers = {"Content-Type": "application/json", "User-Agent": "pipeline"}
        if connection.api_key:
            headers["Authorization"] = f"Bearer {connection.api_key}"
        family, most = _FAMILIES[connection.ip_version], connection.max_reply_bytes
        proxy = proxy_of(connection.base_url)
        if proxy is None:
            return Wire(connection.base_url, headers, family=family, max_reply_bytes=most)
        from pipeline.client.session import Session  # aiohttp takes its time to be imported, and few need it

        return Session(connection.base_url, headers, proxy=proxy, family=family, max_reply_bytes=most)

    async def drop(self) -> None:
        """Break every connection: after a sleep of the machine nobody is at their other ends any more."""
        way, self._way = self._way, self._new_way()
        await way.close()

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool = False) -> Reply:
        """POST one request and read its whole answer. Never raises for what the network or the server does.

        With ``stream`` the body asks for events: they are put together into the body that a plain call would have had,
        and silence between them is bounded by ``idle_timeout_s``.
        """
        started = time.monotonic()
        times = self._stream_times if stream else self._times
        came = await self._way.exchange("POST", endpoint, body, headers, times=times, events=stream)
        return self._reply(came, started)

    async def get(self, path: str) -> Reply:
        """GET what costs nothing to ask, such as a list of models: of a connection that was just closing once more.

        Never raises for what the network or the server does.
        """
        started = time.monotonic()
        came = await self._way.exchange("GET", path, b"", {}, times=self._unpaid_times)
        if isinstance(came, Failure) and came.stale:
            came = await self._way.exchange("GET", path, b"", {}, times=self._unpaid_times)
        return self._reply(came, started)

    def _reply(self, came: Answer | Failure, started: float) -> Reply:
        if isinstance(came, Answer) and came.events is not None:
            came = _put_together(came, came.events)
        elapsed_s = time.monotonic() - started
        if isinstance(came, Failure):
            # Cut only now: of a key that is cut in two nobody would find the half.
            failure = replace(came, message=self._secret.out_of(came.message)[:WORDS_CHARACTERS])
            return Reply(status=0, headers={}, body=b"", json=None, elapsed_s=elapsed_s, failure=failure)
        body = self._secret.out_of_body(came.body, is_answer=came.status == 200)
        try:
            parsed = loads(body, exact=False)
        except ValueError:
            parsed = None
        headers = self._secret.out_of_headers(came.headers)
        return Reply(status=came.status, headers=headers, body=body, json=parsed, elapsed_s=elapsed_s)


def _put_together(answer: Answer, events: Assembly) -> Answer | Failure:
    """The body a plain call would have had."""
    try:
        status, body = events.whole(answer.status)
    except (ValueError, TypeError, AttributeError, LookupError) as exc:
        return senseless(exc)
    if body is None:
        return cut()
    return replace(answer, status=status, body=dumps(body), events=None)


def proxy_of(base_url: str) -> Proxy | None:
    """The proxy that the environment names for a gateway, if any.

    aiohttp's own look at the environment takes ~/.netrc for the gateway's key, too, and fails where both are there. No proxy
    can reach this machine's own loopback for us.
    """
    url = urlsplit(base_url)
    found = getproxies().get(url.scheme)
    if not found or is_loopback(base_url) or proxy_bypass(url.hostname or ""):
        return None
    proxy = urlsplit(found if "://" in found else f"http://{found}")
    bare = proxy._replace(netloc=proxy.netloc.rpartition("@")[2]).geturl()
    if proxy.username is None:
        return Proxy(url=bare)
    who = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
    return Proxy(url=bare, headers={"Proxy-Authorization": f"Basic {base64.b64encode(who.encode()).decode()}"})


def is_loopback(base_url: str) -> bool:
    """Whether a base URL points at this machine itself."""
    host = urlsplit(base_url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

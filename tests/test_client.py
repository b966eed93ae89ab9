"""One HTTP exchange against real sockets that misbehave: what was sent, what may be billed, what is tried again."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from pipeline import client as client_module
from pipeline.client import Client, Connection, is_loopback
from pipeline.client.failures import never_sent
from pipeline.client.session import failure_of
from pipeline.client.wire import KEEP_ALIVE_S, Wire
from pipeline.client.wire.connection import HttpConnection
from pipeline.client.wire.incoming import Incoming
from pipeline.records import Reply

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n" + b'{"fine":true}'


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0
    )
    return head + await reader.readexactly(length)


class RawServer:
    """Counts connections and requests; ``handle(connection, nth request)`` returns the bytes to answer, None to close."""

    def __init__(self, handle: Callable[[int, int], Awaitable[bytes | None]]) -> None:
        self._handle = handle
        self.connections = 0
        self.requests: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection, nth = self.connections, 0
        try:
            while True:
                self.requests.append(await read_request(reader))
                nth += 1
                answer = await self._handle(connection, nth)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
                if not answer.endswith(b"}"):
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


def exchange(
    handle: Callable[[int, int], Awaitable[bytes | None]],
    talk: Callable[[Client], Awaitable[Reply]],
    *,
    timeout_s: float = 10.0,
    first_byte_timeout_s: float = 10.0,
    api_key: str | None = None,
) -> tuple[Reply, RawServer]:
    raw = RawServer(handle)

    async def main() -> Reply:
        server = await asyncio.start_server(raw, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        connection = Connection(
            base_url=url,
            api_key=api_key,
            timeout_s=timeout_s,
            connect_timeout_s=2.0,
            first_byte_timeout_s=first_byte_timeout_s,
        )
        async with server, Client(connection) as client:
            return await talk(client)

    return asyncio.run(main()), raw


async def twice(client: Client) -> Reply:
    first = await client.send("/x", b"{}", {})
    assert first.json == {"fine": True}
    return await client.send("/x", b"{}", {})


async def once(client: Client) -> Reply:
    return await client.send("/x", b'{"a":1}', {"X-Client-Request-Id": "call-1"})


def test_connections_are_kept_for_less_than_the_servers_five_seconds() -> None:
    assert KEEP_ALIVE_S < 5

    async def fine(connection: int, nth: int) -> bytes:
        return ANSWER

    _, raw = exchange(fine, twice)
    assert raw.connections == 1


def test_what_costs_nothing_is_not_waited_for_as_an_answer_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gateway that takes connections and says nothing: the probe of an outage has to ask again."""
    monkeypatch.setattr(client_module, "UNPAID_S", 0.2)

    async def silent(connection: int, nth: int) -> bytes | None:
        await asyncio.sleep(5)
        return None

    async def look(client: Client) -> Reply:
        return await client.get("/models")

    reply, _ = exchange(silent, look)
    assert reply.failure is not None
    assert reply.failure.code == "timeout"
    assert reply.elapsed_s < 2


def test_a_reused_connection_that_drops_at_once_is_known_as_stale() -> None:
    async def drop_reused(connection: int, nth: int) -> bytes | None:
        return ANSWER if nth == 1 else None

    reply, raw = exchange(drop_reused, twice)
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent, reply.failure.stale) == ("disconnected", True, True)
    assert (raw.connections, len(raw.requests)) == (1, 2)


def test_what_costs_nothing_is_asked_again_on_a_connection_of_its_own() -> None:
    """Or an idle connection that closes, at a gateway that is there, makes a question one that cannot be told."""

    async def drop_reused(connection: int, nth: int) -> bytes | None:
        return ANSWER if nth == 1 else None

    async def look_twice(client: Client) -> Reply:
        await client.get("/models")
        return await client.get("/key/info")

    reply, raw = exchange(drop_reused, look_twice)
    assert (reply.failure, reply.status) == (None, 200)
    assert (raw.connections, len(raw.requests)) == (2, 3)


def test_a_fresh_connection_that_drops_is_a_lost_attempt() -> None:
    async def drop(connection: int, nth: int) -> None:
        return None

    reply, raw = exchange(drop, once)
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent, len(raw.requests)) == ("disconnected", True, 1)
    assert not reply.failure.stale


def test_a_reused_connection_that_drops_late_is_a_lost_attempt() -> None:
    async def drop_late(connection: int, nth: int) -> bytes | None:
        if nth == 1:
            return ANSWER
        await asyncio.sleep(1.1)
        return None

    reply, raw = exchange(drop_late, twice)
    assert reply.failure is not None
    assert (reply.failure.sent, reply.failure.stale, len(raw.requests)) == (True, False, 2)


@pytest.mark.parametrize("part", [ANSWER[:9], ANSWER[:40], ANSWER[:-4]])
def test_a_reused_connection_that_drops_in_the_reply_is_a_lost_attempt(part: bytes) -> None:
    async def drop_inside(connection: int, nth: int) -> bytes:
        return ANSWER if nth == 1 else part

    reply, raw = exchange(drop_inside, twice)
    assert reply.failure is not None
    assert (reply.failure.sent, reply.failure.stale, len(raw.requests)) == (True, False, 2), (
        "the reply had begun: it may be billed"
    )


@pytest.mark.parametrize("talk", [once, twice], ids=["fresh", "reused"])
def test_silence_before_the_first_byte_is_a_timeout(talk: Callable[[Client], Awaitable[Reply]]) -> None:
    """Also where it is shorter than the time in which a reused connection counts as stale: it must not be sent twice."""

    async def hang(connection: int, nth: int) -> bytes:
        if nth > 1 or talk is once:
            await asyncio.sleep(3)
        return ANSWER

    reply, raw = exchange(hang, talk, first_byte_timeout_s=0.3)
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent) == ("timeout", True)
    assert len(raw.requests) == (1 if talk is once else 2)


def test_the_total_timeout_loses_the_attempt() -> None:
    async def hang(connection: int, nth: int) -> bytes:
        await asyncio.sleep(3)
        return ANSWER

    reply, _ = exchange(hang, once, timeout_s=0.3)
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent) == ("timeout", True)
    assert reply.elapsed_s < 2


def test_refused_and_unknown_hosts_were_never_sent() -> None:
    async def main(url: str) -> Reply:
        async with Client(Connection(base_url=url, api_key=None, timeout_s=5, connect_timeout_s=2)) as client:
            return await client.send("/x", b"{}", {})

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    refused = asyncio.run(main(f"http://127.0.0.1:{port}/v1"))
    assert refused.failure is not None
    assert (refused.failure.code, refused.failure.sent) == ("connect_failed", False)
    unknown = asyncio.run(main("http://no-such-host.invalid/v1"))
    assert unknown.failure is not None
    assert (unknown.failure.code, unknown.failure.sent) == ("dns_failed", False)


def test_a_certificate_nobody_knows_is_refused(tmp_path: object) -> None:
    import ssl

    import aiohttp

    exc = aiohttp.ClientConnectorCertificateError(_key(), ssl.SSLCertVerificationError("self-signed certificate"))
    assert failure_of(exc).code == "tls_failed"
    assert not failure_of(exc).sent


def test_https_to_a_server_of_plain_http_says_so() -> None:
    async def main() -> Reply:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
            async with Client(Connection(base_url=url, api_key=None, timeout_s=5, connect_timeout_s=2)) as client:
                return await client.send("/x", b"{}", {})

    failure = asyncio.run(main()).failure
    assert failure is not None
    assert (failure.code, failure.sent) == ("tls_failed", False)
    assert "the server seems to speak plain http there: try http:// in the base URL" in failure.message


def test_any_other_trouble_with_tls_gives_no_such_hint() -> None:
    assert "plain http" not in never_sent("tls_failed", "self-signed certificate").message


def _key() -> object:
    from types import SimpleNamespace

    return SimpleNamespace(host="h", port=443, is_ssl=True, ssl=True)


def test_redirects_are_never_followed() -> None:
    async def move(connection: int, nth: int) -> bytes:
        return b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 2\r\n\r\n{}"

    reply, raw = exchange(move, once, api_key="sk-SECRET")
    assert (reply.status, len(raw.requests)) == (302, 1)


def test_what_goes_over_the_wire() -> None:
    async def fine(connection: int, nth: int) -> bytes:
        return ANSWER

    _, raw = exchange(fine, once, api_key="sk-SECRET")
    head, _, body = raw.requests[0].partition(b"\r\n\r\n")
    assert body == b'{"a":1}'
    assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
    for line in (b"Authorization: Bearer sk-SECRET", b"Content-Type: application/json", b"X-Client-Request-Id: call-1"):
        assert line in head


def test_a_key_in_a_reply_or_a_repr_is_taken_out() -> None:
    async def echo(connection: int, nth: int) -> bytes:
        return b'HTTP/1.1 401 No\r\nContent-Length: 19\r\n\r\n{"key":"sk-SECRET"}'

    reply, _ = exchange(echo, once, api_key="sk-SECRET")
    assert reply.body == b'{"key":"[key]"}'
    assert "sk-SECRET" not in repr(
        Connection(base_url="http://h", api_key="sk-SECRET", timeout_s=1, connect_timeout_s=1)
    )


def test_proxies_come_from_the_environment_but_never_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readline())
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async def main() -> Reply:
        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        connection = Connection(base_url="http://gateway.invalid/v1", api_key=None, timeout_s=5, connect_timeout_s=2)
        async with server, Client(connection) as client:
            return await client.send("/x", b"{}", {})

    assert asyncio.run(main()).status == 200
    assert seen == [b"POST http://gateway.invalid/v1/x HTTP/1.1\r\n"]
    assert is_loopback("http://127.0.0.1:8000/v1")
    assert is_loopback("http://localhost/v1")
    assert is_loopback("http://[::1]:8000/v1")
    assert not is_loopback("http://10.0.0.1/v1")


@pytest.mark.parametrize(("version", "works"), [(4, True), ("auto", True), (6, False)])
def test_the_ip_version_can_be_forced(monkeypatch: pytest.MonkeyPatch, version: str | int, works: bool) -> None:
    look_up = socket.getaddrinfo

    def only_v4(host: str, port: int, family: int = 0, *more: int, **named: int) -> object:
        if host != "ip4only":
            return look_up(host, port, family, *more, **named)
        if (family or named.get("family")) == socket.AF_INET6:
            raise socket.gaierror(socket.EAI_NONAME, "no such address")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", only_v4)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(ANSWER)
        await writer.drain()
        writer.close()

    async def main() -> Reply:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        url = f"http://ip4only:{server.sockets[0].getsockname()[1]}/v1"
        connection = Connection(base_url=url, api_key=None, timeout_s=5, connect_timeout_s=2, ip_version=version)
        async with server, Client(connection) as client:
            return await client.send("/x", b"{}", {})

    assert (asyncio.run(main()).status == 200) == works


# ---------------------------------------------------------------- connections that are used again


def always(answer: bytes) -> Handler:
    """A server that answers every request so."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await read_request(reader)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    return answering


async def served(handler: Handler, talk: Callable[[Client], Awaitable[Reply]], **reach: Any) -> Reply:
    """What comes of talking to a server that does as ``handler`` says."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    given: dict[str, Any] = {"api_key": None, "timeout_s": 5.0, "connect_timeout_s": 2.0, **reach}
    async with server, Client(Connection(base_url=url, **given)) as client:
        return await talk(client)


def test_what_is_left_of_a_request_is_in_front_of_no_other() -> None:
    """A gateway may refuse a large body before it has read it, and keep the connection."""
    heads: list[bytes] = []

    async def refuse_early(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            if len(heads) == 1:
                writer.write(b"HTTP/1.1 413 Too large\r\nContent-Length: 2\r\n\r\n{}")
                await asyncio.sleep(0.2)
                heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(ANSWER)
            await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            return
        finally:
            writer.close()

    async def talk(client: Client) -> Reply:
        first = await client.send("/x", b'{"image":"' + b"x" * 30_000_000 + b'"}', {})
        assert first.status == 413
        return await client.send("/y", b"{}", {})

    reply = asyncio.run(served(refuse_early, talk))
    assert reply.json == {"fine": True}
    assert heads[-1].startswith(b"POST /v1/y")


def test_a_late_cancel_breaks_nobody_elses_connection() -> None:
    """Its reply is here, and the next one may be using the connection already."""

    async def talk(client: Client) -> Reply:
        await once(client)
        assert isinstance(client._way, Wire)
        (connection,) = client._way._all
        seconds: list[asyncio.Task[Reply]] = []

        def cancel_the_first(free: HttpConnection) -> None:
            """The moment between a reply and whoever waited for it."""
            put_back(free)
            first.cancel()
            seconds.append(asyncio.create_task(once(client)))

        put_back, connection._free = connection._free, cancel_the_first
        first = asyncio.create_task(once(client))
        while not seconds:
            await asyncio.sleep(0)
        connection._free = put_back
        return await seconds[0]

    assert asyncio.run(served(always(ANSWER), talk)).json == {"fine": True}


def test_a_reply_that_we_cut_is_not_taken_for_a_whole_one() -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"half":1}')
        try:
            await writer.drain()
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def talk(client: Client) -> Reply:
        waiting = asyncio.create_task(once(client))
        await asyncio.sleep(0.2)
        await client.drop()
        return await waiting

    reply = asyncio.run(served(half, talk))
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent) == ("disconnected", True)


def test_a_name_is_looked_up_once_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    look_up, asked = socket.getaddrinfo, []

    def slowly(host: str, *more: Any, **named: Any) -> Any:
        if host != "gateway.test":
            return look_up(host, *more, **named)
        asked.append(host)
        time.sleep(0.1)
        return look_up("127.0.0.1", *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)

    async def main() -> list[Reply]:
        answer = ANSWER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        server = await asyncio.start_server(always(answer), "127.0.0.1", 0)
        url = f"http://gateway.test:{server.sockets[0].getsockname()[1]}/v1"
        connection = Connection(base_url=url, api_key=None, timeout_s=5, connect_timeout_s=2)
        async with server, Client(connection) as client:
            return [*await asyncio.gather(*(once(client) for _ in range(50))), await once(client)]

    replies = asyncio.run(main())
    assert [reply.json for reply in replies] == [{"fine": True}] * 51
    assert len(asked) == 1


@pytest.mark.parametrize("proxied", [False, True])
def test_a_look_up_that_we_break_off_cancels_nobody(monkeypatch: pytest.MonkeyPatch, proxied: bool) -> None:
    """A worker that was cancelled so would be gone, with its row, and the last of them with the run."""
    look_up = socket.getaddrinfo

    def slowly(host: str, *more: Any, **named: Any) -> Any:
        if host.endswith(".test"):
            time.sleep(0.3)
            host = "127.0.0.1"
        return look_up(host, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", slowly)
    monkeypatch.delenv("no_proxy", raising=False)
    if proxied:
        monkeypatch.setenv("http_proxy", "http://proxy.test:9")

    async def main() -> Reply:
        connection = Connection(base_url="http://gateway.test:9/v1", api_key=None, timeout_s=5, connect_timeout_s=2)
        async with Client(connection) as client:
            waiting = asyncio.create_task(once(client))
            await asyncio.sleep(0.1)
            await client.drop()
            return await waiting

    reply = asyncio.run(main())
    assert reply.failure is not None
    assert (reply.failure.code, reply.failure.sent) == ("connect_failed", False)
    assert "it was broken off here" in reply.failure.message


@pytest.mark.parametrize("host", ["gateway..example", "x" * 64 + ".example"])
def test_a_name_that_cannot_be_one_was_never_sent(host: str) -> None:
    async def main() -> Reply:
        connection = Connection(base_url=f"http://{host}/v1", api_key=None, timeout_s=5, connect_timeout_s=2)
        async with Client(connection) as client:
            return await once(client)

    reply = asyncio.run(main())
    assert reply.failure is not None
    assert not reply.failure.sent


def test_no_header_can_be_two() -> None:
    with pytest.raises(ValueError, match="end of a line"):
        Wire("http://h/v1", {"Authorization": "Bearer x\r\nX-More: y"}, max_reply_bytes=1000)


@pytest.mark.parametrize("close", [b"", b"Connection: close\r\n"], ids=["idle", "closed"])
def test_a_body_is_not_held_by_a_connection_that_is_done(close: bytes) -> None:
    async def talk(client: Client) -> Reply:
        gc.disable()
        try:
            reply = await once(client)
            await asyncio.sleep(0.1)
            held = [one for one in gc.get_objects() if isinstance(one, Incoming)]
        finally:
            gc.enable()
        assert len(held) == (0 if close else 1)
        assert all((one.answer, one._body) == (None, b"") for one in held)
        return reply

    gc.collect()
    answer = ANSWER.replace(b"\r\n", b"\r\n" + close, 1)
    assert asyncio.run(served(always(answer), talk)).status == 200

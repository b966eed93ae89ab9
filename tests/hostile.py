"""A raw socket server that says whatever it is told to, byte by byte; and the replies that it is told to give."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

Say = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWER = orjson.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "m-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
    }
)


def reply(body: bytes, *headers: bytes, head: bytes = HEAD, status: bytes = b"200 OK") -> bytes:
    """A whole reply, with a true Content-Length and more headers."""
    head = head.replace(b"200 OK", status, 1) + b"".join(line + b"\r\n" for line in headers)
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*pieces: bytes, head: bytes = HEAD, end: bytes = b"0\r\n\r\n") -> bytes:
    """A reply in chunks."""
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(map(chunk, pieces)) + end


def chunk(piece: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(piece), piece)


def event(value: object) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def delta(content: object, finish_reason: str | None = None, **more: object) -> dict[str, object]:
    """A piece of a streamed chat."""
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}], **more}


DONE = b"data: [DONE]\n\n"
STREAM = event(delta("ye")) + event(delta("s", "stop")) + DONE
GOOD = reply(ANSWER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """``code`` is the error that a row of it ends with, None where it is answered; ``lost``: it may have been billed unseen."""

    name: str
    say: Say
    code: str | None
    lost: bool = False


def slowly(*pieces: bytes, every_s: float) -> Say:
    """Pieces with pauses, the last one again and again for as long as somebody listens."""

    async def say(writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        while not writer.is_closing():
            await asyncio.sleep(every_s)
            writer.write(pieces[-1])
            await writer.drain()

    return say


def endless(start: bytes, piece: bytes, *, most: int = 1 << 40) -> Say:
    """A start, then the same piece until nobody listens any more, or there were ``most`` bytes."""

    async def say(writer: asyncio.StreamWriter) -> None:
        writer.write(start)
        for _ in range(most // len(piece)):
            writer.write(piece)
            await writer.drain()
            if writer.is_closing():
                return
            await asyncio.sleep(0)

    return say


def bomb(size: int, *, head: bytes = HEAD) -> bytes:
    """A gzip reply that unpacks to so many bytes of an answer."""
    packer = zlib.compressobj(9, wbits=31)
    block = b" " * (1 << 20)
    packed = b"".join(packer.compress(block) for _ in range(size >> 20)) + packer.compress(ANSWER) + packer.flush()
    return reply(packed, b"Content-Encoding: gzip", head=head)


def lost(name: str, say: Say, code: str = "malformed_reply") -> Case:
    """A reply whose answer nobody has seen."""
    return Case(name=name, say=say, code=code, lost=True)


def seen(name: str, body: bytes, code: str | None, *headers: bytes, status: bytes = b"200 OK") -> Case:
    """A whole reply; one of status 200 that is no answer, and tells no tokens, may have been billed."""
    is_lost = code is not None and status == b"200 OK" and b"usage" not in body
    return Case(name=name, say=reply(body, *headers, status=status), code=code, lost=is_lost)


def _nested(depth: int, inside: bytes = b"") -> bytes:
    return b"[" * depth + inside + b"]" * depth


def _with(more: bytes) -> bytes:
    return ANSWER[:-1] + b"," + more + b"}"


HTTP = [
    lost("says nothing", b"", "disconnected"),
    lost("a status line and no more", b"HTTP/1.1 200 OK", "disconnected"),
    lost("no HTTP", b"hello world\r\n\r\n"),
    lost("HTTP/0.9", ANSWER),
    lost("HTTP/9.9", GOOD.replace(b"HTTP/1.1", b"HTTP/9.9")),
    lost("a status of two digits", GOOD.replace(b"200", b"20")),
    lost("a status of 000", GOOD.replace(b"200", b"000")),
    Case(name="a status of 999", say=GOOD.replace(b"200", b"999"), code="http_999"),
    Case(name="1xx first", say=b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + GOOD, code=None),
    Case(name="early hints", say=b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + GOOD, code=None),
    lost("1xx with a body", b"HTTP/1.1 100 Continue\r\nContent-Length: 5\r\n\r\nhello" + GOOD),
    lost("1xx for ever", slowly(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000, every_s=0.01), "timeout"),
    lost("another protocol", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n?"),
    Case(name="no content", say=b"HTTP/1.1 204 No Content\r\n\r\n", code="http_204"),
    lost("a length too small", HEAD + b"Content-Length: 10\r\n\r\n" + ANSWER),
    lost("a length too large", HEAD + b"Content-Length: 9999\r\n\r\n" + ANSWER, "disconnected"),
    lost("a length below zero", HEAD + b"Content-Length: -5\r\n\r\n" + ANSWER),
    lost("a length of 30 digits", HEAD + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n" + ANSWER),
    lost("a length of 2**64 - 1", HEAD + b"Content-Length: 18446744073709551615\r\n\r\n" + ANSWER, "disconnected"),
    lost("two lengths", reply(ANSWER, b"Content-Length: 5")),
    lost("a length and chunks", reply(ANSWER, b"Transfer-Encoding: chunked")),
    Case(name="no length", say=HEAD + b"\r\n" + ANSWER, code=None),
    lost("no length, and cut off", HEAD + b"\r\n" + ANSWER[:-20]),
    Case(name="many small chunks", say=chunked(*(bytes([byte]) for byte in ANSWER)), code=None),
    lost("chunks of no size", chunked(end=b"zz\r\nabc\r\n0\r\n\r\n")),
    lost("chunks below zero", chunked(end=b"-1\r\nabc\r\n0\r\n\r\n")),
    lost("chunks of 2**72", chunked(end=b"ffffffffffffffffff\r\nabc")),
    lost("chunks without end", chunked(ANSWER, end=b""), "disconnected"),
    Case(name="chunks and trailers", say=chunked(ANSWER, end=b"0\r\n" + b"a: b\r\n" * 5000 + b"\r\n"), code=None),
    lost("chunks and too many trailers", chunked(ANSWER, end=b"0\r\n" + b"a: b\r\n" * 50_000 + b"\r\n")),
    Case(name="a chunk extension of 100 kB", say=HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(ANSWER).replace(b"\r\n", b";" + b"x" * 100_000 + b"\r\n", 1) + b"0\r\n\r\n", code=None),
    lost("100,000 headers", reply(ANSWER, *(b"X-%d: y" % number for number in range(100_000)))),
    lost("a header of 10 MB", reply(ANSWER, b"X: " + b"y" * 10_000_000)),
    lost("a header's name of 10 MB", reply(ANSWER, b"X" * 10_000_000 + b": y")),
    lost("a reason of 10 MB", reply(ANSWER, status=b"200 " + b"y" * 10_000_000)),
    lost("a header without a colon", reply(ANSWER, b"what")),
    lost("a header with NUL", reply(ANSWER, b"X: a\0b")),
    seen("headers that are no text", ANSWER, None, b"x-request-id: \xff\xfe", b"x-litellm-model-name: \xc3\x28", b"x-litellm-call-id: \xff"),
    seen("cookies that are none", ANSWER, None, b"Set-Cookie: \xff=;;;=\x01", b"Set-Cookie: a=b; expires=?; max-age=z"),
    seen("a type that is none", ANSWER, None, b"Content-Type: ;;;charset=nonsense;\xff"),
    seen("an encoding nobody knows", ANSWER, None, b"Content-Encoding: x-what"),
    seen("gzip", gzip.compress(ANSWER), None, b"Content-Encoding: gzip"),
    lost("gzip that is none", reply(ANSWER, b"Content-Encoding: gzip")),
    lost("gzip cut off", reply(gzip.compress(ANSWER)[:40], b"Content-Encoding: gzip")),
    lost("gzip of 3,000 members", reply(gzip.compress(b"") * 3000, b"Content-Encoding: gzip")),
    seen("brotli that is none", ANSWER, None, b"Content-Encoding: br"),
    seen("deflate", zlib.compress(ANSWER), None, b"Content-Encoding: deflate"),
    seen("deflate without its head", zlib.compress(ANSWER)[2:-4], None, b"Content-Encoding: deflate"),
    lost("trickles for ever", slowly(HEAD + b"Content-Length: 99999999\r\n\r\n", b" ", every_s=0.05), "timeout"),
    lost("headers that trickle", slowly(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", every_s=0.05), "timeout"),
    lost("more than it may be", endless(HEAD + b"\r\n", b" " * 65536), "reply_too_large"),
    lost("more chunks than it may be", endless(HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b" " * 65536)), "reply_too_large"),
    lost("a gzip bomb", bomb(64 << 20), "reply_too_large"),
    lost("a page of an error without end", endless(HEAD.replace(b"200", b"500") + b"\r\n", b" " * 65536), "reply_too_large"),
]  # fmt: skip

JSON = [
    lost("binary", reply(bytes(range(256)) * 20)),
    lost("not UTF-8", reply(ANSWER.replace(b"yes", b"\xff\xfe"))),
    lost("UTF-16", reply(ANSWER.decode().encode("utf-16"))),
    lost("nothing in it", reply(b"")),
    lost("100,000 levels", reply(_with(b'"x":' + _nested(100_000)))),
    lost("100,000 objects in one another", reply(b'{"a":' * 100_000)),
    seen("an error of 1,000 levels", b'{"error":' + _nested(1000, b"1") + b"}", "error_in_reply"),
    seen("a message of 1,000 levels", b'{"error":{"message":' + _nested(1000) + b"}}", "error_in_reply"),
    seen("a code of 1,000 levels", b'{"error":{"message":"m","code":' + _nested(1000) + b"}}", "error_in_reply"),
    seen("1,000 levels beside the answer", _with(b'"x":' + _nested(1000)), None),
    lost("a number of 5,000 digits", reply(_with(b'"x":' + b"9" * 5000))),
    seen("a number of 4,000 digits", _with(b'"x":' + b"9" * 4000), None),
    seen("tokens without end", ANSWER.replace(b":10,", b":%d," % 10**400), None),
    seen("tokens below zero", ANSWER.replace(b":10,", b":-10,"), None),
    seen("a cost past all floats", ANSWER, None, b"x-litellm-response-cost: 1e999"),
    lost("NaN", reply(_with(b'"x":NaN'))),
    lost("1e999", reply(_with(b'"x":1e999'))),
    seen("half a surrogate pair, and NUL", ANSWER.replace(b"yes", rb"\ud800\u0000"), None),
    seen("two choices for one", _with(b'"choices":[]'), "no_choices"),
    seen("a list", b"[]", "malformed_reply"),
    seen("a number", b"1", "malformed_reply"),
    seen("choices of anything", b'{"choices":[1,null,"x"]}', "no_choices"),
    seen("content of anything", ANSWER.replace(b'"yes"', b'{"a":[1,{}]}'), None),
    seen("usage of anything", _with(b'"usage":[{}]'), None),
    seen("a code that is a book", orjson.dumps({"error": {"code": "x" * 100_000, "message": "no"}}), "http_400", status=b"400 No"),
    seen("a message that is a book", orjson.dumps({"error": {"message": "\x1b[31m" + "x" * 100_000}}), "http_400", status=b"400 No"),
    seen("a redirect", b"", "redirected", b"Location: http://127.0.0.1:9/", status=b"302 Found"),
    seen("a redirect to itself", b"", "redirected", b"Location: /v1/chat/completions", status=b"307 Again"),
    seen("a redirect to no text", b"", "redirected", b"Location: \xff\xfe", status=b"308 There"),
    seen("a redirect to nowhere", b"", "redirected", status=b"301 Gone"),
]  # fmt: skip


def stream(name: str, events: bytes, code: str | None, *, is_lost: bool = False) -> Case:
    """A reply in events."""
    return Case(name=name, say=reply(events, head=EVENTS), code=code, lost=is_lost)


LONG = "long " * 200_000
STREAMS = [
    stream("a good stream", STREAM, None),
    Case(name="split inside characters", say=chunked(*(bytes([byte]) for byte in event(delta("🚀é\u2028", "stop")) + DONE), head=EVENTS), code=None),
    stream("a line of 1 MB", event(delta(LONG, "stop")) + DONE, None),
    lost("a line without end", endless(EVENTS + b"\r\ndata: ", b"x" * 65536), "reply_too_large"),
    lost("events without end", endless(EVENTS + b"\r\n", event(delta("x")) * 1000), "reply_too_large"),
    lost("comments without end", endless(EVENTS + b"\r\n", b": ping\n\n" * 8192), "reply_too_large"),
    lost("a gzip bomb of events", bomb(64 << 20, head=EVENTS), "reply_too_large"),
    lost("a stream that trickles", slowly(EVENTS + b"\r\n", b": ping\n\n", every_s=0.05), "timeout"),
    stream("no events", b"", "stream_cut", is_lost=True),
    stream("only the end", DONE, "stream_cut", is_lost=True),
    stream("no end", event(delta("yes", "stop")), "stream_cut", is_lost=True),
    stream("events of binary", b"data: " + bytes(range(256)) + b"\n\n" + STREAM, "malformed_stream", is_lost=True),
    stream("events that are lists", b"data: []\n\n" + STREAM, "malformed_stream", is_lost=True),
    stream("an event of 100,000 levels", b"data: " + _nested(100_000) + b"\n\n" + STREAM, "malformed_stream", is_lost=True),
    stream("choices that are none", event({"choices": [1]}) + STREAM, "malformed_stream", is_lost=True),
    stream("a choice of no number", event({"choices": [{"index": "x"}]}) + STREAM, "malformed_stream", is_lost=True),
    stream("content that changes its kind", event(delta({"a": 1})) + STREAM, "malformed_stream", is_lost=True),
    stream("tool calls that are none", event({"choices": [{"delta": {"tool_calls": [5]}}]}) + STREAM, "malformed_stream", is_lost=True),
    stream("an error event", event({"error": {"message": "no", "code": "400"}}), "http_400"),
    stream("an error of any code", event({"error": {"message": "no", "code": "²"}}), "http_500"),
    stream("an error of a long code", event({"error": {"message": "no", "code": "4" * 5000}}), "http_500"),
    stream("an error of 900 levels", b'data: {"error":' + _nested(900, b"1") + b"}\n\n", "http_500"),
    Case(name="no stream though asked for", say=GOOD, code=None),
    lost("a stream cut in a chunk", chunked(STREAM[:-30], head=EVENTS, end=b""), "disconnected"),
]  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Hostile:
    """What the server says by the name in the request, ``times`` times, else ``other``; ``asked`` are the names, as they came."""

    say: Mapping[str, Say]
    other: Say = GOOD
    times: int = 1_000_000
    listed: Say = field(default=reply(b'{"data":[]}'))
    asked: list[str] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it or we have enough of it."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        body = await reader.readexactly(int(length[0].split(b":")[1])) if length else b""
        self.requests.append(head + body)
        say = self.listed if head.startswith(b"GET") else self._named(body)
        if isinstance(say, bytes):
            writer.write(say)
        else:
            await say(writer)
        await writer.drain()
        return say == GOOD

    def _named(self, body: bytes) -> Say:
        try:
            name = orjson.loads(body)["messages"][-1]["content"].removeprefix("row ")
        except (ValueError, LookupError, TypeError):
            return self.other
        self.asked.append(name)
        return self.say.get(name, self.other) if self.asked.count(name) <= self.times else self.other


@asynccontextmanager
async def serving(say: Mapping[str, Say], **more: Any) -> AsyncIterator[Hostile]:
    """Serve while the block runs; what still talks then is cut off."""
    hostile = Hostile(say=say, **more)
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await hostile.serve(reader, writer)
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
    hostile.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    try:
        yield hostile
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        while tasks:
            await asyncio.sleep(0.001)

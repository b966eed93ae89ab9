"""A server that does nothing but answer, as fast as one core can: what a client is measured against.

    python benchmarks/static_server.py [LATENCY_S]

Prints its URL. POST /v1/chat/completions answers 1.1 KB (200 events where a stream is asked for), /v1/embeddings vectors
of 768 floats; GET /stats tells how many requests there were, and when the first came and the last was answered
(``time.monotonic``, which is one clock for all processes of a machine); POST /reset begins anew.
"""

from __future__ import annotations

import asyncio
import base64
import random
import re
import struct
import sys
import time
from functools import cache

import orjson
import uvloop

LATENCY_S = float(sys.argv[1]) if len(sys.argv) > 1 else 0.0
FLOATS = 768
EVENTS = 200
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_random = random.Random(1)
VECTOR = [_random.uniform(-1.0, 1.0) for _ in range(FLOATS)]


def _http(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind, len(body), body)


USAGE = {"prompt_tokens": 20, "completion_tokens": 200, "total_tokens": 220}
CHAT = _http(
    orjson.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 850}, "finish_reason": "stop"}],
            "usage": USAGE,
        }
    )
)


def _stream() -> bytes:
    def event(body: object) -> bytes:
        return b"data: " + orjson.dumps(body) + b"\n\n"

    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = [event({**head, "choices": [{"index": 0, "delta": {"content": "word "}}]}) for _ in range(EVENTS)]
    events.append(event({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    events.append(event({**head, "choices": [], "usage": USAGE}))
    return _http(b"".join(events) + b"data: [DONE]\n\n", b"text/event-stream")


STREAM = _stream()


@cache
def _vectors(count: int, in_base64: bool) -> bytes:
    vector = base64.b64encode(struct.pack(f"<{FLOATS}f", *VECTOR)).decode() if in_base64 else VECTOR
    data = [{"object": "embedding", "index": number, "embedding": vector} for number in range(count)]
    usage = {"prompt_tokens": 10 * count, "total_tokens": 10 * count}
    return _http(orjson.dumps({"object": "list", "model": "m", "data": data, "usage": usage}))


class Stats:
    """What was seen since the last reset."""

    requests = 0
    first_at = 0.0
    last_at = 0.0


class Connection(asyncio.Protocol):
    """One keep-alive connection."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It begins."""
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        """Answer each request that is there whole."""
        buffer = self._buffer + data if self._buffer else data
        while (end := buffer.find(b"\r\n\r\n")) >= 0:
            head = buffer[:end]
            found = _LENGTH.search(head)
            stop = end + 4 + (int(found[1]) if found else 0)
            if len(buffer) < stop:
                break
            self._answer(head, buffer[end + 4 : stop])
            buffer = buffer[stop:]
        self._buffer = buffer

    def _answer(self, head: bytes, body: bytes) -> None:
        if b"/chat/" in head[:60]:
            self._reply(STREAM if b'"stream":true' in body else CHAT)
        elif b"/embeddings" in head[:60]:
            texts = orjson.loads(body)["input"]
            count = len(texts) if isinstance(texts, list) else 1
            self._reply(_vectors(count, b'"encoding_format":"base64"' in body))
        elif head.startswith(b"POST /reset"):
            Stats.requests, Stats.first_at, Stats.last_at = 0, 0.0, 0.0
            self._transport.write(_http(b"{}"))
        else:
            told = {"requests": Stats.requests, "first_at": Stats.first_at, "last_at": Stats.last_at}
            self._transport.write(_http(orjson.dumps(told)))

    def _reply(self, data: bytes) -> None:
        if not Stats.requests:
            Stats.first_at = time.monotonic()
        Stats.requests += 1
        if LATENCY_S:
            asyncio.get_running_loop().call_later(LATENCY_S, self._write, data)
        else:
            self._write(data)

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        Stats.last_at = time.monotonic()


async def main() -> None:
    """Serve until killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

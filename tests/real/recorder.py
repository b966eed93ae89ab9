"""A reverse proxy that writes down what passes, so that a test can compare results with what the gateway really said."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import orjson

_OF_ONE_HOP = frozenset({"connection", "content-length", "host", "keep-alive", "transfer-encoding"})
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One request and its reply. Names of headers are in lower case."""

    method: str
    path: str
    asked: bytes
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def call_id(self) -> str | None:
        """The proxy's name for it."""
        return self.headers.get("x-litellm-call-id")

    @property
    def is_billed(self) -> bool:
        """Whether it is an answer, and a whole one."""
        return self.status == 200 and (not self.body.startswith(b"data: ") or self.body.endswith(b"data: [DONE]\n\n"))

    @property
    def usage(self) -> dict[str, Any]:
        """The tokens that it tells."""
        told = [event["usage"] for event in self.events or [orjson.loads(self.body)] if event.get("usage")]
        return dict(told[-1])

    @property
    def told_cost(self) -> float | None:
        """What the proxy says that it cost: in a header, or at the end of a stream."""
        if (told := self.headers.get("x-litellm-response-cost")) is not None:
            return float(told)
        cost: float | None = self.usage.get("cost")
        return cost

    @property
    def events(self) -> list[dict[str, Any]]:
        """A stream's events; none where the reply is no stream."""
        lines = [line.removeprefix(b"data: ") for line in self.body.splitlines() if line.startswith(b"data: {")]
        return [orjson.loads(line) for line in lines]


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Where it listens, and what has passed."""

    url: str
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def paid(self) -> list[Exchange]:
        """What was asked of a model."""
        return [exchange for exchange in self.exchanges if exchange.method == "POST"]


@contextmanager
def recording(target: str) -> Iterator[Recorder]:
    """Stand before ``target`` while the block runs."""
    parts = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _OF_ONE_HOP}
            upstream = HTTPConnection(str(parts.hostname), parts.port, timeout=60)
            try:
                upstream.request(self.command, self.path, asked, headers)
                self._relay(asked, upstream.getresponse())
            finally:
                upstream.close()

        def do_POST(self) -> None:
            self.do_GET()

        def _relay(self, asked: bytes, answer: HTTPResponse) -> None:
            """Piece by piece: a stream stays one. It is written down before its end goes out."""
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in _OF_ONE_HOP:
                    self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            pieces = []
            while piece := answer.read1(_PIECE):
                pieces.append(piece)
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            body = b"".join(pieces)
            exchange = Exchange(
                method=self.command,
                path=self.path,
                asked=asked,
                status=answer.status,
                headers={name.lower(): value for name, value in answer.getheaders()},
                body=gzip.decompress(body) if answer.headers["content-encoding"] == "gzip" else body,
            )
            recorder.exchanges.append(exchange)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    recorder = Recorder(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield recorder
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

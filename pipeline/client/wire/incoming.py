"""A reply as its bytes come in: httptools finds its parts, here they are put together and bounded. Home of httptools."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import lru_cache

import httptools

from pipeline.client.failures import malformed, senseless, too_large
from pipeline.client.stream import EVENTS, Assembly
from pipeline.client.wire.unpacked import PACKED, Unpacked
from pipeline.ground.frozen import frozen
from pipeline.records import Failure

MAX_HEAD_BYTES = 64 << 10


@frozen
class Answer:
    """One whole HTTP reply. ``headers`` by lower-case names, the first of each; ``events`` in place of ``body`` if it came
    in such."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    events: Assembly | None = None


class Incoming:
    """The replies that come on one connection: ``expect``, ``feed``, and then there is an ``answer`` or ``trouble``.

    The ``on_`` methods are for httptools to call.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(  # as browsers are: odd bytes in a cookie spoil no answer
            lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self.expect(events=False)

    def expect(self, *, events: bool) -> None:
        """The reply to a new request comes next; it may come in events."""
        self._asks_events = events
        self.answer: Answer | None = None
        self.trouble: Failure | None = None
        self.begun = False
        self.keeps = True  # the connection may be used again
        self._begin()

    def _begin(self) -> None:
        self._headers: dict[str, str] = {}
        self._body: bytes | bytearray = b""
        self._events: Assembly | None = None
        self._pieces: list[bytes] = []  # of them: a read often has many, each in a chunk of its own
        self._unpacked: Unpacked | None = None
        self._status = self._size = self._head_bytes = 0
        self._head_done = self._chunked = self._ends_with_connection = False

    def feed(self, data: bytes) -> None:
        """Some bytes."""
        self.begun = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.trouble = malformed("it changes the protocol")
        except httptools.HttpParserError as exc:
            self.keeps = False
            if self.answer is None and self.trouble is None:
                self.trouble = malformed(str(exc))
        if not self._head_done:
            self._count_head(len(data))
        if self._events is not None and self._pieces:
            self._feed_events(self._events)

    def _feed_events(self, events: Assembly) -> None:
        data = b"".join(self._pieces)
        self._pieces.clear()
        try:
            events.feed(data)
        except ValueError as exc:
            self.trouble = self.trouble or senseless(exc)

    def _count_head(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self.trouble = malformed(f"headers of more than {MAX_HEAD_BYTES:,} bytes")

    def forget(self) -> None:
        """Nothing more comes. Parser and this hold each other: a body must not wait for the garbage collector."""
        self.answer, self._body = None, b""
        del self._parser

    def closed(self) -> None:
        """The connection was closed in good order: so end some replies, others are cut."""
        if self._ends_with_connection and self.answer is None:
            self.on_message_complete()

    # what httptools tells

    def on_message_begin(self) -> None:
        """Another reply to the same request is for nobody."""
        if self.answer is not None:
            raise ValueError("a second reply")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; behind the body it is a trailer, which says nothing of what we need."""
        if 0 in value:  # the same as b"\0", found in a tenth of the time
            self.trouble = malformed("a header with a NUL")
        if self._head_done:
            self._count_head(len(name) + len(value))
            return
        known = _known(name)
        self._headers.setdefault(known, value.decode("utf-8", "surrogateescape"))
        if known == "transfer-encoding":  # it may stand on several lines
            self._chunked = self._chunked or b"chunked" in value.lower()

    def on_headers_complete(self) -> None:
        """Now it is known what the body is."""
        self._head_done = True
        headers = self._headers
        self._status = self._parser.get_status_code()
        if "content-length" not in headers and not self._chunked:
            self._ends_with_connection = self._status >= 200
        if self._status < 100:
            self.trouble = malformed(f"a status of {self._status}")
        if headers.get("content-encoding", "").strip().lower() in PACKED:  # nobody asked for others: most are none
            self._unpacked = Unpacked()
        if self._asks_events and headers.get("content-type", "").partition(";")[0].strip().lower() == EVENTS:
            self._events = Assembly()

    def on_body(self, data: bytes) -> None:
        """Some of the body."""
        if self.trouble is not None:
            return
        try:
            if self._unpacked is not None:
                data = self._unpacked.more(data, self._most - self._size)
            self._size += len(data)
            if self._size > self._most:
                self.trouble = too_large(self._most)
                self._body = b""
            elif self._events is not None:
                self._pieces.append(data)
            elif not self._body:
                self._body = data  # most bodies come in one piece
            else:
                if isinstance(self._body, bytes):
                    self._body = bytearray(self._body)
                self._body += data
        except zlib.error as exc:
            self.trouble = malformed(f"its body cannot be unpacked ({exc})")

    def on_message_complete(self) -> None:
        """A reply has ended; after those of 1xx comes the one that counts."""
        if self._status < 200:
            self._begin()
            return
        self.keeps = not self._ends_with_connection and self._parser.should_keep_alive()
        if self._unpacked is not None and self._unpacked.is_cut and self.trouble is None:
            self.trouble = malformed("its packed body ends too early")
        body, self._body = bytes(self._body), b""
        self.answer = Answer(status=self._status, headers=self._headers, body=body, events=self._events)


@lru_cache(maxsize=256)  # a gateway's replies have the same headers again and again
def _known(name: bytes) -> str:
    return name.decode("latin-1").lower()

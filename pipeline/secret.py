"""A key, and how it is kept out of all that comes back: some servers quote it in errors, redirects and ids.

Taken out at the door, it cannot get into journal, results, log or message by any way behind it.
"""

from __future__ import annotations

import base64
import re
import resource
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from pipeline.jsonio import dumps, loads

HIDDEN = "[key]"
LEAST_IN_ANSWERS = 16  # a shorter "key" of a server that needs none is often a word ("ollama"), and may be in an answer
_ESCAPE = re.compile(rb"\\u00|\\/")  # other ways to write ASCII in JSON


def stay_out_of_core_dumps() -> None:
    """Have the kernel write no image of this process, in which a key would be; 1 byte is what it takes for none, also where a
    program collects them."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (min(1, hard) if hard >= 0 else 1, hard))


def _in_base64(key: str) -> Iterator[str]:
    """What of a long key's base64 depends on it alone, wherever in the encoded text (``user:key``, ``Bearer key``) it began."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + key.encode()).decode()
        if len(key) >= LEAST_IN_ANSWERS:
            yield text[-(-before * 8 // 6) : (before + len(key.encode())) * 8 // 6]


class Secret:
    """``Secret(key).out_of(text)``; a key of None is nowhere. Its repr does not tell it."""

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        self._words = tuple(dict.fromkeys((key, quote(key, safe=""), *_in_base64(key)))) if key else ()
        self._needles = tuple(dumps(word)[1:-1] for word in self._words)

    def out_of(self, text: str) -> str:
        """The text without the key."""
        for word in self._words:
            text = text.replace(word, HIDDEN)
        return text

    def out_of_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers without the key; bytes that are no UTF-8, which nothing could write down, are replaced."""
        clean: dict[str, str] = {}
        for name, value in headers.items():
            text = value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            clean[name] = self.out_of(text) if self._words else text
        return clean

    def out_of_body(self, body: bytes, *, is_answer: bool) -> bytes:
        """The body of a reply; an answer stays as it is unless the key looks like one."""
        if not self._key or (is_answer and len(self._key) < LEAST_IN_ANSWERS):
            return body
        body = self._out_of_bytes(body)
        if _ESCAPE.search(body):
            try:
                plain = dumps(loads(body))
            except ValueError:
                return body
            if any(needle in plain for needle in self._needles):
                return self._out_of_bytes(plain)
        return body

    def _out_of_bytes(self, body: bytes) -> bytes:
        for needle in self._needles:
            body = body.replace(needle, HIDDEN.encode())
        return body

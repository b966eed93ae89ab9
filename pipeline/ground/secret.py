"""A key, and how it is kept out of all that comes back: some servers quote it in errors, redirects and ids.

Taken out at the door, it cannot get into journal, results, log or message by any way behind it.
"""

from __future__ import annotations

import base64
import re
import resource
from collections.abc import Iterator, Mapping
from urllib.parse import quote

from pipeline.ground.jsonio import dumps

HIDDEN = "[key]"
LEAST_IN_ANSWERS = 16  # a shorter "key" of a server that needs none is often a word ("ollama"), and may be in an answer
_ESCAPE = re.compile(r"\\u00|\\/|%[2-7][0-9A-Fa-f]")  # other ways to write ASCII in JSON, in JSON within JSON, in a URL
_ESCAPE_IN_BYTES = re.compile(_ESCAPE.pattern.encode())


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


def _in_hex(key: str) -> Iterator[str]:
    if len(key) >= LEAST_IN_ANSWERS:
        yield key.encode().hex()
        yield key.encode().hex().upper()


def _spelled(key: str) -> str:
    """An expression for the key with any of its signs escaped, in JSON up to four times over."""
    signs = ((r"\\{0,16}" if sign in '"/\\' else "") + re.escape(sign) for sign in key)
    codes = (rf"\\{{1,16}}u(?i:{ord(sign):04x})|(?i:{_percent(sign)})" for sign in key)
    return "".join(f"(?:{sign}|{code})" for sign, code in zip(signs, codes, strict=True))


def _percent(sign: str) -> str:
    return "".join(f"%{byte:02x}" for byte in sign.encode())


class Secret:
    """``Secret(key).out_of(text)``; a key of None is nowhere. Its repr does not tell it."""

    def __init__(self, key: str | None) -> None:
        self._key = key or ""
        forms = (quote(self._key, safe=""), *_in_base64(self._key), *_in_hex(self._key))
        self._words = tuple(dict.fromkeys((self._key, *forms))) if key else ()
        self._needles = tuple(dumps(word)[1:-1] for word in self._words)
        self._spelled = re.compile(_spelled(self._key))
        self._spelled_in_bytes = re.compile(_spelled(self._key).encode())

    def out_of(self, text: str) -> str:
        """The text without the key."""
        for word in self._words:
            text = text.replace(word, HIDDEN)
        return self._spelled.sub(HIDDEN, text) if self._key and _ESCAPE.search(text) else text

    def out_of_headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """The headers without the key; bytes that are no UTF-8, which nothing could write down, are replaced."""
        together = "\n".join(headers.values())  # one look instead of thirty; no word has the end of a line in it
        if together.isascii() and self.out_of(together) == together:
            return dict(headers)
        clean: dict[str, str] = {}
        for name, value in headers.items():
            text = value if value.isascii() else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            clean[name] = self.out_of(text)
        return clean

    def out_of_body(self, body: bytes, *, is_answer: bool) -> bytes:
        """The body of a reply; an answer stays as it is unless the key looks like one."""
        if not self._key or (is_answer and len(self._key) < LEAST_IN_ANSWERS):
            return body
        for needle in self._needles:
            body = body.replace(needle, HIDDEN.encode())
        return self._spelled_in_bytes.sub(HIDDEN.encode(), body) if _ESCAPE_IN_BYTES.search(body) else body

"""What a reply that is no answer says about itself: read once, so that rules can be held against it."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.ground.jsonio import text_or_json
from pipeline.records import Reply

MAX_RETRY_AFTER_S = 3600.0
EXCERPT_CHARACTERS = 500
NAME_CHARACTERS = 80
# A terminal would obey them.
_CONTROLS = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], " ") | {ord("\n"): "\n", ord("\t"): "\t"}

# html: a web page. error: JSON with an error in it. json: another JSON object. text: anything else. empty: nothing.
Shape = Literal["html", "error", "json", "text", "empty"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """``names`` are the error's ``code`` and ``type`` where they are words; ``message`` is its own words."""

    status: int
    shape: Shape
    names: tuple[str, ...]
    message: str
    headers: Mapping[str, str]

    @property
    def sentence(self) -> str:
        """What came, for people."""
        return f"HTTP {self.status}: {self.message[:EXCERPT_CHARACTERS].translate(_CONTROLS)}"


def complaint_of(reply: Reply) -> Complaint:
    """Read a reply that is no answer."""
    error = _error_in(reply.json)
    shape = _shape_of(reply, error)
    return Complaint(
        status=reply.status,
        shape=shape,
        names=tuple(name for name in map(_word, (error.get("code"), error.get("type"))) if name),
        message=_words_of(reply, shape, error),
        headers=reply.headers,
    )


def _error_in(body: Any) -> dict[str, Any]:
    """The error object: OpenAI's shape, a bare text in its place, or older vLLM's without a shell. {} when none."""
    if not isinstance(body, dict):
        return {}
    error = body.get("error")
    if isinstance(error, dict):
        return error
    if error:
        return {"message": text_or_json(error)}
    return body if body.get("object") == "error" else {}


def _shape_of(reply: Reply, error: dict[str, Any]) -> Shape:
    if error:
        return "error"
    if isinstance(reply.json, dict):
        return "json"
    start = reply.body[:64].lstrip().lower()
    if not start:
        return "empty"
    if reply.json is None and (
        "text/html" in reply.headers.get("content-type", "") or start.startswith((b"<!doctype", b"<html"))
    ):
        return "html"
    return "text"


def _words_of(reply: Reply, shape: Shape, error: dict[str, Any]) -> str:
    if 300 <= reply.status < 400:  # without the query: it may hold a session
        return f"redirected to {reply.headers.get('location', 'nowhere').partition('?')[0]}"
    if shape == "html":
        return f"a web page ({_title(reply) or excerpt(reply)}) where JSON belongs"
    said = error.get("message") or (reply.json.get("detail") if isinstance(reply.json, dict) else None)
    return said if isinstance(said, str) else excerpt(reply)


def _word(value: Any) -> str:
    """LiteLLM's codes repeat the status, as text; that says nothing. Nor does a whole text in a code's place."""
    if not isinstance(value, str) or value == "None" or value.isdigit():
        return ""
    return value if len(value) <= NAME_CHARACTERS and value.isprintable() else ""


def _title(reply: Reply) -> str:
    page = reply.body[: 8 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
    begin = page.lower().find("<title")
    title = page[begin:].partition(">")[2].partition("<")[0] if begin >= 0 else ""
    return " ".join(title.split())


def excerpt(reply: Reply) -> str:
    """The start of the body, on one line."""
    text = reply.body[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
    return " ".join(text.split())[:EXCERPT_CHARACTERS] or "an empty body"


def retry_after(reply: Reply, header: str = "retry-after", *, now: float | None = None) -> float | None:
    """Seconds the gateway asks to wait (a number or an HTTP date), at most an hour; None when it does not say, or says not
    to wait: a clock that is off makes a date the past, and who asks again at once asks without end."""
    text = reply.headers.get(header)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except (ValueError, OverflowError):
            return None
    return min(seconds, MAX_RETRY_AFTER_S) if seconds > 0 else None

"""The base dialect: any OpenAI-compatible server. The others say only what differs.

A reply is classified once, here, from status, headers and parsed body; everything after decides by the ``Verdict``.
"""

from __future__ import annotations

import email.utils
import time
from typing import Any

import orjson

from pipeline.records import Completion, Kind, Reply, Request, Usage, Verdict

MAX_RETRY_AFTER_S = 3600.0
EXCERPT_CHARACTERS = 500
_TRANSIENT = frozenset({408, 409, 425, 500, 501})
_OUTAGE = frozenset({502, 503, 504, *range(520, 531)})


class OpenAI:
    """How one family of gateways is spoken to and understood."""

    def __init__(self, *, model_is_the_rows: bool = False) -> None:
        """``model_is_the_rows``: rows name their own models, so an unknown model is the row's fault, not the run's."""
        self._model_is_the_rows = model_is_the_rows

    def headers(self, call_id: str) -> dict[str, str]:
        """What identifies this attempt on the wire (OpenAI keeps it in its logs)."""
        return {"X-Client-Request-Id": call_id}

    def dress(self, request: Request) -> bytes:
        """The body as this family wants it; never part of the fingerprint."""
        return request.body

    def classify(self, reply: Reply) -> Verdict:
        """What this reply means. Never raises."""
        if reply.failure is not None:
            kind = Kind.TRANSIENT if reply.failure.sent else Kind.OUTAGE
            return Verdict(kind=kind, code=reply.failure.code, message=reply.failure.message)
        if reply.status == 200:
            return self._classify_success(reply)
        return self._classify_error(reply)

    def _classify_success(self, reply: Reply) -> Verdict:
        if _is_html(reply):
            return Verdict(
                kind=Kind.OUTAGE,
                code="html_reply",
                message="a web page came where JSON belongs: is the base URL right, and are you on the right network or VPN?",
            )
        body = reply.json
        if not isinstance(body, dict):
            return Verdict(kind=Kind.TRANSIENT, code="malformed_reply", message=f"not a JSON object: {excerpt(reply)}")
        if body.get("error"):
            return Verdict(kind=Kind.TRANSIENT, code="error_in_reply", message=message_of(reply))
        if not isinstance(message_in(body), dict):
            return Verdict(kind=Kind.TRANSIENT, code="no_choices", message=f"a reply without choices: {excerpt(reply)}")
        return Verdict(kind=Kind.OK)

    def _classify_error(self, reply: Reply) -> Verdict:
        status, message = reply.status, message_of(reply)
        code = code_of(reply)
        if code in ("insufficient_quota", "budget_exceeded", "billing_hard_limit_reached") or status == 402:
            return Verdict(kind=Kind.FATAL, code="budget_exceeded", message=message)
        if status == 429:
            return Verdict(kind=Kind.THROTTLED, code="rate_limited", message=message, retry_after_s=retry_after(reply))
        if status in (401, 403):
            return Verdict(kind=Kind.FATAL, code=code or f"http_{status}", message=message)
        if status == 404 and not (self._model_is_the_rows and code == "model_not_found"):
            return Verdict(kind=Kind.FATAL, code=code or "not_found", message=message)
        if status in _OUTAGE or 300 <= status < 400:
            return Verdict(kind=Kind.OUTAGE, code=f"http_{status}", message=message, retry_after_s=retry_after(reply))
        if 400 <= status < 500 and status not in _TRANSIENT:
            return Verdict(kind=Kind.REJECTED, code=code or f"http_{status}", message=message)
        return Verdict(kind=Kind.TRANSIENT, code=f"http_{status}", message=message, retry_after_s=retry_after(reply))

    def completion(self, reply: Reply) -> Completion:
        """The answer in a reply that was classified OK."""
        return completion_of(reply.json, reply.body)

    def content(self, raw: bytes) -> str | None:
        """The answer's text in a body the journal kept; results are made from these."""
        return completion_of(orjson.loads(raw), raw).content

    def request_id(self, reply: Reply) -> str | None:
        """The gateway's own name for this exchange, to quote to its operators."""
        named = reply.headers.get("x-request-id")
        if named is None and isinstance(reply.json, dict):
            named = reply.json.get("id")
        return named if isinstance(named, str) else None


def completion_of(body: dict[str, Any], raw: bytes) -> Completion:
    """Read a chat completion body; also used when results are made again from the journal."""
    message = message_in(body) or {}
    content = text_of(message.get("content"))
    finish_reason = body["choices"][0].get("finish_reason")
    remark = None
    if message.get("refusal") or finish_reason == "content_filter":
        remark = "refusal"
    elif not content and not message.get("tool_calls"):
        remark = "empty"
    model = body.get("model")
    return Completion(
        content=content,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model if isinstance(model, str) else None,
        usage=usage_of(body.get("usage")),
        raw=raw,
        remark=remark,
    )


def message_in(body: dict[str, Any]) -> dict[str, Any] | None:
    """The first choice's message, or None when the reply has none."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get("message")
    return message if isinstance(message, dict) else None


def text_of(content: Any) -> str | None:
    """A message's content as text; parts are joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else None


def usage_of(usage: Any) -> Usage:
    """Tokens as told; what is missing or not a count stays unknown."""
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    return Usage(
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(prompt.get("cached_tokens")) if isinstance(prompt, dict) else None,
        reasoning_tokens=_count(completion.get("reasoning_tokens")) if isinstance(completion, dict) else None,
    )


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**62 else None


def retry_after(reply: Reply, *, now: float | None = None) -> float | None:
    """Seconds the gateway asks to wait (a number or an HTTP date), at most an hour; None when it does not say."""
    text = reply.headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now)
        except ValueError:
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if seconds == seconds else None


def _error_of(reply: Reply) -> dict[str, Any]:
    error = reply.json.get("error") if isinstance(reply.json, dict) else None
    return error if isinstance(error, dict) else {}


def code_of(reply: Reply) -> str | None:
    """The error's ``code``, else its ``type``; a code that only repeats the status says nothing."""
    error = _error_of(reply)
    for value in (error.get("code"), error.get("type")):
        if isinstance(value, str) and value and not value.isdigit():
            return value
    return None


def message_of(reply: Reply) -> str:
    """The error's own words, with the status; else the start of the body."""
    message = _error_of(reply).get("message")
    words = message if isinstance(message, str) and message else excerpt(reply)
    return f"HTTP {reply.status}: {words[:EXCERPT_CHARACTERS]}"


def excerpt(reply: Reply) -> str:
    """The start of the body, on one line."""
    text = reply.body[: 4 * EXCERPT_CHARACTERS].decode("utf-8", errors="replace")
    return " ".join(text.split())[:EXCERPT_CHARACTERS] or "an empty body"


def _is_html(reply: Reply) -> bool:
    return reply.json is None and (
        "text/html" in reply.headers.get("content-type", "")
        or reply.body[:64].lstrip().lower().startswith((b"<!doctype", b"<html"))
    )

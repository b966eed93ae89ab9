"""A good reply read: text, finish reason, tokens. From JSON to records; nothing here raises for what is merely missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.records import CHAT, EMBEDDINGS, Completion, Reply, Usage


def is_answer(body: Any, endpoint: str) -> bool:
    """Whether a body is an answer to a request to this endpoint, and no error in its place."""
    if not isinstance(body, dict) or body.get("error"):
        return False
    if endpoint == EMBEDDINGS:
        data = body.get("data")
        return (
            isinstance(data, list)
            and bool(data)
            and all(isinstance(item, dict) and "embedding" in item for item in data)
        )
    return (message_in(body) if endpoint == CHAT else text_in(body)) is not None


def content_of(body: dict[str, Any]) -> str | None:
    """The text of a chat (or legacy) completion body."""
    message = message_in(body)
    return text_of(message.get("content")) if message else text_in(body)


def completion_of(body: dict[str, Any], raw: bytes, *, model: str | None) -> Completion:
    """Read a chat (or legacy) completion body."""
    message = message_in(body)
    content = text_of(message.get("content")) if message else text_in(body)
    message = message or {}
    finish_reason = body["choices"][0].get("finish_reason")
    remark = None
    if message.get("refusal") or finish_reason == "content_filter":
        remark = "refusal"
    elif not content and not message.get("tool_calls"):
        remark = "empty"
    return Completion(
        content=content,
        finish_reason=finish_reason if isinstance(finish_reason, str) else None,
        model=model,
        usage=usage_of(body.get("usage")),
        raw=raw,
        remark=remark,
    )


def embedding_of(reply: Reply, *, model: str | None) -> Completion:
    """The answer to an embeddings call; its body is the vectors where ``packs`` has read them."""
    usage = usage_told(reply, EMBEDDINGS)
    return Completion(content=None, finish_reason=None, model=model, usage=usage, raw=reply.body)


def vectors_in(body: dict[str, Any]) -> list[Any]:
    """The vectors of one call as its body has them, in the order of its inputs."""
    return [item["embedding"] for item in sorted(body["data"], key=_place)]


def message_in(body: dict[str, Any]) -> dict[str, Any] | None:
    """The first choice's message, or None when the reply has none."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return None
    message = choices[0].get("message")
    return message if isinstance(message, dict) else None


def text_in(body: dict[str, Any]) -> str | None:
    """The first choice's text in a reply to a legacy completion."""
    choices = body.get("choices")
    text = choices[0].get("text") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
    return text if isinstance(text, str) else None


def text_of(content: Any) -> str | None:
    """A message's content as text; parts are joined."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))
    return content if isinstance(content, str) else None


def usage_told(reply: Reply, endpoint: str = CHAT) -> Usage:
    """The tokens that a reply tells, be it an answer or not. For an embedding nothing is written: OpenAI leaves that out."""
    usage = usage_of(reply.json.get("usage") if isinstance(reply.json, dict) else None)
    if endpoint == EMBEDDINGS and usage.prompt_tokens is not None and usage.completion_tokens is None:
        return replace(usage, completion_tokens=0)
    return usage


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


def _place(item: dict[str, Any]) -> int:
    at = item.get("index")
    return at if type(at) is int else 0


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**62 else None

"""The tokens that a reply counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.records import CHAT, EMBEDDINGS, Reply, Usage


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


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**62 else None

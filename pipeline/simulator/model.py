"""The made-up model behind the gateway: from a call to its answer, a pure function of the body."""

from __future__ import annotations

from typing import Any

from pipeline.simulator import chat, embeddings, tokens
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.chat import Chat
from pipeline.simulator.embeddings import Vectors
from pipeline.simulator.measured import OPENAI
from pipeline.simulator.problem import Problem

Answer = Chat | Vectors

_UNLIMITED_ANSWER = 1024


def think(
    call: Call, payload: dict[str, Any], deployment: Model, dimensions: int, *, fewest_inputs: int
) -> Answer | Problem:
    """The answer to a chat or embeddings request."""
    if call.endpoint == "embeddings":
        wish = embeddings.read(payload, dimensions, fewest=fewest_inputs)
        return wish if isinstance(wish, Problem) else embeddings.embed(wish)
    ask = chat.read(payload)
    if isinstance(ask, Problem):
        return ask
    context, needed = deployment.max_input_tokens, ask.prompt_tokens + (ask.max_tokens or 0)
    if context is not None and needed > context:
        return OPENAI["context"].told({"context": context, "tokens": needed})
    return chat.complete(ask)


def prompt_tokens(payload: Any) -> int:
    """Of messages, a prompt or an input; 0 where there are none."""
    if not isinstance(payload, dict):
        return 0
    ask = chat.read({"model": "", **payload})
    if isinstance(ask, Problem):
        return tokens.count(str(payload.get("prompt") or payload.get("input") or ""))
    return ask.prompt_tokens


def estimate(call: Call) -> int:
    """The most tokens a call will take, as a rate limiter guesses before it lets it in."""
    if call.endpoint != "chat" or not isinstance(call.payload, dict):
        return prompt_tokens(call.payload)
    most = call.payload.get("max_completion_tokens") or call.payload.get("max_tokens")
    return prompt_tokens(call.payload) + (most if isinstance(most, int) else _UNLIMITED_ANSWER)

"""The made-up model behind the gateway: from a call to its answer, a pure function of the body."""

from __future__ import annotations

from typing import Any

import orjson

from pipeline.simulator import chat, embeddings
from pipeline.simulator.call import Call
from pipeline.simulator.chat import Chat
from pipeline.simulator.embeddings import Vectors
from pipeline.simulator.problem import Problem, invalid

Answer = Chat | Vectors


def think(call: Call, payload: dict[str, Any], dimensions: int) -> Answer | Problem:
    """The answer to a chat or embeddings request."""
    if call.endpoint == "embeddings":
        wish = embeddings.read(payload, dimensions)
        return wish if isinstance(wish, Problem) else embeddings.embed(wish)
    ask = chat.read(payload)
    return ask if isinstance(ask, Problem) else chat.complete(ask)


def parse(body: bytes) -> dict[str, Any] | Problem:
    """The request as an object that names a model."""
    try:
        payload = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        return invalid(None, f"We could not parse the JSON body of your request: {exc}")
    if not isinstance(payload, dict):
        return invalid(None, "Invalid body: expected a JSON object.")
    if not isinstance(payload.get("model"), str) or not payload["model"]:
        return invalid("model", "You must provide a model parameter.")
    return payload

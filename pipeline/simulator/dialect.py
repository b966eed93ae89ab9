"""How answers and problems look on the wire: the plain OpenAI API. Another gateway's dialect overrides what differs."""

from __future__ import annotations

import sys
from array import array
from base64 import b64encode
from typing import Any

import orjson

from pipeline.records import Usage
from pipeline.simulator import tokens
from pipeline.simulator.call import Call
from pipeline.simulator.chat import Chat, Choice
from pipeline.simulator.embeddings import Vectors
from pipeline.simulator.problem import Problem

# A constant, so that the same request is answered with the same bytes.
_CREATED = 1_767_225_600


class OpenAI:
    """Bodies and headers; each method renders one value."""

    def headers(self, call: Call) -> dict[str, str]:
        """What every answer carries."""
        return {"x-request-id": f"req_{call.number:x}"}

    def problem(self, problem: Problem) -> bytes:
        """A request turned down."""
        error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
        return orjson.dumps({"error": error})

    def models(self, names: tuple[str, ...]) -> bytes:
        """The models there are."""
        data = [{"id": name, "object": "model", "created": _CREATED, "owned_by": "simulator"} for name in names]
        return orjson.dumps({"object": "list", "data": data})

    def vectors(self, answer: Vectors) -> bytes:
        """Embeddings."""
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if answer.base64 else vector.tolist()}
            for index, vector in enumerate(answer.vectors)
        ]
        body: dict[str, Any] = {"object": "list", "data": data, "model": answer.model}
        if answer.usage:
            body["usage"] = {"prompt_tokens": answer.usage.prompt_tokens, "total_tokens": answer.usage.total_tokens}
        return orjson.dumps(body)

    def chat(self, call: Call, answer: Chat) -> bytes:
        """A chat completion in one piece."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.content, "refusal": choice.refusal},
                "logprobs": None,
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(answer.choices)
        ]
        body = self._envelope(call, answer, "chat.completion") | {"choices": choices}
        if answer.usage:
            body["usage"] = _usage(answer.usage)
        return orjson.dumps(body)

    def events(self, call: Call, answer: Chat) -> list[bytes]:
        """A chat completion as server-sent events, ``[DONE]`` last."""
        envelope = self._envelope(call, answer, "chat.completion.chunk")
        if answer.include_usage:
            envelope["usage"] = None
        chunks = [
            envelope | {"choices": [{"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}]}
            for index, choice in enumerate(answer.choices)
            for delta, reason in _deltas(choice)
        ]
        if answer.include_usage and answer.usage:
            chunks.append(envelope | {"choices": [], "usage": _usage(answer.usage)})
        return [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]

    def _envelope(self, call: Call, answer: Chat, kind: str) -> dict[str, Any]:
        name = f"chatcmpl-{call.digest.hex()}"
        return {"id": name, "object": kind, "created": _CREATED, "model": answer.model, "system_fingerprint": None}


def _deltas(choice: Choice) -> list[tuple[dict[str, Any], str | None]]:
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in tokens.split(choice.content or "")]
    if choice.refusal is not None:
        deltas.append(({"refusal": choice.refusal}, None))
    deltas.append(({}, choice.finish_reason))
    return deltas


def _usage(usage: Usage) -> dict[str, int | None]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }


def _base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return b64encode(vector.tobytes()).decode()

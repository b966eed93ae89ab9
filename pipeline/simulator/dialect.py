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
from pipeline.simulator.catalogue import Model
from pipeline.simulator.chat import Chat, Choice
from pipeline.simulator.embeddings import Vectors
from pipeline.simulator.ledger import Bill
from pipeline.simulator.problem import Problem
from pipeline.simulator.rules import Rules

# A constant, so that the same request is answered with the same bytes.
CREATED = 1_767_225_600
DONE = b"data: [DONE]\n\n"
_NAMES = ("sim/labeler", "sim/echo", "sim/embed")

Json = dict[str, Any]


class OpenAI(Rules):
    """Bodies and headers; each method renders one value, the later ones a part of it."""

    # Whether a stream ends with the usage even where the client did not ask for it.
    always_tells_usage = False

    def headers(self, call: Call, deployment: Model | None = None, bill: Bill | None = None) -> dict[str, str]:
        """What an answer carries; when a stream begins there is no ``bill`` yet."""
        return {"x-request-id": f"req_{call.number:x}"}

    def problem_headers(self, call: Call) -> dict[str, str]:
        """What a refusal carries."""
        return self.headers(call)

    def problem(self, problem: Problem) -> bytes:
        """A request turned down."""
        error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": problem.code}
        return orjson.dumps({"error": error})

    def broken(self, problem: Problem) -> bytes:
        """A stream that fails: its end."""
        return _event(self.problem(problem)) + DONE

    def page(self, call: Call) -> bytes | Problem:
        """What is neither a chat nor embeddings."""
        if call.endpoint != "models":
            return self.lost(call)
        names = [one.name for one in self._stock] or _NAMES
        data = [{"id": name, "object": "model", "created": CREATED, "owned_by": "simulator"} for name in names]
        return orjson.dumps({"object": "list", "data": data})

    def vectors(self, answer: Vectors, deployment: Model) -> bytes:
        """Embeddings."""
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if answer.base64 else vector.tolist()}
            for index, vector in enumerate(answer.vectors)
        ]
        body: Json = {"object": "list", "data": data, "model": self.name(deployment)}
        if answer.usage:
            body["usage"] = self.vectors_usage(answer.usage)
        return orjson.dumps(body)

    def chat(self, call: Call, answer: Chat, deployment: Model) -> bytes:
        """A chat completion in one piece."""
        body = self.envelope(call, deployment, "chat.completion")
        body["choices"] = [self.choice(index, choice) for index, choice in enumerate(answer.choices)]
        if answer.usage:
            body["usage"] = self.usage(answer.usage)
        return self.dump(body)

    def events(self, call: Call, answer: Chat, deployment: Model) -> list[bytes]:
        """A chat completion as server-sent events, ``[DONE]`` last."""
        envelope = self.chunk(call, deployment, answer)
        chunks = [
            envelope | {"choices": [self.piece(index, delta, reason)]}
            for index, choice in enumerate(answer.choices)
            for delta, reason in _deltas(choice)
        ]
        if answer.usage and (answer.include_usage or self.always_tells_usage):
            chunks.append(envelope | self.usage_chunk(answer.usage, deployment))
        return [*(_event(self.dump(chunk)) for chunk in chunks), DONE]

    def dump(self, body: Json) -> bytes:
        """JSON."""
        return orjson.dumps(body)

    def name(self, deployment: Model) -> str:
        """Who answered."""
        return deployment.served

    def envelope(self, call: Call, deployment: Model, kind: str) -> Json:
        """What stands around the choices."""
        name = f"chatcmpl-{call.digest.hex()}"
        return {
            "id": name,
            "object": kind,
            "created": CREATED,
            "model": self.name(deployment),
            "system_fingerprint": None,
        }

    def chunk(self, call: Call, deployment: Model, answer: Chat) -> Json:
        """What stands around a piece of one."""
        envelope = self.envelope(call, deployment, "chat.completion.chunk")
        return envelope | {"usage": None} if answer.include_usage else envelope

    def choice(self, index: int, choice: Choice) -> Json:
        """One answer."""
        message = {"role": "assistant", "content": choice.content, "refusal": choice.refusal}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": choice.finish_reason}

    def piece(self, index: int, delta: Json, reason: str | None) -> Json:
        """A piece of one."""
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}

    def usage_chunk(self, usage: Usage, deployment: Model) -> Json:
        """Where it stands."""
        return {"choices": [], "usage": self.usage(usage)}

    def usage(self, usage: Usage) -> Json:
        """The tokens."""
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }

    def vectors_usage(self, usage: Usage) -> Json:
        """The tokens of embeddings."""
        return {"prompt_tokens": usage.prompt_tokens, "total_tokens": usage.total_tokens}


def _event(body: bytes) -> bytes:
    return b"data: " + body + b"\n\n"


def _deltas(choice: Choice) -> list[tuple[Json, str | None]]:
    deltas: list[tuple[Json, str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": piece}, None) for piece in tokens.split(choice.content or "")]
    if choice.refusal is not None:
        deltas.append(({"refusal": choice.refusal}, None))
    deltas.append(({}, choice.finish_reason))
    return deltas


def _base64(vector: array[float]) -> str:
    if sys.byteorder == "big":
        vector = vector[:]
        vector.byteswap()
    return b64encode(vector.tobytes()).decode()

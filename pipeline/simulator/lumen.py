"""Lumen, as NCSA runs it: coins, one rate limit, ten worker threads, and a strict idea of what a body may hold."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson

from pipeline.records import Usage
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.chat import Choice
from pipeline.simulator.dialect import CREATED, Json, OpenAI
from pipeline.simulator.ledger import Bill
from pipeline.simulator.problem import Problem

# The body becomes the arguments of a client library (2.45.0), so these are the names it knows.
_ACCEPTED = """
    model messages audio frequency_penalty function_call functions logit_bias logprobs max_completion_tokens max_tokens
    metadata modalities moderation n parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options
    prompt_cache_retention reasoning_effort response_format safety_identifier seed service_tier stop store stream
    stream_options temperature tool_choice tools top_logprobs top_p user verbosity web_search_options
    extra_body extra_headers extra_query timeout
"""
_ATTEMPTS = 3
_BACKOFF_S = 1.35  # between three attempts, together
_ERRORS = MappingProxyType(
    {400: "BadRequestError", 401: "AuthenticationError", 404: "NotFoundError", 429: "RateLimitError"}
)


class Lumen(OpenAI):
    """What Lumen does differently."""

    endpoints = MappingProxyType(
        {("POST", "/v1/chat/completions"): "chat", ("GET", "/v1/models"): "models", ("GET", "/healthz"): "health"}
    )
    ends_dropped_streams = False
    unwraps_extra_body = True
    always_tells_usage = True

    # The way in

    def endpoint(self, method: str, path: str) -> str:
        """What is asked for; it has no other paths than these."""
        return self.endpoints.get((method, path), "")

    def enter(self, call: Call) -> Problem | None:
        """Who asks. Not even counted when this fails."""
        if call.endpoint == "health":
            return None
        problem = super().enter(call)
        return self.error("disabled", call) if problem is None and self._gate.key.disabled else problem

    def flaw_of_key(self, given: str) -> str:
        """The error for a wrong Authorization header; "bearer" is one."""
        return "bad_key" if given.startswith("Bearer ") and given != "Bearer " else "no_key"

    def route(self, call: Call) -> str:
        """Calls of one route share a rate window; those of "" have none."""
        return call.endpoint if call.endpoint != "health" else ""

    def read(self, call: Call) -> Json | Problem:
        """The body: checked a little, or else it is Lumen itself that fails."""
        json = call.headers.get("Content-Type", "").startswith("application/json")
        if call.flaw or not json or "Content-Length" not in call.headers or "Content-Encoding" in call.headers:
            return self.error("bad_body", call)
        if not isinstance(call.payload, dict):
            return self.error("internal", call)
        if not call.payload.get("model") or not call.payload.get("messages"):
            return self.error("missing", call)
        return call.payload if call.model and _sound(call.payload["messages"]) else self.error("internal", call)

    def find(self, call: Call) -> Model | Problem:
        """The model, if this key may use it now, can pay for it, and it is there."""
        found = super().find(call)
        if isinstance(found, Problem):
            return found
        if not self._open(found):
            return self.error("model_denied", call)
        if self._gate.account.exhausted:
            return self.error("budget", call)
        return self.error("no_endpoints", call) if found.status == "down" else found

    def _open(self, one: Model) -> bool:
        key = self._gate.key
        return not one.blocked and key.coins != 0 and (not key.models or one.name in key.models)

    def forward(self, call: Call, payload: Json) -> Json | Problem:
        """Unknown parameters are an error of Lumen's own, unless they stand in ``extra_body``."""
        if payload.keys() - set(_ACCEPTED.split()):
            return self.error("bad_parameter", call)
        return super().forward(call, payload)

    def patience(self, call: Call) -> tuple[float, float] | None:
        """The client library takes ``timeout`` for its own, for each of its attempts."""
        seconds = call.payload.get("timeout")
        return (seconds, seconds * _ATTEMPTS + _BACKOFF_S) if isinstance(seconds, int | float) else None

    def bill(self, call: Call, deployment: Model, usage: Usage, *, told: bool) -> Bill | None:
        """In coins. Without usage a plain answer is free, and a stream is not booked at all."""
        if call.stream and not told:
            return None
        prompt, completion = (usage.prompt_tokens or 0, usage.completion_tokens or 0) if told else (0, 0)
        coins = prompt * _per_million(deployment.input_cost_per_token) / 1e6
        coins += completion * _per_million(deployment.output_cost_per_token) / 1e6
        counted = Usage(prompt_tokens=prompt, completion_tokens=completion)
        return Bill(served=deployment.served, usage=counted, cost=round(coins, 6))

    # The looks

    def headers(self, call: Call, deployment: Model | None = None, bill: Bill | None = None) -> dict[str, str]:
        """What everything carries: no request id, no cost, no limits, never when to come back."""
        return {
            "server": "uvicorn",
            "x-frame-options": "SAMEORIGIN",
            "x-content-type-options": "nosniff",
            "referrer-policy": "strict-origin-when-cross-origin",
            "strict-transport-security": "max-age=31536000; includeSubDomains",
            "vary": "Cookie",
        }

    def problem(self, problem: Problem) -> bytes:
        """A request turned down; ``param`` is lost."""
        code = {"code": problem.code} if problem.code else {}
        return orjson.dumps({"error": code | {"message": problem.message, "type": problem.type}})

    def broken(self, problem: Problem) -> bytes:
        """A stream that fails ends as if nothing were wrong; the status upstream is lost."""
        return super().broken(replace(problem, type=_ERRORS.get(problem.status, "InternalServerError"), code=None))

    def page(self, call: Call) -> bytes | Problem:
        """The models of this key, those that are down included; or a sign of life."""
        match call.endpoint:
            case "health":
                return b""
            case "models":
                rows = [_row(one) for one in self._stock if self._open(one)]
                return orjson.dumps({"object": "list", "data": rows})
        return self.lost(call)

    def dump(self, body: Json) -> bytes:
        """JSON, the keys in order."""
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS)

    def envelope(self, call: Call, deployment: Model, kind: str) -> Json:
        """What stands around the choices, with every null spelled out."""
        return super().envelope(call, deployment, kind) | {"moderation": None, "service_tier": None, "usage": None}

    def choice(self, index: int, choice: Choice) -> Json:
        """One answer."""
        body = super().choice(index, choice)
        body["message"] |= {"annotations": None, "audio": None, "function_call": None, "tool_calls": None}
        return body

    def piece(self, index: int, delta: Json, reason: str | None) -> Json:
        """A piece of one."""
        nulls = {"content": None, "function_call": None, "refusal": None, "role": None, "tool_calls": None}
        return super().piece(index, nulls | delta, reason)

    def usage(self, usage: Usage) -> Json:
        """The tokens."""
        return super().usage(usage) | {"completion_tokens_details": None, "prompt_tokens_details": None}


def _sound(messages: Any) -> bool:
    """Whether Lumen can take these apart without falling over itself."""
    return isinstance(messages, list) and all(
        isinstance(one, dict)
        and isinstance(one.get("role"), str)
        and not (one["role"] == "system" and isinstance(one.get("content"), list))
        for one in messages
    )


def _per_million(cost: float | None) -> float:
    return round((cost or 0.0) * 1e6, 9)


def _row(one: Model) -> Json:
    return {
        "id": one.name,
        "object": "model",
        "created": CREATED,
        "owned_by": "lumen",
        "parent": None,
        "root": one.served,
        "max_model_len": one.max_input_tokens,
        "status": one.status,
        "instances": {"configured": 1, "healthy": 0 if one.status == "down" else 1},
        "requests": {"last_minute": 0, "last_hour": 0, "last_day": 0},
        "input_cost_per_million": _per_million(one.input_cost_per_token),
        "output_cost_per_million": _per_million(one.output_cost_per_token),
        **({"max_output_tokens": one.max_output_tokens} if one.max_output_tokens else {}),
        "input_modalities": ["text"],
        "output_modalities": ["text"],
    }

"""LiteLLM 1.106.2, as CBorg runs it: the cost in a header, limits of the key, a cooldown for what failed upstream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from uuid import uuid4

import orjson

from pipeline.records import Usage
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.chat import Chat, Choice
from pipeline.simulator.dialect import Json, OpenAI
from pipeline.simulator.faults import Rule
from pipeline.simulator.gate import Gate
from pipeline.simulator.ledger import Bill, Ledger
from pipeline.simulator.pages import API_BASE, KEY_HASH, Pages, deployment_id
from pipeline.simulator.problem import Problem
from pipeline.simulator.rules import Rules
from pipeline.simulator.settings import Settings

_VERSION = "1.106.2"
_PUBLIC = ("", "readiness", "liveliness")
_FOR_MONEY = ("chat", "embeddings", "models")
# What makes the proxy keep everybody from a deployment; no other error does.
_CHILLING = ("cooldown", "upstream_401", "upstream_404")
_ATTEMPTS = 3


class LiteLLM(OpenAI):
    """What LiteLLM does differently."""

    endpoints = MappingProxyType({**Rules.endpoints, **Pages.endpoints})
    id_headers = ("x-litellm-call-id",)
    fewest_inputs = 0
    unwraps_extra_body = True

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger) -> None:
        super().__init__(settings, gate, ledger)
        self._pages = Pages(settings, gate, ledger)

    def call_id(self, headers: Mapping[str, str], number: int) -> str | None:
        """What the client chose, or a fresh one."""
        return super().call_id(headers, number) or str(uuid4())

    # The way in

    def enter(self, call: Call) -> Problem | None:
        """Key, body, money and model are all checked by authentication."""
        if call.endpoint in _PUBLIC:
            return None
        if problem := super().enter(call):
            return problem
        if call.flaw and call.body and "UTF-8" not in call.flaw:
            return self.error("bad_json", call, flaw=call.flaw)
        if call.endpoint in _FOR_MONEY and self._gate.account.exhausted and not self._costs_nothing(call.model):
            return self.error("budget", call)
        return None if not call.model or self._allows(call.model) else self.error("model_denied", call)

    def _allows(self, name: str) -> bool:
        """Whether the key may use this model, be there one or not."""
        allowed = self._gate.key.models
        return (not allowed or name in allowed) and not any(one.blocked for one in self.named(name))

    def flaw_of_key(self, given: str) -> str:
        """The error for a wrong Authorization header."""
        return "no_key" if not given else "bad_key" if given.startswith("Bearer sk-") else "not_a_key"

    def _costs_nothing(self, name: str) -> bool:
        """Whether the operator says so: that a model has no price is not enough."""
        found = self.named(name)
        return bool(found) and all(one.input_cost_per_token == one.output_cost_per_token == 0.0 for one in found)

    def read(self, call: Call) -> Json | Problem:
        """The body, as an object with messages; what cannot be decoded counts as empty."""
        if isinstance(call.payload, list):
            return self.error("internal", call)
        payload = call.payload if "Content-Encoding" not in call.headers else {}
        if not isinstance(payload, dict) or (call.endpoint == "chat" and "messages" not in payload):
            return self.error("missing", call)
        return payload

    def find(self, call: Call) -> Model | Problem:
        """The deployment whose turn it is."""
        found = self.named(call.model)
        chosen = self._gate.choose(call, found) if found else "unknown_model"
        return self.error(chosen, call) if isinstance(chosen, str) else chosen

    def patience(self, call: Call) -> tuple[float, float] | None:
        """As long as the client says in a header, for each of the proxy's own attempts."""
        seconds = float(call.headers.get("x-litellm-timeout", 0))
        once = "0" in (str(call.payload.get("num_retries")), call.headers.get("x-litellm-num-retries"))
        return (seconds, seconds * (1 if once else _ATTEMPTS)) if seconds else None

    def scripted(self, rule: Rule, call: Call) -> Problem:
        """The error that a fault script asks for; some make the deployment cool down."""
        if rule.fault in _CHILLING:
            deployment = self.find(call)
            if isinstance(deployment, Problem):
                return deployment
            self._gate.cool(deployment)
        return super().scripted(rule, call)

    def error(self, name: str, call: Call, **facts: object) -> Problem:
        """One of the measured errors, with the facts of this call and key."""
        hosted = any(one.served.startswith("hosted_vllm") for one in self.named(call.model))
        known = {
            "key": KEY_HASH,
            "kind": "max_parallel_requests" if name == "parallel" else name,
            "reset": f"{datetime.fromtimestamp(self._settings.clock() + 60, UTC):%Y-%m-%d %H:%M:%S} UTC",
            "spend": self._gate.account.spend,
            "budget": self._gate.key.max_budget,
            "provider": "Hosted_vllmException" if hosted else "OpenAIException",
        }
        problem = super().error(name, call, **(known | facts))
        return replace(problem, status=self._settings.budget_status) if problem.type == "budget_exceeded" else problem

    # The looks

    def headers(self, call: Call, deployment: Model | None = None, bill: Bill | None = None) -> dict[str, str]:
        """Who answered, and at what cost: not there when it is free, and wrong (0.0) when a stream begins."""
        if deployment is None:
            return {}
        key = self._gate.key
        prompt, completion = deployment.costs(bill.usage) if bill else (0.0, 0.0)
        values: dict[str, object] = {
            "call-id": call.call_id,
            "model-id": deployment_id(deployment),
            "model-name": deployment.served,
            "model-api-base": API_BASE,
            "model-group": deployment.name,
            "version": _VERSION,
            "response-cost": bill.cost if bill and deployment.priced else None,
            "response-cost-original": prompt + completion,
            "response-cost-input": prompt,
            "response-cost-output": completion,
            "key-spend": self._gate.account.spend,
            "key-max-budget": key.max_budget,
            "key-rpm-limit": key.rpm,
            "key-tpm-limit": key.tpm,
            "response-duration-ms": (self._settings.clock() - call.at) * 1000,
            "overhead-duration-ms": 1.0,
            "attempted-retries": 0,
            "attempted-fallbacks": 0,
        }
        headers = {f"x-litellm-{name}": str(value) for name, value in values.items() if value is not None}
        return headers | (self._limits() if bill else {"cache-control": "no-cache", "x-accel-buffering": "no"})

    def _limits(self) -> dict[str, str]:
        gate, key = self._gate, self._gate.key
        limits = {
            "requests": (key.rpm, gate.requests["answers"].left),
            "tokens": (key.tpm, gate.tokens.left),
            "max_parallel_requests": (key.max_parallel, (key.max_parallel or 0) - gate.parallel),
        }
        return {
            f"x-ratelimit-api_key-{what}-{name}": str(value)
            for name, (limit, left) in limits.items()
            if limit is not None
            for what, value in (("limit", limit), ("remaining", left))
        }

    def problem_headers(self, call: Call) -> dict[str, str]:
        """What a refusal carries: a cost of 0, also where the model has no price."""
        return {
            "x-litellm-call-id": str(call.call_id),
            "x-litellm-version": _VERSION,
            "x-litellm-response-cost": "0",
            "x-litellm-timeout": "6000.0",
        }

    def problem(self, problem: Problem) -> bytes:
        """A request turned down; ``code`` is nothing but the status."""
        error = {"message": problem.message, "type": problem.type, "param": problem.param, "code": str(problem.status)}
        return orjson.dumps({"error": error})

    def broken(self, problem: Problem) -> bytes:
        """A stream that fails ends without [DONE]."""
        return b"data: " + self.problem(problem) + b"\n\n"

    def page(self, call: Call) -> bytes | Problem:
        """What can be looked up."""
        page = self._pages.show(call)
        return self.lost(call) if page is None else orjson.dumps(page)

    def name(self, deployment: Model) -> str:
        """The alias that was asked for; who answered stands in a header."""
        return deployment.name

    def chunk(self, call: Call, deployment: Model, answer: Chat) -> Json:
        """What stands around a piece of an answer: nothing that is null."""
        envelope = self.envelope(call, deployment, "chat.completion.chunk")
        return {name: value for name, value in envelope.items() if value is not None}

    def choice(self, index: int, choice: Choice) -> Json:
        """One answer."""
        body = super().choice(index, choice) | {"provider_specific_fields": {"stop_reason": None}}
        del body["logprobs"]
        if choice.refusal is None:
            del body["message"]["refusal"]
        return body

    def piece(self, index: int, delta: Json, reason: str | None) -> Json:
        """A piece of one."""
        return ({"finish_reason": reason} if reason else {}) | {"index": index, "delta": delta}

    def usage(self, usage: Usage) -> Json:
        """The tokens, those of the answer first."""
        names = ("completion_tokens", "prompt_tokens", "total_tokens")
        return {name: getattr(usage, name) for name in names}

    def usage_chunk(self, usage: Usage, deployment: Model) -> Json:
        """It stands in a choice without finish_reason, and has the cost; for a free model it has invented details."""
        told = self.usage(usage)
        if deployment.priced:
            told["cost"] = sum(deployment.costs(usage))
        else:
            told["completion_tokens_details"] = {"reasoning_tokens": 0, "text_tokens": usage.completion_tokens}
        return {"choices": [{"index": 0, "delta": {}}], "usage": told}

    def vectors_usage(self, usage: Usage) -> Json:
        """The tokens of embeddings."""
        return self.usage(usage) | {"completion_tokens_details": None, "prompt_tokens_details": None}

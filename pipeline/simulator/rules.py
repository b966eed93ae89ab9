"""What a gateway lets in, and what it asks for it. These are the plain OpenAI API's rules; a dialect may tighten them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from pipeline.records import Usage
from pipeline.simulator import model
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.faults import Rule
from pipeline.simulator.gate import Gate
from pipeline.simulator.ledger import Bill, Ledger
from pipeline.simulator.measured import MEASURED
from pipeline.simulator.problem import Problem, invalid
from pipeline.simulator.settings import Settings


class Rules:
    """A call meets ``enter``, the limits, ``read``, ``find``, ``forward``; the answer is sold with a ``bill``."""

    endpoints: Mapping[tuple[str, str], str] = MappingProxyType(
        {("POST", "/chat/completions"): "chat", ("POST", "/embeddings"): "embeddings", ("GET", "/models"): "models"}
    )
    id_headers: tuple[str, ...] = ("x-client-request-id", "x-litellm-call-id", "x-request-id")
    fewest_inputs = 1
    unwraps_extra_body = False
    # Whether a client that leaves a stream ends it, and pays nothing.
    ends_dropped_streams = True

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger) -> None:
        self._settings = settings
        self._gate = gate
        self._ledger = ledger
        self._errors = MEASURED[settings.dialect]
        self._stock = settings.stock()

    def endpoint(self, method: str, path: str) -> str:
        """What is asked for; "" when there is no such thing."""
        return self.endpoints.get((method, path.removeprefix("/v1")), "")

    def call_id(self, headers: Mapping[str, str], number: int) -> str | None:
        """What this try is called."""
        return next((headers[name] for name in self.id_headers if name in headers), None)

    def enter(self, call: Call) -> Problem | None:
        """Who asks, and whether he may."""
        key = self._settings.api_key
        given = call.headers.get("Authorization", "")
        return None if key is None or given == f"Bearer {key}" else self.error(self.flaw_of_key(given), call)

    def flaw_of_key(self, given: str) -> str:
        """The error for a wrong Authorization header."""
        return "bad_key" if given else "no_key"

    def route(self, call: Call) -> str:
        """Calls of one route share a rate window; those of "" have none."""
        return "answers" if call.needs_slot else ""

    def estimate(self, call: Call) -> int:
        """Tokens to reserve for a call, where they are limited."""
        return model.estimate(call) if self._gate.tokens.most is not None else 0

    def read(self, call: Call) -> dict[str, Any] | Problem:
        """The body, as an object that names a model."""
        if call.flaw:
            return invalid(None, f"We could not parse the JSON body of your request: {call.flaw}")
        if not isinstance(call.payload, dict):
            return invalid(None, "Invalid body: expected a JSON object.")
        return call.payload if call.model else invalid("model", "You must provide a model parameter.")

    def find(self, call: Call) -> Model | Problem:
        """The model that will answer."""
        found = self.named(call.model)
        return found[0] if found else self.error("unknown_model", call)

    def named(self, name: str) -> tuple[Model, ...]:
        """The models of this name."""
        if not self._stock:
            return (self._settings.plain(name),)
        return tuple(one for one in self._stock if one.name == name)

    def forward(self, call: Call, payload: dict[str, Any]) -> dict[str, Any] | Problem:
        """The body, as it goes to the model."""
        extra = payload.get("extra_body")
        return payload | extra if self.unwraps_extra_body and isinstance(extra, dict) else payload

    def patience(self, call: Call) -> tuple[float, float] | None:
        """After how many seconds the gateway gives up on the model, and when the client is told; None is never."""
        return None

    def passed_on(self, problem: Problem, call: Call, deployment: Model) -> Problem:
        """The model's own refusal; where a gateway rewords it, its ``param`` and ``code`` are lost."""
        if "upstream_400" not in self._errors:
            return problem
        if problem.code == "context_length_exceeded":
            return self.error("context", call, context=deployment.max_input_tokens)
        return self.error("upstream_400", call, said=problem.message)

    def bill(self, call: Call, deployment: Model, usage: Usage, *, told: bool) -> Bill | None:
        """What an answer costs, if it is sold at all. ``told``: the model has said how many tokens it took."""
        return Bill(served=deployment.served, usage=usage, cost=sum(deployment.costs(usage)))

    def scripted(self, rule: Rule, call: Call) -> Problem:
        """The error that a fault script asks for."""
        return self.error(rule.fault, call, retry_after=rule.retry_after or "2")

    def lost(self, call: Call) -> Problem:
        """There is no such thing."""
        there = any(self.endpoint(method, call.path) for method in ("GET", "POST"))
        return self.error("wrong_method" if there and "wrong_method" in self._errors else "no_route", call)

    def error(self, name: str, call: Call, **facts: object) -> Problem:
        """One of the measured errors, with the facts of this call."""
        key = self._gate.key
        limit = {"parallel": key.max_parallel, "requests": key.rpm, "tokens": key.tpm}.get(name)
        asked = {"model": call.model, "path": call.path, "method": call.method}
        usual = {"limit": limit or 1, "context": 4096, "tokens": 5000, "said": "Bad Request", "timeout": 600}
        return self._errors[name].told(asked | usual | facts)

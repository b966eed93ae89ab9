"""What LiteLLM tells besides answers: about the key, the models, the money spent, and itself."""

from __future__ import annotations

from hashlib import sha256
from types import MappingProxyType
from typing import Any

from pipeline.simulator import model
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.gate import Gate
from pipeline.simulator.ledger import Ledger
from pipeline.simulator.settings import Settings

KEY_HASH = sha256(b"simulator").hexdigest()
API_BASE = "http://upstream.invalid/v1"
_FACTS = ("mode", "input_cost_per_token", "output_cost_per_token", "max_input_tokens", "max_output_tokens")

Json = dict[str, Any]


def deployment_id(one: Model) -> str:
    """How LiteLLM names what stands behind an alias."""
    return sha256(f"{one.name} {one.served}".encode()).hexdigest()


def _facts(one: Model) -> Json:
    return {name: getattr(one, name) for name in _FACTS}


class Pages:
    """One method a page, named after the call's endpoint; ``show`` finds it."""

    endpoints = MappingProxyType(
        {
            ("GET", "/key/info"): "key_info",
            ("GET", "/user/info"): "user_info",
            ("GET", "/model/info"): "model_info",
            ("GET", "/model_group/info"): "model_group_info",
            ("GET", "/spend/logs"): "spend_logs",
            ("POST", "/spend/calculate"): "spend_calculate",
            ("POST", "/utils/token_counter"): "token_counter",
            ("GET", "/health/readiness"): "readiness",
            ("GET", "/health/liveliness"): "liveliness",
        }
    )

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger) -> None:
        self._settings = settings
        self._gate = gate
        self._ledger = ledger
        names = gate.key.models
        self._models = [one for one in settings.stock() if not one.blocked and (not names or one.name in names)]

    def show(self, call: Call) -> Any:
        """The page, or None when there is no such page."""
        page = getattr(self, call.endpoint, None)
        return page(call) if page else None

    def models(self, call: Call) -> Json:
        """The models this key may use."""
        rows = {
            one.name: {"id": one.name, "object": "model", "created": 1677610602, "owned_by": "openai"}
            | {"mode": one.mode, "max_input_tokens": one.max_input_tokens}
            for one in self._models
        }
        return {"data": list(rows.values()), "object": "list"}

    def key_info(self, call: Call) -> Json:
        """The key; what was spent shows late."""
        return {"key": KEY_HASH, "info": self._key()}

    def user_info(self, call: Call) -> Json:
        """Who has the key, and all keys he has."""
        key = self._key()
        names = ("user_id", "spend", "max_budget", "budget_duration", "budget_reset_at", "models")
        return {"user_id": key["user_id"], "user_info": {name: key[name] for name in names}, "keys": [key]}

    def _key(self) -> Json:
        key, spend = self._gate.key, self._gate.account.shown_spend
        names = {"key_name": "sk-...sim", "key_alias": "simulator", "user_id": "sim", "models": list(key.models)}
        money = {"spend": spend, "total_spend": spend, "max_budget": key.max_budget}
        limits = {"max_parallel_requests": key.max_parallel, "rpm_limit": key.rpm, "tpm_limit": key.tpm}
        nothing = dict.fromkeys(("budget_duration", "budget_reset_at", "expires"))
        return names | money | limits | nothing | {"blocked": False, "status": "active"}

    def model_info(self, call: Call) -> Json:
        """Every deployment with its prices; one name may occur several times."""
        rows = [
            {
                "model_name": one.name,
                "litellm_params": {"model": one.served, "api_base": API_BASE},
                "model_info": {"id": deployment_id(one), "key": one.served, **_facts(one)},
            }
            for one in self._models
        ]
        return {"data": rows}

    def model_group_info(self, call: Call) -> Json:
        """One row a name."""
        rows: dict[str, Json] = {}
        for one in self._models:
            row = rows.setdefault(one.name, {"model_group": one.name, "providers": [], **_facts(one)})
            row["providers"] = sorted({*row["providers"], one.served.partition("/")[0]})
        return {"data": list(rows.values())}

    def spend_logs(self, call: Call) -> list[Json]:
        """What was billed under a call id, by name and not at once."""
        until = self._settings.clock() - self._settings.spend_lag_s
        return [
            {
                "request_id": f"chatcmpl-{entry.body_digest}",
                "status": "success",
                "model": entry.served,
                "model_group": entry.model,
                "spend": entry.cost,
                "prompt_tokens": entry.prompt_tokens,
                "completion_tokens": entry.completion_tokens,
                "total_tokens": entry.prompt_tokens + entry.completion_tokens,
            }
            for entry in self._ledger.entries
            if entry.billed and entry.call_id == call.query.get("request_id") and entry.ended_at <= until
        ]

    def spend_calculate(self, call: Call) -> Json:
        """The input's cost."""
        price = next((one.input_cost_per_token for one in self._models if one.name == call.model), None)
        return {"cost": model.prompt_tokens(call.payload) * (price or 0.0)}

    def token_counter(self, call: Call) -> Json:
        """An estimate: the model has its own tokenizer."""
        total = model.prompt_tokens(call.payload)
        return {"total_tokens": total, "tokenizer_type": "openai_tokenizer", "count_source": "local_estimate"}

    def readiness(self, call: Call) -> Json:
        """Of the proxy; says nothing about the models."""
        return {"status": "healthy", "db": "connected"}

    def liveliness(self, call: Call) -> str:
        """Of the proxy."""
        return "I'm alive!"

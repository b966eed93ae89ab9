"""What gateways tell without being paid: their models with prices, and facts about a key. From JSON to records, no more.

Nothing here raises for odd JSON: what is not as measured is not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from pipeline.records import Billed, KeyInfo, ModelInfo

ON_PREM = "hosted_vllm/"
COIN_DECIMALS = 6


def openai_models(body: Any) -> list[ModelInfo]:
    """``/v1/models`` of any server; vLLM adds ``max_model_len``, LiteLLM ``mode`` and ``max_input_tokens``."""
    return [
        ModelInfo(
            id=model["id"],
            mode=_text(model.get("mode")),
            context=_count(model.get("max_model_len")) or _count(model.get("max_input_tokens")),
        )
        for model in _listed(body, "id")
    ]


def lumen_models(body: Any) -> list[ModelInfo]:
    """Lumen's ``/v1/models``. Prices are in coins; a price of 0 means free."""
    return [_lumen_model(model) for model in _listed(body, "id")]


def _lumen_model(model: dict[str, Any]) -> ModelInfo:
    prompt, completion = _amount(model.get("input_cost_per_million")), _amount(model.get("output_cost_per_million"))
    free = prompt == 0 and completion == 0
    root = _text(model.get("root"))
    outputs = model.get("output_modalities")
    return ModelInfo(
        id=model["id"],
        mode="chat" if not isinstance(outputs, list) or "text" in outputs else None,
        context=_count(model.get("max_model_len")),
        max_output=_count(model.get("max_output_tokens")),
        input_per_million=prompt,
        output_per_million=completion,
        unit="coins",
        upstream=(root,) if root else (),
        status=_text(model.get("status")),
        free=free,
        zero_priced=free,
        decimals=COIN_DECIMALS,
    )


def litellm_models(body: Any) -> list[ModelInfo]:
    """LiteLLM's ``/model/info``: one record an alias, from all of its deployments."""
    aliases: dict[str, list[ModelInfo]] = {}
    for entry in _listed(body, "model_name"):
        aliases.setdefault(entry["model_name"], []).append(_deployment(entry))
    return [_alias(deployments) for deployments in aliases.values()]


def _deployment(entry: dict[str, Any]) -> ModelInfo:
    params, info = _table(entry.get("litellm_params")), _table(entry.get("model_info"))
    upstream = _text(params.get("model")) or _text(info.get("key")) or ""
    prompt, completion = (
        _per_million(params.get(name) if info.get(name) is None else info.get(name))
        for name in ("input_cost_per_token", "output_cost_per_token")
    )
    caching = info.get("supports_prompt_caching")
    return ModelInfo(
        id=entry["model_name"],
        mode=_text(info.get("mode")),
        context=_count(info.get("max_input_tokens")),
        max_output=_count(info.get("max_output_tokens")),
        input_per_million=prompt,
        output_per_million=completion,
        cached_per_million=_per_million(info.get("cache_read_input_token_cost")),
        upstream=(upstream,) if upstream else (),
        prompt_caching=caching if isinstance(caching, bool) else None,
        free=not prompt and not completion and upstream.startswith(ON_PREM),
        zero_priced=prompt == 0 and completion == 0,
    )


def _alias(deployments: list[ModelInfo]) -> ModelInfo:
    """What holds for whichever deployment answers: equal prices, the smallest context."""
    first = deployments[0]
    prices = {(one.input_per_million, one.output_per_million, one.cached_per_million) for one in deployments}
    prompt, completion, cached = prices.pop() if len(prices) == 1 else (None, None, None)
    return ModelInfo(
        id=first.id,
        mode=first.mode,
        context=_least(one.context for one in deployments),
        max_output=_least(one.max_output for one in deployments),
        input_per_million=prompt,
        output_per_million=completion,
        cached_per_million=cached,
        upstream=tuple(dict.fromkeys(name for one in deployments for name in one.upstream)),
        prompt_caching=first.prompt_caching if len({one.prompt_caching for one in deployments}) == 1 else None,
        free=all(one.free for one in deployments),
        zero_priced=all(one.zero_priced for one in deployments),
    )


def litellm_key(body: Any) -> KeyInfo | None:
    """LiteLLM's ``/key/info``. Its ``spend`` lags some seconds behind."""
    if not isinstance(body, dict) or not isinstance(info := body.get("info"), dict):
        return None
    models = info.get("models")
    return KeyInfo(
        spend=_amount(info.get("spend")),
        max_budget=_amount(info.get("max_budget")),
        budget_resets=_text(info.get("budget_reset_at")),
        expires=_text(info.get("expires")),
        blocked=info.get("blocked") is True,
        models=tuple(name for name in models if isinstance(name, str)) if isinstance(models, list) else (),
        parallel=_count(info.get("max_parallel_requests")),
        rpm=_count(info.get("rpm_limit")),
        tpm=_count(info.get("tpm_limit")),
    )


def litellm_billed(body: Any) -> Billed | None:
    """LiteLLM's ``/spend/logs`` for one request: a row each time it was sold, or none so far. None for anything else."""
    if not isinstance(body, list):
        return None
    rows = [row for row in body if isinstance(row, dict) and row.get("status") != "failure"]
    costs = [_amount(row.get("spend")) for row in rows]
    known = [cost for cost in costs if cost is not None]
    if len(known) < len(costs):
        return None
    prompt, completion = (
        sum(_count(row.get(name)) or 0 for row in rows) for name in ("prompt_tokens", "completion_tokens")
    )
    return Billed(calls=len(rows), cost=math.fsum(known), prompt_tokens=prompt, completion_tokens=completion)


def _listed(body: Any, name: str) -> list[dict[str, Any]]:
    data = body.get("data") if isinstance(body, dict) else None
    if not isinstance(data, list):
        return []
    return [entry for entry in data if isinstance(entry, dict) and _text(entry.get(name))]


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    """A whole number above 0; LiteLLM now and then has it as a float or as text."""
    amount = _amount(value)
    return int(amount) if amount is not None and 1 <= amount < 2**53 else None


def _amount(value: Any) -> float | None:
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None


def _per_million(per_token: Any) -> float | None:
    """Rounded to what was meant: 1.5e-07 a token is 0.15 a million."""
    amount = _amount(per_token)
    return None if amount is None else float(f"{amount * 1e6:.12g}")


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)

"""What an answer cost, or that nobody told us. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pipeline.records import UNKNOWN_COST, Cost, ModelInfo, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOf:
    """Per million tokens. ``cached`` None: cached tokens cost what others do. ``decimals``: rounded to so many, as the
    gateway does. ``free``: it is nobody's money, however many tokens."""

    prompt: float
    completion: float
    cached: float | None = None
    unit: str = "USD"
    decimals: int | None = None
    free: bool = False

    def of(self, usage: Usage) -> Cost:
        """What these tokens cost; unknown where their number is."""
        if self.free:
            return Cost(amount=0.0, unit=self.unit, source="free")
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return UNKNOWN_COST
        cached = 0 if self.cached is None else usage.cached_tokens or 0
        amount = (
            (usage.prompt_tokens - cached) * self.prompt
            + cached * (self.cached or 0.0)
            + usage.completion_tokens * self.completion
        ) / 1e6
        if self.decimals is not None:
            amount = round(amount, self.decimals)
        return Cost(amount=amount, unit=self.unit, source="price_table")


def listed_price(info: ModelInfo) -> PriceOf | None:
    """The price of a model as its gateway lists it; None where it lists none."""
    if info.free:
        return PriceOf(prompt=0.0, completion=0.0, unit=info.unit, free=True)
    completion = 0.0 if info.output_per_million is None and info.mode == "embedding" else info.output_per_million
    if info.input_per_million is None or completion is None:
        return None
    return PriceOf(
        prompt=info.input_per_million,
        completion=completion,
        cached=info.cached_per_million,
        unit=info.unit,
        decimals=info.decimals,
    )


class Accounting:
    """Prices an answer for which the gateway told no cost: by the gateway's list, else by the job's table, else unknown."""

    def __init__(self, prices: Mapping[str, PriceOf], *, listed: Mapping[str, PriceOf] | None = None) -> None:
        """``prices`` are the job's own; both by name of the model."""
        self._prices = prices
        self._listed = listed or {}
        self._price = lru_cache(maxsize=1000)(self._look_up)  # rows have few models, but a gateway may say anything

    def price(self, model: str | None, served_model: str | None = None) -> PriceOf | None:
        """The asked model's price, else the served one's."""
        return self._price(model, served_model)

    def _look_up(self, model: str | None, served_model: str | None) -> PriceOf | None:
        names = [name for name in (model, served_model) if name is not None]
        tables = (self._listed, self._prices)
        return next((table[name] for name in names for table in tables if name in table), None)

    def cost(self, usage: Usage, *, model: str | None, served_model: str | None) -> Cost:
        """The cost of one answer."""
        price = self.price(model, served_model)
        return UNKNOWN_COST if price is None else price.of(usage)

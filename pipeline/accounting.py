"""What an answer cost, or that nobody told us. Unknown is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.records import Cost, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceOf:
    """Per million tokens. ``cached`` None: cached tokens cost what others do."""

    prompt: float
    completion: float
    cached: float | None = None
    unit: str = "USD"


class Accounting:
    """Prices an answer from the job's table; a model that is not in it costs an unknown amount."""

    def __init__(self, prices: Mapping[str, PriceOf]) -> None:
        self._prices = prices

    def cost(self, usage: Usage, *, model: str | None, served_model: str | None) -> Cost:
        """The cost of one answer: the asked model's price, else the served one's, times its tokens."""
        price = self._prices.get(model or "") or self._prices.get(served_model or "")
        if price is None or usage.prompt_tokens is None or usage.completion_tokens is None:
            return Cost()
        cached = 0 if price.cached is None else usage.cached_tokens or 0
        amount = (
            (usage.prompt_tokens - cached) * price.prompt
            + cached * (price.cached or 0.0)
            + usage.completion_tokens * price.completion
        )
        return Cost(amount=amount / 1e6, unit=price.unit, source="price_table")

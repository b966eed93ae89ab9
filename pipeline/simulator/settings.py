"""What a simulated gateway is told before it starts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from pipeline.errors import UsageError
from pipeline.simulator.catalogue import KEYS, MODELS, Key, Model
from pipeline.simulator.faults import Faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``dialect`` is how it speaks and what it enforces. ``port`` 0 takes any free one.

    ``models`` (by name at the prices given here, or as a ``Model``) and ``key`` replace the dialect's own; of the models
    of "openai", which has none, any name is accepted. ``max_parallel`` replaces the key's.

    ``latency_s`` is the median time of an answer and ``jitter`` the sigma of its lognormal spread; both repeat from run
    to run for one ``seed``. ``ledger`` False keeps totals only (benchmarks). Prices are in USD, for Lumen in coins.
    ``dimensions`` is the length of a vector when the request names none.

    Rate windows take ``window_s``, LiteLLM's cooldown ``cooldown_s``; it shows what was spent ``spend_lag_s`` late and
    refuses who has spent all with ``budget_status`` (422; 429 in older versions; 400). ``clock`` is what these go by.
    """

    dialect: Literal["openai", "litellm", "lumen"] = "openai"
    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str | Model, ...] = ()
    key: Key | None = None
    latency_s: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    max_parallel: int | None = None
    faults: Faults = field(default_factory=Faults)
    ledger: bool = True
    input_cost_per_million: float = 0.15
    output_cost_per_million: float = 0.60
    dimensions: int = 64
    window_s: float = 60.0
    cooldown_s: float = 5.0
    spend_lag_s: float = 1.0
    budget_status: Literal[400, 422, 429] = 422
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        if self.dialect not in MODELS:
            raise UsageError(f"dialect: expected one of {', '.join(MODELS)}, got {self.dialect!r}")
        self.faults.check(self.dialect)

    @property
    def unit(self) -> str:
        """What costs are counted in."""
        return "coins" if self.dialect == "lumen" else "USD"

    def limits(self) -> Key:
        """The key as it is used."""
        key = self.key or KEYS[self.dialect]
        return key if self.max_parallel is None else replace(key, max_parallel=self.max_parallel)

    def stock(self) -> tuple[Model, ...]:
        """The models there are."""
        models = self.models or MODELS[self.dialect]
        return tuple(self.plain(model) if isinstance(model, str) else model for model in models)

    def plain(self, name: str) -> Model:
        """A model nobody described."""
        return Model(
            name=name,
            input_cost_per_token=self.input_cost_per_million / 1e6,
            output_cost_per_token=self.output_cost_per_million / 1e6,
        )

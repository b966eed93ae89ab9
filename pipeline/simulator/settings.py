"""What a simulated gateway is told before it starts."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.simulator.faults import Faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """``port`` 0 takes any free one. Without ``models`` any model name is accepted; with them, only those.

    ``latency_s`` is the median time of an answer and ``jitter`` the sigma of its lognormal spread; both repeat from run
    to run for one ``seed``. ``max_parallel`` None is no limit. ``ledger`` False keeps totals only (benchmarks). Prices
    are in USD. ``dimensions`` is the length of a vector when the request names none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    latency_s: float = 0.0
    jitter: float = 0.0
    seed: int = 0
    max_parallel: int | None = None
    faults: Faults = field(default_factory=Faults)
    ledger: bool = True
    input_cost_per_million: float = 0.15
    output_cost_per_million: float = 0.60
    dimensions: int = 64

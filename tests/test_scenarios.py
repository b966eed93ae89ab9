"""The simulator passes the scenarios in each dialect; and in every fault script ledger, journal and results agree."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from reconcile import bill_of
from scenarios import SCENARIOS, Gateway, Lab
from simulated import Simulated, simulated

from pipeline.simulator import Key, Model, Settings

KEY = "sk-simulated"
A_MILLION = 1e6
PRICED = {"input_cost_per_token": 0.15 / A_MILLION, "output_cost_per_token": 0.6 / A_MILLION}
MODELS = (
    Model(name="lab/priced", upstream="openai/priced-1", **PRICED),
    Model(name="lbl/free", upstream="hosted_vllm/free-1"),
    Model(name="lab/short", upstream="openai/short-1", max_input_tokens=64, **PRICED),
    Model(name="lab/vectors", upstream="openai/vectors-1", mode="embedding", input_cost_per_token=0.15 / A_MILLION),
)
FREE = {"input_per_million": 0.0, "output_per_million": 0.0}
COSTLY = {"input_per_million": 0.15, "output_per_million": 0.6}
PRESETS: dict[str, dict[str, Any]] = {
    "openai": {
        "told_by": "price_table",
        "lists_models": False,
        "names_free": False,
        "prices": {"lbl/free": FREE, "lab/vectors": COSTLY, "lab/priced": COSTLY, "lab/short": COSTLY},
    },
    "litellm": {"told_by": "gateway"},
    "lumen": {"told_by": "price_table", "unit": "coins", "vectors": None},
}
# Lumen knows no vectors, and no model without a price; it lets nobody ask more than 30 times a minute, which takes long.
SETTINGS: dict[str, dict[str, Any]] = {
    "openai": {},
    "litellm": {},
    "lumen": {
        "models": (
            Model(name="lab/priced", upstream="up-priced", input_cost_per_token=5e-6, output_cost_per_token=15e-6),
            Model(name="lbl/free", upstream="up-free", input_cost_per_token=0.0, output_cost_per_token=0.0),
            replace(MODELS[2], input_cost_per_token=5e-6, output_cost_per_token=15e-6),
        ),
        "key": Key(max_parallel=10, coins=20.0),
    },
}


def gateway_of(sim: Simulated, dialect: str) -> Gateway:
    """The simulator as a gateway under test."""
    return Gateway(
        preset=dialect,
        url=sim.url,
        key=KEY,
        bills=lambda: [bill_of(entry) for entry in sim.entries if entry.billed],
        asked=lambda: sum(entry.method == "POST" for entry in sim.entries),
        play=sim.play,
        **PRESETS[dialect],
    )


@pytest.fixture
def lab(dialect: str, tmp_path: Path) -> Iterator[Lab]:
    """The simulator in one dialect, and a clean folder."""
    settings = Settings(**{"dialect": dialect, "api_key": KEY, "models": MODELS} | SETTINGS[dialect])
    with simulated(settings) as sim:
        yield Lab(gateway=gateway_of(sim, dialect), folder=tmp_path)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("dialect", PRESETS)
def test_the_simulator_in_each_dialect(scenario: Callable[[Lab], None], lab: Lab) -> None:
    scenario(lab)

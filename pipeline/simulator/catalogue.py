"""What there is and what one may have of it: the models behind a gateway, and the limits of the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pipeline.records import Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A name that can be asked for, and the ``upstream`` model that answers; several of one name share the work.

    Costs are per token, in USD or (Lumen) coins. Without any the model is free, but LiteLLM still refuses it when the
    budget is gone; at 0.0 each it is free even then. ``max_parallel`` is the operator's limit, for all users (LiteLLM).
    ``blocked``: not for this key, or its terms are not accepted. ``status`` (Lumen) is ok, degraded or down.
    """

    name: str
    upstream: str = ""
    input_cost_per_token: float | None = None
    output_cost_per_token: float | None = None
    mode: str = "chat"
    max_input_tokens: int | None = None
    max_output_tokens: int | None = None
    max_parallel: int | None = None
    blocked: bool = False
    status: str = "ok"

    @property
    def served(self) -> str:
        """The model that really answers."""
        return self.upstream or self.name

    @property
    def priced(self) -> bool:
        """Whether an answer costs something."""
        return bool(self.input_cost_per_token or self.output_cost_per_token)

    def costs(self, usage: Usage) -> tuple[float, float]:
        """Of the prompt, and of the answer."""
        return (
            (usage.prompt_tokens or 0) * (self.input_cost_per_token or 0.0),
            (usage.completion_tokens or 0) * (self.output_cost_per_token or 0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What the gateway grants; None is no limit.

    ``max_parallel`` requests at once (Lumen: its worker threads, the next one waits); ``rpm`` and ``tpm`` a window;
    ``models`` to choose from (all when empty). LiteLLM: ``max_budget`` of which ``spend`` is used up. Lumen: ``coins``
    left (0: may use no model), ``coins_per_hour`` more up to as many; ``disabled``: the account is closed.
    """

    max_parallel: int | None = None
    rpm: int | None = None
    tpm: int | None = None
    models: tuple[str, ...] = ()
    max_budget: float | None = None
    spend: float = 0.0
    coins: float | None = None
    coins_per_hour: float = 0.0
    disabled: bool = False


MODELS: Mapping[str, tuple[Model, ...]] = MappingProxyType(
    {
        "openai": (),
        "litellm": (
            Model(name="lbl/cborg-chat", upstream="hosted_vllm/gemma-4", max_input_tokens=131_072),
            Model(name="lbl/cborg-mini", upstream="hosted_vllm/gpt-oss-20b", max_input_tokens=131_072),
            Model(
                name="lab/priced",
                upstream="openai/priced-1",
                input_cost_per_token=1.5e-07,
                output_cost_per_token=6e-07,
                max_input_tokens=131_072,
            ),
            Model(name="nomic-embed-text", upstream="hosted_vllm/nomic-embed-text", mode="embedding"),
        ),
        "lumen": (
            Model(
                name="dummy",
                input_cost_per_token=5e-6,
                output_cost_per_token=15e-6,
                max_input_tokens=8192,
                max_output_tokens=2048,
            ),
            Model(name="fx", upstream="up-fx", input_cost_per_token=0.0, output_cost_per_token=0.0),
            Model(  # the one that Lumen's own guide asks
                name="gpt-4o",
                input_cost_per_token=2.5e-6,
                output_cost_per_token=10e-6,
                max_input_tokens=128_000,
                max_output_tokens=16_384,
            ),
            Model(name="consent", blocked=True),
            Model(name="down", status="down"),
        ),
    }
)
KEYS: Mapping[str, Key] = MappingProxyType(
    {"openai": Key(), "litellm": Key(max_parallel=5), "lumen": Key(max_parallel=10, rpm=30, coins=20.0)}
)

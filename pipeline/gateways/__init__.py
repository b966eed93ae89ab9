"""Dialects: how each family of gateways is spoken to and understood. ``openai`` is the base; the others say what differs."""

from __future__ import annotations

from pipeline.gateways.litellm import CBorg, LiteLLM
from pipeline.gateways.lumen import Lumen
from pipeline.gateways.openai import Announced, OpenAI

__all__ = ["Announced", "CBorg", "LiteLLM", "Lumen", "OpenAI", "dialect_of"]


def dialect_of(
    family: str, *, model_is_the_rows: bool, client_retries: bool = True, unset_key: str | None = None
) -> OpenAI:
    """The dialect of a preset's family; see ``OpenAI`` for the settings."""
    families: dict[str, type[OpenAI]] = {
        "openai": OpenAI,
        "simulator": OpenAI,
        "litellm": LiteLLM,
        "cborg": CBorg,
        "lumen": Lumen,
    }
    return families[family](model_is_the_rows=model_is_the_rows, client_retries=client_retries, unset_key=unset_key)

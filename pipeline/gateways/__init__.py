"""Dialects: how each family of gateways is spoken to and understood. ``openai`` is the base; the others say what differs."""

from __future__ import annotations

from pipeline.gateways.openai import OpenAI

__all__ = ["OpenAI", "dialect_of"]


def dialect_of(family: str, *, model_is_the_rows: bool) -> OpenAI:
    """The dialect of a preset's family."""
    families = {"openai": OpenAI, "simulator": OpenAI}
    return families[family](model_is_the_rows=model_is_the_rows)

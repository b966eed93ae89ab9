"""What is known of each gateway before it is asked: data only. ``gateway = "NAME"`` in a job picks one of these."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """``family`` picks the dialect and is part of every fingerprint; ``api_key_env`` is the only variable it reads."""

    name: str
    family: str
    base_url: str | None
    api_key_env: str | None
    concurrency: int


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="openai",
            family="openai",
            base_url=None,
            api_key_env="PIPELINE_API_KEY",
            concurrency=8,
        ),
        Preset(
            name="simulator",
            family="simulator",
            base_url=None,
            api_key_env=None,
            concurrency=16,
        ),
    )
}

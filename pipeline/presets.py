"""What is known of each gateway before it is asked: data only. ``gateway = "NAME"`` in a job picks one of these."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_KEY_VARIABLE = "PIPELINE_API_KEY"  # may be unset: not every server wants a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """``family`` picks the dialect and is part of every fingerprint; ``api_key_env`` is the only variable it reads.

    ``concurrency`` requests are in flight unless the job says otherwise, up to ``ceiling`` where it says "auto". ``rpm`` is what
    a key is assumed to have until the gateway teaches better.
    """

    name: str
    family: str
    base_url: str | None
    api_key_env: str | None
    concurrency: int
    ceiling: int = 64
    rpm: float | None = None


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="cborg",
            family="cborg",
            base_url="https://api.cborg.lbl.gov",
            api_key_env="CBORG_API_KEY",
            concurrency=5,
        ),
        Preset(  # the same gateway from inside the laboratory, without Cloudflare in between
            name="cborg-local",
            family="cborg",
            base_url="https://api-local.cborg.lbl.gov",
            api_key_env="CBORG_API_KEY",
            concurrency=5,
        ),
        Preset(  # ten threads serve everybody there; a full house fails its health check and is restarted
            name="lumen",
            family="lumen",
            base_url=None,
            api_key_env="LUMEN_API_KEY",
            concurrency=4,
            ceiling=4,
            rpm=30.0,
        ),
        Preset(
            name="litellm",
            family="litellm",
            base_url=None,
            api_key_env=DEFAULT_KEY_VARIABLE,
            concurrency=5,
        ),
        Preset(
            name="openai",
            family="openai",
            base_url=None,
            api_key_env=DEFAULT_KEY_VARIABLE,
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

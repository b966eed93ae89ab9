"""What every table of a job has in common: frozen, checked strictly, no key that nobody knows."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


_DURATION = re.compile(r"(?:(\d{1,3})d)?(?:(\d{1,5})h)?(?:(\d{1,6})m(?:in)?)?(?:(\d{1,8})s)?")


def _seconds(value: Any) -> Any:
    """``90``, ``"45s"``, ``"90m"``, ``"1h30m"``, ``"2d"``."""
    if not isinstance(value, str):
        return value
    found = _DURATION.fullmatch(value.replace(" ", ""))
    if not value.strip() or found is None:
        raise ValueError(f'expected seconds, or a time such as "45s", "90m" or "1h30m", not {value!r}')
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)


Seconds = Annotated[float, BeforeValidator(_seconds)]
Text = Annotated[str, BeforeValidator(_not_empty)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]


class Table(BaseModel):
    """One table."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

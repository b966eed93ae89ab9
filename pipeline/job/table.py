"""What every table of a job has in common: frozen, checked strictly, no key that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from pipeline.limits.hours import seconds


def _not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


def _path_as_text(value: Any) -> Any:
    """From Python: a file is as welcome as its name, although ``input.path`` may also be a pattern, or ``-``."""
    return str(value) if isinstance(value, Path) else value


def _seconds(value: Any) -> Any:
    """``90``, ``"45s"``, ``"90m"``, ``"1h30m"``, ``"2d"``."""
    if not isinstance(value, str):
        return value
    if (found := seconds(value)) is None:
        raise ValueError(f'expected seconds, or a time such as "45s", "90m" or "1h30m", not {value!r}')
    return found


Seconds = Annotated[float, BeforeValidator(_seconds)]
Text = Annotated[str, BeforeValidator(_not_empty)]
PathText = Annotated[Text, BeforeValidator(_path_as_text)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]


class Table(BaseModel):
    """One table. How it is checked is worked out once, with the job that it is in, and not for each by itself as well."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)

"""What every table of a job has in common: frozen, checked strictly, no key that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _not_empty(value: Any) -> Any:
    if isinstance(value, str) and not value.strip():
        raise ValueError("must not be empty")
    return value


Text = Annotated[str, BeforeValidator(_not_empty)]
FilePath = Annotated[Path, BeforeValidator(_not_empty), Field(strict=False)]


class Table(BaseModel):
    """One table."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

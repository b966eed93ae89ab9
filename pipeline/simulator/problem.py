"""A request turned down, as a value; the dialect gives it its shape on the wire."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``type``, ``param`` and ``code`` are OpenAI's; another dialect tells problems apart by ``code`` and ``param``."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None


def invalid(param: str | None, message: str) -> Problem:
    """The caller's own mistake: 400."""
    return Problem(status=400, message=message, param=param)

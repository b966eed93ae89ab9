"""A request turned down, as a value; the dialect gives it its shape on the wire."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """``type``, ``param`` and ``code`` are OpenAI's; ``body`` goes out instead of them. Words with a $ are filled in.

    ``headers`` come on top of the dialect's own, which are left out when ``bare``. ``late``: Lumen finds it only after
    it has begun to answer, so that a stream has status 200 already.
    """

    status: int
    message: str = ""
    type: str | None = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    bare: bool = False
    late: bool = False

    def told(self, facts: dict[str, object]) -> Problem:
        """With the facts of the case in its words."""
        headers = tuple((name, _fill(text, facts)) for name, text in self.headers)
        return replace(self, message=_fill(self.message, facts), headers=headers)


def _fill(text: str, facts: dict[str, object]) -> str:
    if "$" in text:
        for name, fact in facts.items():
            text = text.replace(f"${name}", str(fact))
    return text


def invalid(param: str | None, message: str) -> Problem:
    """The caller's own mistake: 400."""
    return Problem(status=400, message=message, param=param)

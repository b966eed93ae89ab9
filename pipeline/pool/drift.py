"""Whether another model answers than the one that answered before under the same name: aliases move, quietly.

Compared with what this journal has seen, in this run and in last week's. A chat goes on with a warning; vectors of two
models do not mix, so an embedding run stops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.errors import LookError


class Drift:
    """``seen``: name asked for -> the models that have answered. ``stops``: another one ends the run."""

    def __init__(self, seen: Mapping[str, set[str]], *, stops: bool, say: Callable[[str], None]) -> None:
        self._seen = {name: set(served) for name, served in seen.items()}
        self._stops = stops
        self._say = say

    def check(self, model: str, served_model: str | None, custom_id: str) -> LookError | None:
        """Note who answered a row; returns why the run must stop, if it must. Each new name is told once."""
        if served_model is None:
            return None
        seen = self._seen.setdefault(model, set())
        if served_model in seen:
            return None
        before = ", ".join(sorted(seen))
        seen.add(served_model)
        if not before:
            return None
        text = f"{model!r} was answered by {before} so far; row {custom_id!r} was answered by {served_model}"
        if self._stops:
            return LookError(
                f"{text}: vectors of two models do not mix. Make the earlier ones anew with --redo 'served_model!={served_model}', "
                "or go on with both with --allow-model-change"
            )
        self._say(f"Another model answers: {text}. See the column served_model")
        return None

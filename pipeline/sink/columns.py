"""The result columns: their names, their order, and how one projected row fills them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import JobError
from pipeline.ground.visible import listed
from pipeline.journal.reader import Projected
from pipeline.sink.vectors import numbers

ReadContent = Callable[[bytes], str | None]
ReadVector = Callable[[bytes], Any]
ReadTimes = Callable[[Sequence[float | None]], Sequence[Any]]

TYPES: dict[str, str] = {
    "custom_id": "string",
    "status": "string",
    "content": "string",
    "finish_reason": "string",
    "model": "string",
    "served_model": "string",
    "prompt_tokens": "int64",
    "completion_tokens": "int64",
    "total_tokens": "int64",
    "cached_tokens": "int64",
    "reasoning_tokens": "int64",
    "usage_estimated": "bool",
    "cost": "double",
    "cost_unit": "string",
    "cost_source": "string",
    "attempts": "int64",
    "lost_attempts": "int64",
    "latency_s": "double",
    "request_id": "string",
    "completed_at": "timestamp",
    "fingerprint": "string",
    "error_code": "string",
    "error_message": "string",
}
"""Result column -> Arrow type (``timestamp`` is microseconds, UTC)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Which columns the results have: the kept ones of the input, then the result columns under their final names.

    ``vectors``: the answers are vectors, in ``embedding`` in place of ``content``.
    """

    kept: tuple[str, ...]
    results: tuple[str, ...]
    vectors: bool = False


def layout(
    *, columns: Sequence[str], keep: Sequence[str] | None, prefix: str, id_column: str | None, vectors: bool = False
) -> Layout:
    """Settle the columns. Raises ``JobError`` for a kept column that is not there or has a result column's name.

    The id column is exempt: where it is called ``custom_id`` it is that result column.
    """
    if keep is not None and (missing := [name for name in keep if name not in columns]):
        raise JobError(f"output.keep: the input has no column {missing[0]!r}; its columns are: {listed(columns)}")
    results = tuple(prefix + ("embedding" if vectors and name == "content" else name) for name in TYPES)
    kept = list(columns if keep is None else dict.fromkeys(keep))
    if id_column in results and id_column in kept:
        kept.remove(id_column)
    clashes = [name for name in kept if name in results]
    if clashes:
        names = ", ".join(repr(name) for name in clashes)
        free = "result_" if prefix == "llm_" else "llm_"
        raise JobError(
            f"the input has {'columns' if len(clashes) > 1 else 'a column'} called {names}, as the results have: "
            f'set output.prefix = "{free}" (--set output.prefix={free}) to name the results {free}..., or leave the column '
            "out with output.keep"
        )
    return Layout(kept=tuple(kept), results=results, vectors=vectors)


def aware(times: Sequence[float | None]) -> list[datetime | None]:
    """Seconds as aware datetimes."""
    return [None if at is None else datetime.fromtimestamp(at, UTC) for at in times]


def values(
    rows: Sequence[Projected],
    read_content: ReadContent,
    read_vector: ReadVector = numbers,
    read_times: ReadTimes = aware,
) -> list[Sequence[Any]]:
    """The result columns of these rows, each as a whole: a column at a time takes half of what a row at a time does."""
    if not rows:
        return [()] * len(TYPES)
    of: Any = Projected._make(zip(*rows, strict=True))  # each field of it has that of all rows
    return [
        of.custom_id,
        of.status,
        [_answer(*row, read_content, read_vector) for row in zip(of.status, of.body, of.form, strict=True)],
        of.finish_reason,
        of.model,
        of.served_model,
        of.prompt_tokens,
        of.completion_tokens,
        of.total_tokens,
        of.cached_tokens,
        of.reasoning_tokens,
        list(map(bool, of.usage_estimated)),
        of.cost,
        of.cost_unit,
        of.cost_source,
        of.attempts,
        of.lost_attempts,
        of.latency_s,
        of.request_id,
        read_times(of.completed_at),
        list(map(bytes.hex, of.fingerprint)),
        of.error_code,
        of.error_message,
    ]


def _answer(
    status: str | None, body: bytes | None, form: str | None, read_content: ReadContent, read_vector: ReadVector
) -> Any:
    if body is None or status != "succeeded":
        return None
    return read_vector(body) if form == "float32" else read_content(body)


def matching(
    rows: Sequence[Projected], column: str, value: str, *, equal: bool, read_content: ReadContent
) -> list[int]:
    """Numbers of the rows whose result column reads as ``value`` (or does not); null reads as the empty text."""
    found = []
    for row, cell in zip(rows, values(rows, read_content)[list(TYPES).index(column)], strict=True):
        if row.status is None:
            continue
        text = "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)
        if (text == value) == equal:
            found.append(row.no)
    return found

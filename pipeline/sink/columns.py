"""The result columns: their names, their order, and how one projected row fills them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pipeline.errors import JobError
from pipeline.journal.reader import Projected
from pipeline.sink.vectors import numbers
from pipeline.visible import listed

ReadContent = Callable[[bytes], str | None]
ReadVector = Callable[[bytes], Any]

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


def values(row: Projected, read_content: ReadContent, read_vector: ReadVector = numbers) -> tuple[Any, ...]:
    """The result columns of one row, in the order of ``TYPES``; times are aware datetimes."""
    prompt, completion = row.prompt_tokens, row.completion_tokens
    return (
        row.custom_id,
        row.status,
        _answer(row, read_content, read_vector),
        row.finish_reason,
        row.model,
        row.served_model,
        prompt,
        completion,
        None if prompt is None or completion is None else prompt + completion,
        row.cached_tokens,
        row.reasoning_tokens,
        bool(row.usage_estimated),
        *_cost(row),
        (row.sent or 0) + (row.earlier_attempts or 0),
        (row.lost or 0) + (row.earlier_lost or 0),
        row.latency_s,
        row.request_id,
        None if row.completed_at is None else datetime.fromtimestamp(row.completed_at, UTC),
        row.fingerprint.hex(),
        row.error_code,
        row.error_message,
    )


def _cost(row: Projected) -> tuple[float | None, str | None, str | None]:
    """Amount, unit and source. A failed row's last try may have cost nothing; those before it count all the same."""
    if row.cost is not None:
        return row.cost + (row.earlier_cost or 0.0), row.cost_unit, row.cost_source
    if row.status == "failed" and row.earlier_cost is not None:
        return row.earlier_cost, row.earlier_cost_unit, row.earlier_cost_source
    return None, row.cost_unit, row.cost_source


def _answer(row: Projected, read_content: ReadContent, read_vector: ReadVector) -> Any:
    if row.body is None or row.status != "succeeded":
        return None
    return read_vector(row.body) if row.form == "float32" else read_content(row.body)


def matching(
    rows: Collection[Projected], column: str, value: str, *, equal: bool, read_content: ReadContent
) -> list[int]:
    """Numbers of the rows whose result column reads as ``value`` (or does not); null reads as the empty text."""
    at = list(TYPES).index(column)
    found = []
    for row in rows:
        if row.status is None:
            continue
        cell = values(row, read_content)[at]
        text = "" if cell is None else str(cell).lower() if isinstance(cell, bool) else str(cell)
        if (text == value) == equal:
            found.append(row.no)
    return found

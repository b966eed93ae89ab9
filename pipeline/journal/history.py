"""What this journal's answers used so far: what ``plan`` calibrates its estimates on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

REPLIES_WEIGHED = 1_000
_TIMED = "FROM outcome WHERE status = 'succeeded' AND latency_s IS NOT NULL"


class Spent(NamedTuple):
    """One succeeded row of the present input, and what it used; None where nobody told."""

    line: int
    custom_id: str
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cost: float | None
    cost_unit: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long answers took: half of them at most ``p50_s``, 95 of 100 at most ``p95_s``."""

    answers: int
    p50_s: float
    p95_s: float


def spent(db: sqlite3.Connection, path: str, first: int, last: int) -> Iterator[Spent]:
    """The succeeded rows of one stretch of a file; not those that were given the answer of another."""
    return map(
        Spent._make,
        db.execute(
            "SELECT i.line, i.custom_id, o.model, o.prompt_tokens, o.completion_tokens, o.cost, o.cost_unit "
            "FROM input i JOIN outcome o ON o.no = i.no WHERE i.file = (SELECT file FROM file WHERE path = ?) "
            "AND i.line BETWEEN ? AND ? AND o.status = 'succeeded' AND o.cost_source <> 'reused' ORDER BY i.line",
            (path, first, last),
        ),
    )


def answered(db: sqlite3.Connection, model: str, most: int) -> Iterator[int]:
    """Completion tokens of a model's latest answers, also of rows that are not in the input any more."""
    rows = db.execute(
        "SELECT completion_tokens FROM outcome WHERE status = 'succeeded' AND model = ? "
        "AND completion_tokens IS NOT NULL AND cost_source <> 'reused' ORDER BY no DESC LIMIT ?",
        (model, most),
    )
    return (tokens for (tokens,) in rows)


def pace(db: sqlite3.Connection) -> Pace | None:
    """How long the answers took; None where there are none."""
    count = db.execute(f"SELECT count(*) {_TIMED}").fetchone()[0]
    if not count:
        return None
    p50, p95 = (
        db.execute(f"SELECT latency_s {_TIMED} ORDER BY 1 LIMIT 1 OFFSET ?", (int(share * (count - 1)),)).fetchone()[0]
        for share in (0.5, 0.95)
    )
    return Pace(answers=count, p50_s=p50, p95_s=p95)


def reply_bytes(db: sqlite3.Connection) -> float | None:
    """The mean size of a reply as it is kept."""
    mean = db.execute("SELECT avg(length(body)) FROM (SELECT body FROM reply LIMIT ?)", (REPLIES_WEIGHED,)).fetchone()[
        0
    ]
    return None if mean is None else float(mean)

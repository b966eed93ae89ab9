"""What the journal says of rows and sums: read by the sink, the summary, ``status`` and ``verify``."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple


class Projected(NamedTuple):
    """One input row with its outcome (nulls where it has none); attempts and cost have those of its earlier tries in them.

    ``earlier_cost`` is what those took alone: where the cost of the last is unknown, that of the row is.
    """

    line: int
    no: int
    custom_id: str
    fingerprint: bytes
    status: str | None
    error_code: str | None
    error_message: str | None
    model: str | None
    served_model: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    usage_estimated: int | None
    cost: float | None
    cost_unit: str | None
    cost_source: str | None
    attempts: int
    lost_attempts: int
    latency_s: float | None
    request_id: str | None
    completed_at: float | None
    earlier_cost: float | None
    earlier_cost_unit: str | None
    body: bytes | None
    form: str | None


# A failed row's last try may have cost nothing; those before it count all the same.
_FROM_EARLIER = "o.cost IS NULL AND o.status = 'failed' AND s.cost IS NOT NULL"
_PROJECTION = f"""
SELECT i.line, i.no, i.custom_id, i.fingerprint, o.status, o.error_code, o.error_message, o.model, o.served_model,
    o.finish_reason, o.prompt_tokens, o.completion_tokens, o.prompt_tokens + o.completion_tokens, o.cached_tokens,
    o.reasoning_tokens, o.usage_estimated, iif({_FROM_EARLIER}, s.cost, o.cost + ifnull(s.cost, 0.0)),
    iif({_FROM_EARLIER}, s.cost_unit, o.cost_unit), iif({_FROM_EARLIER}, s.cost_source, o.cost_source),
    ifnull(o.sent, 0) + ifnull(s.attempts, 0), ifnull(o.lost, 0) + ifnull(s.lost, 0), o.latency_s, o.request_id, o.completed_at,
    s.cost, s.cost_unit, r.body, r.form
FROM input i LEFT JOIN outcome o ON o.no = i.no LEFT JOIN reply r ON r.no = i.no
    LEFT JOIN temp.spent s ON s.fingerprint = i.fingerprint AND s.custom_id = i.custom_id
WHERE i.file = (SELECT file FROM file WHERE path = ?) AND i.line BETWEEN ? AND ? ORDER BY i.line
"""  # noqa: S608 - _FROM_EARLIER is a constant of this module
_SPENT = (
    "DROP TABLE IF EXISTS temp.spent",
    "CREATE TEMP TABLE spent (fingerprint BLOB, custom_id TEXT, attempts INTEGER, lost INTEGER, cost REAL, "
    "cost_unit TEXT, cost_source TEXT, PRIMARY KEY (fingerprint, custom_id)) WITHOUT ROWID",
    "INSERT INTO temp.spent SELECT fingerprint, custom_id, count(*), sum(lost), sum(cost), "
    "max(cost_unit) FILTER (WHERE cost IS NOT NULL), max(cost_source) FILTER (WHERE cost IS NOT NULL) FROM attempt GROUP BY 1, 2",
)


class Projection:
    """The outcomes beside the input, stretch by stretch; sees the journal as it was when the projection was made."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        for statement in _SPENT:
            db.execute(statement)

    def stretch(self, path: str, first: int, last: int) -> Iterator[Projected]:
        """Rows of one stretch of a file, in its order."""
        return map(Projected._make, self._db.execute(_PROJECTION, (path, first, last)))

    def dimensions(self) -> list[int]:
        """How many numbers the vectors of the present input have; more than one entry where they differ."""
        rows = self._db.execute(
            "SELECT DISTINCT length(r.body) / 4 FROM input i JOIN reply r ON r.no = i.no WHERE r.form = 'float32'"
        )
        return sorted(size for (size,) in rows)

    def files(self) -> list[tuple[str, str, int]]:
        """(path, mark, rows) of the input files, in input order."""
        return list(self._db.execute("SELECT path, mark, rows FROM file ORDER BY place"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """Sums over the rows of the present input. Token sums leave out rows whose count is unknown; so does ``cost``.

    ``cost`` has what witnesses cost on top. ``cost_unknown`` counts rows whose last try has no known cost, though it was
    answered or may have been billed; such tries before it are among the ``lost_attempts``. ``reused`` rows were not sent:
    they have the answer, or the error, of another row that asks the same. ``unsent`` rows failed before they were requests.
    """

    completed: int = 0
    failed: int = 0
    reused: int = 0
    accepted: int = 0
    unsent: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    cost_unknown: int = 0
    empty: int = 0
    cut_off: int = 0
    refusals: int = 0
    attempts: int = 0
    lost_attempts: int = 0


_TOTALS = """
SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'failed'),
    count(*) FILTER (WHERE status = 'failed' AND accepted), ifnull(sum(prompt_tokens), 0),
    ifnull(sum(completion_tokens), 0), count(*) FILTER (WHERE cost IS NULL AND (status = 'succeeded' OR lost)),
    count(*) FILTER (WHERE remark = 'empty'), count(*) FILTER (WHERE finish_reason = 'length'),
    count(*) FILTER (WHERE remark = 'refusal'), ifnull(sum(sent), 0), ifnull(sum(lost), 0),
    count(*) FILTER (WHERE cost_source = 'reused'),
    count(*) FILTER (WHERE status = 'failed' AND NOT sent AND cost_source <> 'reused')
FROM input i JOIN outcome o ON o.no = i.no
"""
# Witnesses belong to no row, so to every input.
_COST = """
SELECT o.cost_unit, sum(o.cost), 0, 0 FROM input i JOIN outcome o ON o.no = i.no
    WHERE o.cost IS NOT NULL AND o.cost_source <> 'reused' GROUP BY 1
UNION ALL SELECT cost_unit, sum(cost), 0, 0 FROM attempt WHERE fingerprint = zeroblob(16) GROUP BY 1
UNION ALL SELECT a.cost_unit, sum(a.cost), count(*), sum(a.lost) FROM input i CROSS JOIN attempt a
    ON a.fingerprint = i.fingerprint AND a.custom_id = i.custom_id WHERE EXISTS (SELECT 1 FROM attempt) GROUP BY 1
"""


def totals(db: sqlite3.Connection) -> Totals:
    """Sum up what stands in the journal for the present input; ``cost`` is by unit and includes all attempts."""
    row = db.execute(_TOTALS).fetchone()
    cost: dict[str, float] = {}
    attempts = lost = 0
    for unit, amount, tries, unseen in db.execute(_COST):
        if amount is not None:
            cost[unit] = cost.get(unit, 0.0) + amount
        attempts, lost = attempts + tries, lost + unseen
    return Totals(
        completed=row[0],
        failed=row[1],
        reused=row[11],
        accepted=row[2],
        unsent=row[12],
        prompt_tokens=row[3],
        completion_tokens=row[4],
        cost=cost,
        cost_unknown=row[5],
        empty=row[6],
        cut_off=row[7],
        refusals=row[8],
        attempts=row[9] + attempts,
        lost_attempts=row[10] + lost,
    )


def place_of(db: sqlite3.Connection, number: int) -> tuple[str, str, int]:
    """A row's id, its file and its line there."""
    found: tuple[str, str, int] = db.execute(
        "SELECT i.custom_id, f.path, i.line FROM input i JOIN file f ON f.file = i.file WHERE i.no = ?", (number,)
    ).fetchone()
    return found


def failures(
    db: sqlite3.Connection, name: Callable[[str, str, int], str], *, examples: int = 3
) -> list[tuple[str, int, list[str], str]]:
    """Failed rows grouped by code, most first: (code, how many, some names, one message).

    ``name`` makes a row's name of its id, its file and its line there.
    """
    groups = db.execute(
        "SELECT o.error_code, count(*) FROM input i JOIN outcome o ON o.no = i.no WHERE o.status = 'failed' "
        "GROUP BY 1 ORDER BY 2 DESC"
    ).fetchall()
    found = []
    for code, count in groups:
        rows = db.execute(
            "SELECT i.custom_id, f.path, i.line, o.error_message FROM input i JOIN file f ON f.file = i.file "
            "JOIN outcome o ON o.no = i.no WHERE o.status = 'failed' AND o.error_code = ? LIMIT ?",
            (code, examples),
        ).fetchall()
        found.append((str(code), int(count), [name(*row[:3]) for row in rows], str(rows[0][3])))
    return found


def outages(db: sqlite3.Connection) -> list[dict[str, float | str | None]]:
    """All outages that runs of this journal sat out."""
    rows = db.execute("SELECT started_at, ended_at, cause FROM outage ORDER BY started_at")
    return [{"started_at": row[0], "ended_at": row[1], "cause": row[2]} for row in rows]


def spent(db: sqlite3.Connection) -> float:
    """What all runs of this journal have cost, as far as it is known, rows that are gone or changed included."""
    return float(
        db.execute("SELECT (SELECT total(cost) FROM outcome) + (SELECT total(cost) FROM attempt)").fetchone()[0]
    )


def spent_in(db: sqlite3.Connection, run: int) -> dict[str, dict[str, float]]:
    """What the tries of one run cost, by model and unit, as far as it is known; witnesses included, the dearest first."""
    found: dict[str, dict[str, float]] = {}
    for model, unit, amount in db.execute(
        "SELECT model, cost_unit, sum(cost) FROM (SELECT run, model, cost_unit, cost FROM outcome WHERE cost_source <> 'reused' "
        "UNION ALL SELECT run, model, cost_unit, cost FROM attempt) "
        "WHERE run = ? AND cost IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC",
        (run,),
    ):
        found.setdefault(str(model), {})[str(unit)] = float(amount)
    return found


def seen_models(db: sqlite3.Connection) -> dict[str, set[str]]:
    """Which models have answered under each name, for the rows of the present input that are not done again."""
    seen: dict[str, set[str]] = {}
    for model, served in db.execute(
        "SELECT DISTINCT o.model, o.served_model FROM input i JOIN outcome o ON o.no = i.no "
        "WHERE o.model IS NOT NULL AND o.served_model IS NOT NULL AND NOT o.redo"
    ):
        seen.setdefault(model, set()).add(served)
    return seen


def served_models(db: sqlite3.Connection) -> dict[str, int]:
    """Which model answered how many of the rows."""
    return {
        str(name): int(count)
        for name, count in db.execute(
            "SELECT o.served_model, count(*) FROM input i JOIN outcome o ON o.no = i.no "
            "WHERE o.served_model IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
        )
    }

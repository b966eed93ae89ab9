"""Lost tries: billed perhaps, and nobody saw an answer. What the journal knows of them, and how it learns their cost."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.journal.store import put, transaction


class Lost(NamedTuple):
    """One lost call, of ``rows`` rows: ``custom_id`` is one of them. ``at`` is when it was given up, in Unix time, and
    ``cost`` what it has been found to cost since then; None when that is not known."""

    call_id: str
    custom_id: str
    rows: int
    code: str
    at: float
    cost: float | None
    cost_unit: str


_TRIES = """
SELECT call_id, min(custom_id), count(*), code, max(at), sum(cost), cost_unit FROM (
    SELECT call_id, custom_id, code, at, cost, cost_unit FROM attempt WHERE lost
    UNION ALL SELECT call_id, custom_id, error_code, completed_at, cost, cost_unit FROM outcome WHERE lost)
GROUP BY call_id ORDER BY max(at), call_id
"""
# How the rows of a call share its cost: equally, the lengths of their texts do not stand here.
_SHARE = """
UPDATE {table} SET cost = b.share, cost_unit = 'USD', cost_source = 'gateway' FROM temp.billed b
WHERE {table}.lost AND {table}.cost IS NULL AND b.call_id = {table}.call_id
"""


def tries(db: sqlite3.Connection) -> list[Lost]:
    """All lost tries of this journal, also of rows that are not in the input any more; the oldest first."""
    return list(map(Lost._make, db.execute(_TRIES)))


def price(db: sqlite3.Connection, costs: Mapping[str, float]) -> None:
    """Book what calls cost after all, in USD by call id: a lost try stays one. Results made before are stale then."""
    if not costs:
        return
    rows = {one.call_id: one.rows for one in tries(db)}
    with transaction(db):
        db.execute("CREATE TEMP TABLE billed (call_id TEXT PRIMARY KEY, share REAL NOT NULL) WITHOUT ROWID")
        db.executemany(
            "INSERT INTO temp.billed VALUES (?, ?)",
            [(call_id, cost / rows[call_id]) for call_id, cost in costs.items()],
        )
        for table in ("attempt", "outcome"):
            db.execute(_SHARE.format(table=table))
        db.execute("DROP TABLE temp.billed")
        put(db, "results", "stale")

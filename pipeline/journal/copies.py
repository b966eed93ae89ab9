"""Rows that ask just what another row asks: found before anything is sent, given that row's answer afterwards.

A pending row is a copy when its request has been answered already, or comes earlier in the input. What is found depends
on what is pending, so it is found anew by each run, in tables on disk: memory does not grow with the input. A row that
is to be done again takes only an answer that is younger than that wish: ``outcome.redo`` is the number of the first run
whose answers will do, and a copy keeps the run of the answer it was given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from pipeline.journal.store import transaction
from pipeline.journal.writer import KEEP_REPLACED

BATCH_ROWS = 2_000  # in one transaction: the largest vectors are some 16 kB a row
PENDING = "(o.no IS NULL OR o.redo)"
IS_COPY = "i.no IN (SELECT no FROM temp.copy)"

# Requests of pending rows that come twice, or have been answered: in which run last.
_TWICE = f"""
INSERT INTO temp.twice SELECT fingerprint, ifnull(max(run), -1) FROM (
    SELECT i.fingerprint AS fingerprint, NULL AS run FROM input i LEFT JOIN outcome o ON o.no = i.no WHERE {PENDING}
    UNION ALL SELECT fingerprint, run FROM outcome WHERE NOT redo
) GROUP BY fingerprint HAVING count(*) > 1 AND count(*) > count(run)
"""  # noqa: S608 - PENDING is a constant of this module
_COPY = f"""
INSERT INTO temp.copy SELECT no, file, line FROM (
    SELECT no, file, line, answered, row_number() OVER (PARTITION BY fingerprint, answered ORDER BY place, line) AS nth FROM (
        SELECT i.no AS no, i.file AS file, i.line AS line, f.place AS place, i.fingerprint AS fingerprint,
            t.run >= ifnull(o.redo, 0) AS answered
        FROM input i CROSS JOIN temp.twice t ON t.fingerprint = i.fingerprint JOIN file f ON f.file = i.file
            LEFT JOIN outcome o ON o.no = i.no WHERE {PENDING})
) WHERE answered OR nth > 1 ORDER BY no
"""  # noqa: S608 - PENDING is a constant of this module
_FIND = (
    "DROP TABLE IF EXISTS temp.copy",
    "DROP TABLE IF EXISTS temp.twice",
    "CREATE TEMP TABLE twice (fingerprint BLOB PRIMARY KEY, run INTEGER) WITHOUT ROWID",
    "CREATE TEMP TABLE copy (no INTEGER PRIMARY KEY, file INTEGER, line INTEGER)",
    _TWICE,
    _COPY,
)

_SOURCES = (
    "DROP TABLE IF EXISTS temp.source",
    "DROP TABLE IF EXISTS temp.given",
    "CREATE TEMP TABLE source (fingerprint BLOB, succeeded INTEGER, run INTEGER, no INTEGER, "
    "PRIMARY KEY (fingerprint, succeeded, run)) WITHOUT ROWID",
    "CREATE TEMP TABLE given (no INTEGER PRIMARY KEY, custom_id TEXT, source INTEGER)",
    "INSERT INTO temp.source SELECT fingerprint, status = 'succeeded', run, max(no) FROM outcome "
    "WHERE NOT redo AND fingerprint IN (SELECT fingerprint FROM temp.twice) GROUP BY 1, 2, 3",
)
_CHOOSE = """
INSERT INTO temp.given SELECT i.no, i.custom_id, (
    SELECT s.no FROM temp.source s WHERE s.fingerprint = i.fingerprint AND s.run >= ifnull(o.redo, 0)
    ORDER BY s.succeeded DESC, s.run DESC LIMIT 1)
FROM temp.copy c CROSS JOIN input i ON i.file = c.file AND i.line = c.line LEFT JOIN outcome o ON o.no = i.no
WHERE c.no BETWEEN ? AND ?
"""
# A copy took neither tokens nor money; a row that could not be sent at all was spared nothing.
_NOTHING = "iif(s.sent OR s.cost_source = 'reused', 0, NULL)"
_GIVE = (
    "DELETE FROM reply WHERE no IN (SELECT no FROM temp.given)",
    f"""
INSERT OR REPLACE INTO outcome (no, custom_id, fingerprint, status, error_code, error_message, model, served_model,
    finish_reason, remark, prompt_tokens, completion_tokens, cached_tokens, reasoning_tokens, usage_estimated, cost,
    cost_unit, cost_source, sent, lost, request_id, completed_at, run, accepted)
SELECT g.no, g.custom_id, s.fingerprint, s.status, s.error_code, s.error_message, s.model, s.served_model,
    s.finish_reason, s.remark, {_NOTHING}, {_NOTHING}, {_NOTHING}, {_NOTHING}, 0, {_NOTHING},
    s.cost_unit, iif({_NOTHING} = 0, 'reused', 'unknown'), 0, 0, s.request_id, s.completed_at, s.run, s.accepted
FROM temp.given g CROSS JOIN outcome s ON s.no = g.source
""",  # noqa: S608 - _NOTHING is a constant of this module
    "INSERT INTO reply (no, body, form, crc) SELECT g.no, r.body, r.form, r.crc FROM temp.given g CROSS JOIN reply r ON r.no = g.source",
)


class Given(NamedTuple):
    """How many copies got an answer, or an error, that is on disk."""

    succeeded: int
    failed: int


def find(db: sqlite3.Connection) -> int:
    """Find the copies among the pending rows; returns how many. They are known to this connection only."""
    for statement in _FIND:
        db.execute(statement)
    return int(db.execute("SELECT count(*) FROM temp.copy").fetchone()[0])


def is_copy(db: sqlite3.Connection, no: int) -> bool:
    """Whether the row of this number is one of the copies that were found."""
    return db.execute("SELECT 1 FROM temp.copy WHERE no = ?", (no,)).fetchone() is not None


def give(db: sqlite3.Connection) -> Iterator[Given]:
    """Give the copies that were found the answer to their request, where there is one now; each batch is durable."""
    with transaction(db):
        for statement in _SOURCES:
            db.execute(statement)
    last = 0
    while batch := db.execute(
        "SELECT no FROM temp.copy WHERE no > ? ORDER BY no LIMIT ?", (last, BATCH_ROWS)
    ).fetchall():
        (first,), (last,) = batch[0], batch[-1]
        with transaction(db):
            given = _given(db, first, last)
        yield given


def _given(db: sqlite3.Connection, first: int, last: int) -> Given:
    db.execute("DELETE FROM temp.given")
    db.execute(_CHOOSE, (first, last))
    db.execute("DELETE FROM temp.given WHERE source IS NULL")
    db.executemany(KEEP_REPLACED, db.execute("SELECT no FROM temp.given").fetchall())
    for statement in _GIVE:
        db.execute(statement)
    return Given._make(
        db.execute(
            "SELECT count(*) FILTER (WHERE status = 'succeeded'), count(*) FILTER (WHERE status = 'failed') "
            "FROM temp.given CROSS JOIN outcome USING (no)"
        ).fetchone()
    )

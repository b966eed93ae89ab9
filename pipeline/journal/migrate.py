"""Journals of older versions: raised for good when a run opens them, seen as if they were by those who only read.

A step adds what a version brought, and leaves what is there as it is: it is over at once, however many replies there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

# By the version they lead to. The old rows of a new column are null: what was never known is unknown.
_RAISE = {2: ("ALTER TABLE reply ADD COLUMN crc INTEGER",)}
# A temporary name hides the table's own. It goes on to hold when a run raises the journal meanwhile.
_SEE = {2: ("CREATE TEMP VIEW reply AS SELECT no, body, form, NULL AS crc FROM main.reply",)}


def raised(db: sqlite3.Connection, version: int) -> None:
    """Raise the journal to ``version``: all of the way or, when that is cut off, not at all. The caller holds the folder's lock."""
    db.execute("BEGIN IMMEDIATE")
    try:
        for statement in _steps(db, _RAISE, version):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {version:d}")
        db.execute("COMMIT")
    finally:
        if db.in_transaction:
            db.execute("ROLLBACK")


def seen(db: sqlite3.Connection, version: int) -> None:
    """Have this connection see the journal as one of ``version``; nothing is written."""
    for statement in _steps(db, _SEE, version):
        db.execute(statement)


def _steps(db: sqlite3.Connection, steps: Mapping[int, tuple[str, ...]], version: int) -> list[str]:
    known = db.execute("PRAGMA user_version").fetchone()[0]
    return [statement for step in range(known + 1, version + 1) for statement in steps[step]]

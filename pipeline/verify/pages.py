"""The journal as a file: SQLite's own checks, and whether it is made as journals are."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from pipeline.journal import store
from pipeline.verify.report import MOST_OF_A_CHECK, Proof

_BEFORE = {"table reply": [("crc", "INTEGER")]}  # columns that journals of earlier versions lack


def unsound_pages(db: sqlite3.Connection, proof: Proof) -> Iterator[str]:
    """What SQLite finds wrong with its pages, indexes and constraints."""
    proof.counted("pages of the journal", int(db.execute("PRAGMA page_count").fetchone()[0]))
    for (text,) in db.execute(f"PRAGMA integrity_check({MOST_OF_A_CHECK + 1:d})"):
        if text != "ok":
            yield f"the journal's file is damaged ({' '.join(str(text).split())[:200]})"


def unlike_a_journal(db: sqlite3.Connection) -> Iterator[str]:
    """Tables, columns and indexes that lack, or that do not belong there."""
    wanted, found = store.present_schema(), store.schema_of(db)
    old = db.execute("PRAGMA main.user_version").fetchone()[0] < store.VERSION
    for name, columns in wanted.items():
        may_lack = _BEFORE.get(name, []) if old else []
        have = found.pop(name, None)
        if have is None:
            yield f"the journal has no {name}"
        elif have not in (columns, [column for column in columns if column not in may_lack]):
            yield f"the {name} of the journal has other columns than it should"
    for name in found:
        yield f"the journal has a {name} that is none of pipeline's"

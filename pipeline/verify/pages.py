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


_KINDS = {"INTEGER": "'integer'", "REAL": "'real', 'integer'", "TEXT": "'text'", "BLOB": "'blob'"}
_FACTS = frozenset({"id_column", "input", "job", "linked", "output", "results", "spec"})
_OF_THE_JOB = (  # what the journal says twice
    "SELECT m.key, m.value FROM meta m JOIN meta j ON j.key = 'job' WHERE m.key IN ('input', 'output') "
    "AND m.value <> json_extract(j.value, '$.' || m.key || '.path')"
)


def unlike_its_kinds(db: sqlite3.Connection) -> Iterator[str]:
    """Values of another kind than their column's, and facts about the whole that nobody wrote."""
    for name, columns in store.present_schema().items():
        if name.startswith("table "):
            odd = " OR ".join(f"typeof({column}) NOT IN ('null', {_KINDS[kind]})" for column, kind in columns)
            if db.execute(f"SELECT EXISTS (SELECT 1 FROM {name.removeprefix('table ')} WHERE {odd})").fetchone()[0]:  # noqa: S608 - names of the schema
                yield f"the {name} of the journal has a value of another kind than its column's"
    for (key,) in db.execute("SELECT key FROM meta").fetchall():
        if key not in _FACTS:
            yield f"the journal says {key!r}, which is none of pipeline's words"
    for key, value in db.execute(_OF_THE_JOB).fetchall():
        yield f"the journal has {value!r} for its {key}, and its job another one"


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

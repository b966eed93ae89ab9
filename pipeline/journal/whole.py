"""Whether a journal is whole: it has all that was shown as done, and its pages fit together.

One that is not was copied while a run worked, lost its -wal, or is an older copy in the place of a newer one. To go on
with it would buy again what it lacks.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from pipeline.errors import DamagedError
from pipeline.journal.store import APPLICATION_ID, is_shared, sentences, way_to_read

_COPY = "If this is a copy, make it again when no run works, of the whole folder with its journal.sqlite-wal"


def check_kept(path: Path, shown: int, db: sqlite3.Connection | None = None) -> None:
    """Raises ``DamagedError`` when the journal at ``path`` has fewer rows done than the ``shown`` ones.

    Without ``db`` it is only looked at, before anybody makes one where none is; not across a network, where a second
    connection is none of ours: there the one that is open is asked.
    """
    if not shown or (db is None and not is_shared(path)):
        return
    with sentences(path):
        kept = _outcomes(path) if db is None else int(db.execute("SELECT count(*) FROM outcome").fetchone()[0])
    if kept is not None and kept < shown:
        raise DamagedError(
            f"the journal {path} is not whole: {shown:,} rows were done as status.json beside it says, the journal has {kept:,}. "
            f"{_COPY}. To send again, and pay again, what is lost: --accept-changes"
        )


def check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Raises ``DamagedError`` when pages do not fit together: what a copy of a file that is written to may be."""
    with sentences(path):
        text = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        odd = db.execute("SELECT count(*) FROM reply WHERE no NOT IN (SELECT no FROM outcome)").fetchone()[0]
    if text != "ok" or odd:
        why = " ".join(text.split())[:200] if text != "ok" else f"{odd:,} answers without their rows"
        raise DamagedError(f"the journal {path} is damaged ({why}). {_COPY}; or start anew with another --run-dir")


def _outcomes(path: Path) -> int | None:
    """How many rows are done; None for a file that is something else, for others to say so."""
    if not path.is_file():
        return None if path.exists() else 0
    where = f"{path.resolve().as_uri()}?{way_to_read(path, shared=True)}"
    with closing(sqlite3.connect(where, uri=True, timeout=5)) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if "outcome" in tables:
            return int(db.execute("SELECT count(*) FROM outcome").fetchone()[0])
        ours = db.execute("PRAGMA application_id").fetchone()[0] in (0, APPLICATION_ID)
        return 0 if ours and not tables else None

"""Whether a journal is whole: it has all that was shown as done, and its pages fit together.

One that is not was copied while a run worked, lost its -wal, or is an older copy in the place of a newer one. To go on
with it would buy again what it lacks.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from pipeline.errors import DamagedError
from pipeline.ground.wording import plural
from pipeline.journal.store import sentences

ANSWERS_WITHOUT_ROWS = "FROM reply r WHERE NOT EXISTS (SELECT 1 FROM outcome o WHERE o.no = r.no)"
_COPY = "If this is a copy, make it again when no run works, of the whole folder with its journal.sqlite-wal"


def check_kept(path: Path, shown: int, db: sqlite3.Connection | None) -> None:
    """Raises ``DamagedError`` when the journal at ``path`` has fewer rows done than the ``shown`` ones; ``db`` None: it is not there."""
    if not shown:
        return
    kept = 0
    if db is not None:
        with sentences(path):
            kept = int(db.execute("SELECT count(*) FROM outcome").fetchone()[0])
    if kept < shown:
        raise DamagedError(
            f"the journal {path} is not whole: {plural(shown, 'row was', 'rows were')} done as status.json beside it says, the journal has {kept:,}. "
            f"{_COPY}. To send again, and pay again, what is lost: --accept-changes"
        )


def check_pages(db: sqlite3.Connection, path: Path) -> None:
    """Raises ``DamagedError`` when pages do not fit together: what a copy of a file that is written to may be."""
    with sentences(path):
        text = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
        odd = db.execute(f"SELECT count(*) {ANSWERS_WITHOUT_ROWS}").fetchone()[0]
    if text != "ok" or odd:
        why = (
            " ".join(text.split())[:200]
            if text != "ok"
            else plural(odd, "answer without its row", "answers without their rows")
        )
        raise DamagedError(f"the journal {path} is damaged ({why}). {_COPY}; or start anew with another --run-dir")

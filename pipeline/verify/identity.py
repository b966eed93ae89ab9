"""The index against the input, row by row, and the outcomes against the index: one outcome a row, of that identity."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from pipeline.errors import InputError
from pipeline.journal import whole
from pipeline.source import InputFile, chunks, place
from pipeline.verify.report import Proof
from pipeline.workspace import Workspace
from pipeline.workspace.feed import mark_of

_INDEXED = (
    "SELECT line, custom_id, fingerprint FROM input WHERE file = (SELECT file FROM file WHERE path = ?) ORDER BY line"
)


def unlike_the_index(space: Workspace, proof: Proof | None = None) -> Iterator[str]:
    """What of the input is not as it was when it was indexed, down to each row's id and fingerprint."""
    marks = dict(space.journal.db.execute("SELECT path, mark FROM file"))
    for file in space.files:
        known = marks.pop(str(file.path), None)
        if known is None:
            yield f"{file.path} is new since the last run"
            continue
        changed = "" if known == mark_of(file) else "; the file was changed since the last run"
        try:
            for finding in _unlike_the_file(space, file, proof):
                yield finding + changed
        except InputError as exc:
            yield f"{exc}{changed}"
    for path in marks:
        yield f"{path} was part of the input and is gone"


def _unlike_the_file(space: Workspace, file: InputFile, proof: Proof | None) -> Iterator[str]:
    """Both are walked side by side, in the order of their lines."""
    indexed = space.journal.db.execute(_INDEXED, (str(file.path),))
    known = indexed.fetchone()
    for chunk in chunks(file):
        for line, data in chunk.rows():
            while known is not None and known[0] < line:
                yield f"{place(file, known[0])} was indexed and is not there"
                known = indexed.fetchone()
            if known is None or known[0] > line:
                yield f"{file.path}:{line} is not in the index"
                continue
            custom_id, fingerprint = space.feed.identity(file.path.parent, data)
            if known[2] != fingerprint or not _is_named(known[1], custom_id, fingerprint):
                yield f"{file.path}:{line} is not the row that was indexed there"
            known = indexed.fetchone()
        if proof is not None:
            proof.counted("rows of the input", chunk.last - chunk.first + 1)
    while known is not None:
        yield f"{place(file, known[0])} was indexed and is not there"
        known = indexed.fetchone()


def _is_named(indexed: str, custom_id: str | None, fingerprint: bytes) -> bool:
    """Without an id, a row is called by its fingerprint, and by how many there were."""
    if custom_id is not None:
        return indexed == custom_id
    digest, _, count = indexed.rpartition("-")
    return digest == fingerprint.hex() and count.isdecimal()


_DOUBTS = (
    (
        "the id {!r} stands {} times in the index",
        "SELECT custom_id, count(*) FROM input GROUP BY custom_id HAVING count(*) > 1",
    ),
    (
        "the rows {!r} and {!r} share one outcome",
        "SELECT min(custom_id), max(custom_id) FROM input GROUP BY no HAVING count(*) > 1",
    ),
    (
        "the outcome of {!r} is that of another row",
        "SELECT i.custom_id FROM input i JOIN outcome o ON o.no = i.no "
        "WHERE o.custom_id <> i.custom_id OR o.fingerprint <> i.fingerprint",
    ),
    (
        "the row {!r} has {} outcomes",
        "SELECT custom_id, count(*) FROM outcome GROUP BY custom_id, fingerprint HAVING count(*) > 1",
    ),
    (
        "the answer of {!r} is missing from the journal",
        "SELECT custom_id FROM outcome o WHERE status = 'succeeded' AND NOT EXISTS (SELECT 1 FROM reply r WHERE r.no = o.no)",
    ),
    (
        "the journal has the answer of a row (its number {}), but not that row's outcome",
        f"SELECT no {whole.ANSWERS_WITHOUT_ROWS}",
    ),
    (
        "the index has {1} rows of {0}, its own count is {2}",
        "SELECT f.path, count(i.line), f.rows FROM file f LEFT JOIN input i ON i.file = f.file GROUP BY f.file HAVING count(i.line) <> f.rows",
    ),
)


def not_one_outcome_a_row(db: sqlite3.Connection) -> Iterator[str]:
    """Rows and outcomes that do not belong together one to one."""
    for words, query in _DOUBTS:
        for found in db.execute(query):
            yield words.format(*found)

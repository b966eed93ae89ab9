"""Proves on a run folder that its promises were kept: every finding is a sentence; none means that all holds."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import InputError, LockedError, RowError
from pipeline.feed import mark_of
from pipeline.journal import Lock
from pipeline.records import Row
from pipeline.source import InputFile, chunks
from pipeline.workspace import Workspace, opened_for_reading

MOST_FINDINGS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What ``verify`` looked at and found. ``pending`` rows are no finding: the run is just not over."""

    rows: int
    pending: int
    checked: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def verify(folder: Path, *, input_path: str | None = None) -> Report:
    """Check the journal's integrity, the index against the input, outcomes against rows, and the results file."""
    if Lock(folder).is_held():
        raise LockedError(f"a run works in {folder} now: verify it when it has ended")
    findings: list[str] = []
    with opened_for_reading(folder, input_path=input_path) as space:
        findings += _integrity(space)
        findings += unlike_the_index(space)
        findings += _twice(space)
        pending = _pending(space)
        if pending == 0:
            findings += _unlike_the_results(space)
        rows = space.journal.index().rows()
    checked = ["journal integrity", "index against input", "one outcome a row"]
    if pending == 0:
        checked.append("results against journal")
    return Report(rows=rows, pending=pending, checked=checked, findings=findings[:MOST_FINDINGS])


def _integrity(space: Workspace) -> Iterator[str]:
    for (text,) in space.journal.db.execute("PRAGMA integrity_check"):
        if text != "ok":
            yield f"the journal is damaged: {text}"
    left = space.journal.db.execute("SELECT count(*) FROM run WHERE ended_at IS NULL").fetchone()[0]
    if left:
        yield "the last run was killed: run the same command again, it names what was in flight"


def unlike_the_index(space: Workspace) -> Iterator[str]:
    """What of the input is not as it was when it was indexed, down to single rows."""
    marks = dict(space.journal.db.execute("SELECT path, mark FROM file"))
    for file in space.files:
        known = marks.pop(str(file.path), None)
        if known is None:
            yield f"{file.path} is new since the last run"
        elif known != mark_of(file):
            yield f"{file.path} was changed since the last run"
        else:
            yield from _unlike_the_file(space, file)
    for path in marks:
        yield f"{path} was part of the input and is gone"


def _unlike_the_file(space: Workspace, file: InputFile) -> Iterator[str]:
    indexed = dict(
        space.journal.db.execute(
            "SELECT line, fingerprint FROM input WHERE file = (SELECT file FROM file WHERE path = ?)", (str(file.path),)
        )
    )
    for chunk in chunks(file):
        for line, data in chunk.rows():
            row = Row(custom_id=None, index=line, data=data)
            try:
                fingerprint = space.template.compose(row, file.path.parent, whole=False).fingerprint
            except RowError as error:
                fingerprint = space.template.fingerprint_of_error(row, error)
            if indexed.pop(line, None) != fingerprint:
                yield f"{file.path}:{line} is not the row that was indexed there"
    for line in indexed:
        yield f"{file.path}:{line} was indexed and is not there"


def _twice(space: Workspace) -> Iterator[str]:
    for custom_id, count in space.journal.db.execute(
        "SELECT custom_id, count(*) FROM input GROUP BY custom_id HAVING count(*) > 1"
    ):
        yield f"the id {custom_id!r} stands {count} times in the index"
    for custom_id in space.journal.db.execute(
        "SELECT i.custom_id FROM input i JOIN outcome o ON o.no = i.no "
        "WHERE o.custom_id <> i.custom_id OR o.fingerprint <> i.fingerprint"
    ):
        yield f"the outcome of {custom_id[0]!r} is that of another row"
    for custom_id in space.journal.db.execute(
        "SELECT i.custom_id FROM input i JOIN outcome o ON o.no = i.no LEFT JOIN reply r ON r.no = i.no "
        "WHERE o.status = 'succeeded' AND r.no IS NULL"
    ):
        yield f"the answer of {custom_id[0]!r} is missing from the journal"


def _pending(space: Workspace) -> int:
    return space.journal.index().counts(has_ids=space.id_column is not None).pending


def _unlike_the_results(space: Workspace) -> Iterator[str]:
    path = space.job.output.path
    if not path.exists():
        yield f"all rows are done, but {path} is not there: run the same command again, or export it"
        return
    if space.job.output_format == "batch":
        return
    prefix = space.job.output.prefix
    names = [prefix + "custom_id", prefix + "status", prefix + "fingerprint"]
    file = InputFile(path=path, format=space.job.output_format)
    try:
        yield from _unlike(path, _result_rows(file, names), _expected(space.journal.db))
    except InputError as exc:
        yield f"the results cannot be read: {exc}. Export them again, or delete the file and run the same command"


def _unlike(path: Path, found: Iterator[tuple[str, ...]], expected: Iterator[tuple[str, ...]]) -> Iterator[str]:
    count = 0
    for row in found:
        count += 1
        want = next(expected, None)
        if want is None:
            yield f"{path} has more rows than the input"
            return
        if row != want:
            yield f"{path} row {count} is {row}, the journal says {want}"
            return
    if next(expected, None) is not None:
        yield f"{path} ends after {count:,} rows, the input has more"


def _expected(db: sqlite3.Connection) -> Iterator[tuple[str, ...]]:
    for custom_id, status, fingerprint in db.execute(
        "SELECT i.custom_id, o.status, i.fingerprint FROM file f JOIN input i ON i.file = f.file "
        "JOIN outcome o ON o.no = i.no ORDER BY f.place, i.line"
    ):
        yield custom_id, status, fingerprint.hex()


def _result_rows(file: InputFile, names: list[str]) -> Iterator[tuple[str, ...]]:
    for chunk in chunks(file, columns=names):
        for _, record in chunk.rows():
            yield tuple(str(record.get(name)) for name in names)

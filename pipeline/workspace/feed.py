"""The input as a run meets it: walked once for the index, once for what is pending, once for the results.

The index pass reads every row, composes its request and keeps only line, id and fingerprint; so duplicate ids and bad
lines are found before anything is sent, and memory does not grow with the input.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import IncompleteError, InputError, RowError
from pipeline.ground.visible import listed
from pipeline.journal import Index, Journal
from pipeline.journal.index import IndexRow
from pipeline.records import Outcome, Request, Row
from pipeline.sink import Stretch
from pipeline.source import InputFile, chunks, column_names, place
from pipeline.template import Composed, Template

SLICE_ROWS = 32  # composed at a time on the loop: well under a millisecond
BAD_LINES_SHOWN = 10
MOST_COLUMNS = 100_000
TOO_MANY = (
    f"the rows up to here have more than {MOST_COLUMNS:,} different keys; what differs from row to row is a value"
)
Pending = dict[int, tuple[int, str, bytes]]


class Feed:
    """One job's input files and template over its journal."""

    def __init__(self, journal: Journal, files: list[InputFile], template: Template, *, id_column: str | None) -> None:
        self._journal = journal
        self._files = files
        self._template = template
        self._id_column = id_column

    # the index pass

    def index(self, spec: str, *, tick: Callable[[int], None]) -> Index:
        """Bring the journal's index up to date with the input; ``tick`` is told the rows read so far, and may raise.

        Raises ``InputError`` for bad lines (up to ten are named) and duplicate ids (both places are).
        """
        index = self._journal.index()
        index.begin(spec, [str(file.path) for file in self._files])
        self._read = 0
        for number, file in enumerate(self._files):
            mark = mark_of(file)
            if index.is_current(str(file.path), mark) and self._template.images is None:  # those are other files
                continue
            problems: list[InputError] = []
            columns: dict[str, None] = {}
            rows = self._index_rows(file, problems, columns, tick)
            index.replace_file(str(file.path), number, mark, rows, columns.keys())
        if index.is_linked:
            return index
        if self._id_column is not None and (twice := index.duplicates()):
            raise InputError(self._duplicate_ids(twice))
        index.link(id_column=self._id_column)
        return index

    def _index_rows(
        self, file: InputFile, problems: list[InputError], columns: dict[str, None], tick: Callable[[int], None]
    ) -> Iterator[IndexRow]:
        seen: Any = None
        folder = file.path.parent
        for chunk in chunks(file):
            for line, data in chunk.rows(on_error=problems.append):
                if data.keys() != seen:
                    seen = data.keys()
                    columns.update(dict.fromkeys(data))
                    if len(columns) > MOST_COLUMNS:
                        raise InputError(f"{place(file, line)}: {TOO_MANY}")
                try:
                    yield line, *self.identity(folder, data)
                except InputError as exc:
                    problems.append(InputError(f"{place(file, line)}: {exc}"))
                self._read += 1
            if len(problems) >= BAD_LINES_SHOWN:
                break
            tick(self._read)
        if problems:
            raise bad_lines(problems)

    def identity(self, folder: Path, data: dict[str, Any]) -> tuple[str | None, bytes]:
        """Id and fingerprint of one row of a file in ``folder``. Raises ``InputError`` for a bad line, or an id that is none."""
        custom_id = None if self._id_column is None else _id_of(data, self._id_column)
        return custom_id, self._template.fingerprint(data, folder)

    def _duplicate_ids(self, twice: list[Any]) -> str:
        by_path = {str(file.path): file for file in self._files}
        lines = [
            f"{place(by_path[two.second[0]], two.second[1])}: the id {two.custom_id!r} stands already at "
            f"{place(by_path[two.first[0]], two.first[1])}"
            for two in twice
        ]
        return "\n".join(
            [*lines, f"ids must be unique in the column {self._id_column!r}; or leave out input.id (--id)"]
        )

    # what is pending

    async def items(
        self, index: Index, *, most: int | None = None, sample: bool = False
    ) -> AsyncGenerator[list[Request | Outcome], None]:
        """The pending rows in input order, a few at a time; a row that cannot become a request comes as its outcome.

        ``most`` limits them to so many: the first ones, or with ``sample`` some at random.
        """
        only = index.sample(most) if sample and most is not None else None
        left = most
        pending_files = set(index.pending_files())
        for file in self._files:
            if str(file.path) not in pending_files:
                continue
            reader, last = chunks(file), 0
            with _as_indexed(index, file):
                while (chunk := await asyncio.to_thread(next, reader, None)) is not None:
                    wanted = index.pending(str(file.path), chunk.first, chunk.last)
                    lines = sorted(line for line, row in wanted.items() if only is None or row[0] in only)[:left]
                    last = chunk.last
                    if self._template.images is None:
                        for at in range(0, len(lines), SLICE_ROWS):
                            yield self._slice(file, chunk, lines[at : at + SLICE_ROWS], wanted)
                    else:  # large, and read from files
                        for line in lines:
                            yield await asyncio.to_thread(self._slice, file, chunk, [line], wanted)
                    if left is not None:
                        left -= len(lines)
                        if left <= 0:
                            return
                if index.is_pending_after(str(file.path), last):
                    raise _changed(f"{place(file, last + 1)} and what followed it went")

    def _slice(self, file: InputFile, chunk: Any, lines: Sequence[int], wanted: Pending) -> list[Request | Outcome]:
        items: list[Request | Outcome] = []
        folder = file.path.parent
        for line, data in chunk.rows(frozenset(lines)):
            number, custom_id, fingerprint = wanted[line]
            row = Row(custom_id=custom_id, index=line, data=data)
            try:
                composed: Composed | None = self._template.compose(row, folder)
            except RowError as error:
                if self._template.fingerprint_of_error(data, error) == fingerprint:
                    items.append(_failed(row, number, fingerprint, error))
                    continue
                composed = None
            if composed is None or composed.fingerprint != fingerprint:
                raise _changed(f"{place(file, line)} changed")
            items.append(_request(row, number, composed))
        if len(items) < len(lines):
            raise _changed(f"a row of {place(file, lines[0])} to {lines[-1]} went")
        return items

    # the results

    def stretches(self, columns: Sequence[str] | None) -> Iterator[Stretch]:
        """The whole input again, with only these columns where that saves work; none at all for an empty list.

        Raises ``IncompleteError`` for a file that is no longer as it was indexed: its answers would stand beside other data.
        """
        if columns is not None and not columns:
            return
        index = self._journal.index()
        for file in self._files:
            _check_current(index, file)
            for chunk in chunks(file, columns=_present(file, columns)):
                yield Stretch(path=str(file.path), first=chunk.first, last=chunk.last, chunk=chunk)
            _check_current(index, file)


def _present(file: InputFile, columns: Sequence[str] | None) -> Sequence[str] | None:
    """Those of the columns that a Parquet file has; the files of one input need not have the same."""
    if columns is None or file.format != "parquet":
        return columns
    names = set(column_names(file) or ())
    return [name for name in columns if name in names]


def _check_current(index: Index, file: InputFile) -> None:
    if not index.is_current(str(file.path), mark_of(file)):
        raise IncompleteError(
            f"the input {file.path} is no longer what it was when the run began: run the same command again"
        )


@contextmanager
def _as_indexed(index: Index, file: InputFile) -> Iterator[None]:
    """What cannot be read although it could be indexed: the file may be another one by now, and then that is what to say."""
    try:
        yield
    except InputError:
        _check_current(index, file)
        raise


def _changed(what: str) -> IncompleteError:
    return IncompleteError(f"{what} while the run was reading it: run the same command again")


def _request(row: Row, number: int, composed: Composed) -> Request:
    return Request(
        custom_id=row.custom_id or "",
        index=number,
        endpoint=composed.endpoint,
        model=composed.model,
        body=composed.body,
        fingerprint=composed.fingerprint,
        estimated_tokens=composed.estimated_tokens,
        image_bytes=composed.image_bytes,
    )


def _failed(row: Row, number: int, fingerprint: bytes, error: RowError) -> Outcome:
    return Outcome(
        custom_id=row.custom_id or "",
        index=number,
        fingerprint=fingerprint,
        status="failed",
        error_code=error.code,
        error_message=error.message,
        completed_at=time.time(),
        sent=False,
    )


def _id_of(data: dict[str, Any], column: str) -> str:
    if column not in data:
        raise InputError(f"there is no column {column!r} for the id; the columns are: {listed(data)}")
    value = data[column]
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    kinds = {bool: "true or false", float: f"the number {value}", list: "a list", dict: "an object"}
    found = "null" if value is None else "empty" if value == "" else kinds.get(type(value), type(value).__name__)
    raise InputError(f"the id column {column!r} is {found}; an id is text or a whole number")


def bad_lines(problems: Sequence[InputError]) -> InputError:
    """The first of them as one error."""
    lines = [str(problem) for problem in problems[:BAD_LINES_SHOWN]]
    if len(problems) >= BAD_LINES_SHOWN:
        lines.append(f"these are the first {BAD_LINES_SHOWN}; there may be more")
    return InputError("\n".join(lines))


def mark_of(file: InputFile) -> str:
    """Tells one state of a file from another without reading it. Raises ``InputError`` when it is gone."""
    try:
        stat = file.path.stat()
    except OSError as exc:
        raise InputError(f"{file.path}: {exc.strerror}") from exc
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"

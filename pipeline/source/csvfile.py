"""CSV and TSV: a header, then records whose cells are all text ("001" stays "001")."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pipeline.errors import InputError
from pipeline.ground.jsonio import utf8
from pipeline.ground.visible import listed
from pipeline.ground.wording import plural
from pipeline.source.file import InputFile, OnError, place, refuse, shown
from pipeline.source.lines import BLOCK, MAX_LINE_BYTES, blocks

Record = tuple[int, list[str] | InputError]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordChunk:
    """Consecutive records, each with the line it starts on; what csv refused is kept as its error."""

    file: InputFile
    names: list[str]
    records: list[Record]
    batch: None = None

    @property
    def first(self) -> int:
        """The line the first record starts on."""
        return self.records[0][0]

    @property
    def last(self) -> int:
        """The line the last record starts on."""
        return self.records[-1][0]

    def rows(
        self, wanted: Collection[int] | None = None, *, on_error: OnError | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and cells by column name."""
        for index, cells in self.records:
            if wanted is not None and index not in wanted:
                continue
            if isinstance(cells, InputError):
                refuse(cells, on_error, cells.__cause__)
            elif len(cells) != len(self.names):
                refuse(self._miscounted(index, len(cells)), on_error)
            else:
                yield index, dict(zip(self.names, cells, strict=True))

    def _miscounted(self, index: int, found: int) -> InputError:
        sign = "tab" if self.file.delimiter == "\t" else "comma"
        return InputError(
            f"{place(self.file, index)}: found {plural(found, 'cell')}, expected {len(self.names)} as in the header;"
            f" a cell with a {sign}, a quote or a line break in it must be quoted"
        )


def chunks(file: InputFile, *, size: int, start: int, max_line_bytes: int) -> Iterator[RecordChunk]:
    """At most ``size`` records and about a MiB of text each, from the record that starts on line ``start`` or later."""
    with _opened(file, max_line_bytes) as (feed, names, records):
        held: list[Record] = []
        weight = 0
        for record in records:
            if record[0] < start:
                continue
            held.append(record)
            weight += feed.weight
            if len(held) >= size or weight >= BLOCK:
                yield RecordChunk(file=file, names=names, records=held)
                held, weight = [], 0
        if held:
            yield RecordChunk(file=file, names=names, records=held)


def column_names(file: InputFile) -> list[str]:
    """The header's cells."""
    with _opened(file, MAX_LINE_BYTES) as (_, names, _):
        return names


class _Feed:
    """Decoded lines for csv.reader; keeps those of the record at hand, to tell where a quote was opened."""

    def __init__(self, lines: Iterator[bytes], limit: int) -> None:
        self._lines = lines
        self.limit = limit
        self.line = 0
        self.start = 1
        self.weight = 0
        self.record = bytearray()  # as bytes: a line of text takes 50 more
        self.last = b""
        self._opening: bytes | None = None
        self.ended = False

    def begin(self) -> bool:
        """Go to the next record, over the blank lines before it; False when there is none."""
        self.weight = 0
        self.record.clear()
        for line in self._lines:
            if line and line != b"\r":
                self._opening, self.start = line, self.line + 1
                return True
            self.line += 1
        return False

    def __iter__(self) -> _Feed:
        return self

    def __next__(self) -> str:
        raw, self._opening = self._opening, None
        if raw is None and (raw := next(self._lines, None)) is None:
            self.ended = True
            raise StopIteration
        self.line += 1
        self.weight += len(raw) + 1
        if self.weight > self.limit:
            raise ValueError("too long a record")
        if b"\0" in raw:
            raise ValueError("found a NUL byte, expected text; save the file as UTF-8 text")
        self.last = raw
        self.record += raw
        self.record += b"\n"
        return utf8(raw) + "\n"


@contextmanager
def _opened(file: InputFile, limit: int) -> Iterator[tuple[_Feed, list[str], Iterator[Record]]]:
    # The csv module keeps this limit for the whole process, 128 KiB unless told; ours is _Feed's.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    with closing(blocks(file, max_line_bytes=limit)) as some:
        feed = _Feed(chain.from_iterable(some), limit)
        records = _records(file, feed)
        yield feed, _header(file, records), records


def _records(file: InputFile, feed: _Feed) -> Iterator[Record]:
    reader = csv.reader(feed, delimiter=file.delimiter, strict=True)
    while feed.begin():
        try:
            cells = next(reader, None)
        except (csv.Error, ValueError) as exc:  # the reader starts afresh with the next line
            problem = InputError(_words(file, feed, exc))
            problem.__cause__ = exc
            if feed.weight > feed.limit:
                raise problem from exc  # what follows is that cell's, too
            yield feed.start, problem
        else:
            if cells:
                yield feed.start, cells


def _words(file: InputFile, feed: _Feed, exc: Exception) -> str:
    if isinstance(exc, ValueError):
        if feed.weight > feed.limit:
            opened = feed.start + _open_quote_line(feed.record, file.delimiter)
            return f"{place(file, opened)}: the record from here on is over {feed.limit:,} bytes; is a quote left open?"
        return f"{place(file, feed.line)}: {exc}"
    if feed.ended:
        opened = feed.start + _open_quote_line(feed.record, file.delimiter)
        return f'{place(file, opened)}: the quote opened on this line is never closed; end the cell with a "'
    if b"\r" in feed.last.rstrip(b"\r"):
        return f"{place(file, feed.line)}: a carriage return inside the line; line ends must be LF or CRLF"
    return f'{place(file, feed.line)}: text after a cell\'s closing quote; inside a quoted cell, write a quote as ""'


def _open_quote_line(record: bytes | bytearray, delimiter: str) -> int:
    """How many lines into the record its unclosed cell starts: after the last whole cell."""
    cell = re.compile(rf'(?:"(?:[^"]|"")*+"|(?!")[^{delimiter}\n]*+){delimiter}'.encode())
    at = 0
    while match := cell.match(record, at):
        at = match.end()
    return record.count(b"\n", 0, at)


def _header(file: InputFile, records: Iterator[Record]) -> list[str]:
    line, names = next(records, (1, None))
    if names is None:
        raise InputError(f"{shown(file.path)}: empty; the first line must hold the column names")
    if isinstance(names, InputError):
        raise names
    for column, name in enumerate(names, 1):
        if not name.strip():
            raise InputError(f"{place(file, line)}: column {column} has no name (pandas: to_csv(index=False))")
    if len(names) == 1 and (wrong := (set(",;\t|") - {file.delimiter}) & set(names[0])):
        sign = "tab" if file.delimiter == "\t" else "comma"
        raise InputError(
            f"{place(file, line)}: found one column, {names[0]!r}; between the cells must stand a {sign}, not {min(wrong)!r}"
            " (.csv: commas, .tsv: tabs)"
        )
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise InputError(f"{place(file, line)}: column names must differ; more than once: {listed(twice)}")
    return names

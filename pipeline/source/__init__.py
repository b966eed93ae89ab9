"""Prompt sets, streamed: JSON Lines, CSV and Parquet files as chunks of rows.

``find`` (a path -> files) -> ``chunks`` (a file -> chunks, memory bounded by one) -> ``Chunk.rows`` (index and data).
A row's index is its place in its file, from 1: the line it starts on, or its number in a Parquet file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from pipeline.errors import InputError
from pipeline.source import csvfile, jsonl, parquet
from pipeline.source.file import InputFile, place
from pipeline.source.find import find, matches
from pipeline.source.lines import MAX_LINE_BYTES
from pipeline.source.parquet import arrow_schema

__all__ = ["Chunk", "InputFile", "arrow_schema", "chunks", "column_names", "find", "matches", "place"]


class Chunk(Protocol):
    """Some consecutive rows of one file; parsed only when ``rows`` is called, and as often as it is."""

    @property
    def first(self) -> int:
        """Index of the first row."""

    @property
    def last(self) -> int:
        """Index of the last row."""

    @property
    def batch(self) -> Any:
        """Parquet: the pyarrow RecordBatch, types untouched, row ``first`` at 0. Else None."""

    def rows(
        self, wanted: Collection[int] | None = None, *, on_error: Callable[[InputError], None] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Index and data of each row, or of the ``wanted`` ones (a set).

        A bad record raises; with ``on_error`` it is handed there and passed over.
        """


def chunks(
    file: InputFile,
    *,
    size: int = 1024,
    start: int = 1,
    columns: Sequence[str] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Chunk]:
    """The rows from index ``start`` on, at most ``size`` a chunk (fewer where rows are large).

    ``columns`` says which are needed: Parquet does not decode the others; text formats give whole rows all the same.
    """
    match file.format:
        case "jsonl":
            return jsonl.chunks(file, size=size, start=start, max_line_bytes=max_line_bytes)
        case "csv":
            return csvfile.chunks(file, size=size, start=start, max_line_bytes=max_line_bytes)
        case "parquet":
            return parquet.chunks(file, size=size, start=start, columns=columns)


def column_names(file: InputFile) -> list[str] | None:
    """The columns, as schema or header names them; None for JSON Lines, where each row has its own."""
    match file.format:
        case "jsonl":
            return None
        case "csv":
            return csvfile.column_names(file)
        case "parquet":
            names: list[str] = arrow_schema(file).names
            return names

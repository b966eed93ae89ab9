"""A Parquet file held against the batches it should have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.ground.wording import plural

READ_ROWS = 4096
Words = Callable[[dict[str, tuple[Any, Any]]], str]


class Misfit(Exception):  # noqa: N818 - it is a finding, no error
    """The first difference, after so many ``rows`` that agree."""

    def __init__(self, rows: int, text: str) -> None:
        super().__init__(text)
        self.rows = rows


def compare(path: Path, schema: pa.Schema, wanted: Iterator[pa.RecordBatch], words: Words) -> int:
    """How many rows there are, all as they should be. Raises ``Misfit``; ``OSError`` where the file cannot be read."""
    rows = 0
    try:
        with pq.ParquetFile(path, buffer_size=1 << 18, pre_buffer=False) as file:
            _compare_schemas(path, schema, file.schema_arrow)
            found = _Rows(file.iter_batches(batch_size=READ_ROWS, use_threads=False))
            for batch in wanted:
                if batch.num_rows:
                    _compare(path, batch, found.take(batch.num_rows), rows, words)
                rows += batch.num_rows
            if found.take(1) is not None:
                raise Misfit(rows, f"{path} has more rows than the journal has for it ({rows:,})")
    except pa.ArrowException as exc:
        detail = " ".join(str(exc).split())[:200]
        raise Misfit(rows, f"{path} cannot be read as Parquet after row {rows:,} ({detail})") from exc
    except OSError as exc:
        if exc.errno:
            raise
        raise Misfit(rows, f"{path} cannot be read as Parquet after row {rows:,} (damaged or cut off)") from exc
    return rows


class _Rows:
    """The rows of a file, as many at a time as are wanted."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.Table | None = None

    def take(self, count: int) -> pa.Table | None:
        """The next ones, fewer at the end; None when there are none."""
        have = [] if self._rest is None else [self._rest]
        rows = sum(table.num_rows for table in have)
        while rows < count and (batch := next(self._batches, None)) is not None:
            have.append(pa.Table.from_batches([batch]))
            rows += batch.num_rows
        if not rows:
            return None
        table = pa.concat_tables(have)
        self._rest = table.slice(count)
        return table.slice(0, count)


def _compare_schemas(path: Path, wanted: pa.Schema, found: pa.Schema) -> None:
    if wanted.names != found.names:
        missing = [name for name in wanted.names if name not in found.names]
        others = [name for name in found.names if name not in wanted.names]
        what = f"lacks {missing}" if missing else f"has {others} besides" if others else "has them in another order"
        raise Misfit(0, f"the columns of {path} are not those of the journal: it {what}")
    for field in wanted:
        kind = found.field(field.name).type
        if kind != field.type and not (pa.types.is_nested(kind) and pa.types.is_nested(field.type)):
            raise Misfit(0, f"the column {field.name!r} of {path} has the type {kind}, it was written as {field.type}")


def _compare(path: Path, wanted: pa.RecordBatch, found: pa.Table | None, before: int, words: Words) -> None:
    have = 0 if found is None else found.num_rows
    unlike: dict[str, tuple[list[Any], list[Any]]] = {}
    for name, column in zip(wanted.schema.names, wanted.columns, strict=True):
        if found is None:
            break
        one, other = _plain(column.slice(0, have)), _plain(found.column(name).combine_chunks())
        if not one.equals(other):
            unlike[name] = _values(one), _values(other)
    for at in range(have):
        pairs = {name: (one[at], other[at]) for name, (one, other) in unlike.items()}
        if any(repr(one) != repr(other) for one, other in pairs.values()):
            raise Misfit(before + at, f"{path} row {before + at + 1:,} {words(pairs)}")
    if have < wanted.num_rows:
        raise Misfit(before + have, f"{path} ends after {plural(before + have, 'row')}, the journal has more")


def _values(column: Any) -> list[Any]:
    """As Python has them; times that it has not, as the numbers that stand for them."""
    try:
        found: list[Any] = column.to_pylist()
    except ArithmeticError:
        found = column.cast(pa.int64()).to_pylist()
    return found


def _plain(column: Any) -> Any:
    """An array that is comparable: of the values themselves, where they stand in a dictionary."""
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column

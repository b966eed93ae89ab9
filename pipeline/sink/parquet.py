"""Results as Parquet: typed columns, zstd, row groups of a size that readers like, bounded in memory.

Input columns from Parquet are copied as they are, without a detour through Python. Columns from JSONL get the one type
that fits all their values; where none does, they are kept as JSON text.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.journal.reader import Projected
from pipeline.sink import vectors
from pipeline.sink.atomic import AtomicFile
from pipeline.sink.columns import TYPES, Layout, ReadContent, values
from pipeline.sink.schema import array, is_text

GROUP_ROWS = 65_536
GROUP_BYTES = 48 << 20
_ANSWER = list(TYPES).index("content")
_TIMESTAMP = pa.timestamp("us", tz="UTC")
_ARROW = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}


class Columns:
    """The results' columns as Arrow has them: ``schema``, and the batch that a stretch becomes."""

    def __init__(
        self,
        kept: pa.Schema,
        layout: Layout,
        read_content: ReadContent,
        metadata: dict[str, Any],
        dimensions: Sequence[int] = (),
    ) -> None:
        """``dimensions`` are those that the vectors have."""
        self._read_content = read_content
        types = [_TIMESTAMP if kind == "timestamp" else _ARROW[kind] for kind in TYPES.values()]
        if layout.vectors:
            types[_ANSWER] = vectors.type_of(dimensions)
        self._read_vector = _as_it_is if layout.vectors else vectors.text_of
        self._results = pa.schema(list(zip(layout.results, types, strict=True)))
        self.schema = pa.schema([*kept, *self._results], metadata={b"pipeline": json.dumps(metadata).encode()})

    def batch(self, data: pa.RecordBatch, rows: Sequence[Projected]) -> pa.RecordBatch:
        """These rows; ``data`` has the kept columns, of the kept schema."""
        columns = values(rows, self._read_content, self._read_vector, _as_it_is)
        arrays = [_array(column, field.type) for column, field in zip(columns, self._results, strict=True)]
        return pa.RecordBatch.from_arrays([*data.columns, *arrays], schema=self.schema)


class ParquetWriter:
    """Takes batches of one schema; writes a row group when it is full."""

    def __init__(self, file: AtomicFile, schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(file.stream, schema, compression="zstd", use_dictionary=_repeating(schema))
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Append these rows."""
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            table = pa.Table.from_batches(self._batches, schema=self._schema)
            self._writer.write_table(table, row_group_size=self._rows)
        self._batches, self._rows, self._bytes = [], 0, 0

    def close(self) -> None:
        """Write the last row group and the footer."""
        self._flush()
        self._writer.close()

    def abandon(self) -> None:
        """Release the writer after a failure; what it wrote is thrown away by the file's owner."""
        self._batches = []
        self._writer.close()


def _repeating(schema: pa.Schema) -> list[str]:
    """The columns whose values may stand more than once, and so in a dictionary: all but the numbers in vectors.

    Looking each of those up in vain takes a quarter of the time to write them, and twice the time to read them.
    """
    file = io.BytesIO()
    pq.write_metadata(schema, file)
    columns = pq.read_metadata(file).schema
    return [
        column.path
        for column in columns
        if not (column.max_repetition_level and column.physical_type in ("FLOAT", "DOUBLE"))
    ]


def _array(column: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_nested(kind):
        return vectors.array_of(column, kind)
    return _moments(column) if kind == _TIMESTAMP else pa.array(column, kind)


def _moments(times: Sequence[float | None]) -> pa.Array:
    """Seconds as microseconds: what Arrow makes of aware datetimes, which take twice as long."""
    return pa.array([None if at is None else _microseconds(at) for at in times], _TIMESTAMP)


def _microseconds(at: float) -> int:
    """Rounded as ``datetime`` rounds: the parts of a second alone, and half of one to the even neighbour."""
    seconds = int(at)
    return 1_000_000 * seconds + round((at - seconds) * 1e6)


def _as_it_is(value: Any) -> Any:
    return value


def batch_of_rows(rows: Sequence[dict[str, Any]], kept: pa.Schema) -> pa.RecordBatch:
    """Rows of Python values as one batch of the kept columns."""
    return pa.RecordBatch.from_arrays([array([row.get(f.name) for row in rows], f) for f in kept], schema=kept)


def taken(batch: pa.RecordBatch, rows: Sequence[int]) -> pa.RecordBatch:
    """These rows of a batch, by number. There may be none, and an empty list has no type of its own."""
    return batch.take(pa.array(rows, pa.int64()))


def batch_of_chunk(
    batch: pa.RecordBatch, rows: Callable[[], Sequence[dict[str, Any]]], kept: pa.Schema
) -> pa.RecordBatch:
    """A batch of one file as the columns all files share: absent ones null, others cast, or as JSON where they disagree."""
    values = rows() if any(is_text(field) for field in kept) else []
    arrays = []
    for field in kept:
        if is_text(field):
            arrays.append(array([row.get(field.name) for row in values], field))
        elif field.name not in batch.schema.names:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(field.name)
            arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=kept)


def no_columns(rows: int) -> pa.RecordBatch:
    """A batch that keeps nothing of the input."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))

"""Results as Parquet: typed columns, zstd, row groups of a size that readers like, bounded in memory.

Input columns from Parquet are copied as they are, without a detour through Python. Columns from JSONL get the one type
that fits all their values; where none does, they are kept as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.journal.reader import Projected
from pipeline.jsonio import dumps
from pipeline.sink.atomic import AtomicFile
from pipeline.sink.columns import TYPES, Layout, ReadContent, values

GROUP_ROWS = 65_536
GROUP_BYTES = 48 << 20
JSON_TEXT = {b"pipeline": b"json"}
_ARROW = {"string": pa.string(), "int64": pa.int64(), "double": pa.float64(), "bool": pa.bool_()}


class ParquetWriter:
    """Takes stretches as Arrow batches of kept columns beside the journal's rows; writes a row group when it is full."""

    def __init__(
        self, file: AtomicFile, kept: pa.Schema, layout: Layout, read_content: ReadContent, metadata: dict[str, Any]
    ) -> None:
        self._kept = kept
        self._read_content = read_content
        types = [pa.timestamp("us", tz="UTC") if kind == "timestamp" else _ARROW[kind] for kind in TYPES.values()]
        self._results = pa.schema(list(zip(layout.results, types, strict=True)))
        self._schema = pa.schema([*kept, *self._results], metadata={b"pipeline": json.dumps(metadata).encode()})
        self._writer = pq.ParquetWriter(file.stream, self._schema, compression="zstd")
        self._batches: list[pa.RecordBatch] = []
        self._rows = 0
        self._bytes = 0

    def write(self, data: pa.RecordBatch, rows: Sequence[Projected]) -> None:
        """Append these rows; ``data`` has the kept columns, of the kept schema."""
        columns = list(zip(*(values(row, self._read_content) for row in rows), strict=True)) or [()] * len(TYPES)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._results, strict=True)]
        batch = pa.RecordBatch.from_arrays([*data.columns, *arrays], schema=self._schema)
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


def schema_of_rows(stretches: Iterable[Sequence[dict[str, Any]]], names: Sequence[str]) -> pa.Schema:
    """One type for each column that fits every value in all stretches of rows; text of JSON where none does."""
    types: dict[str, pa.DataType] = dict.fromkeys(names, pa.null())
    mixed: set[str] = set()
    for rows in stretches:
        for name in names:
            if name in mixed:
                continue
            try:
                found = pa.array([row.get(name) for row in rows]).type
                types[name] = _common(types[name], found)
            except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
                mixed.add(name)
    fields = []
    for name in names:
        if name in mixed or _has_empty_struct(types[name]):
            fields.append(pa.field(name, pa.string(), metadata=JSON_TEXT))
        else:
            fields.append(pa.field(name, pa.string() if pa.types.is_null(types[name]) else _without_nulls(types[name])))
    return pa.schema(fields)


def _common(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if one == other:
        return one
    left, right = pa.schema([pa.field("x", one)]), pa.schema([pa.field("x", other)])
    return pa.unify_schemas([left, right], promote_options="permissive").field("x").type


def _has_empty_struct(kind: pa.DataType) -> bool:
    """Parquet has no struct without fields (an empty JSON object)."""
    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(_has_empty_struct(kind.field(i).type) for i in range(kind.num_fields))
    return pa.types.is_list(kind) and _has_empty_struct(kind.value_type)


def _without_nulls(kind: pa.DataType) -> pa.DataType:
    """A list or struct member that was null throughout becomes text: readers disagree on columns of no type."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_without_nulls(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _without_nulls(f.type)) for f in kind])
    return kind


def batch_of_rows(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of JSON values as one batch of this schema."""
    return pa.RecordBatch.from_arrays([_array([row.get(f.name) for row in rows], f) for f in schema], schema=schema)


def _array(column: list[Any], field: pa.Field) -> pa.Array:
    if field.metadata == JSON_TEXT:
        return pa.array([None if value is None else dumps(value).decode() for value in column], pa.string())
    if pa.types.is_floating(field.type):
        return pa.array([None if value is None else float(value) for value in column], field.type)
    return pa.array(column, field.type)


def fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """A batch of one file as the columns all files share: absent ones null, others cast to the common type."""
    arrays = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            arrays.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(at)
            arrays.append(column if column.type == field.type else column.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def no_columns(rows: int) -> pa.RecordBatch:
    """A batch that keeps nothing of the input."""
    return pa.RecordBatch.from_struct_array(pa.array([{}] * rows, pa.struct([])))

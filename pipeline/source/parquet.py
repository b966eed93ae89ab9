"""Parquet: record batches, streamed, and their rows as Python values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.ground.visible import listed
from pipeline.source import values
from pipeline.source.file import InputFile, OnError, place, reading, refuse, shown
from pipeline.source.portions import Portions


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchChunk:
    """One record batch as Arrow read it (``batch``); ``first`` is the number of its first row, from 1."""

    file: InputFile
    first: int
    batch: Any
    plan: list[values.Column]

    @property
    def last(self) -> int:
        """The last row's number."""
        return self.first + int(self.batch.num_rows) - 1

    def columns(self, names: Sequence[str]) -> Any:
        """The record batch with just these columns, in this order, types untouched."""
        return self.batch.select(list(names))

    def rows(
        self, wanted: Collection[int] | None = None, *, on_error: OnError | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row number and Python values by column name."""
        indices: Sequence[int] = range(self.first, self.last + 1)
        batch = self.batch
        if wanted is not None:
            indices = [index for index in indices if index in wanted]
            batch = self._taken(indices)
        try:
            found = values.rows(batch, self.plan)
        except ValueError:  # one value spoils its column: find the row
            yield from self._one_by_one(indices, on_error)
        else:
            yield from zip(indices, found, strict=True)

    def _taken(self, indices: Sequence[int]) -> Any:
        import pyarrow as pa

        if len(indices) == self.batch.num_rows:
            return self.batch
        return self.batch.take(pa.array([index - self.first for index in indices], pa.int64()))

    def _one_by_one(self, indices: Sequence[int], on_error: OnError | None) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in indices:
            row = self.batch.slice(index - self.first, 1)
            try:
                (data,) = values.rows(row, self.plan)
            except ValueError as exc:
                refuse(InputError(f"{place(self.file, index)}: {exc}"), on_error, exc)
            else:
                yield index, data


def chunks(file: InputFile, *, size: int, start: int, columns: Sequence[str] | None) -> Iterator[BatchChunk]:
    """At most ``size`` rows and about 16 MiB each, from row ``start``; only ``columns`` are decoded."""
    with _opened(file) as parquet:
        names = _checked_names(file, parquet.schema_arrow)
        picked = names if columns is None else _picked(file, names, columns)
        plan = [values.column(parquet.schema_arrow.field(name)) for name in picked]
        groups, first = _groups(parquet.metadata, start)
        with closing(Portions(file, parquet.metadata, parquet.schema, picked)) as portions:
            for batch in _batches(parquet, groups, picked, lambda group: portions.rows(group, size)):
                skip = min(max(0, start - first), batch.num_rows)
                if skip < batch.num_rows:
                    # Arrow also gives "a.b" of a struct "a" when asked for a column that is called "a.b".
                    yield BatchChunk(file=file, first=first + skip, batch=batch.slice(skip).select(picked), plan=plan)
                first += batch.num_rows


def _batches(parquet: Any, groups: list[int], columns: list[str], rows: Callable[[int], int]) -> Iterator[Any]:
    for group in groups:
        yield from parquet.iter_batches(batch_size=rows(group), row_groups=[group], columns=columns, use_threads=False)


def arrow_schema(file: InputFile) -> Any:
    """The file's pyarrow schema."""
    with _opened(file) as parquet:
        _checked_names(file, parquet.schema_arrow)
        return parquet.schema_arrow


@contextmanager
def _opened(file: InputFile) -> Iterator[Any]:
    with reading(file):
        import pyarrow.parquet as pq

        # With a buffer Arrow reads pages as they come; without, whole column chunks (138 MB instead of 20, measured).
        with pq.ParquetFile(file.path, buffer_size=1 << 18, pre_buffer=False) as parquet:
            yield parquet


def _checked_names(file: InputFile, schema: Any) -> list[str]:
    names: list[str] = schema.names
    twice = sorted(name for name, times in Counter(names).items() if times > 1)
    if twice:
        raise InputError(f"{shown(file.path)}: column names must differ; more than once: {listed(twice)}")
    return names


def _picked(file: InputFile, names: list[str], columns: Sequence[str]) -> list[str]:
    there = set(names)
    missing = [name for name in columns if name not in there]
    if missing:
        raise InputError(f"{shown(file.path)}: no column {missing[0]!r}; there are: {listed(names)}")
    return list(dict.fromkeys(columns))


def _groups(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups from the one that holds row ``start`` on, and the number of their first row."""
    first, groups = 1, list(range(metadata.num_row_groups))
    while groups and first + metadata.row_group(groups[0]).num_rows <= start:
        first += metadata.row_group(groups.pop(0)).num_rows
    return groups, first

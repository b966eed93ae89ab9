"""The journal beside its input, stretch by stretch, as rows of results: what is written, and what a file is held against."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal, Protocol

from pipeline.errors import IncompleteError
from pipeline.journal.reader import Projected, Projection
from pipeline.sink.columns import Layout, ReadContent
from pipeline.sink.text import BatchWriter, CsvWriter, JsonlWriter, RowWriter

Selection = Literal["all", "partial", "failed"]
Format = Literal["parquet", "jsonl", "csv", "batch"]


class Chunk(Protocol):
    """What the sink needs of some rows of an input file."""

    @property
    def batch(self) -> Any: ...
    def rows(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Rows ``first`` to ``last`` of one input file; ``chunk`` None when the results leave the input out."""

    path: str
    first: int
    last: int
    chunk: Chunk | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to write where. ``stretches`` can be walked more than once; ``arrow``: the files' schemas when all are Parquet."""

    path: Path
    format: Format
    layout: Layout
    selection: Selection
    stretches: Callable[[], Iterable[Stretch]]
    arrow: Sequence[Any] | None
    read_content: ReadContent
    metadata: dict[str, Any]


def texts(projection: Projection, plan: Plan, output: IO[bytes], errors: IO[bytes] | None = None) -> Iterator[int]:
    """Write a text format, a stretch at a time; yields the rows of each when all of its bytes have been handed over.

    ``errors`` is the other file of the pair that ``batch`` is.
    """
    writer = _writer(plan, output, errors)
    for stretch in plan.stretches():
        rows, data = _selected(projection, plan, stretch)
        writer.write(data, rows)
        yield len(rows)
    writer.close()


def _writer(plan: Plan, output: IO[bytes], errors: IO[bytes] | None) -> RowWriter:
    if errors is not None:
        return BatchWriter(output, errors)
    kind = CsvWriter if plan.format == "csv" else JsonlWriter
    return kind(output, plan.layout, plan.read_content)


def batches(projection: Projection, plan: Plan) -> tuple[Any, Iterator[Any]]:
    """The results as Arrow: their schema, and a record batch a stretch."""
    from pipeline.sink import parquet  # pyarrow is heavy, and only Parquet needs it

    kept = _kept_schema(plan)
    dimensions = projection.dimensions() if plan.layout.vectors else []
    columns = parquet.Columns(kept, plan.layout, plan.read_content, plan.metadata, dimensions)

    def walk() -> Iterator[Any]:
        for stretch in plan.stretches():
            if plan.arrow is not None and stretch.chunk is not None:
                rows, picked = _pick(projection, plan, stretch)
                batch = parquet.batch_of_chunk(stretch.chunk.batch, partial(_data, stretch.chunk), kept)
                batch = batch if len(picked) == batch.num_rows else parquet.taken(batch, picked)
            else:
                rows, data = _selected(projection, plan, stretch)
                batch = parquet.batch_of_rows(data, kept) if plan.layout.kept else parquet.no_columns(len(rows))
            yield columns.batch(batch, rows)

    return columns.schema, walk()


def _kept_schema(plan: Plan) -> Any:
    """The kept columns' types, from the whole input: a part of the results has the types all of them have."""
    from pipeline.sink import schema

    if plan.arrow is not None:
        return schema.schema_of_files(plan.arrow, plan.layout.kept, lambda: (chunk.batch for chunk in _chunks(plan)))
    return schema.schema_of_rows(lambda: map(_data, _chunks(plan)), plan.layout.kept)


def _chunks(plan: Plan) -> Iterator[Chunk]:
    return (stretch.chunk for stretch in plan.stretches() if stretch.chunk is not None)


def _data(chunk: Chunk) -> list[dict[str, Any]]:
    return [record for _, record in chunk.rows()]


def _selected(projection: Projection, plan: Plan, stretch: Stretch) -> tuple[list[Projected], list[dict[str, Any]]]:
    """The journal's rows of a stretch that are wanted, and the input's data of the same rows."""
    rows, picked = _pick(projection, plan, stretch)
    if stretch.chunk is None:
        return rows, [{} for _ in rows]
    data = _data(stretch.chunk)
    return rows, data if len(picked) == len(data) else [data[at] for at in picked]


def _pick(projection: Projection, plan: Plan, stretch: Stretch) -> tuple[list[Projected], Sequence[int]]:
    rows = list(projection.stretch(stretch.path, stretch.first, stretch.last))
    if stretch.chunk is not None and (not rows or rows[-1].line != stretch.last):
        raise IncompleteError(
            f"the input {stretch.path} is no longer what it was when the run began: run the same command again"
        )
    if plan.selection == "all":
        return rows, range(len(rows))
    wanted = [at for at, row in enumerate(rows) if _is_wanted(row, plan.selection)]
    return [rows[at] for at in wanted], wanted


def _is_wanted(row: Projected, selection: Selection) -> bool:
    return row.status is not None if selection == "partial" else row.status == "failed"

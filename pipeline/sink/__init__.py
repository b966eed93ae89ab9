"""Results are a projection of the journal: walk the input, look up each row's outcome, write.

Input order, memory bounded by a stretch and a row group, and nothing under the final name before it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import orjson

from pipeline.errors import IncompleteError
from pipeline.journal.reader import Projected, Projection
from pipeline.sink.atomic import AtomicFile
from pipeline.sink.columns import TYPES, Layout, ReadContent, layout, matching, values
from pipeline.sink.text import BatchWriter, CsvWriter, JsonlWriter, RowWriter
from pipeline.sink.vectors import numbers as vector_numbers

__all__ = [
    "TYPES", "AtomicFile", "Layout", "Plan", "Selection", "Stretch", "error_file", "layout", "matching", "values",
    "vector_numbers", "write_meta", "write_results",
]  # fmt: skip

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


def write_results(projection: Projection, plan: Plan) -> int:
    """Write the results file (for ``batch``: the pair) and return its rows.

    Raises ``IncompleteError`` when the input is no longer the one that was indexed.
    """
    count = 0
    with ExitStack() as stack:
        file = stack.enter_context(AtomicFile(plan.path))
        if plan.format == "parquet":
            return _write_parquet(projection, plan, file)
        writer = _text_writer(plan, file, stack)
        for stretch in plan.stretches():
            rows, data = _selected(projection, plan, stretch)
            writer.write(data, rows)
            count += len(rows)
        writer.close()
    return count


def _text_writer(plan: Plan, file: AtomicFile, stack: ExitStack) -> RowWriter:
    if plan.format == "batch":
        return BatchWriter(file, stack.enter_context(AtomicFile(error_file(plan.path))))
    kind = CsvWriter if plan.format == "csv" else JsonlWriter
    return kind(file, plan.layout, plan.read_content)


def error_file(path: Path) -> Path:
    """Where the failed rows of a ``batch`` output go: ``error.jsonl`` beside ``output.jsonl``, else ``<stem>.error.jsonl``."""
    name = "error" if path.stem == "output" else f"{path.stem}.error"
    return path.with_name(name + (path.suffix or ".jsonl"))


def _write_parquet(projection: Projection, plan: Plan, file: AtomicFile) -> int:
    from pipeline.sink import parquet  # pyarrow is heavy, and only Parquet needs it

    count = 0
    kept = _kept_schema(plan)
    dimensions = projection.dimensions() if plan.layout.vectors else []
    writer = parquet.ParquetWriter(file, kept, plan.layout, plan.read_content, plan.metadata, dimensions)
    try:
        for stretch in plan.stretches():
            if plan.arrow is not None and stretch.chunk is not None:
                rows, picked = _pick(projection, plan, stretch)
                batch = parquet.batch_of_chunk(stretch.chunk.batch, partial(_data, stretch.chunk), kept)
                batch = batch if len(picked) == batch.num_rows else batch.take(picked)
            else:
                rows, data = _selected(projection, plan, stretch)
                batch = parquet.batch_of_rows(data, kept) if plan.layout.kept else parquet.no_columns(len(rows))
            writer.write(batch, rows)
            count += len(rows)
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return count


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
        return rows, [{}] * len(rows)
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


def write_meta(path: Path, metadata: dict[str, Any]) -> None:
    """Write ``<output>.meta.json``: where the results came from."""
    with AtomicFile(path.with_name(path.name + ".meta.json")) as file:
        file.stream.write(orjson.dumps(metadata, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

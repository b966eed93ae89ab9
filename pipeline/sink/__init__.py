"""Results are a projection of the journal: walk the input, look up each row's outcome, write.

Input order, memory bounded by a stretch and a row group, and nothing under the final name before it is complete.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from pipeline.journal.reader import Projection
from pipeline.sink.atomic import AtomicFile
from pipeline.sink.columns import TYPES, Layout, layout, matching, values
from pipeline.sink.packed import packing
from pipeline.sink.project import Plan, Selection, Stretch, batches, texts
from pipeline.sink.proof import META, error_file, files_of, unlike
from pipeline.sink.vectors import numbers as vector_numbers

__all__ = [
    "META", "TYPES", "AtomicFile", "Layout", "Plan", "Selection", "Stretch", "error_file", "files_of", "layout", "matching",
    "unlike", "values", "vector_numbers", "write_meta", "write_results",
]  # fmt: skip


def write_results(projection: Projection, plan: Plan) -> int:
    """Write the results file (for ``batch``: the pair) and return its rows.

    Raises ``IncompleteError`` when the input is no longer the one that was indexed.
    """
    with ExitStack() as stack:
        file = stack.enter_context(AtomicFile(plan.path))
        if plan.format == "parquet":
            return _write_parquet(projection, plan, file)
        errors = stack.enter_context(AtomicFile(error_file(plan.path))) if plan.format == "batch" else None
        streams = [stack.enter_context(packing(plan.path, one.stream)) for one in (file, errors) if one is not None]
        return sum(texts(projection, plan, *streams))


def _write_parquet(projection: Projection, plan: Plan, file: AtomicFile) -> int:
    from pipeline.sink import parquet  # pyarrow is heavy, and only Parquet needs it

    count = 0
    schema, found = batches(projection, plan)
    writer = parquet.ParquetWriter(file, schema)
    try:
        for batch in found:
            writer.write(batch)
            count += batch.num_rows
    except BaseException:
        writer.abandon()
        raise
    writer.close()
    return count


def write_meta(path: Path, metadata: dict[str, Any]) -> None:
    """Write ``<output>.meta.json``: where the results came from."""
    with AtomicFile(path.with_name(path.name + META)) as file:
        file.stream.write(orjson.dumps(metadata, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))

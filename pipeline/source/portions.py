"""How many rows of a Parquet file are read at a time, so that a portion fits the memory whatever a row decodes to.

A file of some kB can hold a million rows of 1 MB each: one text in a dictionary, and how often. What the metadata says of sizes is
no bound for that, so the longest text of each dictionary is looked up, and the values a row has on average are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.errors import InputError
from pipeline.source.file import InputFile, shown

PORTION_BYTES = 16 << 20  # as rows are on average
WORST_BYTES = 64 << 20  # if each had the longest text
ROW_BYTES = 256 << 20
_VALUE_BYTES = 36  # a number in a list of Python's


class Portions:
    """Sizes of portions for one open file; ``path`` is opened once more, with its dictionaries as they are."""

    def __init__(self, file: InputFile, metadata: Any, schema: Any, columns: Sequence[str]) -> None:
        self._file = file
        self._metadata = metadata
        paths = [schema.column(at).path for at in range(len(schema))]
        wanted = set(columns)
        # Names may hold dots: a path belongs to a column if it is its name, or begins with that and a dot.
        self._leaves = [at for at, path in enumerate(paths) if path in wanted or _top_in(path, wanted)]
        self._texts = [paths[at] for at in self._leaves if schema.column(at).physical_type == "BYTE_ARRAY"]
        self._columns = list(columns)
        self._probe: Any = None

    def rows(self, group: int, size: int) -> int:
        """At most so many rows of this row group at once. Raises ``InputError`` for rows that are too large to be held."""
        group_of = self._metadata.row_group(group)
        count = max(1, group_of.num_rows)
        values = [max(1.0, group_of.column(at).num_values / count) for at in self._leaves]
        most_values = sum(values) * _VALUE_BYTES
        self._check(most_values, group)
        worst = most_values + (self._longest(group) * max(values, default=1.0) if self._texts else 0)
        self._check(worst, group)
        average = group_of.total_byte_size // count
        return max(1, min(size, PORTION_BYTES // max(1, int(average)), int(WORST_BYTES // max(1.0, worst))))

    def _check(self, row_bytes: float, group: int) -> None:
        if row_bytes > ROW_BYTES:
            raise InputError(
                f"{shown(self._file.path)}: the rows of row group {group + 1} may take {row_bytes:,.0f} bytes each, over "
                f"{ROW_BYTES:,}; split their lists and texts over more rows"
            )

    def _longest(self, group: int) -> int:
        """The longest texts that a row of the group can have, together."""
        if self._probe is None:
            import pyarrow.parquet as pq

            self._probe = pq.ParquetFile(self._file.path, buffer_size=1 << 18, read_dictionary=self._texts)
        for batch in self._probe.iter_batches(
            batch_size=1, row_groups=[group], columns=self._columns, use_threads=False
        ):
            return sum(_longest_in(column) for column in batch.columns)
        return 0

    def close(self) -> None:
        """Close what was opened."""
        if self._probe is not None:
            self._probe.close()


def _top_in(path: str, wanted: set[str]) -> bool:
    at = path.find(".")
    while at != -1:
        if path[:at] in wanted:
            return True
        at = path.find(".", at + 1)
    return False


def _longest_in(array: Any) -> int:
    """The longest value of the dictionaries in ``array``, those of a struct's members together."""
    import pyarrow as pa
    import pyarrow.compute as pc

    is_, kind = pa.types, array.type
    if is_.is_dictionary(kind):
        return int(pc.max(pc.binary_length(array.dictionary)).as_py() or 0) if len(array.dictionary) else 0
    if is_.is_struct(kind):
        return sum(_longest_in(array.field(at)) for at in range(kind.num_fields))
    if is_.is_map(kind):
        return _longest_in(array.keys) + _longest_in(array.items)
    if is_.is_list(kind) or is_.is_large_list(kind) or is_.is_fixed_size_list(kind):
        return _longest_in(array.values)
    return 0

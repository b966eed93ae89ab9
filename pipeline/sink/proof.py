"""A results file held against the journal it was made from: projected again, value by value; the first difference is named.

What an input or an answer says is not quoted: these sentences go to terminals and logs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from pipeline.ground.jsonio import loads
from pipeline.ground.wording import plural
from pipeline.journal.reader import Projection
from pipeline.sink.columns import TYPES
from pipeline.sink.packed import is_packed, unpacking
from pipeline.sink.project import Plan, batches, texts

META = ".meta.json"
MOST_QUOTED = 60
_MORE = 1 << 20
_UNQUOTED = frozenset({"content", "embedding", "error_message"})


def error_file(path: Path) -> Path:
    """Where the failed rows of a ``batch`` output go: ``error.jsonl`` beside ``output.jsonl``, else ``<stem>.error.jsonl``."""
    ending = "".join(path.suffixes[-2:] if is_packed(path) else path.suffixes[-1:])
    stem = path.name.removesuffix(ending)
    name = "error" if stem == "output" else f"{stem}.error"
    return path.with_name(name + (ending or ".jsonl"))


def files_of(path: Path, output_format: str) -> list[Path]:
    """All files that are written for an output: the results (for ``batch``: the pair), and the sheet beside them."""
    results = [path, error_file(path)] if output_format == "batch" else [path]
    return [*results, path.with_name(path.name + META)]


def unlike(projection: Projection, plan: Plan) -> tuple[int, list[str]]:
    """How many rows were compared, and in what the file (for ``batch``: the pair) differs from what would be written.

    Raises ``OSError`` where a file cannot be read.
    """
    quoted = frozenset(name for name in plan.layout.results if name.removeprefix(_prefix(plan)) not in _UNQUOTED)
    if plan.format == "parquet":
        return _unlike_parquet(projection, plan, quoted)
    with ExitStack() as stack:
        names = [*plan.layout.kept, *plan.layout.results] if plan.format == "csv" else None
        *paths, _ = files_of(plan.path, plan.format)
        sides = [Beside(path, stack.enter_context(unpacking(path)), names, quoted) for path in paths]
        count = 0
        for rows in texts(projection, plan, sides[0].again, sides[1].again if len(sides) > 1 else None):
            count += rows
            agree = [side.agrees() for side in sides]  # each is asked: it takes in what was written
            if not any(agree):
                break
        return count, [found for side in sides if (found := side.end()) is not None]


def _prefix(plan: Plan) -> str:
    return plan.layout.results[0].removesuffix(next(iter(TYPES)))


class Beside:
    """One text file beside what is written ``again``; ``agrees`` after each stretch, ``end`` after the last."""

    def __init__(self, path: Path, file: IO[bytes], names: Sequence[str] | None, quoted: frozenset[str]) -> None:
        """``names`` are the columns of a CSV file, whose first record they are; None for JSON lines."""
        self._path = path
        self._file = file
        self._names = names
        self._quoted = quoted
        self._rows = 0 if names is None else -1
        self._found: str | None = None
        self.again = io.BytesIO()

    def agrees(self) -> bool:
        """Compare what has been written since; whether the file is the same so far."""
        wanted = self.again.getvalue()
        self.again.seek(0)
        self.again.truncate()
        if self._found is not None:
            return False
        found = self._file.read(len(wanted))
        if found == wanted:
            self._rows += self._records(wanted)
            return True
        self._found = self._difference(wanted, found + self._file.read(_MORE))
        return False

    def end(self) -> str | None:
        """What differs; the file must end where what was written did."""
        if self._found is None and self.agrees() and self._file.read(1):
            self._found = f"{self._path} has more rows than the journal has for it ({max(self._rows, 0):,})"
        return self._found

    def _records(self, text: bytes) -> int:
        return text.count(b"\n") if self._names is None else sum(1 for _ in self._split(text))

    def _split(self, text: bytes) -> Iterator[Any]:
        if self._names is None:
            return iter(text.splitlines())
        return csv.reader(io.StringIO(text.decode("utf-8", "replace"), newline=""))

    def _difference(self, wanted: bytes, found: bytes) -> str:
        there = self._split(found)
        row = self._rows
        for record in self._split(wanted):
            row += 1
            try:
                other = next(there, None)
            except csv.Error as exc:
                return f"{self._path} row {row:,} is no CSV ({exc})"
            if other is None:
                return f"{self._path} ends after {plural(max(row - 1, 0), 'row')}, the journal has more"
            if other != record:
                return f"{self._path} row {row:,} {self._in_words(record, other)}"
        return f"{self._path} differs after row {row:,} in bytes that are no values"

    def _in_words(self, wanted: Any, found: Any) -> str:
        if self._names is not None:
            if len(wanted) != len(found):
                return f"has {plural(len(found), 'cell')}, the journal says {len(wanted)}"
            pairs = dict(zip(self._names, zip(wanted, found, strict=True), strict=True))
            return in_words(pairs, self._quoted)
        try:
            one, other = loads(wanted), loads(found)
        except ValueError:
            return "is not valid JSON"
        if not isinstance(other, dict):
            return "is no JSON object"
        pairs = {name: (one.get(name, _ABSENT), other.get(name, _ABSENT)) for name in [*one, *other]}
        return in_words(pairs, self._quoted | {"custom_id"})


class _Absent:
    """A column that is not there."""

    def __repr__(self) -> str:
        return "not there"


_ABSENT = _Absent()


def in_words(pairs: dict[str, tuple[Any, Any]], quoted: frozenset[str]) -> str:
    """The first column in which two records differ, ids first: another row in this place is more than another value."""
    for name in sorted(pairs, key=lambda name: not name.endswith("custom_id")):
        wanted, found = pairs[name]
        if repr(wanted) == repr(found):  # 1 is not 1.0, and NaN is NaN
            continue
        if name not in quoted:
            return f"is not what the journal says in the column {name!r}"
        return f"is {_short(found)} in the column {name!r}, the journal says {_short(wanted)}"
    return "is written in another way than it was"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."


def _unlike_parquet(projection: Projection, plan: Plan, quoted: frozenset[str]) -> tuple[int, list[str]]:
    from pipeline.sink.match import Misfit, compare

    schema, wanted = batches(projection, plan)
    try:
        return compare(plan.path, schema, wanted, lambda pairs: in_words(pairs, quoted)), []
    except Misfit as exc:
        return exc.rows, [str(exc)]

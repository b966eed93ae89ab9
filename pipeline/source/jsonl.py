"""JSON Lines: one object a line."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from pipeline.errors import InputError
from pipeline.ground.jsonio import all_loaded, loads
from pipeline.source.file import InputFile, OnError, place, refuse, shown
from pipeline.source.lines import blocks

BLANK = 16
ADVICE = "each line must hold one whole JSON object (jq -c . writes them so)"


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChunk:
    """Consecutive lines, not yet parsed; the first and the last are not blank."""

    file: InputFile
    first: int
    lines: list[bytes]
    batch: None = None

    @property
    def last(self) -> int:
        """The last line's number."""
        return self.first + len(self.lines) - 1

    def rows(
        self, wanted: Collection[int] | None = None, *, on_error: OnError | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Line number and object; blank lines are passed over."""
        indices = range(self.first, self.last + 1)
        if wanted is None and (found := _all_objects(self.lines)) is not None:
            yield from zip(indices, found, strict=True)
            return
        for index in indices if wanted is None else [index for index in sorted(wanted) if index in indices]:
            line = self.lines[index - self.first]
            try:
                data = _object(line)
            except ValueError as exc:
                if line.strip():
                    refuse(InputError(f"{place(self.file, index)}: {exc}; {ADVICE}"), on_error, exc)
            else:
                yield index, data


def chunks(file: InputFile, *, size: int, start: int, max_line_bytes: int) -> Iterator[LineChunk]:
    """At most ``size`` lines and about a MiB each, from line ``start``."""
    first, opened = 1, False
    with closing(blocks(file, max_line_bytes=max_line_bytes)) as some:
        for lines in some:
            opened = opened or _opened(file, lines)
            for at in range(0, len(lines), size):
                chunk = _trimmed(file, lines[at : at + size], first + at, start)
                if chunk.lines:
                    yield chunk
            first += len(lines)


def _all_objects(lines: list[bytes]) -> list[dict[str, Any]] | None:
    """What all of the lines hold, in half the time; None where one of them needs a closer look."""
    found = all_loaded(lines)
    return found if found is not None and set(map(type, found)) == {dict} else None


def _object(line: bytes) -> dict[str, Any]:
    data = loads(line)
    if type(data) is dict:
        return data
    found = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}.get(type(data), "a number")
    raise ValueError(f"found {found}, expected an object")


def _opened(file: InputFile, lines: list[bytes]) -> bool:
    """Whether the file's first record is in ``lines``; a bracket there is a whole document, not a record."""
    if (
        not b"".join(lines[:BLANK]).strip() and not b"".join(lines).strip()
    ):  # blank lines by the million are passed at once
        return False
    opening = next((line for line in lines if line.strip()), b"")
    if opening.lstrip().startswith(b"["):
        raise InputError(f"{shown(file.path)}: a JSON array, not JSON Lines; convert it with: jq -c '.[]'")
    return bool(opening)


def _trimmed(file: InputFile, lines: list[bytes], first: int, start: int) -> LineChunk:
    begin, end = max(0, start - first), len(lines)
    if not lines[0] and not any(lines):
        return LineChunk(file=file, first=first, lines=[])
    while end > begin and not lines[end - 1].strip():
        end -= 1
    while begin < end and not lines[begin].strip():
        begin += 1
    return LineChunk(file=file, first=first + begin, lines=lines[begin:end])

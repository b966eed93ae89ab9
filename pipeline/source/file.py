"""One input file: what it is, what its places are called, and the seam where reading it can fail."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.errors import InputError
from pipeline.ground.visible import visible

Format = Literal["jsonl", "parquet", "csv"]
Compression = Literal["gzip", "zstd"]
OnError = Callable[[InputError], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """A file of rows; ``path`` is absolute."""

    path: Path
    format: Format
    compression: Compression | None = None

    @property
    def delimiter(self) -> str:
        """Between the cells of a CSV file: a tab for .tsv, else a comma."""
        return "\t" if ".tsv" in (suffix.lower() for suffix in self.path.suffixes[-2:]) else ","


def shown(path: Path) -> str:
    """``path`` as the user would type it: relative where it lies below the working folder."""
    here = Path.cwd()
    return visible(str(path.relative_to(here) if path.is_relative_to(here) else path)).replace("\n", "\\n")


def place(file: InputFile, index: int) -> str:
    """What row ``index`` is called in messages: ``rows.jsonl:17``, ``rows.parquet row 17``."""
    return f"{shown(file.path)} row {index}" if file.format == "parquet" else f"{shown(file.path)}:{index}"


def refuse(problem: InputError, on_error: OnError | None, cause: BaseException | None = None) -> None:
    """Hand a bad record to whoever collects them; with no collector, stop."""
    if on_error is None:
        raise problem from cause
    on_error(problem)


@contextmanager
def reading(file: InputFile) -> Iterator[None]:
    """The seam: whatever the filesystem, gzip, zstd or Parquet raises leaves as an ``InputError``.

    Arrow's errors are ValueErrors, NotImplementedErrors and OSErrors without a number; naming those bases keeps pyarrow
    out of runs that do not need it.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error, ValueError, NotImplementedError, MemoryError, LookupError, TypeError) as exc:
        if isinstance(exc, MemoryError | LookupError | TypeError) and not type(exc).__module__.startswith("pyarrow"):
            raise  # one of ours
        if isinstance(exc, OSError) and exc.errno:
            raise InputError(f"{shown(file.path)}: {os.strerror(exc.errno)}; check the path and its rights") from exc
        detail = " ".join(str(exc).split()).rstrip(".")
        kind = file.compression or file.format
        raise InputError(
            f"{shown(file.path)}: damaged, cut off or not {kind} ({detail}); copy, download or write it again"
        ) from exc

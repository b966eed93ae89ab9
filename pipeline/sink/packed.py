"""Text results that are compressed, where their name ends in ``.gz``."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, cast

LEVEL = 6  # 9, the default, takes several times as long for a hundredth less


def is_packed(path: Path) -> bool:
    """Whether the name says so."""
    return path.suffix.lower() == ".gz"


def packing(path: Path, stream: IO[bytes]) -> AbstractContextManager[IO[bytes]]:
    """Where to write what is to be in the file ``stream`` in the end. It holds no time: equal results are equal files."""
    if not is_packed(path):
        return nullcontext(stream)
    return cast(IO[bytes], gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=stream, mtime=0))


@contextmanager
def unpacking(path: Path) -> Iterator[IO[bytes]]:
    """The text of results. Raises ``OSError``, also for what is no gzip, or damaged."""
    try:
        with cast(IO[bytes], gzip.open(path)) if is_packed(path) else path.open("rb") as stream:
            yield stream
    except (EOFError, zlib.error) as exc:
        raise OSError(f"{path} is damaged: {exc}") from exc

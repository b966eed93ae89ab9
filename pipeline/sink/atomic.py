"""Results that are there whole or not at all, in a folder that is made for them; what hinders that in words for people."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Self

from pipeline.errors import IncompleteError, UsageError
from pipeline.ground import folders
from pipeline.ground.disk import cannot_write, unwritable


class AtomicFile:
    """``with AtomicFile(path) as file: file.stream.write(...)``: appears under ``path`` only when the block ends well.

    Raises ``UsageError`` for a place that cannot be written, ``IncompleteError`` when there is no room.
    """

    def __init__(self, path: Path) -> None:
        self._file = folders.AtomicFile(path)
        self.path = self._file.path

    @property
    def stream(self) -> IO[bytes]:
        """Where to write."""
        return self._file.stream

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"cannot write results to {self.path}: it is a folder; name a file")
        try:
            if not self.path.parent.is_dir():
                folders.make_folder(self.path.parent)
            self._file.__enter__()
        except FileExistsError as exc:
            raise UsageError(
                f"cannot write results to {self.path}: {self.path.parent} is a file, not a folder"
            ) from exc
        except OSError as exc:
            why = UsageError(f"cannot write results to {self.path}: {exc.strerror}")
            raise unwritable(self.path, exc, what="results to", otherwise=why) from exc
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self._file.__exit__(kind, error, trace)
            if isinstance(error, OSError):
                raise error  # what the block raised while it wrote
        except OSError as exc:
            raise IncompleteError(cannot_write(self.path, exc, what="results to")) from exc

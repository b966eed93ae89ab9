"""A file that is there whole or not at all: written beside its place, synced, renamed, and its folder synced."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, Self

from pipeline.disk import cannot_write, is_full
from pipeline.errors import IncompleteError, UsageError
from pipeline.folders import make_folder, sync_folder


class AtomicFile:
    """``with AtomicFile(path) as file: file.stream.write(...)``: appears under ``path`` only when the block ends well.

    Mode 0600: it holds prompts and answers. Raises ``UsageError`` for a place that cannot be written, ``IncompleteError``
    when there is no room.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve() if path.is_symlink() else path
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self.stream: IO[bytes]

    def __enter__(self) -> Self:
        if self.path.is_dir():
            raise UsageError(f"cannot write results to {self.path}: it is a folder; name a file")
        try:
            if not self.path.parent.is_dir():
                make_folder(self.path.parent)
            fd = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except FileExistsError as exc:
            raise UsageError(
                f"cannot write results to {self.path}: {self.path.parent} is a file, not a folder"
            ) from exc
        except OSError as exc:
            if is_full(exc):
                raise self._unwritten(exc) from exc
            raise UsageError(f"cannot write results to {self.path}: {exc.strerror}") from exc
        self.stream = os.fdopen(fd, "wb", buffering=1 << 20)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, OSError):
                raise error  # what the block raised while it wrote
            if error is None:
                self.stream.flush()
                os.fsync(self.stream.fileno())
            self.stream.close()
            if error is None:
                self._partial.replace(self.path)
                sync_folder(self.path.parent)
        except OSError as exc:
            raise self._unwritten(exc) from exc
        finally:
            if not self.stream.closed:
                self._drop_stream()
            self._drop_partial()

    def _unwritten(self, exc: OSError) -> IncompleteError:
        return IncompleteError(cannot_write(self.path, exc, what="results to"))

    def _drop_partial(self) -> None:
        try:
            self._partial.unlink(missing_ok=True)
        except OSError:
            return  # the folder has gone bad; why the file could not be written is told already

    def _drop_stream(self) -> None:
        """Close what could not be flushed: a second failure to write the same bytes says nothing new."""
        try:
            self.stream.close()
        except OSError:
            return

"""Folders and files whose names survive a power cut: a file that is synced is lost all the same while its folder is not."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

_UNABLE = frozenset({errno.EINVAL, errno.ENOTSUP})  # a file system that has no such thing
_OTHERS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder and those above it that lack, so that they survive a power cut.

    All above it are synced, not only where one was made: a run that was killed may have made them and not come that far.
    """
    folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for above in folder.parents:
        try:
            sync_folder(above)
        except OSError as exc:
            if exc.errno not in _OTHERS:
                raise


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or deleted in this folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as exc:
        if exc.errno not in _UNABLE:
            raise
    finally:
        os.close(fd)


class AtomicFile:
    """``with AtomicFile(path) as file: file.stream.write(...)``: there whole, when the block ends well, or not at all.

    Written beside its place, synced, renamed, and its folder synced; with ``sync`` False a power cut may tear it. Mode 0600:
    it holds prompts and answers. Raises ``OSError``, also where the block ended with one.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path.resolve() if path.is_symlink() else path
        self._sync = sync
        self._partial = self.path.with_name(f".{self.path.name}.partial")
        self.stream: IO[bytes]

    def __enter__(self) -> Self:
        fd = os.open(self._partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.stream = os.fdopen(fd, "wb", buffering=1 << 20)
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._put_in_place()
        finally:
            with suppress(OSError):  # a second failure to write, close or delete the same says nothing new
                self.stream.close()
            with suppress(OSError):
                self._partial.unlink(missing_ok=True)

    def _put_in_place(self) -> None:
        self.stream.flush()
        if self._sync:
            os.fsync(self.stream.fileno())
        self.stream.close()
        self._partial.replace(self.path)
        if self._sync:
            sync_folder(self.path.parent)

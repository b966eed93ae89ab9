"""Folders whose names survive a power cut: a file that is synced is lost all the same while its folder is not."""

from __future__ import annotations

import errno
import os
from pathlib import Path

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

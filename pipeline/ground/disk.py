"""The disk under a path: what kind it is, how much room it has, and what an error of it means in a sentence."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from contextlib import suppress
from pathlib import Path

from pipeline.errors import IncompleteError, PipelineError, RunFolderError

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_PASSING = NO_ROOM | {errno.EIO, errno.ESTALE, errno.ETIMEDOUT}
_DENIED = frozenset({errno.EACCES, errno.EPERM})
_PROBE = bytes(8192)
_AGAIN = "then run the same command again"


def mount_of(path: Path) -> tuple[str, str]:
    """Where the file system that holds ``path`` is mounted, and its type, as /proc/mounts names them; empty without such a list."""
    try:
        lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "", ""
    best, kind = "", ""
    where = os.path.realpath(path)
    for line in lines:
        _, point, fs, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        inside = where == point or where.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fs
    return best, kind


def file_system_of(path: Path) -> str:
    """The type of the file system that holds ``path``; empty where the system does not say."""
    return mount_of(path)[1]


def size(count: float) -> str:
    """``312 bytes``, ``1.2 MB``."""
    for unit, many in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= many:
            return f"{count / many:,.1f} {unit}"
    return f"{count:,.0f} bytes"


def free_on(path: Path) -> str:
    """How much is free on which disk, in words: ``0 bytes are free on /scratch (nfs4)``."""
    try:
        there = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
        point, kind = mount_of(there)
        space = os.statvfs(there)
    except OSError as exc:  # asked where there is trouble already, and that is to be told
        return f"how much is free there cannot be told ({exc.strerror})"
    free = f"{size(space.f_bavail * space.f_frsize)} are free on {point or there}{f' ({kind})' if kind else ''}"
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    if most != resource.RLIM_INFINITY:
        free += f", and a file may have at most {size(most)} (ulimit -f)"
    return f"{free}, where no more files fit" if space.f_files and not space.f_favail else free


def cannot_write(path: Path, exc: OSError, *, what: str, needed: float | None = None) -> str:
    """Why ``path`` cannot be written, and what to do; ``what`` is what it is, ``needed`` about how many bytes are wanted."""
    if exc.errno in NO_ROOM:
        wanted = "" if needed is None else f", about {size(needed)} are needed"
        return f"no room to write {what} {path} ({exc.strerror}): {free_on(path)}{wanted}; make room on that disk, {_AGAIN}"
    why = f"cannot write {what} {path}: {exc.strerror or exc}"
    if exc.errno == errno.EROFS:
        return f"{why} ({mount_of(path)[0]}): have it mounted for writing, {_AGAIN}"
    if exc.errno in _DENIED:
        return f"{why}: check its permissions, {_AGAIN}"
    return f"{why}: see to that disk, {_AGAIN}"


def is_full(exc: OSError) -> bool:
    """Whether it is room that lacks."""
    return exc.errno in NO_ROOM


def unwritable(
    path: Path, exc: OSError, *, what: str, needed: float | None = None, otherwise: PipelineError | None = None
) -> PipelineError:
    """The error that it is for a run: room that lacks, or a disk in trouble, is a matter of time (75); all else may be a wrong
    place (2), of which ``otherwise`` tells what is to be done about it there."""
    words = cannot_write(path, exc, what=what, needed=needed)
    if exc.errno in _PASSING:
        return IncompleteError(words)
    return otherwise or RunFolderError(words)


def tried(folder: Path) -> OSError | None:
    """What a library does not tell: the error that writing a little in this folder gives now; None when it works."""
    try:
        fd, name = tempfile.mkstemp(prefix=".probe-", dir=folder)
    except OSError as exc:
        return exc
    try:
        if os.write(fd, _PROBE) < len(_PROBE):
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(fd)
    except OSError as exc:
        return exc
    finally:
        with suppress(OSError):  # a disk that is read-only by now, say: what counts is what writing gave
            os.close(fd)
            Path(name).unlink(missing_ok=True)
    return None

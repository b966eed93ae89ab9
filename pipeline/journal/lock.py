"""One run a folder: a file lock that the kernel drops when its process dies, with a note of who holds it."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import orjson

from pipeline.errors import LockedError, PipelineError, RunFolderError
from pipeline.ground.boot import boot_id
from pipeline.ground.disk import file_system_of, unwritable

_HELD = frozenset({errno.EWOULDBLOCK, errno.EACCES})
LOOKS = 10
LOOK_S = 0.02


class Lock:
    """``with Lock(folder): ...``; raises ``LockedError`` (exit 75) naming host, pid and since when.

    ``copied``: its last holder did not end well, and had another file than this: the folder is a copy. That stays known,
    whatever comes of the present holder, until one says that the journal ``is_whole``.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "lock"
        self._fd = -1
        self._before = b""
        self.copied = False

    def __enter__(self) -> Self:
        try:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            otherwise = RunFolderError(f"cannot write in the run folder {self._path.parent}: {exc.strerror}")
            raise unwritable(self._path, exc, what="the lock", otherwise=otherwise) from exc
        try:
            self._take()
        except OSError as exc:
            raise self._let_go(_why_not(self._path.parent, exc, self.holder())) from exc
        self._before = _bytes_of(self._path)
        inode = os.fstat(self._fd).st_ino
        known_as = self.holder().get("inode", inode)
        self.copied = known_as != inode
        try:
            self._write(known_as)
        except OSError as exc:
            raise self._let_go(self._unwritten(exc)) from exc
        return self

    def is_whole(self) -> None:
        """The journal was looked at: from now on the folder is no copy but this holder's own. Raises ``IncompleteError``."""
        try:
            self._write(os.fstat(self._fd).st_ino)
        except OSError as exc:
            raise self._unwritten(exc) from exc
        self._before = b""

    def _unwritten(self, exc: OSError) -> PipelineError:
        return unwritable(self._path, exc, what="the lock")

    def _let_go(self, why: PipelineError) -> PipelineError:
        os.close(self._fd)
        self._fd = -1
        return why

    def _take(self) -> None:
        """A ``status`` that looks whether it is held holds it for an instant itself."""
        for _ in range(LOOKS):
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                if exc.errno not in _HELD:
                    raise
                time.sleep(LOOK_S)
            else:
                return
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a disk gone bad: the lock itself goes with the open file
            self._replace(self._before)
        os.close(self._fd)
        self._fd = -1

    def _write(self, inode: int) -> None:
        note = {"host": socket.gethostname(), "pid": os.getpid(), "boot_id": boot_id(), "since": time.time()}
        self._replace(orjson.dumps({**note, "inode": inode}))

    def _replace(self, note: bytes) -> None:
        if os.pwrite(self._fd, note, 0) < len(note):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.ftruncate(self._fd, len(note))

    def holder(self) -> dict[str, Any]:
        """What the present or, after a crash, the last holder wrote; empty after a clean end."""
        try:
            held = orjson.loads(_bytes_of(self._path) or b"{}")
        except ValueError:
            return {}  # caught while it is being written: the lock itself still says that it is held
        return held if isinstance(held, dict) else {}

    def is_held(self) -> bool:
        """Whether some process holds it now."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as exc:
            return exc.errno in _HELD
        finally:
            os.close(fd)
        return False


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _why_not(folder: Path, exc: OSError, holder: dict[str, Any]) -> PipelineError:
    if exc.errno in _HELD:
        return LockedError(_in_use(folder, holder))
    kind = file_system_of(folder)
    return RunFolderError(
        f"the run folder {folder} cannot be locked ({exc.strerror}): its file system{f' ({kind})' if kind else ''} gives no "
        "locks, so two runs could pay for the same rows; give a run folder on another disk with --run-dir"
    )


def _in_use(folder: Path, holder: dict[str, Any]) -> str:
    since = holder.get("since")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since)) if isinstance(since, int | float) else "unknown"
    return (
        f"another run works in {folder}: host {holder.get('host', 'unknown')}, pid {holder.get('pid', 'unknown')}, "
        f"since {when}. Wait for it, or look at it with: pipeline status {folder}"
    )

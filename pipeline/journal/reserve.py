"""Room on the disk that nobody else can take: given back when the journal meets a full disk, so that answers still fit.

A file with allocated blocks in the run folder, made before the first request. Every answer in flight when a disk fills up is
paid for; in the room of the reserve the journal can keep it. It is given back in two parts: the first for the answers,
the last for the few words with which a run ends. It costs nothing while there is room: no row touches it.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from pipeline.errors import IncompleteError
from pipeline.ground.disk import cannot_write, is_full

FILE_NAME = "reserve"
LEAST, MOST = 1 << 20, 64 << 20
LAST = 256 << 10  # for the end of the run: its note, what was in flight, status.json
REPLY_BYTES = 8 << 10  # assumed before anything was answered: a long answer, with what is around it
OVERHEAD = 3  # a page in the write-ahead log, the same in the journal, and what stands beside the reply
_UNABLE = frozenset({errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
_ZEROS = bytes(1 << 20)


def bytes_for(rows: int, reply_bytes: float | None) -> int:
    """What to hold for so many rows that are out, or answered and not on disk."""
    wanted = rows * (reply_bytes or REPLY_BYTES) * OVERHEAD + LAST
    return int(min(max(wanted, LEAST), MOST))


class Reserve:
    """``hold`` before sending, ``release`` and ``release_last`` when the disk is full, ``close`` at the end."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._fd = -1
        self._held = 0
        self._can_grow = True

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    def hold(self, wanted: int, *, needed: float | None = None) -> None:
        """Hold at least so many bytes; more than before, never less. Raises ``IncompleteError`` when they are not there.

        ``needed``: about how many bytes the whole run takes, for whoever has to make room.
        """
        if wanted <= self._held:
            return
        try:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._allocate(wanted)
            os.fsync(self._fd)
        except OSError as exc:
            self._cut(self._held)
            if exc.errno == errno.EFBIG:  # a bound on each file: no file can hold room for another
                return
            what = "the reserve for answers in flight"
            raise IncompleteError(cannot_write(self.path, exc, what=what, needed=needed or wanted)) from exc
        self._held = wanted

    def try_to_hold(self, wanted: int) -> None:
        """The same while answers come in already: then less must do, and what was given back stays so.

        An allocation that fails has taken all there was for an instant, in which a COMMIT may have wanted it: nothing is tried
        that would not leave as much again free, and after one failure (a quota says nothing beforehand) nothing at all.
        """
        if self._can_grow and self._held > LAST and wanted > self._held and self._is_free(2 * wanted - self._held):
            try:
                self._allocate(wanted)
            except OSError:
                self._can_grow = False
                self._cut(self._held)
            else:
                self._held = wanted

    def _is_free(self, count: int) -> bool:
        try:
            space = os.fstatvfs(self._fd)
        except OSError:
            return False
        return space.f_bavail * space.f_frsize >= count

    def _allocate(self, wanted: int) -> None:
        try:
            os.posix_fallocate(self._fd, 0, wanted)
        except OSError as exc:
            if exc.errno not in _UNABLE:
                raise
            for at in range(self._held, wanted, len(_ZEROS)):
                if os.pwrite(self._fd, _ZEROS[: wanted - at], at) < min(len(_ZEROS), wanted - at):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from exc

    def release(self) -> bool:
        """Give back all but the last part; False when that has been done, or nothing is held."""
        return self._held > LAST and self._cut(LAST)

    def release_last(self) -> bool:
        """Give back what is left; False when nothing is."""
        return self._held > 0 and self._cut(0)

    def _cut(self, left: int) -> bool:
        if self._fd < 0:
            return False
        try:
            os.ftruncate(self._fd, left)
            os.fsync(self._fd)  # some file systems give freed blocks out again only after a sync
        except OSError as exc:
            if not is_full(exc):
                return False  # the disk has more to it than being full; the journal will say so
        self._held = min(self._held, left)
        return True

    def close(self) -> None:
        """Give back everything; the file goes, unless another run's stands at its place."""
        if self._fd < 0:
            return
        self._cut(0)
        try:
            if os.path.samestat(self.path.stat(), os.fstat(self._fd)):
                self.path.unlink()
        except OSError:
            return  # gone with its folder, or it stays behind, empty
        finally:
            os.close(self._fd)
            self._fd = -1

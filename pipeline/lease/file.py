"""The lease file: the pace, a table of members, and byte locks that the kernel drops when their process dies.

Nothing in it is mapped into memory, for somebody may cut the file short, and it is checked or overwritten rather than
believed, for somebody may write into it. A member is alive while it holds the lock on its byte, so a killed one's record
counts for nothing from that instant. The locks lie far behind the content; they need no bytes there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from pipeline.errors import LeaseError
from pipeline.ground.boot import boot_id
from pipeline.lease.pace import PACE_BYTES, Pace, packed, unpacked

MOST_MEMBERS = 64
TABLE = 512  # where it begins
GUARD = 1 << 30  # the byte whose holder may read and write
FIRST = GUARD + 1  # the byte of the first member
GUARD_S = 0.2
GUARD_LOOK_S = 50e-6
OPEN_DESCRIPTION = hasattr(fcntl, "F_OFD_SETLK")
_FLOCK = struct.Struct("@hhqqi4x")  # Linux: type, whence, start, length, pid
_MEMBER = struct.Struct("<dQQQQ")
FILE_BYTES = TABLE + MOST_MEMBERS * _MEMBER.size  # within one block: a full disk shows when the first run joins


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run, as the others see it: what it ``wanted`` when last ``seen``, could use at ``most``, and ``held``."""

    seen: float
    wanted: int
    most: int
    ceiling: int
    held: int


_VALUES = attrgetter(*Member.__slots__)


class LeaseFile:
    """Opened with a place in the table; all but ``close`` and ``is_deleted`` belong within ``guarded``.

    Every method raises ``LeaseError`` where the file or its locks fail.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = boot_id()
        self._unguarded = False
        self._fd = -1
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self.place = self._take_place()
        except OSError as exc:
            self.close()
            raise self._failed(exc) from exc
        except LeaseError:
            self.close()
            raise

    def _take_place(self) -> int:
        with self.guarded():
            for place in range(MOST_MEMBERS):
                if self._lock(FIRST + place):
                    return place
        raise LeaseError(f"{MOST_MEMBERS} runs share the key of {self._path} already")

    @property
    def has_boot_id(self) -> bool:
        """Whether the system tells one start of the machine from the next."""
        return bool(self._boot)

    def is_deleted(self) -> bool:
        """Whether somebody deleted the file: who comes next makes another, and shares nothing with this one."""
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError as exc:
            raise self._failed(exc) from exc

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Alone with the file, for microseconds: no run reads what another has half written."""
        guarded = self._wait_for_guard()
        try:
            yield
        finally:
            if guarded:
                self._unlock(GUARD)

    def _wait_for_guard(self) -> bool:
        """A process that was stopped while it had the guard must not stop all others: from then on they do without, and
        what two write at once is lost for one of them."""
        deadline = time.monotonic() + (0.0 if self._unguarded else GUARD_S)
        while not self._lock(GUARD):
            if time.monotonic() >= deadline:
                self._unguarded = True
                return False
            time.sleep(GUARD_LOOK_S)
        self._unguarded = False
        return True

    def read(self) -> tuple[Pace, dict[int, Member]]:
        """The pace, and the other members that live, by their place."""
        data = self._read(FILE_BYTES)
        members = {}
        records = _MEMBER.iter_unpack(data[TABLE:].ljust(FILE_BYTES - TABLE, b"\0"))
        for place, (seen, wanted, most, ceiling, held) in enumerate(records):
            if ceiling and place != self.place and self._lives(place):
                members[place] = Member(seen=seen, wanted=wanted, most=most, ceiling=ceiling, held=held)
        return unpacked(data, self._boot), members

    def _lives(self, place: int) -> bool:
        if not self._lock(FIRST + place):
            return True
        self._write(bytes(_MEMBER.size), TABLE + place * _MEMBER.size)
        self._unlock(FIRST + place)
        return False

    def pace(self) -> Pace:
        """The pace alone."""
        return unpacked(self._read(PACE_BYTES), self._boot)

    def keep(self, what: Pace | Member) -> None:
        """Write the pace, or this member's record."""
        if isinstance(what, Pace):
            self._write(packed(what, self._boot), 0)
        else:
            self._write(_MEMBER.pack(*_VALUES(what)), TABLE + self.place * _MEMBER.size)

    def close(self) -> None:
        """Leave: the locks go with the open file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _read(self, size: int) -> bytes:
        try:
            return os.pread(self._fd, size, 0)
        except OSError as exc:
            raise self._failed(exc) from exc

    def _write(self, data: bytes, at: int) -> None:
        try:
            os.pwrite(self._fd, data, at)
        except OSError as exc:
            raise self._failed(exc) from exc

    def _lock(self, byte: int) -> bool:
        """Lock a byte if nobody else has it.

        On Linux the lock belongs to the open file, so that two runs in one process exclude each other; elsewhere it
        belongs to the process, and such two count as one.
        """
        try:
            if OPEN_DESCRIPTION:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as exc:
            if exc.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise self._failed(exc) from exc
        return True

    def _unlock(self, byte: int) -> None:
        try:
            if OPEN_DESCRIPTION:
                fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))
            else:
                fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, byte)
        except OSError as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: OSError) -> LeaseError:
        return LeaseError(
            f"this key's limits cannot be shared with other runs of this machine: {self._path}: {exc.strerror}. "
            f"Set PIPELINE_STATE_DIR to a folder of yours on a local disk, or say --no-lease"
        )

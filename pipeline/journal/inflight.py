"""The in-flight table: which requests are out, or answered but not yet on disk, should the process die this instant.

A small shared memory map of 2 x slots entries, and some for witnesses. An entry is set before its request is sent and cleared after the COMMIT
that holds its end, so that it survives kill -9 (the pages belong to the kernel) at the price of a memory write. It is
never synced: after a power cut it may be incomplete, and the next start says so.
"""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import RunFolderError
from pipeline.ground.disk import unwritable
from pipeline.records import WITNESSES

ENTRY = struct.Struct("<BxHI16s48s184s")  # set?, length of the id, its number in the journal, fingerprint, call id, id
MAGIC = b"pipeline in-flight 1\n"
HEADER_BYTES = ENTRY.size
_UNABLE = frozenset({errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """One request that was out when its process died. ``custom_id`` is cut to 184 bytes; ``fingerprint`` is whole."""

    custom_id: str
    index: int
    fingerprint: bytes
    call_id: str

    @property
    def identity(self) -> tuple[str, bytes]:
        """Which row, asking what."""
        return self.custom_id, self.fingerprint


class InFlightTable:
    """``enter`` before the send, ``clear`` after the COMMIT; ``left`` is what an earlier process could not clear."""

    def __init__(self, path: Path, *, slots: int) -> None:
        self._fd = -1
        try:
            _check(path)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            size = max(ENTRY.size * (1 + 2 * slots + WITNESSES), os.fstat(self._fd).st_size)
            _make_room(self._fd, size)
            self._map = _mapped(self._fd, size)
            self._map[: len(MAGIC)] = MAGIC
            self._written = isinstance(self._map, bytearray)
            if self._written:
                self._write(0, len(MAGIC))
        except OSError as exc:
            if self._fd >= 0:
                os.close(self._fd)
            raise unwritable(path, exc, what="the in-flight table") from exc
        self._free = list(range(size // ENTRY.size - 1, 0, -1))

    @property
    def left(self) -> list[InFlight]:
        """The entries that are set: at the start of a run, what an earlier process could not clear."""
        return list(_entries(bytes(self._map)))

    def forget_left(self) -> None:
        """Empty the table once what was left in it stands in the journal."""
        self._map[HEADER_BYTES:] = bytes(len(self._map) - HEADER_BYTES)
        if self._written:
            self._write(HEADER_BYTES, len(self._map) - HEADER_BYTES)

    def enter(self, custom_id: str, index: int, fingerprint: bytes, call_id: str) -> int:
        """Note one request as out; returns its entry. There is always a free one: the pool keeps to 2 x slots."""
        entry = self._free.pop()
        name = custom_id.encode()[:184]
        # One store of a page-resident slice: the flag is its first byte, and a process dies between byte codes of
        # Python, not in the middle of this copy, except by SIGKILL within it; then a half-set entry names its row.
        ENTRY.pack_into(
            self._map, entry * ENTRY.size, 1, len(name), index & 0xFFFFFFFF, fingerprint, call_id.encode(), name
        )
        if self._written:
            self._write(entry * ENTRY.size, ENTRY.size)
        return entry

    def clear(self, entry: int) -> None:
        """Its end is durable, or it was never sent."""
        self._map[entry * ENTRY.size] = 0
        if self._written:
            self._write(entry * ENTRY.size, 1)
        self._free.append(entry)

    def close(self) -> None:
        """Unmap; entries that are set stay in the file."""
        if not isinstance(self._map, bytearray):
            self._map.close()
        os.close(self._fd)

    def _write(self, at: int, size: int) -> None:
        """Where there is no shared memory the kernel has it as soon as it is written; its room was allocated before."""
        os.pwrite(self._fd, self._map[at : at + size], at)


def _make_room(fd: int, size: int) -> None:
    """A full disk must not show itself as SIGBUS later."""
    if os.fstat(fd).st_size < size:
        try:
            os.posix_fallocate(fd, 0, size)
        except OSError as exc:
            if exc.errno not in _UNABLE:
                raise
            os.pwrite(fd, bytes(size - os.fstat(fd).st_size), os.fstat(fd).st_size)


def _mapped(fd: int, size: int) -> mmap.mmap | bytearray:
    """The table in memory: shared with the kernel, or a copy of it on a file system that cannot do that (9p)."""
    try:
        return mmap.mmap(fd, size)
    except OSError as exc:
        if exc.errno not in _UNABLE:
            raise
        return bytearray(os.pread(fd, size, 0))


def left_in(path: Path) -> list[InFlight]:
    """The entries that are set in the table of a run folder, which is only looked at. Raises ``RunFolderError``."""
    try:
        _check(path)
        return list(_entries(path.read_bytes())) if path.exists() else []
    except OSError as exc:
        raise RunFolderError(f"cannot read the in-flight table {path}: {exc.strerror}; check its permissions") from exc


def _check(path: Path) -> None:
    """Refuse a file that is something else; one that begins with zeros was never laid out, or lost its first page to a power cut."""
    if not path.exists():
        return
    data = path.read_bytes() if path.is_file() else b"?"
    if any(data[:HEADER_BYTES]) and not data.startswith(MAGIC):
        raise RunFolderError(
            f"{path} is no in-flight table of this version: run it with the pipeline that wrote it, or give another --run-dir"
        )


def _entries(data: bytes) -> Iterator[InFlight]:
    for at in range(HEADER_BYTES, len(data) - ENTRY.size + 1, ENTRY.size):
        is_set, length, index, fingerprint, call_id, name = ENTRY.unpack_from(data, at)
        if is_set:
            yield InFlight(
                custom_id=name[:length].decode(errors="ignore"),
                index=index,
                fingerprint=fingerprint,
                call_id=call_id.rstrip(b"\0").decode(errors="ignore"),
            )

"""A disk whose power can be cut at any moment: what ``shim.c`` saw a process do, and what a disk may have kept of it.

``built_shim`` compiles the shim, ``watched`` and its like are environments for the process, ``read_log`` gives the operations,
and a ``Disk`` goes through them: ``live`` is what the process sees, ``survivors`` what may be there after a power cut now.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path, PurePosixPath
from typing import Literal

from conftest import clean_environment

SECTOR = 512
MAGIC = 0x6B736964
_HEAD = struct.Struct("@IIQQQII")


class Op(IntEnum):
    """As in ``shim.c``."""

    CREATE = 1
    WRITE = 2
    TRUNCATE = 3
    SYNC = 4
    RENAME = 5
    UNLINK = 6
    MKDIR = 7
    RMDIR = 8
    LINK = 9
    ALLOCATE = 10
    SYNC_FAILED = 11


NAMING = frozenset({Op.CREATE, Op.RENAME, Op.UNLINK, Op.MKDIR, Op.RMDIR, Op.LINK})


BOUNDARIES = frozenset({Op.SYNC, Op.SYNC_FAILED, Op.RENAME})


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One change, or one sync. ``size``: of the data, or the one a file is given."""

    op: Op
    inode: int
    offset: int
    size: int
    path: str
    other: str
    data: bytes


# The process that is watched


def _compiler() -> str | None:
    return shutil.which("gcc") or shutil.which("cc")


def can_preload() -> bool:
    """Whether there is a C compiler here, and a loader that takes what it makes."""
    return sys.platform.startswith("linux") and _compiler() is not None


def built_shim(folder: Path) -> Path:
    """The shim, compiled."""
    found = _compiler()
    assert found is not None
    shim = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    words = [found, "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-fvisibility=hidden", "-pthread"]
    subprocess.run([*words, "-o", str(shim), str(source)], check=True, timeout=60)
    return shim


def watched(shim: Path, root: Path, log: Path) -> dict[str, str]:
    """The environment of a process whose changes below ``root`` are logged."""
    return {**clean_environment(), "LD_PRELOAD": str(shim), "SHIM_ROOT": str(root), "SHIM_LOG": str(log)}


def killing(shim: Path, root: Path, moment: Literal["before", "after"], boundary: int) -> dict[str, str]:
    """... of one that is killed right before or after its n-th sync or rename."""
    return {
        **clean_environment(), "LD_PRELOAD": str(shim), "SHIM_ROOT": str(root), "SHIM_KILL": f"{moment}:{boundary}"
    }  # fmt: skip


def failing(
    shim: Path, root: Path, op: str, text: str, *, at: int = 1, code: int = errno.EIO, on: bool = False
) -> dict[str, str]:
    """... of one whose n-th ``op`` on a path that ends in ``text`` fails; ``on``: all later ones, too."""
    fault = f"{op},{text},{at},{code},{'on' if on else 'once'}"
    return {**clean_environment(), "LD_PRELOAD": str(shim), "SHIM_ROOT": str(root), "SHIM_FAIL": fault}


def read_log(path: Path) -> list[Operation]:
    """All operations, in their order."""
    return list(_operations(path.read_bytes()))


def _operations(data: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(data):
        magic, op, inode, offset, size, path, other = _HEAD.unpack_from(data, at)
        assert magic == MAGIC, f"the log is damaged at byte {at}"
        at += _HEAD.size
        names = data[at : at + path + other]
        at += path + other
        written = size if op == Op.WRITE else 0
        yield Operation(
            op=Op(op),
            inode=inode,
            offset=offset,
            size=size,
            path=os.fsdecode(names[:path]),
            other=os.fsdecode(names[path:]),
            data=data[at : at + written],
        )
        at += written


# The disk


@dataclass(slots=True, eq=False)
class File:
    """The bytes of one file: as its process sees them, as they are on disk for certain, and what was done since the sync."""

    live: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)

    def change(self, what: Operation) -> None:
        """A write, or another size."""
        _apply(self.live, what)
        self.pending.append(what)

    def sync(self) -> None:
        """What was done is on disk now."""
        for what in self.pending:
            _apply(self.synced, what)
        self.pending = []

    def sync_failed(self) -> None:
        """The kernel takes the pages for clean from now on: what was not written is never written, and no later sync says so."""
        chance = random.Random(len(self.pending))
        for what in self.pending:
            if chance.random() < 0.5:
                _apply(self.synced, what)
        self.pending = []


Node = File | None  # None: a folder
Names = dict[str, Node]


@dataclass(frozen=True, slots=True)
class Naming:
    """One change of names: what stands under each of them after it. All of it comes to be, or nothing."""

    bound: tuple[tuple[str, Node | Literal["gone"]], ...]

    def apply(self, names: Names) -> None:
        """Do it."""
        for path, node in self.bound:
            if node == "gone":
                names.pop(path, None)
            else:
                names[path] = node

    @property
    def folders(self) -> set[str]:
        """Where the names are."""
        return {str(PurePosixPath(path).parent) for path, _ in self.bound}


class Disk:
    """What a process does to the folder ``root``, which is empty at first. ``play`` one operation after the other."""

    def __init__(self, root: Path) -> None:
        self._root = str(root.resolve())
        self._names: Names = {}
        self._kept_names: Names = {}
        self._pending: list[tuple[Naming, set[str]]] = []  # with the folders whose sync it still waits for
        self._journalled = 0  # how many of these a disk that keeps names in order has
        self._by_inode: dict[int, File] = {}

    def play(self, what: Operation) -> None:
        """One more operation."""
        if what.op in NAMING:
            naming = Naming(self._bound(what))
            naming.apply(self._names)
            self._pending.append((naming, naming.folders))
        elif what.op == Op.SYNC:
            self._sync(what)
        elif what.op == Op.SYNC_FAILED:
            if what.inode in self._by_inode:
                self._by_inode[what.inode].sync_failed()
        else:
            self._by_inode[what.inode].change(what)

    def _bound(self, what: Operation) -> tuple[tuple[str, Node | Literal["gone"]], ...]:
        if what.op == Op.CREATE:
            file = self._by_inode[what.inode] = File()
            return ((what.path, file),)
        if what.op == Op.MKDIR:
            return ((what.path, None),)
        if what.op in (Op.UNLINK, Op.RMDIR):
            return ((what.path, "gone"),)
        file_or_folder = self._names[what.path]
        assert file_or_folder is not None, f"a folder was renamed: {what.path}"
        return ((what.other, file_or_folder), *([(what.path, "gone")] if what.op == Op.RENAME else []))  # type: ignore[return-value] # a tuple of pairs

    def _sync(self, what: Operation) -> None:
        self._journalled = len(self._pending)
        if what.inode in self._by_inode and what.path not in self._folders:
            self._by_inode[what.inode].sync()
            return
        waiting = []
        for naming, folders in self._pending:
            if left := folders - {what.path}:
                waiting.append((naming, left))
            else:
                naming.apply(self._kept_names)
        self._pending = waiting
        self._journalled = len(self._pending)

    @property
    def _folders(self) -> set[str]:
        return {self._root, *(path for path, node in self._names.items() if node is None)}

    def live(self) -> dict[str, bytes | None]:
        """What the process sees: contents by path, None for a folder."""
        return {path: None if node is None else bytes(node.live) for path, node in self._names.items()}

    def survivors(self, chance: random.Random, *, ordered: bool) -> dict[str, bytes | None]:
        """What may be there after a power cut at this moment.

        Bytes that were not synced are kept, lost or torn, write by write. Names that were not: where the disk keeps them
        ``ordered`` (ext4 does), some first ones are there, and all from before the last sync of anything; else any of them.
        """
        names = dict(self._kept_names)
        if ordered:
            first = chance.randint(self._journalled, len(self._pending))
            kept = [naming for naming, _ in self._pending[:first]]
        else:
            share = chance.choice((0.0, 0.5, 1.0))
            kept = [naming for naming, _ in self._pending if chance.random() < share]
        for naming in kept:
            naming.apply(names)
        found: dict[str, bytes | None] = {}
        share = chance.choice((0.0, 0.3, 0.7, 1.0))
        for path in sorted(names):
            parent = str(PurePosixPath(path).parent)
            if parent != self._root and parent not in found:
                continue  # its folder is not there
            node = names[path]
            found[path] = None if node is None else _kept_bytes(node, chance, share)
        return found


def _apply(content: bytearray, what: Operation) -> None:
    if what.op == Op.WRITE:
        if len(content) < what.offset:
            content.extend(bytes(what.offset - len(content)))
        content[what.offset : what.offset + what.size] = what.data
    elif len(content) < what.size:
        content.extend(bytes(what.size - len(content)))
    elif what.op == Op.TRUNCATE:
        del content[what.size :]


def _kept_bytes(file: File, chance: random.Random, share: float) -> bytes:
    content = bytearray(file.synced)
    for what in file.pending:
        if what.op == Op.WRITE and chance.random() < 0.25:
            for sector in _sectors(what):
                if chance.random() < 0.5:
                    _apply(content, sector)
        elif chance.random() < share:
            _apply(content, what)
    return bytes(content)


def _sectors(what: Operation) -> Iterator[Operation]:
    """A write in the pieces of which a disk writes each whole or not at all."""
    at, end = what.offset, what.offset + what.size
    while at < end:
        until = min((at // SECTOR + 1) * SECTOR, end)
        data = what.data[at - what.offset : until - what.offset]
        yield Operation(op=Op.WRITE, inode=what.inode, offset=at, size=len(data), path=what.path, other="", data=data)
        at = until


def laid_out(found: dict[str, bytes | None], root: Path, at: Path | None = None) -> None:
    """Make these files and folders, at another place than ``root`` if one is given; it is emptied first."""
    place = at or root
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for path, content in sorted(found.items()):
        target = place / PurePosixPath(path).relative_to(str(root.resolve()))
        if content is None:
            target.mkdir(mode=0o700)
        else:
            with open(target, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
                file.write(content)

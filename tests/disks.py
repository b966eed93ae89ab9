"""A small disk to fill: a tmpfs or an ext4 of its own where mounting is allowed, else a bound on the size of each file.

``how`` says which it is. The bound (``rlimit``) holds in the child only, and for each file by itself.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from conftest import Ended, clean_environment

Kind = Literal["tmpfs", "ext4", "rlimit"]
MB = 1 << 20
_LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}));"
_NETWORK = "import pipeline.journal.store as s; s.NETWORK_FILE_SYSTEMS = s.NETWORK_FILE_SYSTEMS | {'tmpfs', 'ext4', 'overlay'};"
_BOUND = "import ctypes; [ctypes.CDLL(None).prctl(24, right, 0, 0, 0) for right in (1, 2, 3)];"  # PR_CAPBSET_DROP
_EACH = """
import json, sys
from pipeline.cli import main
for line in [json.loads(line) for line in sys.argv[1:]]:
    sys.argv[1:] = line
    try:
        main()
    except SystemExit as ended:
        print(f"exit {ended.code}", file=sys.stderr, flush=True)
"""
_MAIN = "import sys; from pipeline.cli import main; main()"


@dataclass(kw_only=True)
class SmallDisk:
    """``folder`` lies on it; ``cwd`` does not."""

    folder: Path
    cwd: Path
    how: Kind
    bound: int | None = None
    _filler: Path = field(init=False)

    def __post_init__(self) -> None:
        self._filler = self.folder / "filler"

    @property
    def free(self) -> int:
        """Bytes that can still be written."""
        space = os.statvfs(self.folder)
        return space.f_bavail * space.f_frsize

    def fill(self, left: int = 0) -> None:
        """Have only so many bytes free; of a bound on files, have that bound."""
        if self.how == "rlimit":
            self.bound = left
            return
        with self._filler.open("ab", buffering=0) as file:
            while (more := self.free - left) > 0:
                try:
                    file.write(bytes(min(more, MB)))
                except OSError as exc:
                    assert exc.errno == errno.ENOSPC
                    break

    def make_room(self) -> None:
        """Somebody tidies up."""
        if self.how == "rlimit":
            self.bound = None
        self._filler.unlink(missing_ok=True)

    def command(self, *words: str | Path, before: str = "") -> list[str]:
        """``pipeline`` with these words, on this disk."""
        limit = "" if self.bound is None else _LIMIT.format(self.bound)
        return command(*words, before=before + limit)

    def pipeline(self, *words: str | Path, stdin: str = "", env: dict[str, str] | None = None) -> Ended:
        """Run it to its end."""
        return ended(self.command(*words), self.cwd, stdin=stdin, env=env)


def command(*words: str | Path, before: str = "") -> list[str]:
    """``pipeline`` with these words, after some lines of Python."""
    return [sys.executable, "-W", "error", "-c", before + _MAIN, *map(str, words)]


def one_after_the_other(*lines: Sequence[str | Path], before: str = "") -> list[str]:
    """Several commands in one process. Each tells its exit code in a line of its own at its end."""
    arguments = [json.dumps([str(word) for word in line]) for line in lines]
    return [sys.executable, "-W", "error", "-c", before + _EACH, *arguments]


def without_rights(*lines: Sequence[str | Path]) -> list[str]:
    """The same for a user whom permissions bind: root gives up the right to pass over them."""
    again = one_after_the_other(*lines)
    if os.geteuid() != 0:
        return again
    return [sys.executable, "-c", f"{_BOUND} import os, sys; os.execv(sys.argv[1], sys.argv[1:])", *again]


def on_a_network(*lines: Sequence[str | Path]) -> list[str]:
    """The same where the disk counts as one of a network."""
    return one_after_the_other(*lines, before=_NETWORK)


def ended(line: Sequence[str], cwd: Path, *, stdin: str = "", env: dict[str, str] | None = None) -> Ended:
    """Run a command to its end."""
    environment = {**clean_environment(), **(env or {})}
    done = subprocess.run(line, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=90, env=environment)
    return Ended(code=done.returncode, out=done.stdout, err=done.stderr)


@contextmanager
def small_disk(cwd: Path, size: int, kind: Kind = "tmpfs", *, options: str = "") -> Iterator[SmallDisk]:
    """A disk of about ``size`` bytes while the block runs; says which kind it has become."""
    folder = cwd / "disk"
    folder.mkdir()
    mounted = kind != "rlimit" and _mount(folder, size, kind, options)
    how: Kind = kind if mounted else "rlimit"
    print(f"a small disk: {how}, {size:,} bytes")
    try:
        yield SmallDisk(folder=folder, cwd=cwd, how=how, bound=size if how == "rlimit" else None)
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)


def _mount(folder: Path, size: int, kind: Kind, options: str) -> bool:
    if kind == "ext4":
        image = folder.with_suffix(".img")
        with image.open("wb") as file:
            file.truncate(size)
        if not _can("mkfs.ext4", "-q", "-m", "0", "-N", "64", image):
            return False
        return _can("mount", "-o", "loop", image, folder)
    return _can("mount", "-t", "tmpfs", "-o", f"size={size}{options}", "none", folder)


def _can(*words: str | Path) -> bool:
    try:
        return subprocess.run(words, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False

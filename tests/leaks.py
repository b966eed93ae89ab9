"""Does a key show anywhere? All keys of the suite begin with ``MARK``; whatever a test leaves or says is searched for it.

Files: all below pytest's folder, at the end of the session. Words: what children print, what tests capture, and the text of
every error of ours, as they come.
"""

from __future__ import annotations

import base64
import gzip
import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from pipeline.errors import PipelineError

MARK = "sk-SECRET"
KEY = f"{MARK}-0123456789-abcdefghij"
# What tests wrote themselves, keys and all: key files, fault scripts that quote a key, job files that hold one to be refused.
ALLOWED = (
    "*/key",
    "*/faults*.json",
    "test_what_is_wrong_is_said_and*/job.toml",
    "test_secrets*/planted*",
)


def _base64_forms(mark: bytes) -> Iterator[bytes]:
    """The characters that depend on the mark alone, wherever it begins in what is encoded."""
    for before in range(3):
        text = base64.b64encode(bytes(before) + mark)
        yield text[-(-before * 8 // 6) : (before + len(mark)) * 8 // 6]


def forms(mark: str = MARK) -> tuple[bytes, ...]:
    """The ways in which a text may have been written."""
    plain = mark.encode()
    return tuple(
        dict.fromkeys(
            [
                plain,
                quote(mark, safe="").encode(),
                *_base64_forms(plain),
                "".join(f"%{byte:02X}" for byte in plain).encode(),
                "".join(f"%{byte:02x}" for byte in plain).encode(),
                "".join(f"\\u{byte:04x}" for byte in plain).encode(),
                "".join(f"\\u{byte:04X}" for byte in plain).encode(),
                plain.hex().encode(),
                mark.encode("utf-16-le"),
            ]
        )
    )


FORMS = forms()


def leaks_in(data: bytes | str | mmap.mmap) -> bool:
    """Whether the mark is there in any of its forms."""
    whole = data.encode("utf-8", "replace") if isinstance(data, str) else data
    return any(whole.find(form) >= 0 for form in FORMS)


def scan(folder: Path, allowed: tuple[str, ...] = ALLOWED) -> list[str]:
    """The files below a folder that have it, or whose names do."""
    found = []
    for root, folders, names in os.walk(folder):
        found += [f"{root}/{name}" for name in [*folders, *names] if leaks_in(name)]
        for name in names:
            path = Path(root, name)
            inside = str(path.relative_to(folder))
            if path.is_symlink() or not path.is_file() or any(fnmatch(inside, pattern) for pattern in allowed):
                continue
            if _has(path):
                found.append(str(path))
    return found


def _has(path: Path) -> bool:
    try:
        if path.stat().st_size == 0:
            return False
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if leaks_in(data):
                return True
        if path.suffix == ".gz" and path.stat().st_size < 1 << 20:
            return leaks_in(gzip.decompress(path.read_bytes()))
        if path.suffix == ".parquet" and path.stat().st_size < 1 << 20:
            return _is_in_parquet(path)
    except (OSError, EOFError, ValueError, NotImplementedError):
        return False  # gone meanwhile; or damaged on purpose, and searched as it is
    return False


def _is_in_parquet(path: Path) -> bool:
    table = pq.read_table(path)
    return leaks_in(repr(table.schema.metadata)) or any(map(_is_in_column, table.columns))


def _is_in_column(column: Any) -> bool:
    try:
        return leaks_in(repr(column.to_pylist()))
    except ArithmeticError:
        return False  # times that Python has not: no key is among them


class Watch:
    """Listens to what children print and to what errors say, from ``start`` to ``stop``; ``found`` are the leaks."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._communicate = subprocess.Popen.communicate
        self._undo: Callable[[], None] = lambda: None

    def heard(self, what: str, text: object) -> None:
        """Some words that came out somewhere."""
        if text is not None and leaks_in(text if isinstance(text, bytes) else str(text)):
            self.found.append(f"{what}, in {os.environ.get('PYTEST_CURRENT_TEST', 'no test')}")

    def start(self) -> None:
        """Listen."""
        watch, communicate = self, subprocess.Popen.communicate

        def heard(process: subprocess.Popen[Any], *words: Any, **options: Any) -> tuple[Any, Any]:
            out, err = communicate(process, *words, **options)
            watch.heard("the stdout of a child", out)
            watch.heard("the stderr of a child", err)
            return out, err

        def said(error: PipelineError, *words: object) -> None:
            Exception.__init__(error, *words)
            watch.heard(f"the words of a {type(error).__name__}", " ".join(map(str, words)))

        subprocess.Popen.communicate = heard  # type: ignore[method-assign] # for the time of the tests
        PipelineError.__init__ = said  # type: ignore[method-assign] # for the time of the tests

    def stop(self) -> None:
        """Listen no more."""
        subprocess.Popen.communicate = self._communicate  # type: ignore[method-assign] # as it was
        del PipelineError.__init__

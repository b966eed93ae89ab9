"""Small files that a person wrote, read whole: a job, a prompt, a key, a list of ids. None of them is without end."""

from __future__ import annotations

import errno
from pathlib import Path

MOST_BYTES = 64 << 20


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """What is in the file. Raises ``OSError``, also when that is more than ``most`` bytes (``/dev/zero``)."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most:,} bytes", str(path))
    return content


def read_text(path: Path) -> str:
    """The UTF-8 text of the file, its lines ended as Python reads them. Raises ``OSError`` and ``UnicodeDecodeError``."""
    return read_bounded(path).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")

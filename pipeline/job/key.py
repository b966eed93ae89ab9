"""Where a gateway's key comes from: an environment variable or a file that only its owner can read."""

from __future__ import annotations

import stat
from pathlib import Path

from pipeline.errors import JobError
from pipeline.ground.readable import read_bounded


def key_from_variable(name: str, value: str, *, needed: bool) -> str | None:
    """The key in an environment variable; None when it is not set. Raises ``JobError`` when it is ``needed``, or no key."""
    key = value.strip()
    if not key and needed:
        raise JobError(f"the environment variable {name} is not set: export {name}=... with your key for this gateway")
    if not key.isascii() or any(c.isspace() for c in key):
        raise JobError(f"the key in {name} has spaces or characters no key has; copy it again")
    return key or None


def key_from_file(path: Path) -> str:
    """The key in a file. Raises ``JobError`` when others can read it, or it holds no key."""
    try:
        mode = path.stat().st_mode
        key = read_bounded(path, 1 << 16).decode("ascii").strip()
    except OSError as exc:
        raise JobError(f"gateway.api_key_file: cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise JobError(f"gateway.api_key_file: {path} holds something that is no key") from None
    if stat.S_IMODE(mode) & 0o077:
        raise JobError(f"gateway.api_key_file: {path} can be read by others; do: chmod 600 {path}")
    if not key or len(key.split()) != 1:
        raise JobError(f"gateway.api_key_file: {path} must hold one key and nothing else")
    return key

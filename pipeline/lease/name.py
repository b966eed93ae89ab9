"""Where the lease of a key lies: one file a key and machine, whose name tells nobody the key."""

from __future__ import annotations

import os
import socket
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}
LEAST_KEY = (
    16  # characters; what is shorter (`none`, `EMPTY`, `sk-1234`) is a placeholder, and the same on many servers
)


def lease_name(key: str | None, base_url: str) -> str:
    """The same for all runs of this machine that use ``key``, under whatever names they reach the gateway; without a key, of
    all that use the server of ``base_url``, and with a mere placeholder of all that use it there.

    The host's name is in it: a home folder may be shared by machines, but their clocks are not.
    """
    whose = [socket.gethostname()]
    if key:
        whose.append(f"key {key}")
    if not key or len(key) < LEAST_KEY:
        whose.append(f"server {_server(base_url)}")
    return blake2b(" ".join(whose).encode(), digest_size=16).hexdigest()


def _server(base_url: str) -> str:
    url = urlsplit(base_url)
    return f"{url.scheme}://{url.hostname}:{url.port or PORTS.get(url.scheme)}"


def state_folder() -> Path:
    """``PIPELINE_STATE_DIR``, else ``pipeline`` in ``XDG_STATE_HOME`` (``~/.local/state``). Raises ``RuntimeError`` when
    there is no home."""
    if given := os.environ.get("PIPELINE_STATE_DIR"):
        return Path(given).expanduser()
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():  # its specification: then it does not count
        state = Path.home() / ".local" / "state"
    return state / "pipeline"

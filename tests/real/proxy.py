"""A real LiteLLM proxy on loopback: no database, no callbacks, no way out of this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MASTER_KEY = "sk-real-peer"
READY_WITHIN_S = 120.0
_NOWHERE = "http://127.0.0.1:9"  # the discard port: who wants to leave is refused at once


@contextmanager
def litellm_proxy(executable: Path, folder: Path, model_list: str) -> Iterator[str]:
    """Serve while the block runs; yields the base URL. ``model_list`` is YAML."""
    config = folder / "litellm.yaml"
    config.write_text(f"{model_list}\ngeneral_settings:\n  master_key: {MASTER_KEY}\n", encoding="utf-8")
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    words = [executable, "--config", config, "--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
    with (folder / "litellm.log").open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=_environment(folder), stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_until_ready(process, url, folder / "litellm.log")
            yield url
        finally:
            _end(process)


def _environment(home: Path) -> dict[str, str]:
    """Nothing of ours but the path. Its table of prices is the one it brings along."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), _NOWHERE),
    }


def _free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        number: int = bound.getsockname()[1]
    return number


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/readiness", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    said = log.read_text(encoding="utf-8", errors="replace")[-4000:]
    raise AssertionError(f"LiteLLM was not ready within {READY_WITHIN_S:.0f} s (exit {process.poll()}):\n{said}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Its own workers go with it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
            process.wait(timeout=10)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            continue
        return
    process.wait(timeout=10)

"""Ctrl-C and SIGTERM where there is nothing to drain: they are heard at once, and said in one sentence."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import clean_environment, write_jsonl

from pipeline import Job, run


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "pipeline", *words],
        cwd=folder, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=clean_environment(),
    )  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_they_are_heard_while_the_gateway_is_asked_what_it_has(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """The preflight would wait 20 s for this one, which takes connections and never says a word."""
    write_jsonl(tmp_path / "in.jsonl", [{"text": "x"}])
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        words = ("-i", "in.jsonl", "-o", "out.jsonl", "-g", "litellm", "--base-url", url, "-m", "m", "-p", "{{ text }}")
        process = started(tmp_path, "run", *words)
        silent.settimeout(20)
        connection, _ = silent.accept()
        with connection:
            process.send_signal(number)
            began = time.monotonic()
            errors = process.communicate(timeout=30)[1]
    print(f"{number.name}: heard after {time.monotonic() - began:.2f} s")
    assert process.returncode == code, errors
    assert time.monotonic() - began < 5
    assert "Left: 1 row." in errors
    assert "Traceback" not in errors


def test_a_scripts_own_handlers_are_there_again_after_a_run(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": "x"}])
    settings = {
        "input.path": str(tmp_path / "in.jsonl"), "output.path": str(tmp_path / "out.jsonl"), "gateway.preset": "simulator",
        "model": "sim/echo", "request.prompt": "{{ text }}",
    }  # fmt: skip
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    own = [signal.getsignal(number) for number in numbers]
    try:
        assert run(Job.load(None, overrides=settings)).exit_code == 0
        assert [signal.getsignal(number) for number in numbers] == own
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_ctrl_c_is_heard_while_plan_reads_the_input(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [{"text": str(n)} for n in range(200_000)])  # some 10 s
    process = started(tmp_path, "plan", "-i", "in.jsonl", "-o", "out.jsonl", "-g", "simulator", "-m", "m", "-p", "{{ text }}")  # fmt: skip
    until = time.monotonic() + 20
    while not (tmp_path / "out.jsonl.run" / "journal.sqlite-wal").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    errors = process.communicate(timeout=60)[1]
    print(f"SIGINT: heard after {time.monotonic() - began:.2f} s")
    assert process.returncode == 130, errors
    assert time.monotonic() - began < 1.5
    assert errors.strip() == "pipeline: interrupted; nothing finished is lost, the same command goes on"

"""What tests share: a pipeline run in a child process, and an answer to how it ended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import settings
from leaks import Watch, leaks_in, scan

from pipeline import Job, Summary, Wishes, run


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str


Pipeline = Callable[..., Ended]


@pytest.fixture(scope="session", autouse=True)
def no_key_shows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    """Promise 9 over the whole suite: no key in what tests leave below their folder, what children print, what errors say."""
    watch = Watch()
    watch.start()
    yield watch
    watch.stop()
    found = [*watch.found, *scan(tmp_path_factory.getbasetemp())]
    assert not found, "\n".join(["a key shows in:", *found])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Nor in what a test itself printed or logged."""
    report = yield
    told = [name for name, text in report.sections if leaks_in(text)]
    if told and report.passed:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: a key shows in: {', '.join(told)}"
    return report


@pytest.fixture(autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a key has learned, and who shares it, is each test's own."""
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("PIPELINE_STATE_DIR", str(folder))
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """``pipeline("run", "-i", ...)`` in ``tmp_path``, as a user would."""

    def call(
        *words: str | Path, stdin: str | None = "", env: dict[str, str] | None = None, timeout: float = 60
    ) -> Ended:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-m", "pipeline", *map(str, words)],
            cwd=tmp_path,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**clean_environment(), **(env or {})},
        )
        return Ended(code=done.returncode, out=done.stdout, err=done.stderr)

    return call


settings.register_profile("fast", max_examples=20)


def examples(many: int) -> int:
    """So many of a property, or fewer where the fast suite is asked for (``--hypothesis-profile=fast``: 20 for 100)."""
    return max(many * settings().max_examples // 100, 1)


def clean_environment() -> dict[str, str]:
    """The environment without settings of whoever runs the tests."""
    return {
        name: value
        for name, value in os.environ.items()
        if (name == "PIPELINE_STATE_DIR" or not name.startswith("PIPELINE_")) and not name.lower().endswith("_proxy")
    }


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a JSONL file."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def window_in(minutes: int) -> str:
    """A window of an hour that opens in so many minutes, by this machine's clock."""
    opens = datetime.now() + timedelta(minutes=minutes)
    return f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"


class Server:
    """``pipeline simulate`` in a process of its own, so that a killed run cannot take it along."""

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process = process
        self.url = url

    def ledger(self) -> dict[str, Any]:
        """What it saw and billed."""
        import urllib.request

        with urllib.request.urlopen(self.url.removesuffix("/v1") + "/ledger", timeout=10) as answer:
            found: dict[str, Any] = orjson.loads(answer.read())
        return found


@dataclass(kw_only=True)
class Bench:
    """A job over ``rows`` against a gateway that counts: ``bench.run()`` gives the summary and the requests sent."""

    folder: Path
    server: Server
    settings: dict[str, Any]

    def write(self, rows: list[dict[str, Any]], name: str = "in.jsonl") -> Path:
        """Make these the input."""
        return write_jsonl(self.folder / name, rows)

    def run(self, wishes: Wishes | None = None, **changes: Any) -> tuple[Summary, int]:
        """Run the job, with changed settings if any (``request__prompt="..."``)."""
        overrides = {**self.settings, **{key.replace("__", "."): value for key, value in changes.items()}}
        before = self.server.ledger()["totals"]["requests"]
        summary = run(Job.load(None, overrides=overrides), wishes)
        return summary, self.server.ledger()["totals"]["requests"] - before

    def results(self, name: str = "out.jsonl") -> list[dict[str, Any]]:
        """The results file."""
        return read_jsonl(self.folder / name)


@pytest.fixture
def bench(tmp_path: Path, gateway: Server) -> Bench:
    """A job in a folder of its own."""
    settings = {
        "input.path": str(tmp_path / "in.jsonl"),
        "input.id": "id",
        "output.path": str(tmp_path / "out.jsonl"),
        "gateway.base_url": gateway.url,
        "model": "sim/echo",
        "request.prompt": "say {{ text }}",
    }
    return Bench(folder=tmp_path, server=gateway, settings=settings)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One simulator for all tests that only count what reaches it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "simulate", "--port", "0"],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
        cwd=tmp_path_factory.mktemp("gateway"),
    )
    assert process.stderr is not None
    yield Server(process, process.stderr.readline().split("serving on ")[1].split()[0])
    process.kill()
    process.wait()
    process.stderr.close()


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start simulators that end with the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str, faults: list[dict[str, Any]] | None = None) -> Server:
        if faults is not None:
            script = tmp_path / f"faults{len(processes)}.json"
            script.write_bytes(orjson.dumps(faults))
            words = (*words, "--faults", str(script))
        process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "simulate", "--port", "0", *words],
            stderr=subprocess.PIPE,
            text=True,
            env=clean_environment(),
        )
        processes.append(process)
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "http://" in line, line + process.stderr.read()
        return Server(process, line.split("serving on ")[1].split()[0])

    yield start
    for process in processes:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()

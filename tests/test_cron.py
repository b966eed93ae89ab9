"""``jobs/cron/``: each file as far as a parser can, the SLURM script at work."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from configparser import ConfigParser
from pathlib import Path

import click
import pytest
from conftest import Server, clean_environment, read_jsonl, window_in, write_jsonl

from pipeline.cli import cli
from pipeline.limits.hours import Window

ROOT = Path(__file__).parent.parent
CRON = ROOT / "jobs" / "cron"
ROWS = [{"id": f"r{n}", "text": f"row {n}"} for n in range(30)]


def unit(name: str) -> dict[str, dict[str, str]]:
    """A systemd unit, table by table."""
    parser = ConfigParser(strict=False, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign] - keys are as they are written
    parser.read_string((CRON / name).read_text(encoding="utf-8"))
    return {section: dict(parser[section]) for section in parser.sections()}


def check_words(words: str) -> None:
    """A command line that pipeline would take."""
    name, *rest = words.split("bin/pipeline ")[1].split(" >>")[0].split()
    command = cli.commands[name]
    context = click.Context(command)
    command.parse_args(context, list(rest))
    Window.parse(context.params["limits__window"])
    assert context.params["no_wait"]


def in_field(field: str, least: int, most: int) -> bool:
    return all(
        re.fullmatch(r"(\*|\d+(-\d+)?)(/\d+)?", part) and all(least <= int(n) <= most for n in re.findall(r"\d+", part.split("/")[0]))
        for part in field.split(",")
    )  # fmt: skip


def test_the_crontab_has_good_lines() -> None:
    lines = [line for line in (CRON / "crontab").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    assert lines
    for line in lines:
        *fields, command = line.split(maxsplit=5)
        ranges = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
        assert [in_field(field, *ends) for field, ends in zip(fields, ranges, strict=True)] == [True] * 5
        assert not re.search(r"(?<!\\)%", command), "cron takes a bare % for the end of the line"
        check_words(command)
        checked = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert (checked.returncode, checked.stderr) == (0, "")


def test_the_units_have_what_they_need() -> None:
    service, timer = unit("pipeline.service"), unit("pipeline.timer")
    assert service["Service"]["Type"] == "oneshot", "a start while it runs does nothing"
    assert service["Service"]["SuccessExitStatus"] == "75"
    assert service["Service"]["NoNewPrivileges"] == "yes"
    assert service["Service"]["WorkingDirectory"] == "%h/tickets"
    check_words(service["Service"]["ExecStart"])
    assert "OnCalendar" in timer["Timer"]
    assert timer["Install"]["WantedBy"] == "timers.target"
    assert "Unit" not in timer["Timer"], "the service of its own name"


@pytest.mark.parametrize("name", ["pipeline.service", "pipeline.timer"])
def test_systemd_takes_the_units(tmp_path: Path, name: str) -> None:
    """Where systemd is installed; %h/tickets is nobody's here, so another program stands in for the one it names."""
    if shutil.which("systemd-analyze") is None:
        return
    for file in CRON.glob("pipeline.*"):
        text = file.read_text(encoding="utf-8").replace("%h/tickets/.venv/bin/pipeline", sys.executable)
        (tmp_path / file.name).write_text(text, encoding="utf-8")
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--user", name],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    if (
        "Failed to initialize manager" not in checked.stderr
    ):  # a container that has the program and nothing to run it with
        assert (checked.returncode, checked.stderr) == (0, "")


def test_bash_takes_the_slurm_script() -> None:
    text = (CRON / "slurm.sh").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))
    assert asked["signal"] == "B:TERM@300"
    assert "requeue" in asked and asked["open-mode"] == "append"
    body = text[text.rindex("#SBATCH") :].split("\n", 1)[1]
    assert "#SBATCH" not in body, "after the first command SLURM reads no more of them"
    checked = [subprocess.run(["bash", "-n", CRON / "slurm.sh"], capture_output=True, text=True)]
    if shutil.which("shellcheck"):
        checked.append(subprocess.run(["shellcheck", CRON / "slurm.sh"], capture_output=True, text=True))
    for found in checked:
        assert (found.returncode, found.stdout, found.stderr) == (0, "", "")


class Node:
    """A machine where ``slurm.sh`` runs: a folder with a job and a ``.venv``, and a ``scontrol`` that writes down its words."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.folder = folder
        for path, text in (
            (folder / ".venv/bin/pipeline", f'exec {sys.executable} -W error -m pipeline "$@"'),
            (folder / "bin/scontrol", f'echo "$@" >> {folder}/scontrol.log'),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
            path.chmod(0o700)
        write_jsonl(folder / "in.jsonl", ROWS)
        (folder / "job.toml").write_text(
            f'model = "m"\n[gateway]\nbase_url = "{server.url}"\nconcurrency = 4\n[input]\npath = "in.jsonl"\nid = "id"\n'
            '[request]\nprompt = "{{ text }}"\n[output]\npath = "out.jsonl"\n'
        )

    def start(self, *words: str, restarts: int = 0) -> subprocess.Popen[str]:
        """``sbatch slurm.sh WORDS``: SLURM runs a copy of the script, in a folder of its own."""
        script = shutil.copy(CRON / "slurm.sh", self.folder / "slurm_script")
        environment = clean_environment() | {
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "4711", "SLURM_RESTART_COUNT": str(restarts),
        }  # fmt: skip
        return subprocess.Popen(["bash", script, *words], cwd="/", stderr=subprocess.PIPE, text=True, env=environment)

    @property
    def requeued(self) -> list[str]:
        """What scontrol was told."""
        log = self.folder / "scontrol.log"
        return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


def test_slurm_term_reaches_the_run_and_75_goes_back_into_the_queue(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve("--latency", "0.3")
    node = Node(tmp_path, server)
    job = node.start()
    until = time.monotonic() + 20
    while server.ledger()["totals"]["requests"] < 6:
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)  # to the script alone, as B: says
    errors = job.communicate(timeout=20)[1]
    sent = server.ledger()["totals"]["requests"]
    print(f"slurm.sh: TERM after 6 of {len(ROWS)} rows, {sent} sent, exit {job.returncode}, scontrol {node.requeued}")
    assert job.returncode == 75, errors
    assert f"Left: {len(ROWS) - sent} rows" in errors, "what was in flight was finished and kept"
    assert node.requeued == ["requeue 4711"]
    again = node.start(restarts=1)
    errors = again.communicate(timeout=30)[1]
    assert (again.returncode, node.requeued) == (0, ["requeue 4711"]), errors
    assert server.ledger()["totals"]["billed"] == len(read_jsonl(tmp_path / "out.jsonl")) == len(ROWS)


@pytest.mark.parametrize(("restarts", "requeued"), [(49, ["requeue 4711"]), (50, [])])
def test_slurm_gives_up_in_the_end(tmp_path: Path, gateway: Server, restarts: int, requeued: list[str]) -> None:
    node = Node(tmp_path, gateway)
    job = node.start("--window", window_in(120), "--no-wait", restarts=restarts)
    assert (job.communicate(timeout=20), job.returncode)[1] == 75
    assert node.requeued == requeued


def test_slurm_keeps_other_exit_codes(tmp_path: Path, gateway: Server) -> None:
    node = Node(tmp_path, gateway)
    job = node.start("--set", "limits.max_attempts=0")
    errors = job.communicate(timeout=20)[1]
    assert (job.returncode, node.requeued) == (2, []), errors


def test_the_documents_name_every_file() -> None:
    text = (CRON / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    for file in CRON.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in text
    assert "jobs/cron" in (ROOT / "README.md").read_text(encoding="utf-8").split("## In cron")[1].split("\n## ")[0]

"""The documents say what is: commands, options, jobs, columns, exit codes."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from pipeline import Job
from pipeline.cli import cli
from pipeline.sink import TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
JOBS = sorted((ROOT / "jobs").glob("*.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_loads_and_its_input_is_there(path: Path) -> None:
    job = Job.load(path)
    assert Path(job.input.path).exists()
    assert path.name in README


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"pipeline {name} " in shown.output.split("Examples:")[1]
    assert f"pipeline {name} " in README
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help or option.name == "help", f"{name} {option.opts} has no help"


def test_every_result_column_is_in_the_readme() -> None:
    for name in TYPES:
        assert f"`{name}`" in README


def test_the_job_file_in_the_readme_loads(tmp_path: Path) -> None:
    text = re.search(r"```toml\n(.*?)```", README, re.DOTALL).group(1)  # type: ignore[union-attr]
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    job = Job.load(tmp_path / "job.toml")
    assert (job.concurrency, job.prices["MODEL"].input_per_million) == (8, 0.15)


def test_exit_codes_in_the_readme_are_those_of_the_errors() -> None:
    from pipeline import errors

    codes = {
        error.exit_code
        for error in vars(errors).values()
        if isinstance(error, type) and issubclass(error, errors.PipelineError)
    }
    for code in codes | {0, 3}:
        assert re.search(rf"^\| {code} \|", README, re.MULTILINE), code


def test_promises_and_their_tests_exist() -> None:
    text = (ROOT / "pipeline" / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`(test_\w+\.py)`", text):
        assert (ROOT / "tests" / name).exists(), name
    for path in (ROOT / "pipeline").iterdir():
        if path.suffix == ".py" or (path / "__init__.py").exists():
            assert f"`{path.stem}" in text, f"{path.stem} is on no floor of pipeline/README.md"

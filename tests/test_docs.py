"""The documents say what is: commands, options, jobs and their keys, columns, exit codes, error codes, links."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
from click.testing import CliRunner
from conftest import Pipeline, Server, read_jsonl
from pyarrow import parquet
from test_verdicts import LITELLM, LUMEN

from pipeline import Job
from pipeline.cli import cli
from pipeline.client.failures import NEVER_SENT
from pipeline.errors import JobError
from pipeline.gateways import dialect_of
from pipeline.gateways.litellm import LITELLM_RULES
from pipeline.gateways.lumen import LUMEN_RULES
from pipeline.job import Gateway
from pipeline.presets import PRESETS
from pipeline.records import Failure, Kind, Reply
from pipeline.sink import TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
JOBS = sorted((ROOT / "jobs").glob("*.toml"))
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
FOR_USERS = {"README": README, **PAGES, **{path.name: path.read_text(encoding="utf-8") for path in JOBS}}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_job_loads_and_its_input_is_there(path: Path) -> None:
    job = Job.load(path)
    assert Path(job.input.path).exists()
    assert path.name in README


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_what_a_job_has_in_comments_can_be_switched_on(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    (tmp_path / path.name).write_text(re.sub(r"^# (?=\w+ = |\[)", "", text, flags=re.MULTILINE), encoding="utf-8")
    Job.load(tmp_path / path.name)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help_with_an_example_and_is_in_the_readme(name: str) -> None:
    shown = CliRunner().invoke(cli, [name, "--help"])
    assert shown.exit_code == 0
    assert f"pipeline {name} " in shown.output.split("Examples:")[1]
    assert f"pipeline {name} " in README
    for option in cli.commands[name].params:
        if isinstance(option, click.Option):
            assert option.help or option.name == "help", f"{name} {option.opts} has no help"


def test_the_help_names_every_preset() -> None:
    shown = CliRunner().invoke(cli, ["run", "--help"], terminal_width=200)
    assert all(name in shown.output for name in PRESETS)


@pytest.mark.parametrize("document", FOR_USERS)
def test_commands_and_options_exist(document: str) -> None:
    options = {name: {"--help", *_options(command)} for name, command in cli.commands.items()}
    for line in re.findall(r"(?:^|[`/ ])pipeline ([a-z][^`#\n]*)", _code(FOR_USERS[document]), re.MULTILINE):
        command = line.split()[0]
        assert command in options, line
        assert _options_in(line) <= options[command], line
    for spoken in re.findall(r"`(-[^`\n]*)`", FOR_USERS[document]):
        assert _options_in(spoken) <= set().union(*options.values()), spoken


def _code(document: str) -> str:
    """What is typed: blocks and quoted words of a page, comments of a job."""
    return "\n".join(
        re.findall(r"```\n(.*?)```", document, re.DOTALL) + re.findall(r"(`[^`\n]+`|^#.*)", document, re.MULTILINE)
    )


def _options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", text))


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from option.opts


def test_every_result_column_is_in_the_readme() -> None:
    for name in TYPES:
        assert f"`{name}`" in README


def _first_in_readme(language: str) -> str:
    return README.partition(f"```{language}\n")[2].partition("```")[0]


def test_the_job_file_in_the_readme_loads(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(_first_in_readme("toml"), encoding="utf-8")
    job = Job.load(tmp_path / "job.toml")
    assert (job.concurrency, job.prices["MODEL"].input_per_million) == (8, 0.15)


def test_the_python_in_the_readme_runs(
    tmp_path: Path, gateway: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = _first_in_readme("toml").replace("https://my-gateway/v1", gateway.url)
    (tmp_path / "job.toml").write_text(text, encoding="utf-8")
    parquet.write_table(parquet.read_table(ROOT / "sample_data" / "tickets.parquet").slice(0, 20), "tickets.parquet")
    names: dict[str, Any] = {}
    exec(_first_in_readme("python"), names)
    assert re.fullmatch(r"0 finished 20 \{'USD': 0\.0\d+\}\n", capsys.readouterr().out)
    assert (names["summary"].exit_code, names["summary"].sent) == (0, 0)


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


def test_links_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *ROOT.glob("*/*.md")]:
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8")):
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), f"{path}: {target}"
            if heading:
                titles = re.findall(r"^#+ (.*)", there.read_text(encoding="utf-8"), re.MULTILINE)
                assert heading in {title.lower().replace(" ", "-") for title in titles}, f"{path}: #{heading}"


# The pages of the gateways

EVERY_PAGE = pytest.mark.parametrize("page", PAGES)
RULES = {"cborg": LITELLM_RULES, "lumen": LUMEN_RULES}
CAPTURED = {"cborg": LITELLM, "lumen": LUMEN}
THE_RUN = {Kind.FATAL: "stops", Kind.OUTAGE: "waits", Kind.THROTTLED: "waits", Kind.TRANSIENT: "tries again",
           Kind.REJECTED: "row fails"}  # fmt: skip


@EVERY_PAGE
def test_a_page_is_short_linked_and_has_the_presets_facts(page: str) -> None:
    assert len(PAGES[page].splitlines()) <= 150
    assert f"(docs/{page}.md)" in README
    for preset in PRESETS.values():
        if preset.family == page:
            facts = (preset.api_key_env, preset.base_url, f"gateway.concurrency = {preset.concurrency}`")
            assert all(fact in PAGES[page] for fact in facts if fact)


@EVERY_PAGE
def test_the_job_keys_on_a_page_exist(page: str) -> None:
    named = [
        words for words in re.findall(r"`(\w+\.\w[^`\n]*)`", PAGES[page]) if words.split(".")[0] in Job.model_fields
    ]
    assert len(named) > 10
    for words in named:
        key, _, value = words.partition(" = ")
        settings = {key: tomllib.loads(f"x = {value}")["x"]} if value else {}
        job = Job.load(None, overrides=_least(page) | settings)
        table, name = key.split(".")
        assert hasattr(getattr(job, table), name), words


@pytest.mark.parametrize("document", ["README", *PAGES])
def test_the_times_on_a_page_are_those_of_a_job(document: str) -> None:
    named = re.findall(r"(\d+) s\s+\(`gateway\.(\w+)`\)", FOR_USERS[document])
    assert named
    for seconds, name in named:
        assert getattr(Gateway(), name) == float(seconds), name


@EVERY_PAGE
def test_the_job_lines_on_a_page_load(page: str, tmp_path: Path) -> None:
    for number, lines in enumerate(re.findall(r"```toml\n(.*?)```", PAGES[page], re.DOTALL)):
        path = tmp_path / f"{number}.toml"
        path.write_text(lines, encoding="utf-8")
        Job.load(path, overrides=_least(page))


def _least(page: str) -> dict[str, Any]:
    base_url = {} if PRESETS[page].base_url else {"gateway.base_url": "https://x"}
    return {"gateway.preset": page, **base_url, "input.path": "-", "output.path": "x.jsonl"}


@EVERY_PAGE
def test_the_error_codes_on_a_page_are_real_and_mean_that(page: str) -> None:
    """Each was captured from a real server, or is ours for what came from no server; none of the dialect's own is left out."""
    known = _kinds(page)
    told = {
        code: run
        for codes, run in re.findall(r"^\| (`[^|]*`) \| ([a-z ]+) \|", PAGES[page], re.MULTILINE)
        for code in re.findall(r"`(\w+)`", codes)
    }
    for code, run in told.items():
        assert run in {THE_RUN[kind] for kind in known.get(code, ())}, code
    own = {rule.means.code for rule in RULES[page]}
    assert own <= told.keys(), own - told.keys()


def _kinds(page: str) -> dict[str, set[Kind]]:
    """Every code a run at this gateway can show -> what it can be."""
    dialect = dialect_of(page, model_is_the_rows=False)
    pages = [_reply(status, b"<html></html>") for status in (200, 302, 403, 404, *range(500, 530))]
    verdicts = [dialect.classify(reply) for reply in pages]
    verdicts += [dialect.classify(_reply(200, body)) for body in (b"", b"{}", b'{"error": "x"}')]
    verdicts += [
        dialect.classify(_reply(0, b"", Failure(code=code, message="", sent=False))) for code in sorted(NEVER_SENT)
    ]
    failures = (ROOT / "pipeline" / "client" / "failures.py").read_text(encoding="utf-8")
    for code in re.findall(r'Failure\(\s*code="(\w+)",[^)]*sent=True', failures):
        verdicts.append(dialect.classify(_reply(0, b"", Failure(code=code, message="", sent=True))))
    verdicts += [expected for _, expected in CAPTURED[page].values()]
    kinds: dict[str, set[Kind]] = {}
    for verdict in verdicts:
        kinds.setdefault(verdict.code, set()).add(verdict.kind)
    return kinds


def _reply(status: int, body: bytes, failure: Failure | None = None) -> Reply:
    parsed = orjson.loads(body) if body.startswith(b"{") else None
    return Reply(status=status, headers={}, body=body, json=parsed, elapsed_s=0.1, failure=failure)


# Their jobs, against the simulator in their dialect

ROWS = 20  # as many as the simulator's Lumen lets in at once, if one does not pace them


@pytest.mark.parametrize(
    ("name", "dialect", "variable", "source"),
    [("cborg", "litellm", "CBORG_API_KEY", "free"), ("lumen", "lumen", "LUMEN_API_KEY", "price_table")],
)
def test_the_job_of_a_gateway_runs_as_it_stands(
    name: str,
    dialect: str,
    variable: str,
    source: str,
    tmp_path: Path,
    pipeline: Pipeline,
    serve: Callable[..., Server],
) -> None:
    server = serve("--dialect", dialect)
    path = ROOT / "jobs" / f"{name}.toml"
    job = Job.load(path)
    output = tmp_path / job.output.path.name
    with pytest.raises(JobError, match=f"export {variable}="):
        job.api_key({})
    for command in ("plan", "run"):
        words = (
            command,
            path,
            "--base-url",
            server.url,
            "--rpm",
            "6000",
            "-i",
            _some_rows(job, tmp_path),
            "-o",
            output,
        )
        ended = pipeline(*words, env={variable: "sk-SECRET-0001-0001-0001"})
        assert ended.code == 0, ended.err
    done = parquet.read_table(output).to_pylist() if output.suffix == ".parquet" else read_jsonl(output)
    assert [(row["status"], row["finish_reason"], row["cost_source"]) for row in done] == [
        ("succeeded", "stop", source)
    ] * ROWS
    assert all(row["content"] and row["cost"] is not None for row in done)
    billed = server.ledger()["totals"]["cost"]
    assert sum(row["cost"] for row in done) == pytest.approx(billed, abs=1e-9)


def _some_rows(job: Job, folder: Path) -> Path:
    whole = Path(job.input.path)
    some = folder / f"some{whole.suffix}"
    if whole.suffix == ".parquet":
        parquet.write_table(parquet.read_table(whole).slice(0, ROWS), some)
    else:
        some.write_bytes(b"".join(whole.read_bytes().splitlines(keepends=True)[:ROWS]))
    return some

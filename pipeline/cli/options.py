"""The options that describe a job, the same for every command that takes one, and what they become."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import UsageError
from pipeline.presets import PRESETS

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.wishes import Wishes


def n_or_auto(text: str) -> int | str:
    """A number of requests, or the word; what else it may be is for the job to refuse."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) else text


# option -> (flags, key of the job, environment variable, help)
_JOB_OPTIONS: tuple[tuple[tuple[str, ...], str, str, Any, str], ...] = (
    (("-i", "--input"), "input.path", "PIPELINE_INPUT", str, "File, glob or folder; .jsonl .parquet .csv, .gz .zst; - for JSONL on stdin."),
    (("--id",), "input.id", "PIPELINE_ID", str, "Column that is each row's custom_id."),
    (("-o", "--output"), "output.path", "PIPELINE_OUTPUT", str, "Results file: .parquet, .jsonl or .csv."),
    (("--format",), "output.format", "PIPELINE_FORMAT", click.Choice(["parquet", "jsonl", "csv", "batch"]), "Format, where the ending does not say it."),
    (("-m", "--model"), "model", "PIPELINE_MODEL", str, "Model to ask."),
    (("-p", "--prompt"), "request.prompt", "PIPELINE_PROMPT", str, "Prompt template (Jinja2) over the row's columns."),
    (("--system",), "request.system", "PIPELINE_SYSTEM", str, "System message, a template too."),
    (("-g", "--gateway"), "gateway", "PIPELINE_GATEWAY", str, f"Preset of a gateway: {', '.join(PRESETS)}."),
    (("--base-url",), "gateway.base_url", "PIPELINE_BASE_URL", str, "Where the server is, e.g. https://host/v1."),
    (("--api-key-env",), "gateway.api_key_env", "PIPELINE_API_KEY_ENV", str, "Environment variable that holds the key."),
    (("-c", "--concurrency"), "gateway.concurrency", "PIPELINE_CONCURRENCY", n_or_auto, "Requests at once at the most, or auto."),
    (("--rpm",), "gateway.rpm", "PIPELINE_RPM", float, "Requests a minute (learned where nobody tells)."),
    (("--tpm",), "gateway.tpm", "PIPELINE_TPM", float, "Tokens a minute."),
    (("--max-cost",), "limits.max_cost", "PIPELINE_MAX_COST", float, "What this run may spend, in the unit of the model's price."),
    (("--window",), "limits.window", "PIPELINE_WINDOW", str, "Send only between these times of day, e.g. 20:00-06:00."),
    (("--deadline",), "limits.deadline", "PIPELINE_DEADLINE", str, "Stop in time for a time of day (06:00), or after a while (8h, 90m)."),
    (("--run-dir",), "run_dir", "PIPELINE_RUN_DIR", str, "Run folder (default: <output>.run)."),
)  # fmt: skip


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a job."""
    options = [
        click.argument("job_file", metavar="[JOB.toml]", required=False),
        *(
            click.option(*flags, key.replace(".", "__"), envvar=variable, type=kind, help=text, show_envvar=False)
            for flags, key, variable, kind, text in _JOB_OPTIONS
        ),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Any key of the job, e.g. --set request.params.max_tokens=64."),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no summary; errors only."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def check_words(arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """A word that is not UTF-8 can stand in no journal and no request. Raises ``UsageError``."""
    settings = {name: environ[name] for name in {option[2] for option in _JOB_OPTIONS} & environ.keys()}
    for where, word in [*(("the command", word) for word in arguments), *sorted(settings.items())]:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{where}: {word[:200]!a} is not UTF-8 text") from None


_GATEWAY_KEYS = ("gateway", "gateway.base_url", "gateway.api_key_env")


def gateway_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a gateway alone."""
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON array on stdout.")(command)
    for flags, key, variable, kind, text in reversed(_JOB_OPTIONS):
        if key in _GATEWAY_KEYS:
            command = click.option(*flags, key.replace(".", "__"), envvar=variable, type=kind, help=text)(command)
    return command


def redo_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that ask once for done rows to be done again."""
    options = [
        click.option("--retry-failed", is_flag=False, flag_value="", metavar="[CODE]", help="Send failed rows again, all or those of one error code."),
        click.option("--redo", multiple=True, metavar="COLUMN=VALUE", help="Send rows again whose result column has this value (also COLUMN!=VALUE)."),
        click.option("--redo-ids", type=click.Path(), metavar="FILE", help="Send the rows again that FILE names, an id a line."),
        click.option("--accept-changes", is_flag=True, help="Send done rows again whose request changed, however many; take over a folder of another input."),
        click.option("--allow-model-change", is_flag=True, help="Go on although another model answers under the same name (embeddings)."),
        click.option("--accept-failed", is_flag=True, help="The rows that failed are fine: exit 0 from now on."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def flow_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a run that meets an odd gateway, or a closed window."""
    options = [
        click.option("--wait", is_flag=True, help="Wait for a gateway that was never reached yet, too."),
        click.option("--no-wait", is_flag=True, help="Do not wait for the window to open: end at once with 75."),
        click.option("--keep-going", is_flag=True, help="Go on although the first rows all fail alike."),
        click.option("--no-lease", is_flag=True, help="Do not share the key's limits with other runs on this machine."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def job_of(given: Mapping[str, Any]) -> Job:
    """The job that file, environment and options describe together."""
    from pipeline.job import Job

    overrides: dict[tuple[str, ...], Any] = dict(map(_setting, given["settings"]))
    for _, key, _, _, _ in _JOB_OPTIONS:
        value = given[key.replace(".", "__")]
        if value is not None:
            overrides[tuple(key.split("."))] = value
    if given.get("no_lease"):
        overrides["gateway", "lease"] = False
    overrides = dict(sorted(overrides.items(), key=lambda item: len(item[0])))
    return Job.load(given["job_file"], overrides=overrides)


def _setting(text: str) -> tuple[tuple[str, ...], Any]:
    """``KEY=VALUE`` as a path of keys and a value, as TOML reads them; a value that is no TOML is plain text."""
    import tomllib

    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"--set takes KEY=VALUE, not {text!r}")
    try:
        table: Any = tomllib.loads(f"{key} = 0")
        whole = isinstance(table, dict) and len(table) == 1
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise UsageError(f'--set: {key!r} is no key; a part with dots goes in quotes: prices."MODEL".key')
    path: list[str] = []
    while isinstance(table, dict) and table:
        path.append(next(iter(table)))
        table = table[path[-1]]
    try:
        return tuple(path), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return tuple(path), value
    except (ValueError, RecursionError):
        raise UsageError(f"--set: the value of {key} is too large or too deeply nested") from None


def gateway_of(given: Mapping[str, Any]) -> Job:
    """A job that has a gateway and nothing to do."""
    from pipeline.job import Job

    overrides: dict[tuple[str, ...], Any] = {
        tuple(key.split(".")): value for key in _GATEWAY_KEYS if (value := given[key.replace(".", "__")]) is not None
    }
    if not overrides:
        raise UsageError("which gateway? Give -g NAME, or --base-url URL")
    return Job.load(None, overrides={**overrides, ("input", "path"): "-", ("output", "path"): "models.jsonl"})


def wishes_of(given: Mapping[str, Any]) -> Wishes:
    """What this one call asks for besides the job."""
    from pipeline.selection import Redo
    from pipeline.wishes import Wishes

    retry = given["retry_failed"]
    if given["job_file"] is None and retry and retry.endswith(".toml"):
        raise UsageError(f"--retry-failed took {retry} for an error code: give the job file first, then --retry-failed")
    return Wishes(
        redo=Redo(
            failed=False if retry is None else retry or True,
            columns=given["redo"],
            ids=Path(given["redo_ids"]) if given["redo_ids"] else None,
        ),
        no_wait=given["no_wait"],
        accept_changes=given["accept_changes"],
        accept_failed=given["accept_failed"],
        allow_model_change=given["allow_model_change"],
        wait=given["wait"],
        keep_going=given["keep_going"],
    )


_ONCE_WITH_VALUE = ("--redo", "--redo-ids")
_ONCE = (*_ONCE_WITH_VALUE, "--retry-failed", "--accept-changes", "--accept-failed", "--allow-model-change")


def again(arguments: Sequence[str]) -> str:
    """This command without what it asked for once and the journal now knows."""
    words = list(arguments)
    kept: list[str] = []
    while words:
        word = words.pop(0)
        if word.partition("=")[0] not in _ONCE:
            kept.append(word)
        elif word in _ONCE_WITH_VALUE or (word == "--retry-failed" and words and not words[0].startswith("-")):
            words[:1] = []
    return shlex.join(["pipeline", *kept])

"""The command line: parse, call one function, print, return a code. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.errors import PipelineError, UsageError

if TYPE_CHECKING:
    from pipeline.job import Job
    from pipeline.records import Summary
    from pipeline.run import Wishes

# option -> (flags, key of the job, environment variable, help)
_JOB_OPTIONS: tuple[tuple[tuple[str, ...], str, str, Any, str], ...] = (
    (("-i", "--input"), "input.path", "PIPELINE_INPUT", str, "File, glob or folder; .jsonl .parquet .csv, .gz .zst; - for JSONL on stdin."),
    (("--id",), "input.id", "PIPELINE_ID", str, "Column that is each row's custom_id."),
    (("-o", "--output"), "output.path", "PIPELINE_OUTPUT", str, "Results file: .parquet, .jsonl or .csv."),
    (("--format",), "output.format", "PIPELINE_FORMAT", click.Choice(["parquet", "jsonl", "csv", "batch"]), "Format, where the ending does not say it."),
    (("-m", "--model"), "model", "PIPELINE_MODEL", str, "Model to ask."),
    (("-p", "--prompt"), "request.prompt", "PIPELINE_PROMPT", str, "Prompt template (Jinja2) over the row's columns."),
    (("--system",), "request.system", "PIPELINE_SYSTEM", str, "System message, a template too."),
    (("-g", "--gateway"), "gateway", "PIPELINE_GATEWAY", str, "Preset of a gateway: openai, simulator."),
    (("--base-url",), "gateway.base_url", "PIPELINE_BASE_URL", str, "Where the server is, e.g. https://host/v1."),
    (("--api-key-env",), "gateway.api_key_env", "PIPELINE_API_KEY_ENV", str, "Environment variable that holds the key."),
    (("-c", "--concurrency"), "gateway.concurrency", "PIPELINE_CONCURRENCY", int, "Requests at once."),
    (("--run-dir",), "run_dir", "PIPELINE_RUN_DIR", str, "Run folder (default: <output>.run)."),
)  # fmt: skip


def _job_options(command: Callable[..., Any]) -> Callable[..., Any]:
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


def _redo_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = [
        click.option("--retry-failed", is_flag=False, flag_value="", metavar="[CODE]", help="Send failed rows again, all or those of one error code."),
        click.option("--redo", multiple=True, metavar="COLUMN=VALUE", help="Send rows again whose result column has this value (also COLUMN!=VALUE)."),
        click.option("--redo-ids", type=click.Path(), metavar="FILE", help="Send the rows again that FILE names, an id a line."),
        click.option("--accept-changes", is_flag=True, help="Send done rows again whose request changed, however many; take over a folder of another input."),
        click.option("--accept-failed", is_flag=True, help="The rows that failed are fine: exit 0 from now on."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="pipeline")
def cli() -> None:
    """The batch API your OpenAI-compatible gateway does not have.

    Sends every row of a JSONL, Parquet or CSV file to a model, survives anything, resumes where it stopped, and writes
    one results file with tokens and cost on each row.

    \b
    Examples:
      pipeline run jobs/label_tickets.toml
      pipeline run -i rows.jsonl -o out.jsonl --base-url http://localhost:8000/v1 -m MODEL -p "{{ text }}" -c 64
      pipeline status out.jsonl
    """


@cli.command("run")
@_job_options
@_redo_options
def run_command(**given: Any) -> int:
    """Run a job, or resume it: the same command again goes on where it stopped.

    \b
    Examples:
      pipeline run jobs/label_tickets.toml
      pipeline run -i rows.jsonl -o out.parquet --base-url http://localhost:8000/v1 -m MODEL -p "{{ text }}" -c 64
      pipeline run jobs/label_tickets.toml --retry-failed
      pipeline run jobs/label_tickets.toml --redo finish_reason=length --set request.params.max_tokens=1024
    """
    from pipeline.ending import last_words

    wishes = _wishes(given)
    summary = _run(_job(given), given, wishes)
    if given["as_json"]:
        _print_json(asdict(summary))
    elif not given["quiet"] or summary.exit_code not in (0, 3):
        click.echo(last_words(summary, again=_again()), err=True)
    return summary.exit_code


@cli.command("try")
@_job_options
@click.option("-n", "rows", type=click.IntRange(min=1), default=5, show_default=True, help="How many rows.")
def try_command(rows: int, **given: Any) -> int:
    """Send a few rows now and show prompt, answer, tokens and cost. They count: the full run keeps them.

    \b
    Examples:
      pipeline try jobs/label_tickets.toml
      pipeline try jobs/label_tickets.toml -n 1 --set request.params.temperature=0.7
    """
    from pipeline.run import Wishes
    from pipeline.trial import shown_rows

    job = _job(given)
    summary = _run(job, given, Wishes(most=rows, publish=False))
    shown = shown_rows(job.run_folder, rows)
    if given["as_json"]:
        _print_json(
            {"rows": [asdict(row) for row in shown], "exit_code": 0 if summary.exit_code == 75 else summary.exit_code}
        )
    else:
        for row in shown:
            click.echo(row.text)
    if summary.exit_code in (0, 3) or (summary.exit_code == 75 and summary.sent):
        return 0
    click.echo(summary.reason, err=True)
    return summary.exit_code


@cli.command("status")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option("--watch", is_flag=True, help="Show it again every 2 s until the run ends.")
def status_command(target: str, as_json: bool, watch: bool) -> int:
    """Where a run stands, also while it runs. TARGET is a job file, an output file or a run folder.

    \b
    Examples:
      pipeline status jobs/label_tickets.toml
      pipeline status out.parquet --watch
    """
    import time

    from pipeline.status import describe, folder_of, status_of

    folder = folder_of(target)
    while True:
        status = status_of(folder)
        if as_json:
            _print_json(status)
        else:
            click.echo(describe(status))
        if not watch or status.get("state") != "running":
            return 0
        time.sleep(2)


@cli.command("export")
@click.argument("target")
@click.option("-o", "--output", required=True, type=click.Path(), help="File to write: .parquet, .jsonl or .csv.")
@click.option(
    "--format",
    "output_format",
    type=click.Choice(["parquet", "jsonl", "csv", "batch"]),
    help="Format, where the ending does not say it.",
)
@click.option("--partial", is_flag=True, help="Only rows that have an outcome, while others are still to come.")
@click.option("--failed", is_flag=True, help="Only rows that failed.")
@click.option("--results-only", is_flag=True, help="Without the input's columns.")
@click.option("-i", "--input", "input_path", type=click.Path(), help="Where the input is now, if it moved.")
def export_command(
    target: str, output: str, output_format: str | None, partial: bool, failed: bool, results_only: bool, input_path: str | None
) -> int:  # fmt: skip
    """Write the results again from the journal, in any format. TARGET is a job file, an output file or a run folder.

    \b
    Examples:
      pipeline export out.parquet -o out.csv
      pipeline export jobs/label_tickets.toml -o failed.jsonl --failed
      pipeline export out.parquet.run -o so_far.jsonl --partial
    """
    from pipeline.export import export_folder
    from pipeline.status import folder_of

    if partial and failed:
        raise UsageError("--partial and --failed are two different selections; give one")
    rows = export_folder(
        folder_of(target),
        Path(output).absolute(),
        output_format=output_format,
        selection="failed" if failed else "partial" if partial else "all",
        results_only=results_only,
        input_path=input_path,
    )
    click.echo(f"{rows:,} rows written to {output}", err=True)
    return 0


@cli.command("verify")
@click.argument("target")
@click.option("-i", "--input", "input_path", type=click.Path(), help="Where the input is now, if it moved.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def verify_command(target: str, input_path: str | None, as_json: bool) -> int:
    """Prove the promises on a run: every input row has one outcome, and the results file says what the journal says.

    \b
    Examples:
      pipeline verify out.parquet
      pipeline verify jobs/label_tickets.toml --json
    """
    from pipeline.status import folder_of
    from pipeline.verify import verify

    report = verify(folder_of(target), input_path=input_path)
    if as_json:
        _print_json(asdict(report))
    else:
        for finding in report.findings:
            click.echo(f"found: {finding}", err=True)
        click.echo(
            f"{report.rows:,} rows checked: {', '.join(report.checked)}; {len(report.findings)} findings.", err=True
        )
        if report.pending:
            click.echo(f"{report.pending:,} rows are still to be sent: run the job again.", err=True)
    return 6 if report.findings else 75 if report.pending else 0


@cli.command("simulate")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port on 127.0.0.1; 0 takes any free one.",
)
@click.option("--faults", type=click.Path(exists=True, dir_okay=False), help="Script of faults (TOML or JSON).")
@click.option("--latency", type=float, default=0.0, show_default=True, help="Median seconds an answer takes.")
@click.option(
    "--jitter", type=float, default=0.0, show_default=True, help="Spread of the latency (sigma of a lognormal)."
)
@click.option("--max-parallel", type=click.IntRange(min=1), help="Requests at once; more get 429.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of latencies and chances.")
def simulate_command(
    port: int, faults: str | None, latency: float, jitter: float, max_parallel: int | None, seed: int
) -> int:
    """Serve a simulated gateway on this machine, with a script of faults and a billing ledger at /ledger.

    \b
    Examples:
      pipeline simulate --port 8000
      pipeline simulate --port 8000 --faults faults.toml --latency 0.2 --max-parallel 5
    """
    import asyncio

    from pipeline.simulator import Faults, Settings, serve

    settings = Settings(
        port=port,
        faults=Faults.from_file(Path(faults)) if faults else Faults(),
        latency_s=latency,
        jitter=jitter,
        max_parallel=max_parallel,
        seed=seed,
    )
    try:
        asyncio.run(serve(settings, lambda url: click.echo(f"serving on {url} (Ctrl-C ends)", err=True)))
    except KeyboardInterrupt:
        return 0
    return 0


def _job(given: Mapping[str, Any]) -> Job:
    from pipeline.job import Job

    overrides: dict[str, Any] = {}
    for setting in given["settings"]:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise UsageError(f"--set takes KEY=VALUE, not {setting!r}")
        overrides[key.strip()] = _value(value)
    for _, key, _, _, _ in _JOB_OPTIONS:
        value = given[key.replace(".", "__")]
        if value is not None:
            overrides[key] = value
    overrides = dict(sorted(overrides.items(), key=lambda item: item[0].count(".")))
    return Job.load(given["job_file"], overrides=overrides)


def _value(text: str) -> Any:
    """A value as TOML reads it, else as plain text: 0.2, true, [1, 2], hello."""
    import tomllib

    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _wishes(given: Mapping[str, Any]) -> Wishes:
    from pipeline.run import Wishes
    from pipeline.selection import Redo

    retry = given["retry_failed"]
    if given["job_file"] is None and retry and retry.endswith(".toml"):
        raise UsageError(f"--retry-failed took {retry} for an error code: give the job file first, then --retry-failed")
    return Wishes(
        redo=Redo(
            failed=False if retry is None else retry or True,
            columns=given["redo"],
            ids=Path(given["redo_ids"]) if given["redo_ids"] else None,
        ),
        accept_changes=given["accept_changes"],
        accept_failed=given["accept_failed"],
    )


def _run(job: Job, given: Mapping[str, Any], wishes: Wishes) -> Summary:
    from pipeline.progress import display_for
    from pipeline.run import run

    asks = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() and not given["quiet"]
    display = display_for(sys.stderr, quiet=given["quiet"])
    return run(job, wishes, display=display, confirm=(lambda text: click.confirm(text, err=True)) if asks else None)


_ONCE_WITH_VALUE = ("--redo", "--redo-ids")
_ONCE = (*_ONCE_WITH_VALUE, "--retry-failed", "--accept-changes", "--accept-failed")


def _again() -> str:
    """This command without what it asked for once and the journal now knows."""
    words = iter(sys.argv[1:])
    kept: list[str] = []
    for word in words:
        if word in _ONCE_WITH_VALUE:
            next(words, None)
        elif word == "--retry-failed":
            following = next(words, None)
            kept += [following] if following is not None and following.startswith("-") else []
        elif word.partition("=")[0] not in _ONCE:
            kept.append(word)
    return shlex.join(["pipeline", *kept])


def _print_json(value: Any) -> None:
    import orjson

    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def main() -> None:
    """The console script: every error of a user's is a sentence, every exit code one of the contract's."""
    try:
        code = cli.main(standalone_mode=False)
    except PipelineError as exc:
        click.echo(f"pipeline: {exc}", err=True)
        code = exc.exit_code
    except click.ClickException as exc:
        exc.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("pipeline: interrupted; nothing finished is lost, the same command goes on", err=True)
        code = 130
    except Exception:  # noqa: BLE001 - the outermost door: a defect of ours, said to be one
        traceback.print_exc()
        click.echo("pipeline: this is a defect of pipeline's; the journal is safe, the same command goes on", err=True)
        code = 1
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)

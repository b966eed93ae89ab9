"""The command line: parse, call one function, print, return a code. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipeline.cli.options import (
    again,
    check_words,
    flow_options,
    gateway_of,
    gateway_options,
    job_of,
    job_options,
    redo_options,
    wishes_of,
)
from pipeline.cli.screen import print_json, print_text, tell
from pipeline.cli.simulate import simulate_command
from pipeline.errors import LookError, PipelineError, UsageError
from pipeline.ground.visible import visible
from pipeline.ground.wording import plural

if TYPE_CHECKING:
    from pipeline.billing import Billing
    from pipeline.job import Job
    from pipeline.records import Summary
    from pipeline.wishes import Wishes


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
@job_options
@flow_options
@redo_options
def run_command(**given: Any) -> int:
    """Run a job, or resume it: the same command again goes on where it stopped.

    \b
    Examples:
      pipeline run jobs/label_tickets.toml
      pipeline run -i rows.jsonl -o out.parquet --base-url http://localhost:8000/v1 -m MODEL -p "{{ text }}" -c 64
      pipeline run jobs/label_tickets.toml --window 20:00-06:00
      pipeline run jobs/label_tickets.toml --retry-failed
      pipeline run jobs/label_tickets.toml --set request.dedupe=true
      pipeline run jobs/label_tickets.toml --redo content=
    """
    from pipeline.ending import last_words

    wishes = wishes_of(given)
    summary = _run(job_of(given), given, wishes)
    if given["as_json"]:
        print_json(asdict(summary))
    elif not given["quiet"] or summary.exit_code not in (0, 3):
        tell(last_words(summary, again=again(sys.argv[1:])))
    return summary.exit_code


@cli.command("try")
@job_options
@click.option("-n", "rows", type=click.IntRange(min=1), default=5, show_default=True, help="How many rows.")
@click.option("--sample", is_flag=True, help="Some rows at random instead of the first ones.")
def try_command(rows: int, sample: bool, **given: Any) -> int:
    """Send a few rows now and show prompt, answer, tokens and cost. They count: the full run keeps them.

    \b
    Examples:
      pipeline try jobs/label_tickets.toml
      pipeline try jobs/label_tickets.toml -n 3 --sample
      pipeline try jobs/label_tickets.toml -n 1 --set request.params.temperature=0.7
    """
    from pipeline.ending import UNDONE
    from pipeline.trial import cut_off, shown_rows
    from pipeline.wishes import Wishes

    job = job_of(given)
    summary = _run(job, given, Wishes(most=rows, sample=sample, publish=False, any_hour=True))
    try:
        shown = shown_rows(Path(summary.run_folder), rows)
    except PipelineError:
        if summary.exit_code != LookError.exit_code:
            raise
        shown = []  # the run folder is gone or has moved: the reason says so, and where the answers are
    is_tried = summary.exit_code in (0, 3) or (summary.exit_code == 75 and (summary.sent or summary.reason == UNDONE))
    code = 0 if is_tried else summary.exit_code
    if given["as_json"]:
        print_json({"rows": [asdict(row) for row in shown], "exit_code": code})
    else:
        for row in shown:
            print_text(row.text)
        if (hint := cut_off(shown, job.request.params)) is not None:
            tell(hint)
    if not is_tried:
        tell(summary.reason)
    return code


@cli.command("plan")
@job_options
@click.option("--show", type=click.IntRange(min=1), metavar="N", help="Print the exact bodies of N pending rows.")
def plan_command(show: int | None, **given: Any) -> int:
    """What a run would do: rows, tokens, cost, time, disk; whether key and model are fine. Nothing is sent that is paid.

    \b
    Examples:
      pipeline plan jobs/label_tickets.toml
      pipeline plan jobs/label_tickets.toml --show 2
    """
    import asyncio

    from pipeline.plan import plan
    from pipeline.plan.words import described

    found = asyncio.run(plan(job_of(given), show=show or 0))
    if given["as_json"]:
        print_json(asdict(found))
    else:
        print_text(described(found))
    return found.exit_code


@cli.command("models")
@gateway_options
def models_command(as_json: bool, **given: Any) -> int:
    """The models a gateway lists for your key: mode, context, prices per million tokens, prompt caching, status.

    \b
    Examples:
      pipeline models -g cborg
      pipeline models -g lumen --base-url https://lumen.example.edu --json
    """
    import asyncio

    from pipeline.models import listed, table

    found = asyncio.run(listed(gateway_of(given)))
    if found.error is not None:
        raise found.error
    for text in found.warnings if found.models else [finding.text for finding in found.findings]:
        tell(text)
    if as_json:
        print_json([asdict(info) for info in found.models.values()])
    elif found.models:
        print_text(table(list(found.models.values())))
    return 0 if found.models else 4


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
            print_json(status)
        else:
            print_text(describe(status))
        if not watch or status.get("state") != "running":
            return 0
        time.sleep(2)


@cli.command("export")
@click.argument("target")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(),
    help="File to write: .parquet, .jsonl or .csv, the last two also with .gz.",
)
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
    rows, pending = export_folder(
        folder_of(target),
        Path(output).absolute(),
        output_format=output_format,
        selection="failed" if failed else "partial" if partial else "all",
        results_only=results_only,
        input_path=input_path,
    )
    left = f"; {plural(pending, 'has', 'have')} no outcome yet" if pending else ""
    tell(f"{plural(rows, 'row')} written to {output}{left}")
    return 0


@cli.command("verify")
@click.argument("target")
@click.option("--billing", is_flag=True, help="Ask the gateway what the tries were billed whose answers were lost.")
@click.option("-i", "--input", "input_path", type=click.Path(), help="Where the input is now, if it moved.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def verify_command(target: str, billing: bool, input_path: str | None, as_json: bool) -> int:
    """Prove the promises on a run: the journal is sound, each input row has one outcome, each answer is as it came, all sums
    agree, and every value in the results file is the journal's. Exit 6 where something is wrong, 75 where rows are left.

    With --billing, a LiteLLM proxy (CBorg) is asked what lost tries were billed, and the journal keeps it.

    \b
    Examples:
      pipeline verify out.parquet
      pipeline verify jobs/label_tickets.toml --json
      pipeline verify out.parquet --billing
    """
    from pipeline.status import folder_of
    from pipeline.verify import told, verify

    folder = folder_of(target)
    report = verify(folder, input_path=input_path)
    found = _billing(folder) if billing else None
    if as_json:
        print_json(asdict(report) | ({"billing": asdict(found)} if found else {}))
    else:
        for line in [*(found.lines if found else ()), *told(report)]:
            tell(line)
    return report.exit_code


cli.add_command(simulate_command)


def _billing(folder: Path) -> Billing:
    import asyncio

    from pipeline.billing import billing

    return asyncio.run(billing(folder, say=tell))


def _run(job: Job, given: Mapping[str, Any], wishes: Wishes) -> Summary:
    from pipeline.entry import run
    from pipeline.progress.display import display_for

    gc.freeze()  # what was imported stays
    asks = sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty() and not given["quiet"]
    display = display_for(sys.stderr, quiet=given["quiet"])
    return run(
        job, wishes, display=display, confirm=(lambda text: click.confirm(visible(text), err=True)) if asks else None
    )


def _shown(exc: click.ClickException) -> str:
    words = io.StringIO()
    exc.show(words)
    return words.getvalue().rstrip("\n")


def main() -> None:
    """The console script: every error of a user's is a sentence, every exit code one of the contract's."""
    from pipeline.ground.secret import stay_out_of_core_dumps

    stay_out_of_core_dumps()
    # A row makes many objects that end with it, and no circles: to look for those every 700 objects costs time for nothing.
    gc.set_threshold(20_000, 20, 20)
    try:
        check_words(sys.argv[1:], os.environ)
        code = cli.main(standalone_mode=False)
    except PipelineError as exc:
        tell(f"pipeline: {exc}")
        code = exc.exit_code
    except click.ClickException as exc:
        tell(_shown(exc))
        code = 2
    except (click.Abort, KeyboardInterrupt):
        tell("pipeline: interrupted; nothing finished is lost, the same command goes on")
        code = 130
    except Exception:  # noqa: BLE001 - the outermost door: a defect of ours, said to be one
        traceback.print_exc()
        tell("pipeline: this is a defect of pipeline's; the journal is safe, the same command goes on")
        code = 1
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)

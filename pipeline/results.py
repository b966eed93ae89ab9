"""From a workspace to a results file, and the sheet beside it that says where the results came from."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import orjson

from pipeline.errors import UsageError
from pipeline.job import Job
from pipeline.job.format import OutputFormat, format_of_ending
from pipeline.journal import Journal, Projection, reader, sentences
from pipeline.sink import Layout, Plan, Selection, Stretch, files_of, write_meta, write_results
from pipeline.source import arrow_schema
from pipeline.workspace import Workspace

STRETCH_ROWS = 4096


def export(
    workspace: Workspace,
    *,
    path: Path,
    output_format: OutputFormat,
    selection: Selection = "all",
    results_only: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Write results to ``path`` with ``<path>.meta.json`` beside it; returns the rows written. ``tick`` may raise."""
    with sentences(workspace.journal.path):
        plan = plan_of(
            workspace, path=path, output_format=output_format, selection=selection, results_only=results_only, tick=tick
        )
        rows = write_results(Projection(workspace.journal.db), plan)
    write_meta(path, plan.metadata)
    return rows


def stamp_of(job: Job) -> str | None:
    """What tells the results that were written last from others: how they were asked for, and when they were written.

    None where a file of them lacks, or cannot be looked at.
    """
    output = job.output
    settings = orjson.dumps([str(output.path), job.output_format, output.keep, output.prefix]).decode()
    try:
        written = [path.stat().st_mtime_ns for path in files_of(output.path, job.output_format)]
    except OSError:
        return None
    return f"{settings} {written[0]}"


def plan_of(
    workspace: Workspace,
    *,
    path: Path,
    output_format: OutputFormat,
    selection: Selection = "all",
    results_only: bool = False,
    tick: Callable[[], None] = lambda: None,
) -> Plan:
    """What an export writes, and what a results file is held against."""
    columns = workspace.layout()
    if results_only or output_format == "batch":
        columns = replace(columns, kept=())

    def stretches() -> Iterator[Stretch]:
        walk = workspace.feed.stretches(columns.kept) if columns.kept else without_input(workspace.journal)
        for stretch in walk:
            tick()
            yield stretch

    return Plan(
        path=path,
        format=output_format,
        layout=columns,
        selection=selection,
        stretches=stretches,
        arrow=_arrow(workspace, columns) if output_format == "parquet" else None,
        read_content=workspace.dialect.content,
        metadata=provenance(workspace),
    )


def format_of(path: Path, asked: str | None) -> OutputFormat:
    """The format asked for, else the one the ending names."""
    for known in get_args(OutputFormat):
        if known == asked:
            return known  # type: ignore[no-any-return] # get_args of a Literal
    try:
        return format_of_ending(path)
    except ValueError as exc:
        raise UsageError(f"{exc} or --format") from None


def without_input(journal: Journal) -> Iterator[Stretch]:
    """The rows of the index, with nothing of the input beside them."""
    for path, last in journal.db.execute(
        "SELECT f.path, max(i.line) FROM file f JOIN input i USING (file) GROUP BY f.file ORDER BY f.place"
    ).fetchall():
        for first in range(1, last + 1, STRETCH_ROWS):
            yield Stretch(path=path, first=first, last=first + STRETCH_ROWS - 1, chunk=None)


def _arrow(workspace: Workspace, columns: Layout) -> list[Any] | None:
    """The input files' schemas when every one is Parquet; None otherwise."""
    if not columns.kept or any(file.format != "parquet" for file in workspace.files):
        return None
    return [arrow_schema(file) for file in workspace.files]


def provenance(workspace: Workspace) -> dict[str, Any]:
    """Where the results came from: job, prompt, params, gateway, served models, input files, versions, totals."""
    job, journal = workspace.job, workspace.journal
    totals = reader.totals(journal.db)
    return {
        "job": orjson.loads(job.model_dump_json(exclude={"gateway": {"api_key_file"}})),
        "job_file": None if job.source is None else str(job.source),
        "prompt": workspace.prompt,
        "gateway": {"preset": job.gateway.preset, "family": job.preset.family, "base_url": job.base_url},
        "served_models": reader.served_models(journal.db),
        "inputs": [
            {"path": path, "rows": rows, "blake2b": _digest_of(Path(path))}
            for path, rows in journal.db.execute("SELECT path, rows FROM file ORDER BY place").fetchall()
        ],
        "versions": {"pipeline": version("pipeline"), "python": sys.version.split()[0]},
        "totals": asdict(totals),
        "outages": reader.outages(journal.db),
        "written_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _digest_of(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError:
        return None  # moved since it was indexed: its rows are in the journal, its bytes are not here to be digested

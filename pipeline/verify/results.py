"""The results file: made again from the journal, and held against what is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import PipelineError
from pipeline.journal import Projection, Totals
from pipeline.results import plan_of
from pipeline.sink import META, files_of, unlike
from pipeline.verify.money import unlike_amounts
from pipeline.verify.report import AGAIN, Proof
from pipeline.workspace import Workspace

WRITE_ANEW = f"{AGAIN}, which writes it anew and sends nothing; or pipeline export"


def results(space: Workspace, totals: Totals, proof: Proof) -> None:
    """All rows are done: the results are there, and every value in them is the journal's."""
    output = space.job.output.path
    is_known = space.journal.get("results") != "stale" and _ended(space)
    if missing := [path for path in files_of(output, space.job.output_format) if not path.exists()]:
        lacking = [f"all rows are done, but {path} is not there" for path in missing]
        _tell(proof, lacking, is_known=is_known, do=WRITE_ANEW)
        return
    plan = plan_of(space, path=output, output_format=space.job.output_format)
    plan = replace(plan, read_content=partial(_carefully, plan.read_content))
    try:
        count, differences = unlike(Projection(space.journal.db), plan)
    except (OSError, ValueError, PipelineError) as exc:
        count, differences = 0, [f"the results {output} cannot be compared ({exc})"]
    proof.counted("rows of the results", count)
    differences += list(_unlike_the_sheet(output, plan.metadata, totals))
    _tell(proof, differences, is_known=is_known, do=f"delete it, then {WRITE_ANEW}")


def _carefully(read_content: Callable[[bytes], str | None], body: bytes) -> str | None:
    """An answer that cannot be read has been told of already; the rows after it are compared all the same."""
    try:
        return read_content(body)
    except (ValueError, TypeError, LookupError, AttributeError):
        return None


def _ended(space: Workspace) -> bool:
    last = space.journal.db.execute("SELECT ended_at FROM run ORDER BY run DESC LIMIT 1").fetchone()
    return last is None or last[0] is not None


def _tell(proof: Proof, differences: list[str], *, is_known: bool, do: str) -> None:
    """Results that the journal knows to be stale, or that a killed run did not come to write, are no damage."""
    for what in differences:
        if is_known:
            proof.found("results", what, do=do)
        else:
            proof.unfinished.append(f"{what}; the results are to be written yet: {AGAIN}, it sends nothing for that")


def _unlike_the_sheet(output: Path, metadata: dict[str, Any], totals: Totals) -> Iterator[str]:
    """``<output>.meta.json``: what it counts, and which input it says that was."""
    path = output.with_name(output.name + META)
    try:
        sheet = orjson.loads(path.read_bytes())
    except OSError as exc:
        yield f"{path} cannot be read ({exc.strerror})"
        return
    except ValueError:
        yield f"{path} is no JSON"
        return
    if not isinstance(sheet, dict) or not isinstance(sheet.get("totals"), dict):
        yield f"{path} is not one of pipeline's"
        return
    wanted = orjson.loads(orjson.dumps(metadata))
    for name, value in wanted["totals"].items():
        if name not in ("cost", "accepted") and sheet["totals"].get(name) != value:
            yield f"{path} says {sheet['totals'].get(name)!r} for totals.{name}, the journal {value!r}"
    cost = sheet["totals"].get("cost")
    yield from unlike_amounts(cost if isinstance(cost, dict) else {}, totals.cost, str(path))
    for name in ("prompt", "served_models", "outages"):
        if sheet.get(name) != wanted[name]:
            yield f"{path} has another {name} than the journal"
    yield from _unlike_inputs(path, sheet.get("inputs"), wanted["inputs"])


def _unlike_inputs(path: Path, told: Any, wanted: list[dict[str, Any]]) -> Iterator[str]:
    """By rows and digest: the files may have moved since."""
    if not isinstance(told, list) or len(told) != len(wanted):
        yield f"{path} tells of other input files than the journal"
        return
    for one, now in zip(told, wanted, strict=True):
        if not isinstance(one, dict) or one.get("rows") != now["rows"]:
            yield f"{path} tells of another number of rows in {now['path']} than the journal"
        elif now["blake2b"] is not None and one.get("blake2b") != now["blake2b"]:
            yield f"{now['path']} is not the file that the results were made from: its digest is not that in {path}"

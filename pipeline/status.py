"""Where a run stands, from its run folder's ``status.json``; a live journal is never opened for this."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import RunFolderError, UsageError
from pipeline.ground.wording import duration, money, outage, plural
from pipeline.job import Job
from pipeline.journal import FILE_NAME, Journal, Lock, reader, sentences
from pipeline.moved import found
from pipeline.progress.status_file import STATUS_FILE

_NUMBERS = ("completed", "failed", "reused", "pending", "total", "tokens", "cost_unknown", "written_at")


def folder_of(target: str) -> Path:
    """The run folder that TARGET means: a job file's, an output file's, or the folder itself. Raises ``UsageError``."""
    path = Path(target).absolute()
    if path.suffix == ".toml":
        return Job.load(path).run_folder
    beside = path.with_name(path.name + ".run")
    try:
        if (path / FILE_NAME).exists() or (path / STATUS_FILE).exists():
            return path
        if beside.is_dir():
            return beside
    except OSError as exc:
        raise RunFolderError(f"cannot look into {exc.filename or path}: {exc.strerror}; check its permissions") from exc
    raise UsageError(f"{target} is no job file, no output of a run and no run folder (looked for {beside} too)")


def status_of(folder: Path) -> dict[str, Any]:
    """The last status a run wrote; ``killed``, with what its journal has, when it says running but nobody holds the folder."""
    try:
        status = orjson.loads((folder / STATUS_FILE).read_bytes())
    except FileNotFoundError:
        status = _without_status(folder, f"{folder} has no status yet: nothing has been sent there")
    except ValueError as exc:
        status = _without_status(folder, f"cannot read the status in {folder}: {exc}")
    except OSError as exc:
        raise RunFolderError(f"cannot read the status in {folder}: {exc}") from exc
    if not isinstance(status, dict) or not all(isinstance(status.get(name, 0), int | float) for name in _NUMBERS):
        raise RunFolderError(f"the status in {folder} is not one of pipeline's")
    was, output = status.get("run_folder"), status.get("output")
    if isinstance(was, str) and isinstance(output, str):  # the folder may have moved since, and the output with it
        status |= {"run_folder": str(folder), "output": found(output, Path(was), folder)}
    lock = Lock(folder)
    if status.get("state") == "running" and not lock.is_held():
        status |= {"state": "killed", **_from_journal(folder)}
    elif lock.is_held():
        status["holder"] = lock.holder()
    return status


def _without_status(folder: Path, why: str) -> dict[str, Any]:
    """A backup of a journal alone has no status, and a power cut may tear one: the journal tells then. Raises ``RunFolderError``."""
    path = folder / FILE_NAME
    if Lock(folder).is_held() or not path.exists():
        raise RunFolderError(why)
    journal = Journal.read(folder)
    try:
        with sentences(journal.path):
            output = journal.get("output")
    finally:
        journal.close()
    if output is None:
        raise RunFolderError(why)
    return {"state": "running", "run_folder": str(folder), "output": output, "written_at": path.stat().st_mtime}


def _from_journal(folder: Path) -> dict[str, Any]:
    """What a killed run had on disk: more than the last status it wrote. Nobody writes to that journal now."""
    journal = Journal.read(folder)
    try:
        with sentences(journal.path):
            totals, rows = reader.totals(journal.db), journal.index().rows()
    finally:
        journal.close()
    return {
        "completed": totals.completed,
        "failed": totals.failed,
        "reused": totals.reused,
        "accepted": totals.accepted,
        "total": rows,
        "pending": rows - totals.completed - totals.failed,
        "tokens": totals.prompt_tokens + totals.completion_tokens,
        "cost": totals.cost,
        "cost_unknown": totals.cost_unknown,
    }


def describe(status: dict[str, Any]) -> str:
    """A status in a few lines for people."""
    age = duration(max(time.time() - float(status.get("written_at", 0)), 0))
    lines = [f"{status.get('output')}: {_state(status)} ({age} ago)"]
    completed, failed, total = (int(status.get(key) or 0) for key in ("completed", "failed", "total"))
    lines.append(
        f"Rows: {completed:,} succeeded, {failed:,} failed{_accepted(status)}, {int(status.get('pending') or 0):,} left, of {total:,}{_reused(status)}."
    )
    tokens = status.get("tokens", int(status.get("prompt_tokens") or 0) + int(status.get("completion_tokens") or 0))
    lines.append(f"Tokens: {tokens:,}. Cost: {money(status.get('cost') or {}, int(status.get('cost_unknown') or 0))}.")
    if status.get("state") == "running":
        eta = status.get("eta_s")
        left = f", {duration(eta)} left" if isinstance(eta, int | float) else ""
        lines.append(
            f"{float(status.get('rows_per_s') or 0):,.1f} rows/s, {float(status.get('tokens_per_s') or 0):,.0f} tokens/s, {status.get('busy')} of {plural(int(status.get('slots') or 0), 'slot')} busy{left}"
        )
        if status.get("doing"):
            lines.append(str(status["doing"]))
    lines += [outage(*told) for told in status.get("outages") or ()]
    return "\n".join(lines)


def _accepted(status: dict[str, Any]) -> str:
    return f" ({status['accepted']:,} of them accepted)" if status.get("accepted") else ""


def _reused(status: dict[str, Any]) -> str:
    return f"; {status['reused']:,} reused" if status.get("reused") else ""


def _state(status: dict[str, Any]) -> str:
    state = status.get("state")
    if state == "killed":
        return "was killed; run the same command again, it goes on where it was"
    if state == "ended":
        return str(status.get("reason"))
    holder = status.get("holder") or {}
    return f"running on {holder.get('host', 'this machine')}, pid {holder.get('pid', 'unknown')}"

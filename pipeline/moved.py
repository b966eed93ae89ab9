"""A run folder that was moved or copied: its journal has the paths of where it was, and what is beside it moved along."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from pipeline.job import Job


def is_elsewhere(job: Job, folder: Path) -> bool:
    """Whether the run folder of a journal's last job is now another: not just the same by another name."""
    was = job.run_folder
    try:
        return was != folder and not was.samefile(folder)
    except OSError:
        return True


def beside(path: str, was: Path, now: Path) -> str:
    """Where a path is when it lies as it lay before, seen from the run folder."""
    return path if path == "-" else os.path.normpath(now / os.path.relpath(path, was))


def taken_along(job: Job, folder: Path) -> Job:
    """The journal's last job with its paths as they are now: beside the run folder as before, or else where they were."""
    was = job.run_folder
    source, output = (found(path, was, folder) for path in (job.input.path, str(job.output.path)))
    changes = {
        "input": job.input.model_copy(update={"path": source}),
        "output": job.output.model_copy(update={"path": Path(output)}),
        "run_dir": folder,
    }
    return job.model_copy(update=changes)


def found(path: str, was: Path, now: Path) -> str:
    """What lay below the folder that held the run folder came along with it; of the rest only its place can tell."""
    here = beside(path, was, now)
    came_along = Path(path).is_relative_to(was.parent)
    return path if not came_along and not _is_there(here) and _is_there(path) else here


def _is_there(path: str) -> bool:
    """Input paths may be patterns."""
    return path == "-" or Path(path).exists() or bool(glob.glob(path))  # noqa: PTH207 - Path.glob takes no absolute pattern

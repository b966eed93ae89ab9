"""Whose a run folder is: its journal names the job that it belongs to."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import JobError, RunFolderError
from pipeline.job import Job
from pipeline.journal import Journal
from pipeline.moved import beside


def check_owner(journal: Journal, job: Job, *, new: bool, adopt: bool) -> None:
    """A folder that belongs to another input or output must not quietly become this job's; one that moved with them may.

    ``adopt``: it is to become this job's. Raises ``RunFolderError``.
    """
    folder = journal.path.parent
    for what, value in (("input", job.input.path), ("output", str(job.output.path))):
        owner = journal.get(what)
        if owner is None or owner == value or adopt:
            continue
        was = _was_in(journal)
        if was is None or beside(owner, was, folder) != value:
            raise RunFolderError(
                f"the run folder {folder} belongs to the {what} {owner}, this job's is {value}: give another --run-dir, or go "
                f"on with it on purpose with --accept-changes"
            )
    if not new and journal.get("input") is None and journal.db.execute("SELECT 1 FROM run").fetchone():
        raise RunFolderError(f"the run folder {journal.path.parent} belongs to no job; give another --run-dir")


def _was_in(journal: Journal) -> Path | None:
    try:
        return job_of(journal).run_folder
    except RunFolderError:
        return None


def claim(journal: Journal, job: Job) -> None:
    """This job's run folder it is from now on; what ``export`` and ``verify`` find there."""
    journal.put("input", job.input.path)
    journal.put("output", str(job.output.path))
    prompt = {"prompt": job.request.prompt_text(), "prompt_file": None}  # the file may change
    asked = job.request.model_copy(update=prompt)
    journal.put("job", job.model_copy(update={"request": asked}).model_dump_json())


def job_of(journal: Journal) -> Job:
    """The job as the last run of this journal had it. Raises ``RunFolderError`` for one that this version does not know."""
    text = journal.get("job")
    if text is None:
        raise RunFolderError(f"{journal.path.parent} holds no run yet")
    try:
        return Job.again(text, journal.path)
    except JobError as exc:
        raise RunFolderError(
            f"{exc}: the job of the last run is one of another version of pipeline; run the same command again, which writes "
            "it anew, or look at it with that version"
        ) from exc

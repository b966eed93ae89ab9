"""``pipeline export``: the results of a run folder again, in any format, without a job."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import IncompleteError, RunFolderError
from pipeline.ground.wording import plural
from pipeline.results import export, format_of
from pipeline.sink import Selection
from pipeline.verify import unlike_the_index
from pipeline.workspace import Workspace, check_apart, opened_for_reading
from pipeline.workspace.feed import mark_of


def export_folder(
    folder: Path,
    path: Path,
    *,
    output_format: str | None,
    selection: Selection,
    results_only: bool,
    input_path: str | None,
) -> tuple[int, int]:
    """Write what a run folder holds; returns the rows written and those that are pending.

    Raises ``IncompleteError`` when all were asked for and some lack.
    """
    kind = format_of(path, output_format)
    with opened_for_reading(folder, input_path=input_path, without_input=results_only) as space:
        pending = space.journal.index().counts(has_ids=space.id_column is not None).pending
        if selection == "all" and pending:
            raise IncompleteError(
                f"{plural(pending, 'row has', 'rows have')} no outcome yet: run the job again first, or export what is there with --partial"
            )
        check_apart(path, space.job.input.path, space.files)
        if not results_only:
            _check_unchanged(space)
        rows = export(space, path=path, output_format=kind, selection=selection, results_only=results_only)
        return rows, pending


def _check_unchanged(space: Workspace) -> None:
    """Answers must not stand beside other rows; where files were moved, only the rows can tell."""
    marks = dict(space.journal.db.execute("SELECT path, mark FROM file"))
    changed = (
        f"{file.path} is not as it was when it was last run"
        for file in space.files
        if marks.get(str(file.path)) != mark_of(file)
    )
    for finding in unlike_the_index(space) if space.moved else changed:
        raise RunFolderError(f"{finding}: run the job again first, or leave the input out with --results-only")

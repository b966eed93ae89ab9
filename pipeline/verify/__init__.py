"""Proves on a run folder that its promises were kept. Read ``_prove`` top to bottom; no finding means that all holds.

Nothing is changed, and memory does not grow with the input: everything is walked, nothing is gathered.

A bit that rots is found in the input, in the answers, in the rows' outcomes and identities, and in the results. It is not found
where it does not matter: in free room of the journal's pages and of the in-flight table, in ``run.log``, in words about a run (its
host, how it ended), in what the next run writes anew (the job, marks of files), in texts and settings in ``status.json`` and
``meta.json``. Of what only the journal has (times and models beside a ``batch`` output, which has no column for them) it is found
only where it makes no sense.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import DamagedError, LockedError
from pipeline.ground.wording import plural
from pipeline.journal import Lock, reader
from pipeline.progress.status_file import shown_in
from pipeline.verify.identity import not_one_outcome_a_row, unlike_the_index
from pipeline.verify.money import impossible_amounts, unlike_the_totals
from pipeline.verify.pages import unlike_a_journal, unlike_its_kinds, unsound_pages
from pipeline.verify.replies import untrue_replies
from pipeline.verify.report import AGAIN, RESTORE, Finding, Proof, Report, told
from pipeline.verify.results import results
from pipeline.verify.runs import impossible_times, killed, unsound_runs
from pipeline.verify.shown import unlike_the_status
from pipeline.workspace import Workspace, opened_for_reading
from pipeline.workspace.feed import mark_of

__all__ = ["Finding", "Report", "told", "unlike_the_index", "verify"]

_LOOK_AT_INPUT = (
    f"put the input back as it was, or {AGAIN}: it reads the input anew and sends only what is new or changed"
)
_SEND_AGAIN = f"{RESTORE}; or have these rows sent and paid again with --redo-ids"


def verify(folder: Path, *, input_path: str | None = None) -> Report:
    """Check journal, input, outcomes, replies, sums, results and what stands beside them.

    ``input_path``: where the input is now. Raises ``LockedError`` while a run works there, and any ``UsageError`` that keeps
    it from being looked at.
    """
    if Lock(folder).is_held():
        raise LockedError(f"a run works in {folder} now: verify it when it has ended")
    proof = Proof()
    try:
        with opened_for_reading(folder, input_path=input_path, shown=shown_in(folder)) as space:
            _prove(space, proof)
    except DamagedError as exc:
        proof.found("journal", str(exc), do="or put back a good copy of the folder")  # it says itself what else to do
    return proof.report()


def _prove(space: Workspace, proof: Proof) -> None:
    journal = space.journal
    sound = proof.check("journal", unsound_pages(journal.db, proof), do=RESTORE)
    sound &= proof.check("schema", unlike_a_journal(journal.db), do=RESTORE)
    sound = sound and proof.check("values", unlike_its_kinds(journal.db), do=RESTORE)
    sound = sound and proof.check("times", impossible_times(journal.db), do=RESTORE)
    if not sound:
        return  # whatever else is read there proves nothing
    proof.rows = journal.index().rows()
    as_indexed = proof.check("input", unlike_the_index(space, proof), do=_LOOK_AT_INPUT)
    proof.check("outcomes", not_one_outcome_a_row(journal.db), do=_SEND_AGAIN)
    proof.check("replies", untrue_replies(journal.db, space.dialect, proof), do=_SEND_AGAIN)
    proof.check("money", impossible_amounts(journal.db, proof), do=RESTORE)
    killed(journal.db, space.folder, proof)
    proof.check("runs", unsound_runs(journal.db, proof), do=RESTORE)
    totals = reader.totals(journal.db)
    counts = journal.index().counts(has_ids=space.id_column is not None)
    proof.pending = counts.pending
    proof.check("sums", unlike_the_totals(journal, totals), do=RESTORE)
    proof.check("status", unlike_the_status(journal, counts, totals, proof), do=RESTORE)
    _check_gone(space, proof, new=counts.new + counts.changed)
    if counts.pending == 0 and as_indexed:
        _take_marks(space)
        results(space, totals, proof)


def _check_gone(space: Workspace, proof: Proof, *, new: int) -> None:
    """Where the results were complete, no row lacks its outcome, unless it was lost since."""
    if new and space.journal.get("results") not in (None, "stale"):
        what = f"the results were written complete, and yet {plural(new, 'row has', 'rows have')} no outcome in the journal"
        proof.found("outcomes", what, do=RESTORE)


def _take_marks(space: Workspace) -> None:
    """Files whose rows are as they were may have been touched or copied: that is no reason not to read them."""
    if not space.moved:  # then they are taken already
        space.journal.input_moved([(str(file.path), mark_of(file)) for file in space.files])

"""What was shown is kept: ``status.json`` beside the journal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.ground.wording import plural
from pipeline.journal import Counts, Journal, Totals
from pipeline.progress.status_file import STATUS_FILE, status_in
from pipeline.verify.money import unlike_amounts
from pipeline.verify.report import AGAIN, Proof

_SUMS = (
    "prompt_tokens", "completion_tokens", "cost_unknown", "reused", "attempts", "lost_attempts", "empty", "cut_off", "refusals",
)  # fmt: skip


def unlike_the_status(journal: Journal, counts: Counts, totals: Totals, proof: Proof) -> Iterator[str]:
    """A run that ended has left its last word there; one that was killed has shown no more rows than it kept."""
    path = journal.path.parent / STATUS_FILE
    if not path.exists():
        return
    status = status_in(path.parent)
    if status is None:
        yield f"{path} is not one of pipeline's"
        return
    proof.counted("figures of status.json", len(status))
    ended = _is_last_word(journal, status)
    if status.get("state") != "ended":
        if ended is not None:
            proof.unfinished.append(f"{path} is older than the end of the last run: {AGAIN}")
        return
    if not ended:
        return
    told = {"completed": counts.succeeded, "failed": counts.failed, "pending": counts.pending, "total": counts.rows}
    if not _is_priced_since(journal):
        told |= {name: getattr(totals, name) for name in _SUMS}
        cost = status.get("cost")
        yield from unlike_amounts(cost if isinstance(cost, dict) else {}, totals.cost, str(path))
    for name, value in told.items():
        if status.get(name) != value:
            yield f"{path} says {status.get(name)!r} for {name}, the journal {value!r}"
    named = [*_names(status, "recovered"), *_names(status, "in_flight")]
    booked = journal.db.execute("SELECT count(*) FROM attempt WHERE code = 'killed' AND lost").fetchone()[0]
    if len(named) > booked:
        yield f"{path} names {plural(len(named), 'request that was', 'requests that were')} cut off, {plural(booked, 'is', 'are')} booked as tries that may have been billed"


def _names(status: dict[str, Any], key: str) -> list[Any]:
    names = status.get(key)
    return names if isinstance(names, list) else []


def _is_last_word(journal: Journal, status: dict[str, Any]) -> bool | None:
    """Whether it was written after the end of the last run; None where that was killed, or there was none."""
    last = journal.db.execute("SELECT ended_at, how FROM run ORDER BY run DESC LIMIT 1").fetchone()
    if last is None or last[0] is None or last[1] == "killed":
        return None
    written = status.get("written_at")
    return isinstance(written, int | float) and written >= last[0]


def _is_priced_since(journal: Journal) -> bool:
    """Whether lost tries have a cost: ``verify --billing`` books that after the end of a run."""
    return bool(
        journal.db.execute(
            "SELECT EXISTS (SELECT 1 FROM attempt WHERE lost AND cost IS NOT NULL) "
            "OR EXISTS (SELECT 1 FROM outcome WHERE lost AND cost IS NOT NULL)"
        ).fetchone()[0]
    )

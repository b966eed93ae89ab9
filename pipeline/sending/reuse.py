"""The copies' part of a run: when the sending has ended, they get the answers of the rows that ask the same."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.errors import PipelineError
from pipeline.journal import Journal, copies, sentences
from pipeline.progress import Activity, Tally
from pipeline.signals import Signals


async def give_copies(
    journal: Journal, tally: Tally, signals: Signals, *, show: Callable[[Activity], None]
) -> PipelineError | None:
    """Give copies the outcomes there are, batch by durable batch; returns what went wrong.

    It ends with a second signal: what is left over is the next run's.
    """
    giving = copies.give(journal.db)
    try:
        with sentences(journal.path):
            while not signals.urgent and (given := await signals.in_thread(next, giving, None)) is not None:
                tally.reuse(succeeded=given.succeeded, failed=given.failed)
                show(Activity())
    except PipelineError as exc:
        return exc
    return None

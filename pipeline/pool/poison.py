"""A poison row fails and the run goes on; a broken job fails every row alike, and is stopped while that is still cheap."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.errors import LookError
from pipeline.ground.wording import plural
from pipeline.records import Attempt, Outcome

LEAST_ROWS = 5
MOST_ROWS = 20
SHARE = 0.05


class Poison:
    """Told of every row's end. ``rows`` are to be done, ``most`` of them may fail (None: all of them).

    ``watches_first``: nothing has ever worked here, so the first rows all failing alike mean that the job is broken.
    """

    def __init__(self, *, rows: int, most: int | None = None, watches_first: bool = True) -> None:
        self._alike = max(LEAST_ROWS, min(MOST_ROWS, int(SHARE * rows)))
        self._most = most
        self._watches_first = watches_first and rows >= LEAST_ROWS
        self._failed = 0
        self._first_code: str | None = None

    def check(self, records: Sequence[Outcome | Attempt]) -> LookError | None:
        """Note how rows ended; returns why the run must stop, if it must."""
        for record in records:
            if isinstance(record, Attempt) or not record.sent:
                continue
            if record.status == "succeeded":
                self._watches_first = False
            elif (why := self._check_failed(record)) is not None:
                return why
        return None

    def _check_failed(self, outcome: Outcome) -> LookError | None:
        self._failed += 1
        if self._first_code is None:
            self._first_code = outcome.error_code
        if self._watches_first and outcome.error_code != self._first_code:
            self._watches_first = False
        said = f"{outcome.error_code}: {outcome.error_message}"
        if self._watches_first and self._failed >= self._alike:
            return LookError(
                f"the first {self._failed} rows all failed alike, so the job seems to be wrong rather than the rows ({said}). "
                "Mend the job and run it again; these rows again too: --retry-failed; or go on regardless: --keep-going"
            )
        if self._most is not None and self._failed > self._most:
            return LookError(
                f"{plural(self._failed, 'row')} failed in this run, more than limits.max_failures allows (the last: {said})"
            )
        return None

"""What ``verify`` has looked at, what it found, and what is merely not over yet."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from pipeline.errors import InputError
from pipeline.ground.wording import plural

MOST_OF_A_CHECK = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong, and what to ``do`` about it; ``check`` is which of the checks found it."""

    check: str
    what: str
    do: str

    def __str__(self) -> str:
        return f"{self.what}: {self.do}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``pending`` rows and what else is ``unfinished`` are no findings: the run is just not over.

    ``checked`` counts what was looked at, by what it is.
    """

    rows: int = 0
    pending: int = 0
    checked: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """As in the command-line contract."""
        return 6 if self.findings else 75 if self.pending or self.unfinished else 0


class Proof:
    """Collects what the checks tell."""

    def __init__(self) -> None:
        self.rows = 0
        self.pending = 0
        self.checked: dict[str, int] = {}
        self.findings: list[Finding] = []
        self.unfinished: list[str] = []

    def check(self, name: str, found: Iterable[str], *, do: str) -> bool:
        """Have one check tell what is wrong, the first few of it; returns whether nothing is."""
        before = len(self.findings)
        try:
            for what in islice(found, MOST_OF_A_CHECK):
                self.found(name, what, do=do)
        except (sqlite3.DatabaseError, UnicodeDecodeError) as exc:
            self.found(name, f"the journal cannot be read ({exc})", do=RESTORE)
        except InputError as exc:
            self.found(name, str(exc), do=do)
        if len(self.findings) - before == MOST_OF_A_CHECK:
            self.found(name, f"these are the first {MOST_OF_A_CHECK} of this kind; there may be more", do=do)
        return len(self.findings) == before

    def found(self, name: str, what: str, *, do: str) -> None:
        """Something is wrong."""
        self.findings.append(Finding(check=name, what=what, do=do))

    def counted(self, what: str, count: int) -> None:
        """So many of these were looked at."""
        self.checked[what] = self.checked.get(what, 0) + count

    def report(self) -> Report:
        """All of it."""
        return Report(
            rows=self.rows,
            pending=self.pending,
            checked=self.checked,
            findings=self.findings,
            unfinished=self.unfinished,
        )


def told(report: Report) -> Iterator[str]:
    """The report for people."""
    yield from (f"found: {finding}" for finding in report.findings)
    yield from (f"not over: {what}" for what in report.unfinished)
    counts = ", ".join(f"{what}: {count:,}" for what, count in report.checked.items())
    yield f"{plural(report.rows, 'row')} checked ({counts}); {plural(len(report.findings), 'finding')}."
    if report.pending:
        yield f"{plural(report.pending, 'row is', 'rows are')} still to be sent: run the job again."


RESTORE = (
    "keep a copy of the run folder, then put back a good copy of it; without one, save what can be read "
    "(pipeline export --partial --results-only) and start anew with another --run-dir"
)
AGAIN = "run the same command again"

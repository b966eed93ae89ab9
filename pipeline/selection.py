"""Which done rows are to be done again: failed ones, rows whose result column has a value, or rows named by id."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.ground.readable import read_bounded
from pipeline.ground.visible import listed
from pipeline.ground.wording import plural
from pipeline.journal import Projection
from pipeline.sink import TYPES, matching
from pipeline.workspace import Workspace

STRETCH_ROWS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """``failed`` True: all failed rows; a code: those. ``columns``: ``COLUMN=VALUE`` or ``COLUMN!=VALUE``, one or several.
    ``ids``: a file."""

    failed: bool | str = False
    columns: str | tuple[str, ...] = ()
    ids: Path | str | None = None

    def __post_init__(self) -> None:
        for condition in self.conditions:  # before an index pass that may take minutes
            _parsed(condition)

    @property
    def conditions(self) -> tuple[str, ...]:
        """``columns``, where a text alone is one condition and not its letters."""
        return (self.columns,) if isinstance(self.columns, str) else self.columns


def mark(space: Workspace, redo: Redo) -> int | None:
    """Have these rows' outcomes made anew; returns how many, None when nothing was asked for. Raises ``UsageError``.

    It is durable: an interrupted run goes on with them.
    """
    if redo == Redo():
        return None
    journal = space.journal
    numbers: set[int] = set()
    if redo.failed:
        numbers.update(journal.failed_numbers(redo.failed if isinstance(redo.failed, str) else None))
    for condition in redo.conditions:
        numbers.update(_matching(space, condition))
    if redo.ids is not None:
        numbers.update(_named(space, Path(redo.ids)))
    journal.mark_redo(sorted(numbers))
    return len(numbers)


def told(space: Workspace, redo: Redo, marked: int) -> str:
    """What came of it, in a sentence."""
    if marked:
        return f"{plural(marked, 'done row matches and is', 'done rows match and are')} done again."
    if not redo.failed or redo.columns or redo.ids is not None:
        return "No done row matches."
    codes = space.journal.failed_codes()
    if not codes:
        return "There is no failed row to retry."
    return f"There is no row that failed with {redo.failed!r}; there are rows with: {listed(codes)}."


def _parsed(condition: str) -> tuple[str, str, bool]:
    """Column, value, and whether they must be equal. Raises ``UsageError``."""
    column, sign, value = condition.partition("=")
    if not sign:
        raise UsageError(f"--redo takes COLUMN=VALUE or COLUMN!=VALUE, not {condition!r}")
    equal = not column.endswith("!")
    column = column.removesuffix("!").strip()
    if column not in TYPES:
        close = get_close_matches(column, TYPES, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(TYPES)}"
        raise UsageError(f"--redo: there is no result column {column!r}; {hint}")
    return column, value, equal


def _matching(space: Workspace, condition: str) -> Iterator[int]:
    column, value, equal = _parsed(condition)
    projection = Projection(space.journal.db)
    for path, _, _ in projection.files():
        rows = projection.stretch(path, 1, 2**62)
        while stretch := list(islice(rows, STRETCH_ROWS)):
            yield from matching(stretch, column, value, equal=equal, read_content=space.dialect.content)


def _named(space: Workspace, path: Path) -> list[int]:
    try:
        lines = read_bounded(path, 256 << 20).decode("utf-8-sig").splitlines()
    except OSError as exc:
        raise UsageError(f"--redo-ids: cannot read {path}: {exc.strerror}; it must hold an id a line") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"--redo-ids: {path} is not UTF-8 text (byte {exc.start + 1})") from exc
    numbers = []
    for line, custom_id in enumerate(map(str.strip, lines), 1):
        found = space.journal.number_of(custom_id) if custom_id else None
        if custom_id and found is None:
            raise UsageError(f"--redo-ids: {path}:{line}: no row of the input has the id {custom_id!r}")
        numbers += [] if found is None else [found]
    return numbers

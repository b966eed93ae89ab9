"""What is pending, row by row: how much of it there is, model by model, in memory that does not grow."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from pipeline.journal.history import Spent
from pipeline.plan.forecast import NOTHING, Measured, Span, guessed_tokens
from pipeline.records import EMBEDDINGS, Request

MEASURED_ROWS = 2_000
# In a JSON text quotes are escaped, so this can only be a key.
_CAP = re.compile(rb'"max_(?:completion_)?tokens":(\d{1,9})[,}]')


@dataclass(slots=True, kw_only=True)
class Load:
    """The rows to send of one model, and what its done rows used. ``caps`` sums up the ``max_tokens`` of ``capped`` rows.

    ``copies`` of the rows, of ``copied`` bytes, need not be sent if rows that ask the same are sent once.
    """

    rows: int = 0
    bytes: int = 0
    capped: int = 0
    caps: int = 0
    copies: int = 0
    copied: int = 0
    longest: int = 0
    longest_id: str = ""
    longest_cap: int = 0
    answers: bool = False  # some of the rows ask for text, not for vectors
    prompt: Measured = field(default_factory=lambda: Measured(grain=1.0))
    completion: Measured = field(default_factory=lambda: Measured(grain=1.0))
    cost: Measured = field(default_factory=Measured)
    cost_unit: str = "USD"

    def add(self, request: Request, *, copy: bool = False) -> None:
        """One row to send."""
        size = len(request.body) - request.image_bytes
        self.rows += 1
        self.bytes += size
        self.copies += copy
        self.copied += copy * size
        cap = 0
        if request.endpoint != EMBEDDINGS:
            self.answers = True
            if (found := _CAP.search(request.body)) is not None:
                cap = int(found[1])
        if cap or request.endpoint == EMBEDDINGS:
            self.capped += 1
            self.caps += cap
        if size > self.longest:
            self.longest, self.longest_id, self.longest_cap = size, request.custom_id, cap

    def measure(self, size: int, row: Spent) -> None:
        """One done row, whose request had ``size`` bytes."""
        if row.prompt_tokens is not None:
            self.prompt.add(size, row.prompt_tokens)
        if row.completion_tokens is not None:
            self.completion.add(size, row.completion_tokens)
        if row.cost is not None and row.cost_unit is not None:
            self.cost.add(size, row.cost)
            self.cost_unit = row.cost_unit

    def of_copies(self) -> Load:
        """The part of this load that need not be, on the assumption that copies are bounded as the others are."""
        capped, caps = (count * self.copies // max(self.rows, 1) for count in (self.capped, self.caps))
        return replace(self, rows=self.copies, bytes=self.copied, capped=capped, caps=caps)

    @property
    def is_measured(self) -> bool:
        """Whether the estimates are more than a guess."""
        return self.prompt.forecast(1, 1) is not None

    def prompt_tokens(self) -> Span:
        """Tokens of all prompts."""
        return self.prompt.forecast(self.rows, self.bytes) or guessed_tokens(self.bytes)

    def longest_tokens(self) -> Span:
        """Tokens of the longest prompt."""
        return self.prompt.forecast(1, self.longest) or guessed_tokens(self.longest)

    def completion_tokens(self, max_output: int | None) -> Span:
        """Tokens of all answers; ``max_output`` is the model's own bound for those without one."""
        if not self.answers:
            return NOTHING
        uncapped = self.rows - self.capped
        bound = self.caps + uncapped * max_output if max_output else None if uncapped else self.caps
        measured = self.completion.forecast(self.rows, self.bytes)
        return (measured or Span(low=self.rows, high=None)).at_most(bound)

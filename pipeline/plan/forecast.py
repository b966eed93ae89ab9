"""Estimates as ranges: a line through what was measured, plus and minus two standard errors; or a guess that says so."""

from __future__ import annotations

import math
from dataclasses import dataclass

LEAST_MEASURED = 5
UNLIKE = 0.02  # rows that were done first are never quite like the rest; no standard error knows of that
BYTES_PER_TOKEN = (
    3.0,
    5.0,
)  # of a request's JSON; English prose is near the upper one, code and other scripts the lower


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """From ``low`` to ``high``; a ``high`` of None has no bound."""

    low: float
    high: float | None

    @property
    def middle(self) -> float:
        """Halfway; where there is no bound, what is certain."""
        return self.low if self.high is None else (self.low + self.high) / 2

    def plus(self, other: Span) -> Span:
        """The sum of two."""
        unbounded = self.high is None or other.high is None
        high = None if unbounded else (self.high or 0.0) + (other.high or 0.0)
        return Span(low=self.low + other.low, high=high)

    def at_most(self, bound: float | None) -> Span:
        """Cut off above."""
        if bound is None:
            return self
        high = bound if self.high is None else min(self.high, bound)
        return Span(low=min(self.low, high), high=high)

    def rounded(self) -> Span:
        """In whole numbers, and not narrower."""
        return Span(low=math.floor(self.low), high=None if self.high is None else math.ceil(self.high))


NOTHING = Span(low=0.0, high=0.0)


@dataclass(slots=True, kw_only=True)
class Measured:
    """What rows of so many bytes used: the sums that a straight line is made of, so that memory does not grow.

    ``grain``: what is measured comes in steps of this, such as one token.
    """

    grain: float = 0.0
    rows: int = 0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0

    def add(self, x: float, y: float) -> None:
        """One row of ``x`` bytes used ``y``."""
        self.rows += 1
        self.x += x
        self.y += y
        self.xx += x * x
        self.xy += x * y
        self.yy += y * y

    def forecast(self, rows: int, total_x: float) -> Span | None:
        """What ``rows`` more of ``total_x`` bytes together use; None when too little was measured to say."""
        n = self.rows
        if n < LEAST_MEASURED:
            return None
        slope, intercept, spread = self._line()
        residual = (
            self.yy
            - 2 * (intercept * self.y + slope * self.xy)
            + n * intercept**2
            + 2 * intercept * slope * self.x
            + slope**2 * self.xx
        )
        # A few rows that happen to be equal must not look certain: count one more, which is a tenth, or a step, off.
        off = max(self.grain, 0.1 * abs(self.y) / n)
        variance = (max(residual, 0.0) + off * off) / (n - 2)
        middle = rows * intercept + slope * total_x
        # The mean's own error grows with the number of rows, the rows' scatter with its root.
        aside = (total_x - rows * self.x / n) ** 2 / spread if spread else 0.0
        error = math.sqrt(variance * (rows * rows / n + aside + rows))
        margin = (2.0 + 4.0 / n) * error  # a little more for few rows, as Student's t has it
        margin += UNLIKE * abs(middle)
        return Span(low=max(middle - margin, 0.0), high=max(middle + margin, 0.0))

    def _line(self) -> tuple[float, float, float]:
        """Slope, intercept, and the spread of x (0 where all rows were of one length: then a line through the origin)."""
        spread = self.xx - self.x * self.x / self.rows
        if spread <= 1e-9 * max(self.xx, 1.0):
            return (self.y / self.x, 0.0, 0.0) if self.x else (0.0, self.y / self.rows, 0.0)
        slope = (self.xy - self.x * self.y / self.rows) / spread
        return slope, (self.y - slope * self.x) / self.rows, spread


def guessed_tokens(body_bytes: float) -> Span:
    """Prompt tokens of bodies nobody has counted yet."""
    few, many = BYTES_PER_TOKEN
    return Span(low=body_bytes / many, high=body_bytes / few)

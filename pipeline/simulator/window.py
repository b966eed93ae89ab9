"""A rate limit of so much a window."""

from __future__ import annotations

from collections.abc import Callable


class Window:
    """Fixed, and it begins with the first request it lets in. What it turns away does not prolong it."""

    def __init__(self, most: int | None, seconds: float, clock: Callable[[], float]) -> None:
        self.most = most
        self._seconds = seconds
        self._clock = clock
        self._used = 0
        self._ends = -1.0

    @property
    def left(self) -> int:
        """What can still be taken from it; 0 at least."""
        return max(0, (self.most or 0) - (self._used if self._clock() < self._ends else 0))

    def fits(self, amount: int) -> bool:
        """Whether there is room for ``amount``."""
        return self.most is None or amount <= self.left

    def take(self, amount: int) -> float:
        """Uses so much up. Returns which window it was taken from."""
        if self._clock() >= self._ends:
            self._used, self._ends = 0, self._clock() + self._seconds
        self._used += amount
        return self._ends

    def correct(self, window: float, amount: int) -> None:
        """Adds ``amount``, negative maybe, to what was taken from ``window``, unless that is over."""
        if window == self._ends:
            self._used += amount

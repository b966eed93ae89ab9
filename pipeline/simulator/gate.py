"""Whether a request may start now: the gateway's limits, all checked here."""

from __future__ import annotations

from pipeline.simulator.call import Call
from pipeline.simulator.problem import Problem

_LIMITED = ("chat", "embeddings")


class Gate:
    """Counts the calls in the house; ``peak`` is the most there ever were at once."""

    def __init__(self, max_parallel: int | None) -> None:
        self._max_parallel = max_parallel
        self.parallel = 0
        self.peak = 0

    def admit(self, call: Call) -> Problem | None:
        """Takes a slot if the call needs one (None; give it back with ``leave``), or says why there is none."""
        if call.endpoint not in _LIMITED:
            return None
        if self._max_parallel is not None and self.parallel >= self._max_parallel:
            return Problem(
                status=429,
                type="requests",
                code="rate_limit_exceeded",
                message=f"Rate limit reached: {self._max_parallel} parallel requests. Please try again later.",
            )
        self.parallel += 1
        self.peak = max(self.peak, self.parallel)
        return None

    def leave(self, call: Call) -> None:
        """Gives back what ``admit`` took for this call."""
        self.parallel -= call.endpoint in _LIMITED

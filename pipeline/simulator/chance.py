"""Dice that fall the same way in every run: a throw depends on what is asked, how often it came before, and the seed.

Arrival order is no part of it: under concurrency that differs from run to run.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from statistics import NormalDist

from pipeline.simulator.call import Call

_NORMAL = NormalDist()


def uniform(seed: int, call: Call, purpose: str) -> float:
    """A number strictly between 0 and 1; another ``purpose`` is another, independent throw."""
    text = f"{seed}/{call.digest.hex()}/{call.occurrence}/{purpose}"
    throw = int.from_bytes(blake2b(text.encode(), digest_size=6).digest())
    return (throw + 0.5) / 2**48


def latency(seed: int, call: Call, median_s: float, sigma: float) -> float:
    """Seconds this call takes: lognormal around the median."""
    if not median_s or not sigma:
        return median_s
    return median_s * math.exp(sigma * _NORMAL.inv_cdf(uniform(seed, call, "latency")))


class Occurrences:
    """Counts how often each body came; a dictionary entry a body, so kept only where something is drawn by chance."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._seen: dict[bytes, int] = {}

    def next(self, digest: bytes) -> int:
        """How often this body came before; 0 for all when nobody wants to know."""
        if not self._wanted:
            return 0
        before = self._seen.get(digest, 0)
        self._seen[digest] = before + 1
        return before

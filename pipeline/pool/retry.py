"""How long a row waits before its next try. The waiting itself holds no slot; the pool sees to that."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

# Who tells a short wait tells it to all that were refused, and they come back together: who is refused again waits a
# little longer each time, up to this.
TOLD_MOST_S = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Exponential, with jitter: rows that failed together must not come back together. All in seconds."""

    first_s: float = 1.0
    most_s: float = 60.0
    random: random.Random = field(default_factory=random.Random)

    def soon(self) -> float:
        """Seconds to wait for a parallel slot, which is free as soon as a call ends."""
        return self.random.uniform(0.2, 2.0)

    def delay(self, tries: int, retry_after_s: float | None = None) -> float:
        """Seconds to wait after the ``tries``-th try (from 1); never less than the gateway asked for."""
        most = min(self.most_s, self.first_s * 2.0 ** min(tries - 1, 32))
        if retry_after_s is None:
            return self.random.uniform(0.5, 1.0) * most
        told_s = retry_after_s + self.random.uniform(0.0, min(1.0, 0.1 * retry_after_s))
        return max(told_s, self.random.uniform(0.5, 1.0) * min(most, TOLD_MOST_S))

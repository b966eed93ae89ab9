"""The key's money: what is spent (LiteLLM), what coins are left (Lumen)."""

from __future__ import annotations

from collections import deque

from pipeline.simulator.settings import Settings

_HOUR_S = 3600.0


class Account:
    """Charged after an answer was made, never before: the answer that crosses the line is still given."""

    def __init__(self, settings: Settings) -> None:
        self._key = settings.limits()
        self._clock = settings.clock
        self._lag_s = settings.spend_lag_s
        self._recent: deque[tuple[float, float]] = deque()
        self._shown = self.spend = self._key.spend
        self._coins = self._key.coins or 0.0
        self._filled_at = self._clock()

    def charge(self, cost: float) -> None:
        """Pays for an answer, as far as there are coins: they do not go below zero."""
        self.spend += cost
        self._coins = max(0.0, self.coins - cost)
        self._recent.append((self._clock() + self._lag_s, cost))
        self._write()

    @property
    def shown_spend(self) -> float:
        """What the gateway tells when asked: its database is written late."""
        self._write()
        return self._shown

    def _write(self) -> None:
        while self._recent and self._recent[0][0] <= self._clock():
            self._shown += self._recent.popleft()[1]

    @property
    def coins(self) -> float:
        """What is left, with what whole hours have brought in."""
        hours = (self._clock() - self._filled_at) // _HOUR_S
        if hours >= 1:
            self._filled_at += hours * _HOUR_S
            self._coins = min(self._key.coins or 0.0, self._coins + hours * self._key.coins_per_hour)
        return self._coins

    @property
    def exhausted(self) -> bool:
        """Whether nothing more can be bought."""
        budget = self._key.max_budget
        return (budget is not None and self.spend >= budget) or (self._key.coins is not None and self.coins <= 0)

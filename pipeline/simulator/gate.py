"""Whether a request may start now: the gateway's limits, all checked here."""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.simulator.account import Account
from pipeline.simulator.call import Call
from pipeline.simulator.catalogue import Model
from pipeline.simulator.settings import Settings
from pipeline.simulator.window import Window


@dataclass(frozen=True, slots=True, kw_only=True)
class _Guest:
    """A call in the house: the tokens it reserved, in which window, and the deployment it is at."""

    reserved: int
    window: float
    deployment: Model | None = None


class Gate:
    """Counts the calls in the house; ``peak`` is the most there ever were at once. A refusal is the name of an error.

    ``account`` is the key's money. ``threads`` are there to be held while a call is served: where the calls at once
    are not limited by refusing more of them, the next one waits for its turn.
    """

    def __init__(self, settings: Settings) -> None:
        self.key = settings.limits()
        self.account = Account(settings)
        self._clock = settings.clock
        self._cooldown_s = settings.cooldown_s
        self._refuses = settings.dialect != "lumen"
        most = None if self._refuses else self.key.max_parallel
        self.threads = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
        self.requests: defaultdict[str, Window] = defaultdict(
            lambda: Window(self.key.rpm, settings.window_s, settings.clock)
        )
        self.tokens = Window(self.key.tpm if self._refuses else None, settings.window_s, settings.clock)
        self._guests: dict[int, _Guest] = {}
        self._cold: dict[Model, float] = {}
        self.peak = 0

    @property
    def parallel(self) -> int:
        """How many calls hold a slot."""
        return len(self._guests)

    def admit(self, call: Call, route: str, tokens: int) -> str | None:
        """Takes one from the rate of ``route``, ``tokens`` from their window, and for an answer a slot (give it back
        with ``leave``); or takes nothing, and says which of them there was none of."""
        if not route:
            return None
        requests = self.requests[route]
        if not requests.fits(1):
            return "requests"
        if not self.tokens.fits(tokens):
            return "tokens"
        if call.needs_slot and self._refuses and self._full():
            return "parallel"
        requests.take(1)
        if call.needs_slot:
            self._guests[call.number] = _Guest(reserved=tokens, window=self.tokens.take(tokens))
            self.peak = max(self.peak, self.parallel)
        return None

    def leave(self, call: Call, tokens: int) -> None:
        """Gives back what ``admit`` took for this call, but for the ``tokens`` that were used."""
        if guest := self._guests.pop(call.number, None):
            self.tokens.correct(guest.window, tokens - guest.reserved)

    def choose(self, call: Call, deployments: Sequence[Model]) -> Model | str:
        """One that is not cooling down and has room for this call; they take turns."""
        warm = [one for one in deployments if self._cold.get(one, 0.0) <= self._clock()]
        free = [one for one in warm if one.max_parallel is None or self._busy(one) < one.max_parallel]
        if not free:
            return "model_parallel" if warm else "cooldown"
        chosen = free[call.number % len(free)]
        if guest := self._guests.get(call.number):
            self._guests[call.number] = replace(guest, deployment=chosen)
        return chosen

    def _full(self) -> bool:
        return self.key.max_parallel is not None and self.parallel >= self.key.max_parallel

    def _busy(self, deployment: Model) -> int:
        return sum(guest.deployment == deployment for guest in self._guests.values())

    def cool(self, deployment: Model) -> None:
        """Keeps everybody from it for a while."""
        self._cold[deployment] = self._clock() + self._cooldown_s

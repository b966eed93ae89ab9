"""A loop whose clock jumps to the next timer: minutes of backoff pass in no time, and exactly."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
LEAST_STEP_S = 1e-9
MOST_LOOKS = 20  # at the clock, until it moves on as a real one does: a timer that is due in less than an ulp never is


class _NoWait(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._looks = 0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self._looks = self._looks + 1 if timeout == 0 else 0
        if self._looks > MOST_LOOKS:
            self.now += LEAST_STEP_S
        elif not ready and timeout:
            self.now += timeout
        elif not ready and timeout is None:
            raise RuntimeError("nothing will ever happen: the code under test waits for ever")
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` is virtual and starts at 0."""

    def __init__(self) -> None:
        self._virtual = _NoWait()
        super().__init__(self._virtual)

    def time(self) -> float:
        """Virtual seconds."""
        return self._virtual.now


def run_virtually(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end on a virtual clock."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(coroutine)

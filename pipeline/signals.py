"""SIGINT, SIGTERM and SIGHUP (the terminal is gone) as a run meets them: the first one drains, the second one cuts off."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

from pipeline.errors import IncompleteError, InterruptedRunError, PipelineError

T = TypeVar("T")
P = ParamSpec("P")


class Signals:
    """Counts signals; ``error`` is what the run ends with when one came."""

    def __init__(self) -> None:
        self.error: PipelineError | None = None
        self._actions: list[Callable[[], object]] = []
        self._came = 0

    @classmethod
    @contextmanager
    def installed(cls) -> Iterator[Signals]:
        """Handle them while the block runs; only the main thread can, elsewhere they stay as they are.

        A SIGHUP that is ignored stays so: that is what `nohup` is for.
        """
        signals = cls()
        if threading.current_thread() is not threading.main_thread():
            yield signals
            return
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        if before[signal.SIGHUP] is signal.SIG_IGN:
            del before[signal.SIGHUP]
        for number in before:
            loop.add_signal_handler(number, signals.receive, number)
        try:
            yield signals
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                signal.signal(number, handler or signal.SIG_DFL)  # a script's own; None is one that is not in Python

    @property
    def urgent(self) -> bool:
        """Whether a second one came: what the next run can do is left to it."""
        return self._came > 1

    def on_first(self, action: Callable[[], object]) -> None:
        """What the first signal does; at once if it has come already."""
        self._actions = [action]
        if self._came:
            action()

    def on_second(self, action: Callable[[], object]) -> None:
        """What every further signal does."""
        self._actions.append(action)

    def receive(self, number: signal.Signals) -> None:
        """A signal came."""
        self._came += 1
        if self.error is None:
            if number == signal.SIGINT:
                self.error = InterruptedRunError("interrupted (Ctrl-C)")
            else:
                self.error = IncompleteError(f"stopped by {signal.Signals(number).name}")
        if self._actions:
            self._actions[min(self._came, len(self._actions)) - 1]()

    def abort(self) -> None:
        """As a first signal, from within the program: the caller was cancelled."""
        if self.error is None:
            self.error = InterruptedRunError("cancelled")

    async def heard_in(self, work: Coroutine[Any, Any, T]) -> T:
        """Await what has nothing to drain: the first signal cancels it, and is raised in its place."""
        task = asyncio.create_task(work, name="until-signal")
        self.on_first(task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            self.check()
            raise

    async def in_thread(self, work: Callable[P, T], *args: P.args, **named: P.kwargs) -> T:
        """Do what takes its time in a thread. Who cancels waits for its end: it should ``check`` now and then."""
        return await to_the_end(asyncio.ensure_future(asyncio.to_thread(work, *args, **named)), on_cancel=self.abort)

    def check(self) -> None:
        """Raise if a signal came: for the stretches of work that have nothing to drain."""
        if self.error is not None:
            raise self.error


async def to_the_end(task: asyncio.Task[T] | asyncio.Future[T], *, on_cancel: Callable[[], object] = lambda: None) -> T:
    """Await what must not be left halfway: a cancellation is heard (``on_cancel``) and passed on when it has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as exc:
            cancelled = exc
            on_cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # how it ended because of that need not be told, too
        raise cancelled
    return task.result()

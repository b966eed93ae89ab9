"""``run`` and ``arun``: a job's run from a script, from inside a running loop, or from a notebook."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from pipeline.job import Job
from pipeline.progress.display import Display
from pipeline.records import Summary
from pipeline.run import Run
from pipeline.signals import Signals
from pipeline.wishes import Wishes

Main = Callable[[Signals], Coroutine[Any, Any, Summary]]


async def arun(
    job: Job,
    wishes: Wishes | None = None,
    *,
    display: Display | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> Summary:
    """Run or resume a job inside a running event loop; see ``run``. Leaves signals alone."""
    return await Run(job, wishes or Wishes(), display=display, confirm=confirm).live()


def run(
    job: Job,
    wishes: Wishes | None = None,
    *,
    display: Display | None = None,
    confirm: Callable[[str], bool] | None = None,
) -> Summary:
    """Run or resume a job to its end and sum it up; the same call again resumes.

    Where a loop is running already (Jupyter) it works in a thread of its own. SIGINT (the notebook's stop button, too), SIGTERM
    and SIGHUP drain, a second one cuts off. Raises ``PipelineError`` for what stops it before anything is sent; what stops it later
    is in the summary's ``exit_code`` and ``reason``.
    """

    async def main(signals: Signals) -> Summary:
        return await Run(job, wishes or Wishes(), display=display, confirm=confirm, signals=signals).live()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_loop(main)
    return _in_thread(main)


def _run_loop(main: Main) -> Summary:
    async def body() -> Summary:
        with Signals.installed() as signals:
            return await main(signals)

    with _runner() as runner:
        return runner.run(body())


def _runner() -> asyncio.Runner:
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def _in_thread(main: Main) -> Summary:
    """A Ctrl-C here, which is how a notebook's stop button comes, is passed on to the run there, and its end awaited."""
    ended: Future[Summary] = Future()
    started: Future[Callable[[], object]] = Future()

    async def body() -> Summary:
        signals = Signals()
        started.set_result(partial(asyncio.get_running_loop().call_soon_threadsafe, signals.receive, signal.SIGINT))
        return await main(signals)

    def work() -> None:
        try:
            with _runner() as runner:
                ended.set_result(runner.run(body()))
        except BaseException as exc:  # noqa: BLE001 - carried over to the caller's thread, nothing is swallowed
            ended.set_exception(exc)

    threading.Thread(target=work, name="pipeline-run").start()
    while True:
        try:
            return ended.result()
        except KeyboardInterrupt:
            with suppress(RuntimeError):  # its loop is closed: it has ended meanwhile
                started.result()()

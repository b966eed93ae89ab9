"""``run`` and ``arun``: a job's run from a script, from inside a running loop, or from a notebook."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from pipeline.display import Display
from pipeline.job import Job
from pipeline.records import Summary
from pipeline.run import Run
from pipeline.signals import Signals
from pipeline.wishes import Wishes


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

    Where a loop is running already (Jupyter) it works in a thread of its own. On the main thread SIGINT and SIGTERM
    drain, a second one cuts off. Raises ``PipelineError`` for what stops it before anything is sent; what stops it later
    is in the summary's ``exit_code`` and ``reason``.
    """

    async def main() -> Summary:
        with Signals.installed() as signals:
            return await Run(job, wishes or Wishes(), display=display, confirm=confirm, signals=signals).live()

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_loop(main)
    return _in_thread(main)


def _run_loop(main: Callable[[], Coroutine[Any, Any, Summary]]) -> Summary:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def _in_thread(main: Callable[[], Coroutine[Any, Any, Summary]]) -> Summary:
    box: list[Summary | BaseException] = []

    def body() -> None:
        try:
            box.append(_run_loop(main))
        except BaseException as exc:  # noqa: BLE001 - carried over to the caller's thread, nothing is swallowed
            box.append(exc)

    thread = threading.Thread(target=body, name="pipeline-run")
    thread.start()
    thread.join()
    if isinstance(box[0], BaseException):
        raise box[0]
    return box[0]

"""The batch API your OpenAI-compatible gateway does not have.

The way of one row: ``source`` (Row) -> ``template`` (Request) -> ``journal`` (what is pending) -> ``pool`` (slots,
retries) -> ``client`` (Reply) -> ``gateways`` (Verdict) -> ``accounting`` (Cost) -> ``journal`` (Outcome, durable) ->
``sink`` (results file). ``run`` walks this line top to bottom.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.entry import arun, run
    from pipeline.errors import PipelineError
    from pipeline.job import Job
    from pipeline.records import Outcome, Request, Row, Summary
    from pipeline.selection import Redo
    from pipeline.wishes import Wishes

__all__ = ["Job", "Outcome", "PipelineError", "Redo", "Request", "Row", "Summary", "Wishes", "arun", "run"]

_HOMES = {
    "Job": "job",
    "Outcome": "records",
    "PipelineError": "errors",
    "Redo": "selection",
    "Request": "records",
    "Row": "records",
    "Summary": "records",
    "Wishes": "wishes",
    "arun": "entry",
}


class _Package(ModuleType):
    """Public names are imported when first used: ``pipeline --help`` must not wait for aiohttp and pydantic."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"pipeline.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")

    @property
    def run(self) -> Any:
        """The function; the module of that name stays importable from, but must not take its place."""
        return import_module("pipeline.entry").run

    @run.setter
    def run(self, module: ModuleType) -> None:
        """The import system binds ``pipeline/run.py`` here."""


sys.modules[__name__].__class__ = _Package

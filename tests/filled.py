"""A run folder with all its outcomes, made without a gateway: the real index, feed and writer, answers by hand."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from conftest import read_jsonl

import pipeline.workspace.feed
from pipeline import Job
from pipeline.owner import claim
from pipeline.records import Completion, Cost, Outcome, Request, Usage
from pipeline.results import export
from pipeline.source import chunks
from pipeline.workspace import Workspace, make_folder, opened

Answer = Callable[[Request], Outcome | None]


def job_for(source: Path | str, output: Path, **changes: Any) -> Job:
    """A job whose rows all ask the same: their columns are kept, not asked about."""
    overrides = {
        "input.path": str(source),
        "output.path": str(output),
        "gateway.base_url": "http://127.0.0.1:1/v1",
        "model": "asked",
        "request.prompt": "-",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return Job.load(None, overrides=overrides)


def answered(request: Request, content: str | None = "an answer", **changes: Any) -> Outcome:
    """A good answer to a request, with everything known."""
    reply = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "served",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": content},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }
    completion = Completion(
        content=content,
        finish_reason="stop",
        model="served",
        usage=Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=2),
        raw=orjson.dumps(reply),
    )
    known: dict[str, Any] = {
        "custom_id": request.custom_id,
        "index": request.index,
        "fingerprint": request.fingerprint,
        "status": "succeeded",
        "model": request.model,
        "completion": completion,
        "cost": Cost(amount=0.25, source="price_table"),
        "latency_s": 0.5,
        "request_id": "req-1",
        "completed_at": 1_700_000_000.123456,
    }
    return Outcome(**{**known, **changes})


def failed(request: Request, code: str = "content_policy", message: str = "HTTP 400: no") -> Outcome:
    """A request that the gateway refused."""
    return answered(
        request, status="failed", completion=None, cost=Cost(), error_code=code, error_message=message, request_id=None
    )


@contextmanager
def workspace(job: Job, answer: Answer = answered, *, most: int | None = None) -> Iterator[Workspace]:
    """The job's workspace, its input indexed and its pending rows, or so many, answered (None leaves one pending)."""
    make_folder(job)
    with opened(job, slots=64, adopt=True) as space:
        space.journal.start_run()
        index = space.feed.index(space.spec, tick=lambda _: None)
        claim(space.journal, job)
        asyncio.run(_fill(space, index, answer, most))
        space.journal.end_run("finished")
        yield space


async def _fill(space: Workspace, index: Any, answer: Answer, most: int | None) -> None:
    writer = space.journal.writer(slots=100_000, kept=lambda _: None)
    writing = asyncio.create_task(writer.write())
    async for items in space.feed.items(index, most=most):
        for item in items:
            outcome = answer(item) if isinstance(item, Request) else item
            if outcome is not None:
                await writer.keep([outcome])
    writer.close()
    await writing


def exported(job: Job, answer: Answer = answered, **options: Any) -> int:
    """Fill the job's journal and write its results."""
    with workspace(job, answer) as space:
        return export(space, path=job.output.path, output_format=job.output_format, **options)


def every_third_failed(request: Request) -> Outcome:
    return failed(request) if request.index % 3 == 0 else answered(request, f"answer {request.index}")


ROWS = [{"id": "x", "q": "one"}, {"id": "y", "q": "two"}, {"id": "z", "q": None}, {"id": "w", "q": "four"}]


def some(request: Request) -> Outcome | None:
    """x is answered, y failed, w is still to come; z never became a request (its column is null)."""
    return {"x": answered, "y": failed, "w": lambda _: None}[request.custom_id](request)


@contextmanager
def small_chunks(size: int) -> Iterator[None]:
    """Few rows a stretch, so that a few rows are many stretches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.workspace.feed, "chunks", partial(chunks, size=size))
        yield


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    return csv_rows(path) if path.suffix == ".csv" else read_jsonl(path)  # type: ignore[return-value]

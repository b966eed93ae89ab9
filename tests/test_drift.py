"""Another model behind the same name is noticed: within a run, and between this week's run and last week's."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Bench

from pipeline import Job, Wishes
from pipeline.errors import LookError
from pipeline.pool.drift import Drift
from pipeline.run import Run


def test_the_first_name_is_no_drift_and_each_new_one_is_told_once() -> None:
    said: list[str] = []
    drift = Drift({}, stops=False, say=said.append)
    for row, served in enumerate(["a-1", "a-1", "a-2", "a-2", None, "a-1", "a-3"]):
        assert drift.check("a", served, f"r{row}") is None
    assert drift.check("b", "b-1", "r9") is None
    assert len(said) == 2
    assert "'a' was answered by a-1 so far; row 'r2' was answered by a-2" in said[0]
    assert "a-1, a-2 so far; row 'r6' was answered by a-3" in said[1]


def test_vectors_do_not_mix() -> None:
    why = Drift({"e": {"nomic-1"}}, stops=True, say=print).check("e", "nomic-2", "r1")
    assert isinstance(why, LookError)
    assert why.exit_code == 6
    assert "--redo 'served_model!=nomic-2'" in str(why)
    assert "--allow-model-change" in str(why)


def _answer(model: str) -> dict[str, Any]:
    return {
        "id": "x", "object": "chat.completion", "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }  # fmt: skip


class Listener:
    """A display that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def show(self, snapshot: object) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Remember."""
        self.said.append(text)

    def close(self) -> None:
        """Nothing."""


@pytest.mark.parametrize("apart", [False, True])
def test_a_chat_that_another_model_answers_goes_on_and_says_so(bench: Bench, serve: Any, apart: bool) -> None:
    import asyncio

    faults = [{"fault": 200, "body": _answer("up-1"), "first": 3}, {"fault": 200, "body": _answer("up-2"), "after": 3}]
    bench.server = serve(faults=faults)
    bench.settings["gateway.base_url"] = bench.server.url
    bench.settings["gateway.concurrency"] = 1
    bench.write([{"id": f"r{n}", "text": "x"} for n in range(6)])
    if apart:
        bench.run(Wishes(most=3, publish=False))
    listener = Listener()
    summary = asyncio.run(Run(Job.load(None, overrides=bench.settings), Wishes(), display=listener).live())
    assert summary.exit_code == 0
    assert summary.served_models == {"up-1": 3, "up-2": 3}
    assert sum("Another model answers" in text for text in listener.said) == 1
    assert any("was answered by up-1 so far; row 'r3' was answered by up-2" in text for text in listener.said)
    assert bench.run(Wishes())[1] == 0

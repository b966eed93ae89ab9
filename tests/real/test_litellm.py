"""Against a real LiteLLM proxy, with the simulator behind it: costs, retries and refusals are as the dialect believes.

``make test-real`` installs the proxy in a venv of its own and names its executable in ``LITELLM``.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from array import array
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Ended, Pipeline, Server, clean_environment, read_jsonl, write_jsonl
from proxy import MASTER_KEY, litellm_proxy
from recorder import Recorder, recording

from pipeline.journal import reader
from pipeline.simulator import embeddings

pytestmark = pytest.mark.real

Row = dict[str, Any]

# The simulator bills what LiteLLM does for the priced models, so that its ledger can be compared, too.
MODELS = """
model_list:
  - model_name: lab/priced
    litellm_params:
      {model: openai/priced-1, api_base: "URL", api_key: none, input_cost_per_token: 0.00000015, output_cost_per_token: 0.0000006}
    model_info: {mode: chat}
  - model_name: lbl/free
    litellm_params: {model: hosted_vllm/free-1, api_base: "URL"}
  - model_name: lab/vectors
    litellm_params:
      {model: openai/vectors-1, api_base: "URL", api_key: none, input_cost_per_token: 0.00000015, output_cost_per_token: 0.0}
    model_info: {mode: embedding}
  - model_name: lbl/nomic
    litellm_params: {model: hosted_vllm/nomic-1, api_base: "URL"}
    model_info: {mode: embedding}
"""
SERVED = {
    "lab/priced": "openai/priced-1",
    "lbl/free": "hosted_vllm/free-1",
    "lab/vectors": "openai/vectors-1",
    "lbl/nomic": "hosted_vllm/nomic-1",
}
TOO_LONG = {
    "object": "error",
    "message": "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4984 in the "
    "messages, 16 in the completion). Please reduce the length of the messages or completion.",
    "type": "BadRequestError",
    "param": None,
    "code": 400,
}
FAULTS: list[Row] = [
    {"fault": 400, "match": "[long]", "body": TOO_LONG},
    {"fault": "truncated_json", "match": "[broken]"},
    {"fault": "truncated_json", "match": "[cut]", "per_body": 1},
    {"fault": "reset", "at": "body", "match": "[reset]", "per_body": 1},
    {"fault": "refused", "seconds": 3, "match": "[away]", "per_body": 1},
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """The product is told ``recorder.url``; behind that are LiteLLM and the upstream."""

    recorder: Recorder
    upstream: Server
    seen: int
    folder: Path
    pipeline: Pipeline

    def run(
        self, rows: list[Row], model: str | None, *settings: str, key: str = MASTER_KEY, timeout: float = 60
    ) -> Ended:
        """``pipeline run`` over these rows."""
        write_jsonl(self.folder / "in.jsonl", rows)
        words = ["-i", "in.jsonl", "-o", "out.jsonl", "-g", "litellm", "--base-url", self.recorder.url]
        words += ["-m", model, "--id", "id", "-p", "{{ text }}"] if model else []
        words += [word for setting in settings for word in ("--set", setting)]
        return self.pipeline("run", *words, env={"PIPELINE_API_KEY": key}, timeout=timeout)

    @property
    def results(self) -> list[Row]:
        """The results file."""
        return read_jsonl(self.folder / "out.jsonl")

    @property
    def ledger(self) -> list[Row]:
        """What the upstream was asked to do by this test. (LiteLLM also looks at its ``/v1/models``.)"""
        lines = self.upstream.ledger()["requests"]
        return [line for line in lines if line["number"] > self.seen and line["method"] == "POST"]

    def check(self, cost_source: str) -> None:
        """Every answer's cost is LiteLLM's; the journal has the sum of all that it told, witnesses among them."""
        said = {exchange.call_id: exchange.told_cost for exchange in self.recorder.paid if exchange.status == 200}
        costs: dict[str, float] = {}
        for row in self.results:
            if row["status"] == "succeeded":
                assert (row["cost_source"], row["cost_unit"]) == (cost_source, "USD")
                assert row["served_model"] == SERVED[row["model"]]
                assert row["lost_attempts"] == 0
                costs[row["request_id"]] = costs.get(row["request_id"], 0.0) + row["cost"]
        for call_id, cost in costs.items():
            told = said[call_id]
            assert (told is None) == (cost_source == "free")
            assert cost == pytest.approx(told or 0.0, abs=1e-9)
        with closing(sqlite3.connect(self.folder / "out.jsonl.run" / "journal.sqlite")) as journal:
            assert reader.spent(journal) == pytest.approx(sum(told or 0.0 for told in said.values()), abs=1e-9)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Recorder, Server]]:
    """One proxy for all of them."""
    executable = os.environ.get("LITELLM")
    if not executable:
        pytest.skip("LITELLM names no executable: `make test-real` installs one")
    folder = tmp_path_factory.mktemp("litellm")
    with (
        simulator(folder) as upstream,
        litellm_proxy(Path(executable).absolute(), folder, MODELS.replace("URL", upstream.url)) as url,
        recording(url) as recorder,
    ):
        yield recorder, upstream


@contextmanager
def simulator(folder: Path) -> Iterator[Server]:
    """The upstream, in a process of its own."""
    (folder / "faults.json").write_bytes(orjson.dumps(FAULTS))
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "simulate", "--port", "0", "--faults", folder / "faults.json"],
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert process.stderr is not None
    try:
        yield Server(process, process.stderr.readline().split("serving on ")[1].split()[0])
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


@pytest.fixture
def lab(standing: tuple[Recorder, Server], tmp_path: Path, pipeline: Pipeline) -> Lab:
    """A clean page for a test."""
    recorder, upstream = standing
    recorder.exchanges.clear()
    seen = max((line["number"] for line in upstream.ledger()["requests"]), default=0)
    return Lab(recorder=recorder, upstream=upstream, seen=seen, folder=tmp_path, pipeline=pipeline)


def rows_of(*texts: str) -> list[Row]:
    return [{"id": f"r{number}", "text": text} for number, text in enumerate(texts)]


SIX = rows_of("one", "two words", "three little words", "ü ß 漢字", 'a "b" \\ c', "six")
PRICED_AND_FREE = pytest.mark.parametrize(("model", "source"), [("lab/priced", "gateway"), ("lbl/free", "free")])


@PRICED_AND_FREE
@pytest.mark.parametrize("stream", ["false", "true"])
def test_answers_cost_what_the_proxy_says(lab: Lab, model: str, source: str, stream: str) -> None:
    ended = lab.run(SIX, model, f"gateway.stream={stream}")
    assert ended.code == 0, ended.err
    assert [row["content"] for row in lab.results] == [f"You said: {row['text']}" for row in SIX]
    assert {(row["attempts"], row["finish_reason"]) for row in lab.results} == {(1, "stop")}
    assert all(bool(exchange.events) == (stream == "true") for exchange in lab.recorder.paid)
    assert len(lab.ledger) == len(lab.recorder.paid) == len(SIX)
    lab.check(source)
    if source == "gateway":
        assert sum(row["cost"] for row in lab.results) == pytest.approx(sum(x["cost"] for x in lab.ledger), abs=1e-9)


def test_the_same_run_again_asks_nothing(lab: Lab) -> None:
    assert lab.run(SIX, "lab/priced").code == 0
    lab.recorder.exchanges.clear()
    assert lab.run(SIX, "lab/priced").code == 0
    assert lab.recorder.exchanges == []


@pytest.mark.parametrize(("model", "source"), [("lab/vectors", "gateway"), ("lbl/nomic", "free")])
def test_embeddings_share_calls_and_their_cost(lab: Lab, model: str, source: str) -> None:
    texts = [f"abstract number {number} " + "word " * number for number in range(10)]
    ended = lab.run(rows_of(*texts), model, 'request.endpoint="embeddings"', "request.pack=4", "gateway.concurrency=1")
    assert ended.code == 0, ended.err
    assert len(lab.ledger) == 3
    assert [array("f", row["embedding"]) for row in lab.results] == [vector_of(text) for text in texts]
    assert {row["usage_estimated"] for row in lab.results} == {True}
    assert all(isinstance(loaded(x.body)["data"][0]["embedding"], str) for x in lab.recorder.paid), "not base64"
    lab.check(source)


def test_one_bad_text_fails_alone(lab: Lab) -> None:
    rows = rows_of("one", "two", "[long]", "four")
    ended = lab.run(rows, "lbl/nomic", 'request.endpoint="embeddings"', "request.pack=4")
    assert ended.code == 3, ended.err
    assert [row["error_code"] for row in lab.results] == [None, None, "context_length_exceeded", None]
    assert len(lab.ledger) == 5  # all, two halves, the halves of the bad one
    lab.check("free")


def test_an_unknown_model_stops_before_row_1(lab: Lab) -> None:
    ended = lab.run(SIX, "lab/pricy")
    assert ended.code == 4
    assert "did you mean lab/priced" in ended.err
    assert (lab.recorder.paid, lab.ledger) == ([], [])


def test_a_row_that_names_an_unknown_model_is_to_blame_itself(lab: Lab) -> None:
    lines = [
        {
            "custom_id": model,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "hello"}]},
        }
        for model in ("lab/priced", "lab/none", "lab/priced")
    ]
    lines[2]["custom_id"] = "last"
    ended = lab.run(lines, None)
    assert ended.code == 3, ended.err
    assert [row["error_code"] for row in lab.results] == [None, "model_not_found", None]
    assert len(lab.ledger) == 2
    lab.check("gateway")


@PRICED_AND_FREE
def test_a_prompt_too_long_fails_at_once(lab: Lab, model: str, source: str) -> None:
    ended = lab.run(rows_of("one", "[long] text", "three"), model)
    assert ended.code == 3, ended.err
    assert [row["error_code"] for row in lab.results] == [None, "context_length_exceeded", None]
    assert [row["attempts"] for row in lab.results] == [1, 1, 1]
    assert len(lab.ledger) == 3
    assert "maximum context length is 4096 tokens" in lab.results[1]["error_message"]
    lab.check(source)


@PRICED_AND_FREE
def test_an_upstream_that_is_away_for_a_while_costs_no_row(lab: Lab, model: str, source: str) -> None:
    rows = rows_of("one", f"[away] {model}", *(f"row {number}" for number in range(10)))
    ended = lab.run(rows, model, "gateway.concurrency=2")
    assert ended.code == 0, ended.err
    assert any(exchange.status != 200 for exchange in lab.recorder.paid), "it was never away"
    assert {row["attempts"] for row in lab.results} == {1}
    answered = [exchange for exchange in lab.recorder.paid if exchange.status == 200]
    assert len(answered) <= len(lab.ledger) <= len(lab.recorder.paid)
    assert len([exchange for exchange in answered if not exchange.is_witness]) == len(rows)
    lab.check(source)


def test_a_bad_key_stops_before_row_1(lab: Lab) -> None:
    ended = lab.run(SIX, "lab/priced", key="sk-not-this-one")
    assert ended.code == 4, ended.err
    assert "key" in ended.err
    assert "sk-not-this-one" not in ended.err + ended.out
    assert lab.ledger == []


# No stream is "cut": where one ends too early, but in good order, LiteLLM makes up a proper end, and nobody can tell.
@pytest.mark.parametrize(("fault", "stream"), [("cut", "false"), ("reset", "false"), ("reset", "true")])
def test_a_reply_cut_in_half_upstream_is_tried_again(lab: Lab, fault: str, stream: str) -> None:
    text = f"[{fault}] and some words, {stream}"
    ended = lab.run(rows_of("one", text), "lab/priced", f"gateway.stream={stream}")
    assert ended.code == 0, ended.err
    assert [row["attempts"] for row in lab.results] == [1, 2]
    assert [row["content"] for row in lab.results] == ["You said: one", f"You said: {text}"]
    assert len(lab.ledger) == len(lab.recorder.paid)
    lab.check("gateway")


@pytest.mark.parametrize(("retries", "calls"), [("false", 2), ("true", 6)])
def test_every_try_is_one_call_upstream_unless_told_otherwise(lab: Lab, retries: str, calls: int) -> None:
    settings = ("limits.max_attempts=2", f"gateway.proxy_retries={retries}")
    ended = lab.run(rows_of("one", "[broken]"), "lab/priced", *settings)
    assert ended.code == 3, ended.err
    failed = lab.results[1]
    assert (failed["status"], failed["attempts"], failed["content"]) == ("failed", 2, None)
    assert len([exchange for exchange in lab.recorder.paid if b"[broken]" in exchange.asked]) == 2
    assert len([line for line in lab.ledger if line["fault"] == "truncated_json"]) == calls


def test_a_row_that_sends_its_model_into_cooldown_fails_in_the_end(lab: Lab) -> None:
    """A broken 200 of a hosted_vllm model puts that model aside for 5 s, so that a witness right after is refused, too."""
    ended = lab.run(rows_of("one", "[broken]", "three"), "lbl/free", "limits.max_attempts=2", timeout=90)
    assert ended.code == 3, ended.err
    assert [row["status"] for row in lab.results] == ["succeeded", "failed", "succeeded"]


def test_plan_and_models_tell_what_it_lists(lab: Lab) -> None:
    write_jsonl(lab.folder / "in.jsonl", SIX)
    where = ("-g", "litellm", "--base-url", lab.recorder.url)
    environment = {"PIPELINE_API_KEY": MASTER_KEY}
    listed = lab.pipeline("models", *where, "--json", env=environment)
    assert listed.code == 0, listed.err
    models = {model["id"]: model for model in loaded(listed.out)}
    assert set(models) == set(SERVED)
    assert (models["lab/priced"]["input_per_million"], models["lab/priced"]["output_per_million"]) == (0.15, 0.6)
    assert {name for name, model in models.items() if model["free"]} == {"lbl/free", "lbl/nomic"}
    job = ("-i", "in.jsonl", "-o", "out.jsonl", "-m", "lab/priced", "-p", "{{ text }}")
    plan = lab.pipeline("plan", *job, *where, "--json", env=environment)
    assert plan.code == 0, plan.err
    assert (lab.recorder.paid, lab.ledger) == ([], [])


def vector_of(text: str) -> array[float]:
    """What the simulator makes of a text."""
    ask = embeddings.EmbeddingAsk(model="any", inputs=(text,), base64=False, dimensions=64)
    return embeddings.embed(ask).vectors[0]


def loaded(text: str | bytes) -> Any:
    return orjson.loads(text)

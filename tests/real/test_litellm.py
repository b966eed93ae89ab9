"""Against a real LiteLLM proxy, with the simulator behind it: the scenarios of every gateway, and what is LiteLLM's own.

``make test-real`` installs the proxy in a venv of its own and names its executable in ``LITELLM``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson
import pytest
from conftest import Pipeline, write_jsonl
from proxy import MASTER_KEY, litellm_proxy
from reconcile import Bill
from recorder import Exchange, Recorder, recording
from scenarios import SCENARIOS, SIX, Gateway, Lab, rows_of
from simulated import Simulated, simulated

from pipeline.simulator import Model, Settings

pytestmark = pytest.mark.real

# The simulator bills what LiteLLM does for the priced models, so that its ledger can be compared, too.
PRICE = {"input_cost_per_token": 0.15 / 1e6, "output_cost_per_token": 0.6 / 1e6}
UPSTREAM = (
    Model(name="priced-1", **PRICE),
    Model(name="free-1"),
    Model(name="short-1", max_input_tokens=64, **PRICE),
    Model(name="vectors-1", mode="embedding", input_cost_per_token=0.15 / 1e6),
    Model(name="nomic-1", mode="embedding"),
)
MODELS = """
model_list:
  - model_name: lab/priced
    litellm_params:
      {model: openai/priced-1, api_base: "URL", api_key: none, input_cost_per_token: 0.00000015, output_cost_per_token: 0.0000006}
    model_info: {mode: chat}
  - model_name: lab/short
    litellm_params:
      {model: openai/short-1, api_base: "URL", api_key: none, input_cost_per_token: 0.00000015, output_cost_per_token: 0.0000006}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """The product is told ``recorder.url``; behind that are LiteLLM and the upstream."""

    recorder: Recorder
    upstream: Simulated

    @property
    def gateway(self) -> Gateway:
        """It as a gateway under test. Its ledger is what it told of costs: it has no database."""
        return Gateway(
            preset="litellm",
            url=self.recorder.url,
            key=MASTER_KEY,
            bills=lambda: [_bill(exchange) for exchange in self.recorder.paid if exchange.is_billed],
            asked=lambda: len(self.recorder.paid),
            play=self.upstream.play,
            told_by="gateway",
        )


def _bill(exchange: Exchange) -> Bill:
    usage = exchange.usage
    return Bill(
        names=frozenset({str(exchange.call_id)}),
        digest=blake2b(exchange.asked, digest_size=16).hexdigest(),
        cost=exchange.told_cost or 0.0,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
    )


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """One proxy for all of them."""
    executable = os.environ.get("LITELLM")
    if not executable:
        pytest.skip("LITELLM names no executable: `make test-real` installs one")
    folder = tmp_path_factory.mktemp("litellm")
    with (
        simulated(Settings(models=UPSTREAM)) as upstream,
        litellm_proxy(Path(executable).absolute(), folder, MODELS.replace("URL", upstream.url)) as url,
        recording(url) as recorder,
    ):
        yield Peer(recorder=recorder, upstream=upstream)


@pytest.fixture
def peer(standing: Peer) -> Iterator[Peer]:
    """A clean page for a test."""
    standing.recorder.exchanges.clear()
    yield standing
    standing.upstream.play()


@pytest.fixture
def lab(peer: Peer, tmp_path: Path) -> Lab:
    """The proxy, and a clean folder."""
    return Lab(gateway=peer.gateway, folder=tmp_path)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_what_every_gateway_must_be_good_for(scenario: Callable[[Lab], None], lab: Lab) -> None:
    scenario(lab)


def test_what_it_bills_is_what_its_upstream_does(peer: Peer, lab: Lab) -> None:
    before = len(peer.upstream.entries)
    assert lab.run(SIX, "lab/priced").code == 0
    upstream = [entry.cost for entry in peer.upstream.entries[before:] if entry.billed]
    assert sum(lab.column("cost")) == pytest.approx(sum(upstream), abs=1e-9)
    assert len(upstream) == len(SIX)


def test_vectors_of_a_free_model_cost_nothing_and_come_as_base64(peer: Peer, lab: Lab) -> None:
    assert lab.run(SIX, "lbl/nomic", request__endpoint="embeddings").code == 0
    assert {(row["cost"], row["cost_source"], row["served_model"]) for row in lab.results} == {
        (0.0, "free", "hosted_vllm/nomic-1")
    }
    assert all(isinstance(orjson.loads(x.body)["data"][0]["embedding"], str) for x in peer.recorder.paid)


def test_a_row_that_names_an_unknown_model_is_to_blame_itself(lab: Lab) -> None:
    lines = [
        {
            "id": model,
            "custom_id": model,
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": model, "messages": [{"role": "user", "content": "hello"}]},
        }
        for model in ("lab/priced", "lab/none", "lbl/free")
    ]
    ended = lab.run(lines, None, request__prompt=None, input__id="custom_id")
    assert ended.code == 3, ended.err
    assert lab.column("error_code") == [None, "model_not_found", None]
    assert lab.reconcile().answers == 2


@pytest.mark.parametrize(("retries", "calls"), [(False, 2), (True, 6)])
def test_every_try_is_one_call_upstream_unless_told_otherwise(peer: Peer, lab: Lab, retries: bool, calls: int) -> None:
    before = len(peer.upstream.entries)
    peer.upstream.play({"fault": "truncated_json", "match": "[broken]"})
    rows = rows_of("one", "[broken]")
    ended = lab.run(rows, "lab/priced", limits__max_attempts=2, gateway__proxy_retries=retries)
    assert ended.code == 3, ended.err
    failed = lab.results[1]
    assert (failed["status"], failed["attempts"], failed["content"]) == ("failed", 2, None)
    assert len([exchange for exchange in peer.recorder.paid if b"[broken]" in exchange.asked]) == 2
    assert len([entry for entry in peer.upstream.entries[before:] if entry.fault == "truncated_json"]) == calls


def test_a_row_that_sends_its_model_into_cooldown_fails_in_the_end(peer: Peer, lab: Lab) -> None:
    """A broken 200 of a hosted_vllm model puts that model aside for 5 s, so that a witness right after is refused, too."""
    peer.upstream.play({"fault": "truncated_json", "match": "[broken]"})
    ended = lab.run(rows_of("one", "[broken]", "three"), "lbl/free", limits__max_attempts=2)
    assert ended.code == 3, ended.err
    assert lab.column("status") == ["succeeded", "failed", "succeeded"]


def test_plan_and_models_tell_what_it_lists(peer: Peer, pipeline: Pipeline, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", SIX)
    where = ("-g", "litellm", "--base-url", peer.recorder.url)
    environment = {"PIPELINE_API_KEY": MASTER_KEY}
    listed = pipeline("models", *where, "--json", env=environment)
    assert listed.code == 0, listed.err
    models: dict[str, dict[str, Any]] = {model["id"]: model for model in orjson.loads(listed.out)}
    assert set(models) == {"lab/priced", "lab/short", "lab/vectors", "lbl/free", "lbl/nomic"}
    assert (models["lab/priced"]["input_per_million"], models["lab/priced"]["output_per_million"]) == (0.15, 0.6)
    assert {name for name, model in models.items() if model["free"]} == {"lbl/free", "lbl/nomic"}
    job = ("-i", "in.jsonl", "-o", "out.jsonl", "-m", "lab/priced", "-p", "{{ text }}")
    plan = pipeline("plan", *job, *where, "--json", env=environment)
    assert plan.code == 0, plan.err
    assert peer.recorder.paid == []

"""What gateways list of models and keys, as measured, becomes records; odd JSON becomes unknown. ``pipeline models``."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from canned import PRICED, ZERO, canned, deployment, key_facts, litellm, lumen, lumen_model
from conftest import Pipeline

from pipeline.gateways.catalogue import litellm_key, litellm_models, lumen_models, openai_models
from pipeline.records import ModelInfo


def only(models: list[ModelInfo]) -> ModelInfo:
    assert len(models) == 1
    return models[0]


def test_litellm_tells_price_context_and_upstream() -> None:
    info = only(litellm_models({"data": [deployment("lab/priced", "openai/priced-1", **PRICED)]}))
    assert info == ModelInfo(
        id="lab/priced", mode="chat", context=8192, max_output=2048, input_per_million=0.15, output_per_million=0.6,
        cached_per_million=0.075, upstream=("openai/priced-1",),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("upstream", "prices", "free", "zero_priced"),
    [
        ("hosted_vllm/x", {}, True, False),
        ("hosted_vllm/x", ZERO, True, True),
        ("hosted_vllm/x", PRICED, False, False),
        ("openai/x", ZERO, False, True),
        ("openai/x", {}, False, False),
    ],
)
def test_free_is_on_prem_at_no_price(upstream: str, prices: dict[str, Any], free: bool, zero_priced: bool) -> None:
    info = only(litellm_models({"data": [deployment("m", upstream, **prices)]}))
    assert (info.free, info.zero_priced) == (free, zero_priced)


def test_an_alias_says_what_holds_for_all_its_deployments() -> None:
    one, other = deployment("m", "hosted_vllm/a", **ZERO), deployment("m", "openai/b", max_input_tokens=4096, **PRICED)
    info = only(litellm_models({"data": [one, other]}))
    assert info.upstream == ("hosted_vllm/a", "openai/b")
    assert (info.context, info.input_per_million, info.free, info.zero_priced) == (4096, None, False, False)
    twins = only(litellm_models({"data": [one, deployment("m", "hosted_vllm/c", **ZERO)]}))
    assert (twins.free, twins.input_per_million) == (True, 0.0)


def test_lumen_tells_coins_and_status() -> None:
    info = only(lumen_models({"data": [lumen_model(status="down")]}))
    assert info == ModelInfo(
        id="dummy", mode="chat", context=8192, max_output=2048, input_per_million=5.0, output_per_million=15.0,
        unit="coins", upstream=("up-dummy",), status="down", decimals=6,
    )  # fmt: skip
    assert only(lumen_models({"data": [lumen_model(input_cost_per_million=0, output_cost_per_million=0)]})).free


def test_vllm_tells_its_context() -> None:
    info = only(openai_models({"object": "list", "data": [{"id": "m", "object": "model", "max_model_len": 4096}]}))
    assert info == ModelInfo(id="m", context=4096)


def test_a_key_has_budget_and_limits() -> None:
    key = litellm_key({"key": "x", "info": key_facts(models=["a"], rpm_limit=30, blocked=True)})
    assert key is not None
    assert (key.spend, key.max_budget, key.parallel, key.rpm, key.tpm) == (0.25, 20.0, 5, 30, None)
    assert (key.models, key.blocked, key.budget_resets) == (("a",), True, "2026-12-01T00:00:00Z")


@pytest.mark.parametrize(
    "body",
    [None, [], "text", 3, {}, {"data": None}, {"data": {}}, {"data": [None, 3, {}, {"id": 3}, {"id": ""}]}],
)
def test_odd_json_is_not_known(body: Any) -> None:
    assert openai_models(body) == lumen_models(body) == litellm_models(body) == []
    assert litellm_key(body) is None


@pytest.mark.parametrize("odd", ["", "many", [], {}, True, -1, float("inf"), 1e400, None])
def test_odd_fields_are_not_known(odd: Any) -> None:
    entry = {"model_name": "m", "litellm_params": odd, "model_info": {"mode": odd, "max_input_tokens": odd, "input_cost_per_token": odd}}  # fmt: skip
    info = only(litellm_models({"data": [entry]}))
    assert (info.context, info.input_per_million, info.free) == (None, None, False)
    told = only(lumen_models({"data": [lumen_model(max_model_len=odd, input_cost_per_million=odd, root=odd)]}))
    assert (told.context, told.input_per_million) == (None, None)


def test_models_is_an_aligned_table(pipeline: Pipeline) -> None:
    with canned(litellm()) as server:
        ended = pipeline(
            "models",
            "-g",
            "litellm",
            "--base-url",
            f"{server.url}/v1",
            env={"PIPELINE_API_KEY": "sk-SECRET-0001-0001-0001"},
        )
    lines = ended.out.splitlines()
    assert (ended.code, ended.err) == (0, "")
    assert lines[0].split() == ["MODEL", "MODE", "CONTEXT", "IN", "OUT", "CACHED", "CACHING", "STATUS"]
    assert lines[1].split() == ["lbl/cborg-chat", "chat", "8,192", "free", "free", "yes"]
    assert lines[3].split() == ["lab/priced", "chat", "8,192", "0.15", "0.6", "0.075"]
    assert "restricted" not in ended.out, "this key may not ask it"
    assert "USD" in lines[-1]
    assert server.paid == 0


def test_models_as_json(pipeline: Pipeline) -> None:
    with canned(lumen(lumen_model(), lumen_model("other", status="down"))) as server:
        ended = pipeline(
            "models",
            "-g",
            "lumen",
            "--base-url",
            server.url,
            "--json",
            env={"LUMEN_API_KEY": "sk-SECRET-0001-0001-0001"},
        )
    found = orjson.loads(ended.out)
    assert ended.code == 0
    assert [(info["id"], info["status"], info["unit"]) for info in found] == [
        ("dummy", "ok", "coins"),
        ("other", "down", "coins"),
    ]


def test_models_of_a_gateway_that_cannot_be_had(pipeline: Pipeline) -> None:
    assert pipeline("models").code == 2
    assert "which gateway" in pipeline("models").err
    refused = pipeline("models", "--base-url", "http://127.0.0.1:9")
    assert (refused.code, "cannot connect" in refused.err) == (4, True)
    with canned(litellm(models=(401, {"error": {"message": "Authentication Error, Invalid proxy server token passed.", "type": "token_not_found_in_db", "param": "key", "code": "401"}}))) as server:  # fmt: skip
        ended = pipeline("models", "-g", "litellm", "--base-url", server.url, env={"PIPELINE_API_KEY": "sk-SECRET-bad"})
    assert (ended.code, ended.out) == (4, "")
    assert "refuses this key" in ended.err
    assert "sk-SECRET-bad" not in ended.err


def test_a_gateway_that_lists_nothing_says_so(pipeline: Pipeline) -> None:
    with canned({}) as server:
        ended = pipeline("models", "--base-url", server.url)
    assert (ended.code, ended.out, "lists no models" in ended.err) == (4, "", True)


def test_models_of_the_built_in_simulator(pipeline: Pipeline) -> None:
    ended = pipeline("models", "-g", "simulator")
    assert (ended.code, "sim/echo" in ended.out) == (0, True)

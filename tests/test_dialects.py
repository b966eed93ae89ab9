"""How each family is spoken to: what goes on the wire, and what is read off a good reply."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gateways import Announced, CBorg, LiteLLM, Lumen, OpenAI, dialect_of
from pipeline.ground.jsonio import dumps
from pipeline.presets import PRESETS
from pipeline.records import Cost, Reply, Request, Usage

CHAT = {
    "id": "chatcmpl-up14", "created": 1795307973, "model": "lab/priced", "object": "chat.completion",
    "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "yes", "role": "assistant"}}],
    "usage": {"completion_tokens": 5, "prompt_tokens": 110, "total_tokens": 115},
}  # fmt: skip
# A success of a priced model, as captured.
PRICED = {
    "x-litellm-call-id": "36cce536-b51f-4241-98ea-7cbb191a17fc",
    "x-litellm-model-name": "openai/priced-1",
    "x-litellm-model-group": "lab/priced",
    "x-litellm-version": "1.106.2",
    "x-litellm-response-cost": "0.000135",
    "x-litellm-response-cost-original": "0.000135",
    "x-litellm-key-spend": "0.000105",
    "x-litellm-attempted-retries": "0",
}


def request(body: Mapping[str, Any]) -> Request:
    return Request(
        custom_id="a", index=1, endpoint="/chat/completions", model="m", body=dumps(dict(body), sort_keys=True),
        fingerprint=bytes(16), estimated_tokens=1,
    )  # fmt: skip


def reply(headers: Mapping[str, str] | None = None, *, status: int = 200, **more: Any) -> Reply:
    body = {**CHAT, **more}
    return Reply(status=status, headers=headers or {}, body=orjson.dumps(body), json=body, elapsed_s=0.1)


BODY = {"model": "m", "messages": [{"role": "user", "content": 'say "num_retries": 1'}], "temperature": 0}


def test_the_base_sends_the_canonical_body() -> None:
    assert OpenAI().dress(request(BODY)) == request(BODY).body
    assert OpenAI().headers("r-1-1") == {"X-Client-Request-Id": "r-1-1"}


def test_litellm_is_told_not_to_retry() -> None:
    dressed = LiteLLM().dress(request(BODY))
    assert orjson.loads(dressed) == {**BODY, "num_retries": 0}
    assert dressed.startswith(request(BODY).body[:-1])
    assert LiteLLM().headers("r-1-1") == {"x-litellm-call-id": "r-1-1"}


def test_litellm_may_be_left_to_retry() -> None:
    assert LiteLLM(client_retries=False).dress(request(BODY)) == request(BODY).body


def test_a_jobs_own_num_retries_stays() -> None:
    assert orjson.loads(LiteLLM().dress(request({**BODY, "num_retries": 2})))["num_retries"] == 2
    nested = {**BODY, "metadata": {"num_retries": 2}}
    assert orjson.loads(LiteLLM().dress(request(nested))) == {**nested, "num_retries": 0}


@given(
    st.dictionaries(
        st.text(max_size=12) | st.just("num_retries"),
        st.text(max_size=12) | st.integers() | st.just({"num_retries": 1}) | st.just('"num_retries":'),
    )
)
def test_dressing_for_litellm_only_adds(body: dict[str, Any]) -> None:
    assert orjson.loads(LiteLLM().dress(request(body))) == {
        "num_retries": 0, **orjson.loads(request(body).body)
    }  # fmt: skip


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0, "max_tokens": 5, "seed": 1, "stop": ["x"], "response_format": {"type": "json_object"}},
        {"extra_body": {"top_k": 5}, "timeout": 30, "tools": [], "n": 1, "user": "u", "logprobs": None},
    ],
)
def test_lumen_gets_what_it_knows_as_it_is(params: dict[str, Any]) -> None:
    assert Lumen().dress(request(BODY | params)) == request(BODY | params).body
    assert Lumen().headers("r-1-1") == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", 5), ("min_p", 0.1), ("repetition_penalty", 1.1), ("guided_json", {"type": "object"}),
        ("chat_template_kwargs", {"enable_thinking": False}), ("num_retries", None),
    ],
)  # fmt: skip
def test_vendor_parameters_are_nested_for_lumen(name: str, value: Any) -> None:
    assert orjson.loads(Lumen().dress(request({**BODY, name: value}))) == {**BODY, "extra_body": {name: value}}


def test_what_stands_in_extra_body_is_kept() -> None:
    given = {**BODY, "top_k": 5, "min_p": 0.1, "extra_body": {"top_k": 7, "guided_regex": "a"}}
    nested = {"top_k": 7, "min_p": 0.1, "guided_regex": "a"}
    assert orjson.loads(Lumen().dress(request(given))) == {**BODY, "extra_body": nested}
    empty = {**BODY, "top_k": 5, "extra_body": None}
    assert orjson.loads(Lumen().dress(request(empty))) == {**BODY, "extra_body": {"top_k": 5}}
    wrong = {**BODY, "top_k": 5, "extra_body": "x"}
    assert Lumen().dress(request(wrong)) == request(wrong).body


def test_long_integers_survive_the_nesting() -> None:
    assert b'"extra_body":{"top_k":123456789012345678901234}' in Lumen().dress(
        request({**BODY, "top_k": 123456789012345678901234})
    )


@pytest.mark.parametrize(
    ("told", "amount"),
    [
        ("0.000135", 0.000135), ("2.1000000000000002e-06", 2.1e-06), ("3e-05", 3e-05), ("1.5", 1.5), ("0.0", 0.0),
        ("None", None), ("", None), ("-1", None), ("nan", None), ("inf", None), ("1e400", None), ("0,5", None),
    ],
)  # fmt: skip
def test_litellm_tells_the_cost_in_a_header(told: str, amount: float | None) -> None:
    cost = LiteLLM().told_cost(reply(PRICED | {"x-litellm-response-cost": told}))
    assert cost == (None if amount is None else Cost(amount=float(told), unit="USD", source="gateway"))
    assert amount is None or float(told) == pytest.approx(amount)


def test_a_free_model_tells_no_cost() -> None:
    free = {"x-litellm-call-id": "x", "x-litellm-response-cost-original": "0.0", "x-litellm-key-spend": "0.5"}
    assert LiteLLM().told_cost(reply(free)) is None
    assert LiteLLM().told_cost(reply(free, usage=None)) is None


def test_every_error_says_that_it_cost_nothing_and_that_is_not_read() -> None:
    assert LiteLLM().told_cost(reply({"x-litellm-response-cost": "0"}, status=500)) is None


@pytest.mark.parametrize(
    ("cost", "amount"), [(0.000135, 0.000135), (0, 0.0), (None, None), (True, None), ([], None), ("1e400", None)]
)
def test_a_stream_of_litellm_tells_the_cost_in_its_usage(cost: Any, amount: float | None) -> None:
    streamed = {"x-litellm-response-cost-original": "0.0", "x-litellm-response-cost-input": "0.0"}
    found = LiteLLM().told_cost(reply(streamed, usage={**CHAT["usage"], "cost": cost}))  # type: ignore[dict-item]
    assert found == (None if amount is None else Cost(amount=amount, unit="USD", source="gateway"))


@pytest.mark.parametrize("dialect", [OpenAI(), Lumen()])
def test_others_tell_no_cost(dialect: OpenAI) -> None:
    assert dialect.told_cost(reply(PRICED, usage={**CHAT["usage"], "cost": 0.1})) is None  # type: ignore[dict-item]


def test_the_model_that_answered() -> None:
    assert LiteLLM().completion(reply(PRICED)).model == "openai/priced-1"
    assert LiteLLM().completion(reply()).model == "lab/priced"
    assert Lumen().completion(reply(model="up-fx")).model == "up-fx"
    assert OpenAI().completion(reply(PRICED)).model == "lab/priced"
    assert OpenAI().completion(reply(model=None)).model is None


def test_the_name_of_an_exchange() -> None:
    both = {"x-request-id": "req_1", "x-litellm-call-id": "r-1-1"}
    assert OpenAI().request_id(reply(both)) == "req_1"
    assert OpenAI().request_id(reply()) == "chatcmpl-up14"
    assert LiteLLM().request_id(reply(both)) == "r-1-1"
    assert Lumen().request_id(reply(both)) == "chatcmpl-up14"
    assert Lumen().request_id(reply(id=7)) is None


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (None, Usage()),
        (
            {"prompt_tokens": 1000, "completion_tokens": 2000, "total_tokens": 3000, "completion_tokens_details": None,
             "prompt_tokens_details": {"cached_tokens": 512}},
            Usage(prompt_tokens=1000, completion_tokens=2000, cached_tokens=512),
        ),
        (
            {"completion_tokens": 5, "prompt_tokens": 110, "total_tokens": 115, "cost": 0.000135,
             "completion_tokens_details": {"reasoning_tokens": 3}, "prompt_tokens_details": {"cached_tokens": 100}},
            Usage(prompt_tokens=110, completion_tokens=5, cached_tokens=100, reasoning_tokens=3),
        ),
        (
            {"completion_tokens": 0, "prompt_tokens": 3, "total_tokens": 3, "completion_tokens_details": None,
             "prompt_tokens_details": None},
            Usage(prompt_tokens=3, completion_tokens=0),
        ),
        ({"prompt_tokens": None, "completion_tokens": "5"}, Usage()),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dialect", [OpenAI(), LiteLLM(), Lumen()])
def test_tokens_as_told(dialect: OpenAI, usage: Any, expected: Usage) -> None:
    assert dialect.completion(reply(usage=usage)).usage == expected


def test_the_limits_of_a_key_are_announced_on_success() -> None:
    headers = {
        "x-ratelimit-api_key-limit-max_parallel_requests": "5", "x-ratelimit-api_key-limit-requests": "60",
        "x-ratelimit-api_key-remaining-requests": "59", "x-ratelimit-limit-requests": "1000",
    }  # fmt: skip
    assert LiteLLM().announced_limits(reply(headers)) == Announced(parallel=5, rpm=60)
    assert LiteLLM().announced_limits(reply()) == Announced()
    assert OpenAI().announced_limits(reply(headers)) == Announced()


@pytest.mark.parametrize(
    ("whose", "word", "number", "expected"),
    [
        ("api_key", "max_parallel_requests", "5", Announced(parallel=5)),
        ("api_key", "requests", "60", Announced(rpm=60)),
        ("api_key", "tokens", "100000", Announced(tpm=100_000)),
        ("api_key", "tokens", "0", Announced()),
        ("api_key", "tokens", "many", Announced()),
        ("team", "requests", "60", Announced()),
    ],
)
def test_a_429_says_what_the_limit_is(whose: str, word: str, number: str, expected: Announced) -> None:
    message = f"Rate limit exceeded for {whose}: 3f571c6d. Limit type: {word}. Current limit: {number}, Remaining: 0."
    full = Reply(
        status=429, headers={"rate_limit_type": word}, body=b"{}", json={"error": {"message": message}}, elapsed_s=0.1
    )
    assert LiteLLM().announced_limits(full) == expected


def test_every_preset_has_a_dialect() -> None:
    spoken = {name: type(dialect_of(preset.family, model_is_the_rows=False)) for name, preset in PRESETS.items()}
    assert spoken == {
        "cborg": CBorg, "cborg-local": CBorg, "litellm": LiteLLM, "lumen": Lumen, "openai": OpenAI, "simulator": OpenAI,
    }  # fmt: skip
    assert {name: preset.family for name, preset in PRESETS.items() if preset.family != name} == {
        "cborg-local": "cborg"
    }
    assert {name: preset.concurrency for name, preset in PRESETS.items() if preset.family in ("cborg", "lumen")} == {
        "cborg": 5, "cborg-local": 5, "lumen": 4,
    }  # fmt: skip


@pytest.mark.parametrize("base_url", ["https://lumen.example.org", "https://lumen.example.org/v1"])
def test_lumens_api_is_found_with_or_without_v1(base_url: str) -> None:
    assert Lumen().api_root(base_url) == "https://lumen.example.org/v1"
    assert LiteLLM().api_root(base_url) == base_url

"""What each gateway's replies mean: every reply that was captured from a real server, with its headers and body."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.gateways import LiteLLM, Lumen, OpenAI, dialect_of
from pipeline.gateways.complaint import retry_after
from pipeline.records import Failure, Kind, Reply, Verdict

OK, THROTTLED, OUTAGE = Verdict(kind=Kind.OK), Kind.THROTTLED, Kind.OUTAGE
TRANSIENT, REJECTED, FATAL = Kind.TRANSIENT, Kind.REJECTED, Kind.FATAL

# What LiteLLM puts on every error past its door; refusals at the door (key, budget, malformed JSON) have none of it.
PAST_AUTH = {
    "x-litellm-call-id": "36cce536-b51f-4241-98ea-7cbb191a17fc",
    "x-litellm-response-cost": "0",
    "x-litellm-timeout": "6000.0",
}
CHAT = {
    "id": "chatcmpl-up14", "created": 1795307973, "model": "lab/priced", "object": "chat.completion",
    "choices": [{"finish_reason": "stop", "index": 0, "message": {"content": "yes", "role": "assistant"}}],
    "usage": {"completion_tokens": 5, "prompt_tokens": 110, "total_tokens": 115},
}  # fmt: skip


def answer(status: int, body: object, headers: Mapping[str, str] | None = None) -> Reply:
    """As the client makes it: bytes are sent as they are, all else as JSON."""
    raw = body if isinstance(body, bytes) else orjson.dumps(body)
    try:
        parsed = orjson.loads(raw)
    except orjson.JSONDecodeError:
        parsed = None
    return Reply(status=status, headers=headers or {}, body=raw, json=parsed, elapsed_s=0.1)


def error(status: int, message: str, headers: Mapping[str, str] | None = None, **more: Any) -> Reply:
    return answer(status, {"error": {"message": message, **more}}, headers)


def page(status: int, title: str, headers: Mapping[str, str] | None = None) -> Reply:
    html = f"<!DOCTYPE html>\n<!--[if lt IE 7]> <html> <![endif]--><head>\n<title>{title}</title></head><body>Ray ID</body>"
    return answer(status, html.encode(), {"content-type": "text/html; charset=UTF-8", **(headers or {})})


def limited(word: str) -> Reply:
    message = (
        f"Rate limit exceeded for api_key: {'3f571c6d' * 8}. Limit type: {word}. "
        "Current limit: 5, Remaining: 0. Limit resets at: 2026-11-22 00:55:10 UTC"
    )
    headers = {"retry-after": "60", "rate_limit_type": word, "reset_at": "2026-11-22 00:55:10 UTC"}
    return error(429, message, headers, type="throttling_error", param=None, code="429")


def verdict(kind: Kind, code: str, **more: Any) -> Verdict:
    return Verdict(kind=kind, code=code, **more)


def check(dialect: OpenAI, reply: Reply, expected: Verdict, words: str = "") -> None:
    found = dialect.classify(reply)
    assert replace(found, message="") == expected
    assert words in found.message


UPSTREAM_BUSY = (
    'litellm.RateLimitError: RateLimitError: Hosted_vllmException - {"error":"busy"}\n\nLiteLLM: model group '
)
LITELLM = {
    # the limits
    **{
        f"429 {word}, told by {by}": (reply, verdict(THROTTLED, "rate_limited", scope=scope))
        for word, scope in (("max_parallel_requests", "parallel"), ("requests", "requests"), ("tokens", "tokens"))
        for by, reply in (
            ("both", limited(word)),
            ("its header", error(429, "in other words", dict(limited(word).headers), type="throttling_error")),
            ("its message", replace(limited(word), headers={"retry-after": "60"})),
        )
    },
    "429 cooldown": (
        error(
            429,
            "No deployments available for selected model, Try again in 5 seconds. All deployments for selected model "
            "are in cooldown. Passed model=lbl/cborg-mini",
            {**PAST_AUTH, "retry-after": "5"},
            type="all_deployments_in_cooldown",
        ),
        verdict(OUTAGE, "model_cooldown", retry_after_s=5.0, of_model=True),
    ),
    "429 cooldown of an older version": (
        error(429, "No deployments available for selected model, Try again in 5 seconds. Passed model=m", type="None"),
        verdict(OUTAGE, "model_away", of_model=True),
    ),
    "429 the model's slots": (
        error(429, "litellm.RateLimitError: Deployment has all max_parallel_requests slots in use", PAST_AUTH),
        verdict(THROTTLED, "model_busy", scope="model"),
    ),
    "429 upstream": (
        error(429, UPSTREAM_BUSY, {**PAST_AUTH, "llm_provider-retry-after": "2"}, type="throttling_error", code="429"),
        verdict(THROTTLED, "rate_limited", scope="model", retry_after_s=2.0),
    ),
    "429 upstream, both headers": (
        error(429, UPSTREAM_BUSY, {**PAST_AUTH, "retry-after": "9", "llm_provider-retry-after": "2"}),
        verdict(THROTTLED, "rate_limited", scope="model", retry_after_s=9.0),
    ),
    "429 upstream, no header": (error(429, UPSTREAM_BUSY), verdict(THROTTLED, "rate_limited", scope="model")),
    # the money
    **{
        f"{status} {whose} budget": (
            error(status, message, headers, type="budget_exceeded", param=None, code=str(status)),
            verdict(FATAL, "budget_exceeded"),
        )
        for status, headers in ((422, {}), (429, {"retry-after": "60"}), (400, {}), (401, PAST_AUTH), (403, {}))
        for whose, message in (
            ("key", "Budget has been exceeded! Key=bud (sk-...l__Q) Current cost: 1.5, Max budget: 0.5"),
            ("user", "ExceededBudget: User=poor over budget. Spend=1.5, Budget=0.5"),
        )
    },
    # the key, and the other 401
    "401 bad key": (
        error(
            401,
            "Authentication Error, Invalid proxy server token passed. Received API Key = sk-..., Key Hash (Token) "
            "=1a00a2… Unable to find token in cache or `LiteLLM_VerificationTokenTable`",
            type="token_not_found_in_db", param="key", code="401",
        ),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "401 not sk-": (
        error(
            401,
            "LiteLLM Virtual Key expected. Received=****, expected to start with 'sk-'.",
            type="auth_error", param="None",
        ),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "401 no key": (
        error(401, "Authentication Error, No api key passed in.", type="auth_error"),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "401 expired": (
        error(
            401,
            "Authentication Error - Expired Key. Key Expiry time … and current time …",
            type="expired_key", param="sk-...f71b",
        ),
        verdict(FATAL, "expired_key", recheck_s=60.0),
    ),
    "401 the proxy's database is away": (
        error(401, "Authentication Error, Error in external connector", type="auth_error"),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "400 a proxy without a database, not its master key": (
        error(400, "No connected db.", type="no_db_connection", param=None, code="400"),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "401 the proxy's own credentials": (
        error(
            401,
            "litellm.AuthenticationError: AuthenticationError: OpenAIException - Incorrect API key provided",
            PAST_AUTH,
            type="authentication_error", param=None, code="401",
        ),
        verdict(OUTAGE, "upstream_credentials", of_model=True),
    ),
    "403 not allowed": (
        error(
            403,
            "The requested model 'lab/restricted' is not available for this API key, or the model name is invalid. …",
            type="key_model_access_denied", param="model",
        ),
        verdict(FATAL, "key_model_access_denied"),
    ),
    "403 upstream": (
        error(403, "litellm.PermissionDeniedError: no", PAST_AUTH, type="permission_error", code="403"),
        verdict(TRANSIENT, "upstream_refused", ambiguous=True),
    ),
    # the request
    "400 unknown model": (
        error(
            400,
            "/chat/completions: Invalid model name passed in model=lbl/nope. Call `/v1/models` …",
            PAST_AUTH,
            type="invalid_request_error", param=None, code="400", provider_specific_fields={},
        ),
        verdict(FATAL, "model_not_found"),
    ),
    "400 no healthy deployments": (
        error(
            400,
            "litellm.BadRequestError: You passed in model=m. There are no healthy deployments for this model. "
            "Received Model Group=m",
            PAST_AUTH,
            type="invalid_request_error", code="400",
        ),
        verdict(OUTAGE, "model_away", of_model=True),
    ),
    "400 no messages": (
        error(400, "/chat/completions: Missing required parameter: 'messages'.", PAST_AUTH, param="messages"),
        verdict(REJECTED, "http_400"),
    ),
    "400 malformed JSON": (
        error(400, "Invalid JSON payload: unexpected end of data: line 1 column 34 (char 33)", param="request_body"),
        verdict(REJECTED, "http_400"),
    ),
    "400 lone surrogate": (
        error(400, "Invalid JSON payload: no low surrogate in string: …"),
        verdict(REJECTED, "http_400"),
    ),
    "400 context": (
        error(
            400,
            "litellm.ContextWindowExceededError: litellm.BadRequestError: ContextWindowExceededError: "
            "Hosted_vllmException - {…This model's maximum context length is 4096 tokens…}",
            PAST_AUTH,
            type="invalid_request_error", code="400",
        ),
        verdict(REJECTED, "context_length_exceeded"),
    ),
    "400 context of an upstream with other words": (
        error(400, "litellm.ContextWindowExceededError: too long", PAST_AUTH, type="invalid_request_error"),
        verdict(REJECTED, "context_length_exceeded"),
    ),
    "400 policy": (
        error(
            400,
            "litellm.BadRequestError: OpenAIException - The response was filtered due to the prompt triggering our "
            "content management policy",
            PAST_AUTH,
            type="invalid_request_error", param="prompt", code="400",
        ),
        verdict(REJECTED, "content_filter"),
    ),
    **{
        f"{status} upstream": (
            error(status, "litellm.BadRequestError: no", PAST_AUTH, type="invalid_request_error", code=str(status)),
            verdict(REJECTED, "invalid_request_error"),
        )
        for status in (400, 413, 422)
    },
    "400 that quotes a row about gateways": (
        error(
            400,
            "litellm.BadRequestError: OpenAIException - bad input: " + "log " * 80 + "There are no healthy deployments "
            "for this model; Invalid model name passed in model=x",
            PAST_AUTH,
            type="invalid_request_error", code="400",
        ),
        verdict(REJECTED, "invalid_request_error"),
    ),
    # the servers
    "404 model away": (
        error(404, "litellm.NotFoundError: NotFoundError: The model `x` does not exist.", PAST_AUTH, code="404"),
        verdict(TRANSIENT, "upstream_not_found", ambiguous=True),
    ),
    "404 wrong route": (answer(404, {"detail": "Not Found"}), verdict(FATAL, "not_found", recheck_s=600.0)),
    "405": (answer(405, {"detail": "Method Not Allowed"}), verdict(FATAL, "not_found", recheck_s=600.0)),
    "408 the proxy's timeout": (
        error(
            408,
            "litellm.Timeout: Timeout Error: … Timeout passed=2.0, time taken=2.002 seconds …",
            PAST_AUTH,
            type="invalid_request_error", code="408",
        ),
        verdict(TRANSIENT, "upstream_timeout", ambiguous=True),
    ),
    "500 refused": (
        error(
            500,
            "litellm.InternalServerError: InternalServerError: Cannot connect to host REDACTED:9 …",
            PAST_AUTH,
            type="internal_server_error", code="500",
        ),
        verdict(TRANSIENT, "http_500", ambiguous=True),
    ),
    "500 reset": (
        error(500, "litellm.InternalServerError: Server disconnected", PAST_AUTH, type="internal_server_error"),
        verdict(TRANSIENT, "http_500", ambiguous=True),
    ),
    "500 the body is a list": (
        error(500, "Internal server error", type="internal_server_error"),
        verdict(TRANSIENT, "http_500", ambiguous=True),
    ),
    "503 HTML upstream": (
        error(503, "litellm.ServiceUnavailableError: … <html>…", PAST_AUTH, type="internal_server_error", code="503"),
        verdict(OUTAGE, "http_503"),
    ),
    **{
        f"{status} upstream": (
            error(status, "litellm.InternalServerError: no", PAST_AUTH, type="internal_server_error", code=str(status)),
            verdict(OUTAGE, f"http_{status}", ambiguous=status == 504),
        )
        for status in (502, 503, 504, 529)
    },
    "200, an error in midstream": (
        answer(
            200,
            {"error": {"message": "litellm.APIConnectionError: …", "type": None, "param": None, "code": "500"}},
            {"x-litellm-call-id": "36cce536", "x-litellm-response-cost-original": "0.0"},
        ),
        verdict(TRANSIENT, "error_in_reply", ambiguous=True),
    ),
    "200": (answer(200, CHAT, {"x-litellm-response-cost": "0.000135"}), OK),
}  # fmt: skip


@pytest.mark.parametrize("case", LITELLM.values(), ids=LITELLM)
def test_litellm(case: tuple[Reply, Verdict]) -> None:
    check(LiteLLM(), *case)


UPSTREAM_401 = {"message": "upstream 401", "type": "invalid_request_error"}
LUMEN = {
    "400 no Authorization": (
        error(400, "Missing or malformed Authorization header", type="invalid_request_error"),
        verdict(FATAL, "no_api_key"),
    ),
    "400 bad JSON": (
        error(400, "Invalid request body", type="invalid_request_error"),
        verdict(REJECTED, "invalid_request_error"),
    ),
    "400 missing fields": (
        error(400, "model and messages are required", type="invalid_request_error"),
        verdict(REJECTED, "invalid_request_error"),
    ),
    "401 bad key": (
        error(401, "Invalid or inactive API key", type="authentication_error"),
        verdict(FATAL, "invalid_api_key", recheck_s=60.0),
    ),
    "401 upstream": (answer(401, {"error": UPSTREAM_401}), verdict(OUTAGE, "upstream_credentials", of_model=True)),
    "401 upstream, in a stream": (
        error(401, "upstream 401", type="AuthenticationError"),
        verdict(OUTAGE, "upstream_credentials", of_model=True),
    ),
    "403 upstream": (
        error(403, "upstream 403", type="invalid_request_error"),
        verdict(TRANSIENT, "upstream_refused", ambiguous=True),
    ),
    "404 upstream": (
        error(404, "upstream 404", type="invalid_request_error"),
        verdict(TRANSIENT, "upstream_refused", ambiguous=True),
    ),
    "403 no access": (
        error(403, "No access to this model", type="invalid_request_error"),
        verdict(FATAL, "no_access"),
    ),
    "403 account disabled": (
        error(403, "Account disabled", type="authentication_error"),
        verdict(FATAL, "account_disabled"),
    ),
    "404 unknown model": (
        error(404, "Model 'x' not found", type="invalid_request_error"),
        verdict(FATAL, "model_not_found"),
    ),
    "404 no such route": (
        answer(404, {"error": {"code": "not_found", "message": "Not found", "type": "invalid_request_error"}}),
        verdict(FATAL, "not_found"),
    ),
    "405 wrong method": (page(405, "405 Method Not Allowed"), verdict(FATAL, "not_found", recheck_s=600.0)),
    "429 the key's rate": (
        error(
            429, "Rate limit exceeded. Please slow down.", type="rate_limit_error", code="rate_limit_exceeded"
        ),
        verdict(THROTTLED, "rate_limited", scope="requests"),
    ),
    "429 coins": (
        error(429, "Coin budget exhausted", type="invalid_request_error"),
        verdict(FATAL, "budget_exceeded"),
    ),
    "429 upstream busy": (
        error(429, "upstream busy", type="rate_limit_error"),
        verdict(THROTTLED, "rate_limited", scope="model"),
    ),
    "429 overloaded": (error(429, "overloaded"), verdict(THROTTLED, "rate_limited", scope="model")),
    "400 context": (
        error(400, "This model's maximum context length is 8192 tokens. …", type="BadRequestError"),
        verdict(REJECTED, "context_length_exceeded"),
    ),
    "413 upstream": (error(413, "too big", type="invalid_request_error"), verdict(REJECTED, "invalid_request_error")),
    "422 upstream": (error(422, "no", type="BadRequestError"), verdict(REJECTED, "BadRequestError")),
    "500 upstream": (
        error(500, "Upstream error. Please try again.", type="api_error"),
        verdict(TRANSIENT, "upstream_error", ambiguous=True),
    ),
    "500 internal": (
        error(500, "Internal server error", type="api_error", code="internal_error"),
        verdict(TRANSIENT, "internal_error", ambiguous=True, most_tries=2),
    ),
    "503 no healthy endpoints": (
        error(503, "No healthy endpoints for model 'x'", type="server_error"),
        verdict(OUTAGE, "model_away", retry_after_s=60.0, of_model=True),
    ),
    "504 the gateway in front": (
        answer(504, b"upstream request timeout", {"content-type": "text/plain", "server": "envoy"}),
        verdict(OUTAGE, "http_504", ambiguous=True),
    ),
    "200": (answer(200, {**CHAT, "model": "up-fx", "usage": None}), OK),
}  # fmt: skip


@pytest.mark.parametrize("case", LUMEN.values(), ids=LUMEN)
def test_lumen(case: tuple[Reply, Verdict]) -> None:
    check(Lumen(), *case)


OPENAI = {
    "429 requests": (
        error(429, "slow down", {"retry-after": "7"}, type="requests", code="rate_limit_exceeded"),
        verdict(THROTTLED, "rate_limited", scope="requests", retry_after_s=7.0),
    ),
    "429 tokens": (
        error(429, "Rate limit reached", type="tokens", code="rate_limit_exceeded"),
        verdict(THROTTLED, "rate_limited", scope="tokens"),
    ),
    "429 of another family": (
        error(429, "Slow down", type="rate_limit_error"),
        verdict(THROTTLED, "rate_limited", scope="requests"),
    ),
    "429 slowapi": (
        answer(429, {"error": "Rate limit exceeded: 30 per 1 minute"}),
        verdict(THROTTLED, "rate_limited", scope="requests"),
    ),
    "429 LiteLLM's slots": (
        error(429, "Rate limit exceeded for api_key: 3f. Limit type: max_parallel_requests. Current limit: 5"),
        verdict(THROTTLED, "rate_limited", scope="parallel"),
    ),
    "429 parallel": (
        error(429, "Too many concurrent requests", type="requests"),
        verdict(THROTTLED, "rate_limited", scope="parallel"),
    ),
    "429 bare": (answer(429, b""), verdict(THROTTLED, "rate_limited")),
    "429 no money": (error(429, "no", code="insufficient_quota"), verdict(FATAL, "budget_exceeded")),
    "402": (error(402, "pay"), verdict(FATAL, "budget_exceeded")),
    "401": (error(401, "no", code="invalid_api_key"), verdict(FATAL, "invalid_api_key", recheck_s=60.0)),
    "401 bare": (answer(401, b""), verdict(FATAL, "http_401", recheck_s=60.0)),
    "403": (error(403, "no", code="unsupported_country_region_territory"),
            verdict(FATAL, "unsupported_country_region_territory")),
    "404 model": (error(404, "no", code="model_not_found"), verdict(FATAL, "model_not_found")),
    "404 vLLM's model": (
        answer(404, {"object": "error", "message": "The model `x` does not exist.", "type": "NotFoundError",
                     "param": None, "code": 404}),
        verdict(FATAL, "model_not_found"),
    ),
    "404 route": (error(404, "Invalid URL (POST /v1/v1/chat/completions)"), verdict(FATAL, "not_found")),
    "404 page": (page(404, "Not Found"), verdict(FATAL, "not_found", recheck_s=600.0)),
    "400": (error(400, "no", code="context_length_exceeded"), verdict(REJECTED, "context_length_exceeded")),
    "400 a code that is a number": (error(400, "no", code="400"), verdict(REJECTED, "http_400")),
    "400 an error that is a text": (answer(400, {"error": "bad"}), verdict(REJECTED, "http_400")),
    "422 FastAPI": (answer(422, {"detail": [{"loc": ["body"], "msg": "no"}]}), verdict(REJECTED, "http_422")),
    "408": (answer(408, b""), verdict(TRANSIENT, "http_408", ambiguous=True)),
    "500": (error(500, "no", type="server_error"), verdict(TRANSIENT, "http_500", ambiguous=True)),
    "500 page": (page(500, "Oops"), verdict(TRANSIENT, "http_500", ambiguous=True)),
    "503 retry-after": (
        error(503, "overloaded", {"retry-after": "30"}), verdict(OUTAGE, "http_503", retry_after_s=30.0)
    ),
    "500 retry-after": (
        error(500, "no", {"retry-after": "3"}), verdict(TRANSIENT, "http_500", ambiguous=True, retry_after_s=3.0)
    ),
    "200 truncated": (answer(200, b'{"id": "x", "cho'), verdict(TRANSIENT, "malformed_reply", ambiguous=True)),
    "200 list": (answer(200, [CHAT]), verdict(TRANSIENT, "malformed_reply", ambiguous=True)),
    "200 error": (answer(200, {"error": "mid-air"}), verdict(TRANSIENT, "error_in_reply", ambiguous=True)),
    "200 no choices": (answer(200, {**CHAT, "choices": []}), verdict(TRANSIENT, "no_choices")),
    "200 null choices": (answer(200, {**CHAT, "choices": None}), verdict(TRANSIENT, "no_choices")),
    "timeout": (
        Reply(status=0, headers={}, body=b"", json=None, elapsed_s=1.0,
              failure=Failure(code="timeout", message="gone", sent=True)),
        verdict(TRANSIENT, "timeout", ambiguous=True),
    ),
    "refused": (
        Reply(status=0, headers={}, body=b"", json=None, elapsed_s=1.0,
              failure=Failure(code="connect_failed", message="gone", sent=False)),
        verdict(OUTAGE, "connect_failed", unsent=True),
    ),
    "200": (answer(200, CHAT), OK),
}  # fmt: skip


@pytest.mark.parametrize("case", OPENAI.values(), ids=OPENAI)
def test_openai(case: tuple[Reply, Verdict]) -> None:
    check(OpenAI(), *case)


EVERY = pytest.mark.parametrize("family", ["openai", "litellm", "cborg", "lumen"])


def dialect(family: str, *, model_is_the_rows: bool = False) -> OpenAI:
    return dialect_of(family, model_is_the_rows=model_is_the_rows)


@EVERY
@pytest.mark.parametrize("status", [502, 503, *range(520, 525)])
def test_a_front_proxys_page_is_an_outage(family: str, status: int) -> None:
    expected = verdict(OUTAGE, f"http_{status}", ambiguous=status == 524)
    check(
        dialect(family), page(status, f"api.example.org | {status}: A timeout occurred"), expected, "A timeout occurred"
    )
    check(dialect(family), answer(status, b""), expected, "an empty body")


@EVERY
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (page(200, "Sign in"), verdict(OUTAGE, "html_reply")),
        (page(403, "Access denied"), verdict(OUTAGE, "html_reply", ambiguous=True)),
        (answer(403, b"error code: 1020"), verdict(OUTAGE, "html_reply", ambiguous=True)),
        (answer(302, b"", {"location": "https://login.example.org/sso?token=x"}), verdict(OUTAGE, "redirected")),
        (page(307, "Moved"), verdict(OUTAGE, "redirected")),
    ],
)
def test_a_page_where_json_belongs_asks_for_the_network(family: str, reply: Reply, expected: Verdict) -> None:
    words = {"cborg": "VPN off? Authorise your IP at https://api.cborg.lbl.gov/key/manage"}
    check(dialect(family), reply, expected, words.get(family, "Is the base URL that of an API?"))
    said = dialect(family).classify(reply).message
    assert "token" not in said
    assert ("VPN" in said) == (family == "cborg"), "no other gateway has networks of its own"


@EVERY
@pytest.mark.parametrize("status", [200, 418 + 100, 299, 599, 500])
@pytest.mark.parametrize(
    ("body", "words"), [(b"", "an empty body"), (b"data: {\n\n", "data: {"), (b"\xff\xfe", "\ufffd")]
)
def test_what_no_table_knows_is_retried_and_quoted(family: str, status: int, body: bytes, words: str) -> None:
    found = dialect(family).classify(answer(status, body))
    assert (found.kind, found.ambiguous) == (TRANSIENT, True)
    assert words in found.message


@pytest.mark.parametrize(
    ("family", "reply", "code"),
    [
        ("openai", OPENAI["404 model"][0], "model_not_found"),
        ("openai", OPENAI["404 vLLM's model"][0], "model_not_found"),
        ("litellm", LITELLM["400 unknown model"][0], "model_not_found"),
        ("litellm", LITELLM["403 not allowed"][0], "key_model_access_denied"),
        ("lumen", LUMEN["404 unknown model"][0], "model_not_found"),
        ("lumen", LUMEN["403 no access"][0], "no_access"),
    ],
)
def test_a_row_that_names_its_own_model_is_to_blame_for_it(family: str, reply: Reply, code: str) -> None:
    check(dialect(family), reply, verdict(FATAL, code))
    check(dialect(family, model_is_the_rows=True), reply, verdict(REJECTED, code))


@pytest.mark.parametrize(
    ("family", "reply", "words"),
    [
        ("lumen", LUMEN["403 no access"][0], "HTTP 403: No access to this model. Acknowledge this model once on Lumen's"),
        ("lumen", LUMEN["400 no Authorization"][0], "export LUMEN_API_KEY="),
        ("lumen", LUMEN["429 coins"][0], "HTTP 429: Coin budget exhausted. Coins come back"),
        ("lumen", LUMEN["405 wrong method"][0], "(405 Method Not Allowed) where JSON belongs. Is the base URL right?"),
        ("litellm", LITELLM["404 wrong route"][0], "HTTP 404: Not Found. Is the base URL right?"),
        ("litellm", LITELLM["400 a proxy without a database, not its master key"][0], "No connected db. This proxy has no database, and takes no key"),
        ("litellm", LITELLM["401 the proxy's own credentials"][0], "tell its operators"),
        ("litellm", LITELLM["422 user budget"][0], "HTTP 422: ExceededBudget: User=poor over budget. Spend=1.5, Budget=0.5"),
        ("openai", page(502, ""), "HTTP 502: a web page (<!DOCTYPE html>"),
        ("openai", error(400, "x" * 9000), "HTTP 400: " + "x" * 500),
    ],
)  # fmt: skip
def test_a_verdict_says_what_to_do(family: str, reply: Reply, words: str) -> None:
    assert words in dialect(family).classify(reply).message
    assert len(dialect(family).classify(reply).message) < 700


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "type", "code", "choices", "object", "detail", "usage", "x"]), inner
        )
    ),
    max_leaves=12,
)
HEADERS = st.dictionaries(
    st.sampled_from(["retry-after", "llm_provider-retry-after", "content-type", "rate_limit_type", "location",
                     "x-litellm-call-id", "x-litellm-response-cost"]),
    st.text(max_size=30) | st.sampled_from(["1e400", "-5", "nan", "inf", "Sun, 06 Nov 1994 08:49:37 GMT"]),
)  # fmt: skip


@EVERY
@given(status=st.integers(0, 999), json=JSON, headers=HEADERS, body=st.binary(max_size=80))
def test_classify_never_raises(family: str, status: int, json: Any, headers: dict[str, str], body: bytes) -> None:
    reply = Reply(status=status, headers=headers, body=body, json=json, elapsed_s=0.1)
    spoken = dialect(family)
    found = spoken.classify(reply)
    assert found.kind is Kind.OK or (found.code and found.message)
    assert found.retry_after_s is None or 0 < found.retry_after_s <= 3600
    assert spoken.announced_limits(reply)
    assert spoken.request_id(reply) != ""
    if found.kind is Kind.OK:
        assert spoken.completion(reply)
        cost = spoken.told_cost(reply)
        assert cost is None or cost.source == "gateway"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0), ("0.25", 0.25), ("0", None), ("-3", None), ("86400", 3600.0), ("nan", None), ("soon", None), ("", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 37.0), ("Sun, 06 Nov 1994 08:40:00 GMT", None),
    ],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after(answer(429, b"", {"retry-after": text}), now=784111740.0) == seconds


def test_a_used_up_budget_is_one_also_where_no_key_is_set() -> None:
    spoken = dialect_of("openai", model_is_the_rows=False, unset_key="PIPELINE_API_KEY")
    assert spoken.classify(error(403, "you have no money", code="insufficient_quota")).code == "budget_exceeded"
    assert spoken.classify(error(403, "who are you", code="forbidden")).code == "no_api_key"

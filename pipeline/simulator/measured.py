"""What each gateway says when it refuses, as captured from real ones; a fault script provokes any of them by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from pipeline.simulator.problem import Problem


def _problem(status: int, message: str, type: str | None = "invalid_request_error", **more: Any) -> Problem:  # noqa: A002 - the wire calls it type
    return Problem(status=status, message=message, type=type, **more)


_CONTEXT = (
    "This model's maximum context length is $context tokens. However, your request has $tokens input tokens. "
    "Please reduce the length of the input messages."
)
_POLICY = "The response was filtered due to the prompt triggering the content management policy."
_LATER = ". Please try again later."
_QUOTA = "You exceeded your current quota, please check your plan and billing details."

_rate = partial(_problem, 429, code="rate_limit_exceeded")
OPENAI: Mapping[str, Problem] = MappingProxyType(
    {
        "bad_key": _problem(401, "Incorrect API key provided.", code="invalid_api_key"),
        "no_key": _problem(401, "You didn't provide an API key."),
        "budget": _problem(429, _QUOTA, "insufficient_quota", code="insufficient_quota"),
        "parallel": _rate("Rate limit reached: $limit parallel requests" + _LATER, "requests"),
        "requests": _rate("Rate limit reached: $limit requests a window" + _LATER, "requests"),
        "tokens": _rate("Rate limit reached: $limit tokens a window" + _LATER, "tokens"),
        "unknown_model": _problem(404, "The model '$model' does not exist.", code="model_not_found"),
        "context": _problem(400, _CONTEXT, param="messages", code="context_length_exceeded"),
        "policy": _problem(400, _POLICY, param="prompt", code="content_filter"),
        "no_route": _problem(404, "Invalid URL ($method $path)"),
        "stream_error": _problem(500, "The server had an error while processing your request.", "server_error"),
    }
)


def _provider(status: int, error: str, said: str, type: str | None = "invalid_request_error", **more: Any) -> Problem:  # noqa: A002 - the wire calls it type
    end = "\n\nLiteLLM: model group '$model' failed with the error above. No fallback was attempted."
    return _problem(status, f"litellm.{error}: $provider - {said}{end}", type, **more)


# What fails in LiteLLM's authentication has none of its headers: a 401 without x-litellm-call-id is about the caller's
# key, one with it about the proxy's own key upstream.
_auth = partial(_problem, 401, param="None", bare=True)
_over = partial(_problem, 422, type="budget_exceeded", bare=True)
_down = partial(_provider, 500, "InternalServerError: InternalServerError", type="internal_server_error")
_limit = _problem(
    429,
    "Rate limit exceeded for api_key: $key. Limit type: $kind. Current limit: $limit, Remaining: 0. "
    "Limit resets at: $reset",
    "throttling_error",
    # A constant, whatever is left of the window.
    headers=(("retry-after", "60"), ("rate_limit_type", "$kind"), ("reset_at", "$reset")),
)
_UNKNOWN_KEY = (
    "Authentication Error, Invalid proxy server token passed. Received API Key = sk-..., Key Hash (Token) =$key. "
    "Unable to find token in cache or `LiteLLM_VerificationTokenTable`"
)
_DENIED = "The requested model '$model' is not available for this API key, or the model name is invalid."
_COOLING = (
    "No deployments available for selected model, Try again in 5 seconds. All deployments for selected model are in "
    "cooldown. Passed model=$model"
)
_PROVIDER_WAIT = (("llm_provider-retry-after", "$retry_after"),)
_INTERNAL = b'{"error":{"message":"Internal server error","type":"internal_server_error"}}'
LITELLM: Mapping[str, Problem] = MappingProxyType(
    {
        "bad_key": _auth(_UNKNOWN_KEY, "token_not_found_in_db", param="key"),
        "not_a_key": _auth("LiteLLM Virtual Key expected. Received=****, expected to start with 'sk-'.", "auth_error"),
        "no_key": _auth("Authentication Error, No api key passed in.", "auth_error"),
        "expired_key": _auth("Authentication Error - Expired Key. Key Expiry time $reset", "expired_key"),
        "database": _auth("Authentication Error, Error in external connector", "auth_error"),
        "budget": _over("Budget has been exceeded! Key=sim (sk-...l__Q) Current cost: $spend, Max budget: $budget"),
        "user_budget": _over("ExceededBudget: User=sim over budget. Spend=$spend, Budget=$budget"),
        "model_denied": _problem(403, _DENIED, "key_model_access_denied", param="model", bare=True),
        "bad_json": _problem(400, "Invalid JSON payload: $flaw", param="request_body", bare=True),
        "missing": _problem(400, "$path: Missing required parameter: 'messages'.", param="messages"),
        "internal": _problem(500, "", body=_INTERNAL),
        "parallel": _limit,
        "requests": _limit,
        "tokens": _limit,
        "unknown_model": _problem(400, "$path: Invalid model name passed in model=$model. Call `/v1/models` to see."),
        "cooldown": _problem(429, _COOLING, "all_deployments_in_cooldown", headers=(("retry-after", "5"),)),
        "model_parallel": _problem(429, "Deployment has all max_parallel_requests slots in use", "throttling_error"),
        "context": _provider(400, "ContextWindowExceededError: litellm.BadRequestError", _CONTEXT),
        "policy": _provider(400, "BadRequestError", _POLICY),
        "upstream_400": _provider(400, "BadRequestError", "$said"),
        "upstream_401": _provider(401, "AuthenticationError", "Unauthorized", "authentication_error"),
        "upstream_403": _provider(403, "PermissionDeniedError", "Forbidden", "permission_error"),
        "upstream_404": _provider(404, "NotFoundError", "The model does not exist."),
        "timeout": _provider(408, "Timeout: Timeout Error", "Timeout passed=$timeout, time taken=$timeout seconds"),
        "upstream_422": _provider(422, "BadRequestError", "Unprocessable Entity"),
        "upstream_429": _provider(429, "RateLimitError", "overloaded", "throttling_error", headers=_PROVIDER_WAIT),
        "upstream_500": _down("Internal Server Error"),
        "upstream_refused": _down("Cannot connect to host REDACTED:9"),
        "upstream_reset": _down("Server disconnected"),
        "upstream_html": _provider(503, "ServiceUnavailableError", "<html>…</html>", "internal_server_error"),
        "stream_error": _provider(500, "APIConnectionError", "peer closed connection", None),
        "no_route": _problem(404, "", body=b'{"detail":"Not Found"}', bare=True),
        "wrong_method": _problem(405, "", body=b'{"detail":"Method Not Allowed"}', bare=True),
    }
)

_late = partial(_problem, late=True)
_failed = _late(500, "Upstream error. Please try again.", "api_error")
_internal = _problem(500, "Internal server error", "api_error", code="internal_error")
_SLOW_DOWN = "Rate limit exceeded. Please slow down."
LUMEN: Mapping[str, Problem] = MappingProxyType(
    {
        "no_key": _problem(400, "Missing or malformed Authorization header"),
        "bad_key": _problem(401, "Invalid or inactive API key", "authentication_error"),
        "disabled": _problem(403, "Account disabled", "authentication_error"),
        "requests": _problem(429, _SLOW_DOWN, "rate_limit_error", code="rate_limit_exceeded"),
        "bad_body": _problem(400, "Invalid request body"),
        "missing": _problem(400, "model and messages are required"),
        "unknown_model": _problem(404, "Model '$model' not found"),
        "model_denied": _problem(403, "No access to this model"),
        "budget": _problem(429, "Coin budget exhausted"),
        "no_endpoints": _problem(503, "No healthy endpoints for model '$model'", "server_error"),
        "internal": _internal,
        "upstream_html": _internal,
        "context": _late(400, _CONTEXT, "BadRequestError"),
        "policy": _late(400, _POLICY, "BadRequestError"),
        "upstream_400": _late(400, "$said", "BadRequestError"),
        "upstream_401": _late(401, "upstream 401", "AuthenticationError"),
        "upstream_429": _late(429, "upstream busy", "RateLimitError"),
        # Everything else that goes wrong upstream, and a parameter that Lumen's own client library does not know.
        "upstream_500": _failed,
        "bad_parameter": _failed,
        "timeout": _failed,
        "stream_error": _failed,
        "no_route": _problem(404, "Not found", code="not_found"),
        "wrong_method": _problem(405, "", body=b"<!doctype html>\n<title>405 Method Not Allowed</title>"),
    }
)

MEASURED: Mapping[str, Mapping[str, Problem]] = MappingProxyType({"openai": OPENAI, "litellm": LITELLM, "lumen": LUMEN})
# Those that come from the model or on the way to it.
UPSTREAM = frozenset(
    name
    for errors in MEASURED.values()
    for name, problem in errors.items()
    if "$provider" in problem.message or problem.late or name in ("cooldown", "model_parallel", "no_endpoints")
)

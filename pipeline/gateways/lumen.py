"""Lumen (NCSA): what it says otherwise than OpenAI. Measured on version 1.23.

It never says how long to wait, sends no request id and takes vendor parameters only nested.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pipeline.gateways.catalogue import lumen_models
from pipeline.gateways.openai import BASE_RULES, RECHECK_KEY_S, WRONG_ADDRESS, OpenAI, body_id
from pipeline.gateways.rules import Rule
from pipeline.ground.jsonio import dumps, loads
from pipeline.records import CHAT, Kind, ModelInfo, Reply, Request, Verdict

POLL_MODEL_S = 60.0  # Lumen itself looks after its models once a minute
# Any other name at the top makes Lumen answer 500 without asking the model.
ACCEPTED = frozenset(
    {
        "audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
        "max_completion_tokens", "max_tokens", "messages", "metadata", "modalities", "model", "moderation",
        "n", "parallel_tool_calls", "prediction", "presence_penalty", "prompt_cache_key",
        "prompt_cache_options", "prompt_cache_retention", "reasoning_effort", "response_format",
        "safety_identifier", "seed", "service_tier", "stop", "store", "stream", "stream_options",
        "temperature", "tool_choice", "tools", "top_logprobs", "top_p", "user", "verbosity",
        "web_search_options", "extra_body", "extra_headers", "extra_query", "timeout",
    }
)  # fmt: skip

LUMEN_RULES = (
    Rule(  # before the rate limits: it is a 429, too
        prefixes=("Coin budget exhausted",),
        means=Verdict(
            kind=Kind.FATAL,
            code="budget_exceeded",
            message="Coins come back by the hour where the pool has a refill; see your profile on Lumen's web page",
        ),
    ),
    Rule(
        statuses=frozenset({400}),
        prefixes=("Missing or malformed Authorization header",),
        means=Verdict(kind=Kind.FATAL, code="no_api_key", message="No key was sent: export LUMEN_API_KEY=..."),
    ),
    Rule(
        statuses=frozenset({401}),
        names=frozenset({"authentication_error"}),
        means=Verdict(
            kind=Kind.FATAL,
            code="invalid_api_key",
            message="See Profile, API Keys on Lumen's web page",
            recheck_s=RECHECK_KEY_S,
        ),
    ),
    Rule(  # Lumen's own errors of this kind are always of the type above: this one is the model's, passed on
        statuses=frozenset({401}),
        shapes=frozenset({"error"}),
        means=Verdict(
            kind=Kind.OUTAGE,
            code="upstream_credentials",
            of_model=True,
            message="Your key is good; Lumen's own for this model is not: tell its operators",
        ),
    ),
    Rule(  # the same words for a model that is blocked, or has to be acknowledged, or a pool of nothing
        statuses=frozenset({403}),
        prefixes=("No access to this model",),
        of_model=True,
        means=Verdict(
            kind=Kind.FATAL,
            code="no_access",
            message="Acknowledge this model once on Lumen's web page (some need that), or ask for access to it",
        ),
    ),
    Rule(
        statuses=frozenset({403}),
        names=frozenset({"authentication_error"}),
        means=Verdict(kind=Kind.FATAL, code="account_disabled", message="Write to Lumen's help desk"),
    ),
    Rule(
        statuses=frozenset({404}),
        prefixes=("Model '",),
        of_model=True,
        means=Verdict(kind=Kind.FATAL, code="model_not_found"),
    ),
    Rule(statuses=frozenset({404}), names=frozenset({"not_found"}), means=WRONG_ADDRESS.means),
    Rule(
        statuses=frozenset({403, 404}),
        shapes=frozenset({"error"}),
        means=Verdict(kind=Kind.TRANSIENT, code="upstream_refused", ambiguous=True),
    ),
    Rule(
        statuses=frozenset({429}),
        prefixes=("Rate limit exceeded. Please slow down",),
        means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="requests"),
    ),
    Rule(
        statuses=frozenset({429}),
        shapes=frozenset({"error"}),
        means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="model"),
    ),
    Rule(  # mostly the request's fault, now and then the database's
        statuses=frozenset({500}),
        names=frozenset({"internal_error"}),
        means=Verdict(kind=Kind.TRANSIENT, code="internal_error", ambiguous=True, most_tries=2),
    ),
    Rule(  # a model that is away, or a parameter that Lumen does not know
        statuses=frozenset({500}),
        prefixes=("Upstream error",),
        means=Verdict(kind=Kind.TRANSIENT, code="upstream_error", ambiguous=True),
    ),
    Rule(
        statuses=frozenset({503}),
        prefixes=("No healthy endpoints",),
        means=Verdict(kind=Kind.OUTAGE, code="model_away", retry_after_s=POLL_MODEL_S, of_model=True),
    ),
)


class Lumen(OpenAI):
    """A Lumen server."""

    rules: ClassVar[tuple[Rule, ...]] = (*LUMEN_RULES, *BASE_RULES)
    endpoints: ClassVar[frozenset[str]] = frozenset({CHAT})  # its /completions drops every parameter
    lists_all: ClassVar[bool] = True
    absent_means: ClassVar[str] = "acknowledge it once on Lumen's web page (some need that), or ask for access"

    def models(self, reply: Reply) -> list[ModelInfo]:
        """Those that this key may use now, with prices in coins; models that are down stay listed."""
        return lumen_models(reply.json)

    def api_root(self, base_url: str) -> str:
        """Its API is under ``/v1`` and nowhere else; the base URL may be given with or without."""
        return base_url if base_url.endswith("/v1") else f"{base_url}/v1"

    def headers(self, call_id: str) -> dict[str, str]:
        """It keeps none."""
        return {}

    def dress(self, request: Request) -> bytes:
        """Vendor parameters (``top_k``, ``chat_template_kwargs``, ...) go under a literal ``extra_body``."""
        return with_extra_body(request.body)

    def request_id(self, reply: Reply) -> str | None:
        """Only the body has one: the model server's."""
        return body_id(reply)


def with_extra_body(body: bytes) -> bytes:
    """A canonical body with all that Lumen does not know under ``extra_body``; what stands there already goes first.

    Every body is parsed to see its names: quicker than any search of the bytes that could be trusted.
    """
    fields: dict[str, Any] = loads(body)
    vendor = fields.keys() - ACCEPTED
    if not vendor:
        return body
    given = fields.get("extra_body")
    if given is not None and not isinstance(given, dict):
        return body  # Lumen is to say what is wrong with it
    nested = {name: fields.pop(name) for name in vendor}
    fields["extra_body"] = {**nested, **(given or {})}
    return dumps(fields, sort_keys=True)

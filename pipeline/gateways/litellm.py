"""LiteLLM proxies, and CBorg, which is one: what they say otherwise than OpenAI. Measured on version 1.106.

Its error codes repeat the status and its types are few, so rules look at types, headers and how messages begin.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar
from urllib.parse import quote

from pipeline.gateways.catalogue import litellm_billed, litellm_key, litellm_models
from pipeline.gateways.complaint import complaint_of, retry_after
from pipeline.gateways.openai import BASE_RULES, BUDGET, RECHECK_KEY_S, Announced, OpenAI, no_api
from pipeline.gateways.rules import Rule
from pipeline.ground.jsonio import loads
from pipeline.records import Billed, Cost, KeyInfo, Kind, ModelInfo, Reply, Request, Scope, Verdict

_CALL_ID = "x-litellm-call-id"  # the proxy's own refusals at the door (key, budget, malformed JSON) come without it
_NO_RETRIES = b'"num_retries":0'
_FIELD_OF_LIMIT = (("max_parallel_requests", "parallel"), ("requests", "rpm"), ("tokens", "tpm"))


def _key_limit(word: str, scope: Scope) -> tuple[Rule, ...]:
    """A limit of the key. ``retry-after`` is a constant 60 there, even a second before the window ends: not heeded."""
    means = Verdict(kind=Kind.THROTTLED, code="rate_limited", scope=scope)
    told = Rule(statuses=frozenset({429}), heeds_retry_after=False, means=means)
    return (
        replace(told, header="rate_limit_type", header_is=word),
        replace(told, prefixes=("Rate limit exceeded for",), contains=(f"Limit type: {word}",)),
    )


LITELLM_RULES = (
    BUDGET,  # 422 now, 400 before, 429 where the operator says so
    Rule(  # 429, but an outage: somebody's 401 or 404 upstream has put the only deployment aside for 5 s
        names=frozenset({"all_deployments_in_cooldown"}),
        means=Verdict(kind=Kind.OUTAGE, code="model_cooldown", of_model=True),
    ),
    Rule(
        statuses=frozenset({400, 429}),
        contains=(
            "No deployments available for selected model",
            "no healthy deployments",
            "No healthy deployment available",
        ),
        means=Verdict(kind=Kind.OUTAGE, code="model_away", of_model=True),
    ),
    Rule(  # the operator's limit on the model, shared by all; the proxy has already tried for 3 s
        statuses=frozenset({429}),
        contains=("Deployment has all max_parallel_requests slots in use",),
        means=Verdict(kind=Kind.THROTTLED, code="model_busy", scope="model"),
    ),
    *_key_limit("max_parallel_requests", "parallel"),
    *_key_limit("requests", "requests"),
    *_key_limit("tokens", "tokens"),
    Rule(
        statuses=frozenset({429}),
        prefixes=("litellm.",),  # an upstream's 429
        means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="model"),
    ),
    Rule(  # also what an unknown model gives where the key is restricted to some
        names=frozenset({"key_model_access_denied"}),
        of_model=True,
        means=Verdict(
            kind=Kind.FATAL,
            code="key_model_access_denied",
            message="Is the model's name right? If so, ask for access to it",
        ),
    ),
    Rule(
        statuses=frozenset({401}),
        names=frozenset({"expired_key"}),
        without_header=_CALL_ID,
        means=Verdict(kind=Kind.FATAL, code="expired_key", message="Make a new key", recheck_s=RECHECK_KEY_S),
    ),
    Rule(  # recheck: without its database the proxy knows no key, and says so with a 401
        statuses=frozenset({401}),
        without_header=_CALL_ID,
        means=Verdict(
            kind=Kind.FATAL,
            code="invalid_api_key",
            message="Is this the key of this gateway, whole, and still valid?",
            recheck_s=RECHECK_KEY_S,
        ),
    ),
    Rule(  # what a proxy without a database says to every key but its master key, with a 400
        names=frozenset({"no_db_connection"}),
        without_header=_CALL_ID,
        means=Verdict(
            kind=Kind.FATAL,
            code="invalid_api_key",
            message="This proxy has no database, and takes no key but its master key",
            recheck_s=RECHECK_KEY_S,
        ),
    ),
    Rule(
        statuses=frozenset({401}),
        header=_CALL_ID,
        means=Verdict(
            kind=Kind.OUTAGE,
            code="upstream_credentials",
            of_model=True,
            message="Your key is good; the gateway's own credentials for this model are not: tell its operators",
        ),
    ),
    Rule(
        statuses=frozenset({403}),
        header=_CALL_ID,
        means=Verdict(kind=Kind.TRANSIENT, code="upstream_refused", ambiguous=True),
    ),
    Rule(
        statuses=frozenset({400}),
        contains=("Invalid model name passed in model=",),
        of_model=True,
        means=Verdict(kind=Kind.FATAL, code="model_not_found"),
    ),
    Rule(
        statuses=frozenset({400}),
        contains=("ContextWindowExceededError",),
        means=Verdict(kind=Kind.REJECTED, code="context_length_exceeded"),
    ),
    Rule(  # vLLM reloading; each such reply also puts the model aside for 5 s
        statuses=frozenset({404}),
        prefixes=("litellm.NotFoundError",),
        means=Verdict(kind=Kind.TRANSIENT, code="upstream_not_found", ambiguous=True),
    ),
    Rule(  # its type, invalid_request_error, is misleading
        statuses=frozenset({408}),
        prefixes=("litellm.Timeout",),
        means=Verdict(kind=Kind.TRANSIENT, code="upstream_timeout", ambiguous=True),
    ),
)


class LiteLLM(OpenAI):
    """A LiteLLM proxy."""

    rules: ClassVar[tuple[Rule, ...]] = (*LITELLM_RULES, *BASE_RULES)
    catalogue_path: ClassVar[str] = "/model/info"
    usable_path: ClassVar[str | None] = "/v1/models"
    key_path: ClassVar[str | None] = "/key/info"
    lists_all: ClassVar[bool] = True
    names_model_in_headers: ClassVar[bool] = True
    absent_means: ClassVar[str] = "it does not exist, or this key may not use it"

    def catalogue_root(self, base_url: str) -> str:
        """These are beside ``/v1``, not under it; everything else works with and without."""
        return base_url.removesuffix("/v1")

    def models(self, reply: Reply) -> list[ModelInfo]:
        """``/model/info`` tells prices; ``/v1/models`` hardly more than names."""
        return litellm_models(reply.json) or super().models(reply)

    def key(self, reply: Reply) -> KeyInfo | None:
        """Spend, budget and limits; the limits may be null even where there are some."""
        return litellm_key(reply.json)

    def headers(self, call_id: str) -> dict[str, str]:
        """The proxy takes our call id for its own: its spend log can be asked for it."""
        return {_CALL_ID: call_id}

    def dress(self, request: Request) -> bytes:
        """``num_retries: 0``, unless the job sets it."""
        return without_retries(request.body) if self._client_retries else request.body

    def _retry_after(self, reply: Reply) -> float | None:
        own = retry_after(reply)
        return retry_after(reply, "llm_provider-retry-after") if own is None else own

    def served_model(self, reply: Reply) -> str | None:
        """The body's ``model`` is only the alias that was asked for."""
        return reply.headers.get("x-litellm-model-name") or super().served_model(reply)

    def told_cost(self, reply: Reply) -> Cost | None:
        """A header's cost, or a stream's in its usage. Free models have neither; every error says 0, so none is read."""
        if reply.status != 200:
            return None
        amount = _amount(reply.headers.get("x-litellm-response-cost"))
        if amount is None:
            usage = reply.json.get("usage") if isinstance(reply.json, dict) else None
            amount = _amount(usage.get("cost")) if isinstance(usage, dict) else None
        return None if amount is None else Cost(amount=amount, unit="USD", source="gateway")

    def announced_limits(self, reply: Reply) -> Announced:
        """Told by headers on success, and in the words of a 429 for the limit it is about."""
        told = {
            field: _limit(reply.headers.get(f"x-ratelimit-api_key-limit-{word}")) for word, field in _FIELD_OF_LIMIT
        }
        if reply.status == 429 and (said := complaint_of(reply).message).startswith("Rate limit exceeded for api_key"):
            for word, field in _FIELD_OF_LIMIT:
                if f"Limit type: {word}." in said:
                    told[field] = _limit(said.partition("Current limit: ")[2].partition(",")[0])
        return Announced(**told)

    def billed_path(self, call_id: str) -> str | None:
        """The spend log takes our call id, some seconds after the call."""
        return f"/spend/logs?request_id={quote(call_id, safe='')}"

    def billed(self, reply: Reply) -> Billed | None:
        """A list; a proxy without a database has none to tell."""
        return litellm_billed(reply.json) if reply.status == 200 else None

    def request_id(self, reply: Reply) -> str | None:
        """The call id."""
        return reply.headers.get(_CALL_ID) or super().request_id(reply)


class CBorg(LiteLLM):
    """Berkeley Lab's: it lets in the laboratory's networks, and addresses that their users have authorised."""

    rules: ClassVar[tuple[Rule, ...]] = (
        *LITELLM_RULES,
        *no_api("VPN off? Authorise your IP at https://api.cborg.lbl.gov/key/manage"),
        *BASE_RULES,
    )


def without_retries(body: bytes) -> bytes:
    """A canonical body with ``num_retries`` spliced in at its end; parsed only where that name is a key somewhere."""
    # In a JSON text the quotes are escaped, so these bytes can only be a key.
    if b'"num_retries":' in body and "num_retries" in loads(body):
        return body
    return body[:-1] + (b"," if len(body) > 2 else b"") + _NO_RETRIES + b"}"


def _amount(value: Any) -> float | None:
    """``2.1000000000000002e-06`` is normal there."""
    if not isinstance(value, str | float | int) or isinstance(value, bool):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None


def _limit(text: str | None) -> int | None:
    if text is None or not text.isdecimal() or not text.isascii() or len(text) > 18:
        return None
    return int(text) or None

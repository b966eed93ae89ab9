"""The base dialect: any OpenAI-compatible server. The others say only what differs.

A reply is classified once, from status, headers and parsed body; everything after decides by the ``Verdict``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from pipeline.gateways.answer import completion_of, content_of, embedding_of, is_answer, message_in, text_in, vectors_in
from pipeline.gateways.catalogue import openai_models
from pipeline.gateways.complaint import complaint_of, retry_after
from pipeline.gateways.rules import Rule
from pipeline.ground.jsonio import dumps, loads
from pipeline.records import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Billed,
    Completion,
    Cost,
    KeyInfo,
    Kind,
    ModelInfo,
    Reply,
    Request,
    Verdict,
)

RECHECK_KEY_S = 60.0
RECHECK_ADDRESS_S = 600.0  # an ingress without its service answers 404 for as long as that takes to install

BUDGET = Rule(
    names=frozenset({"budget_exceeded", "insufficient_quota", "billing_hard_limit_reached"}),
    means=Verdict(kind=Kind.FATAL, code="budget_exceeded"),
)
RATE = Rule(
    statuses=frozenset({429}),
    names=frozenset({"requests", "rate_limit_error", "rate_limit_exceeded"}),
    means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="requests"),
)
WRONG_ADDRESS = Rule(
    statuses=frozenset({404, 405}),
    means=Verdict(
        kind=Kind.FATAL,
        code="not_found",
        message="Is the base URL right? It ends where /chat/completions begins, at most gateways in /v1",
    ),
)


def no_api(advice: str) -> tuple[Rule, ...]:
    """Somebody else answers in the API's place; ``advice`` is what to look at."""
    page = Verdict(kind=Kind.OUTAGE, code="html_reply", message=advice)
    return (
        Rule(statuses=frozenset({200}), shapes=frozenset({"html"}), means=page),
        Rule(statuses=frozenset(range(300, 400)), means=replace(page, code="redirected")),
        Rule(  # ambiguous: a firewall in front may also take offence at one row's text
            statuses=frozenset({403}),
            shapes=frozenset({"html", "text", "empty"}),
            means=replace(page, ambiguous=True),
        ),
    )


BASE_RULES = (
    *no_api("Is the base URL that of an API? Or does a login page, a proxy or a firewall answer in its place?"),
    BUDGET,
    Rule(statuses=frozenset({402}), means=BUDGET.means),
    Rule(  # before the rates: OpenAI's type for it is "requests", too
        statuses=frozenset({429}),
        contains=("parallel request", "parallel_request", "concurren", "Concurren"),
        means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="parallel"),
    ),
    Rule(
        statuses=frozenset({429}),
        names=frozenset({"tokens"}),
        means=Verdict(kind=Kind.THROTTLED, code="rate_limited", scope="tokens"),
    ),
    RATE,
    replace(RATE, names=frozenset(), contains=("ate limit",)),
    Rule(statuses=frozenset({429}), means=Verdict(kind=Kind.THROTTLED, code="rate_limited")),
    Rule(statuses=frozenset({401}), own_code=True, means=Verdict(kind=Kind.FATAL, recheck_s=RECHECK_KEY_S)),
    Rule(statuses=frozenset({403}), own_code=True, means=Verdict(kind=Kind.FATAL)),
    Rule(
        statuses=frozenset({404}),
        names=frozenset({"model_not_found"}),
        of_model=True,
        means=Verdict(kind=Kind.FATAL, code="model_not_found"),
    ),
    Rule(
        statuses=frozenset({404}),
        prefixes=("The model `",),  # vLLM names it only so
        of_model=True,
        means=Verdict(kind=Kind.FATAL, code="model_not_found"),
    ),
    Rule(
        statuses=WRONG_ADDRESS.statuses,
        shapes=frozenset({"html", "text", "empty", "json"}),
        means=replace(WRONG_ADDRESS.means, recheck_s=RECHECK_ADDRESS_S),
    ),
    WRONG_ADDRESS,
    Rule(statuses=frozenset({408, 409, 425}), means=Verdict(kind=Kind.TRANSIENT, ambiguous=True)),
    Rule(  # ambiguous: one row's answer may take longer than a front proxy waits
        statuses=frozenset({504, 524}), means=Verdict(kind=Kind.OUTAGE, ambiguous=True)
    ),
    Rule(statuses=frozenset({502, 503, *range(520, 531)}), means=Verdict(kind=Kind.OUTAGE)),
    Rule(
        statuses=frozenset({400, 413, 422}),
        contains=("maximum context length",),
        means=Verdict(kind=Kind.REJECTED, code="context_length_exceeded"),
    ),
    Rule(
        statuses=frozenset({400}),
        contains=("content management policy",),
        means=Verdict(kind=Kind.REJECTED, code="content_filter"),
    ),
    Rule(statuses=frozenset(range(400, 500)), own_code=True, means=Verdict(kind=Kind.REJECTED)),
    Rule(
        statuses=frozenset({200}),
        shapes=frozenset({"error"}),
        means=Verdict(kind=Kind.TRANSIENT, code="error_in_reply", ambiguous=True),
    ),
    Rule(
        statuses=frozenset({200}),
        shapes=frozenset({"json"}),
        means=Verdict(kind=Kind.TRANSIENT, code="no_choices", message="A reply without choices"),
    ),
    Rule(
        statuses=frozenset({200}),
        means=Verdict(kind=Kind.TRANSIENT, code="malformed_reply", message="No JSON object", ambiguous=True),
    ),
    Rule(means=Verdict(kind=Kind.TRANSIENT, ambiguous=True)),  # 500s, and what no table knows
)
_OK = Verdict(kind=Kind.OK)
# Most likely as large the next time, and paid for again; but a pack that is split has smaller ones.
_TRIES = {"reply_too_large": 2}
_FINAL = frozenset({Kind.REJECTED, Kind.FATAL})


@dataclass(frozen=True, slots=True, kw_only=True)
class Announced:
    """The key's own limits as a reply told them; None where it did not."""

    parallel: int | None = None
    rpm: int | None = None
    tpm: int | None = None


_NOTHING_TOLD = Announced()


class OpenAI:
    """How one family of gateways is spoken to and understood. ``rules`` ends with one that fits everything."""

    rules: ClassVar[tuple[Rule, ...]] = BASE_RULES
    endpoints: ClassVar[frozenset[str]] = frozenset({CHAT, COMPLETIONS, EMBEDDINGS})
    probe_path: ClassVar[str] = "/models"  # the cheapest unpaid call: is anybody there?
    catalogue_path: ClassVar[str] = "/models"
    usable_path: ClassVar[str | None] = None  # what this key may use, where the catalogue has more
    key_path: ClassVar[str | None] = None
    lists_all: ClassVar[bool] = False  # a model that is not listed cannot be used
    absent_means: ClassVar[str] = ""  # why a model may be missing
    names_model_in_headers: ClassVar[bool] = False  # which a kept reply has no more

    def __init__(
        self, *, model_is_the_rows: bool = False, client_retries: bool = True, unset_key: str | None = None
    ) -> None:
        """``model_is_the_rows``: rows name their own models, so an unknown model is the row's fault, not the run's.

        ``client_retries``: retrying is ours, and a gateway that would retry too is told not to: its tries multiply.

        ``unset_key``: no key goes out, for this variable, which would hold it, is not set.
        """
        self._model_is_the_rows = model_is_the_rows
        self._client_retries = client_retries
        self._unset_key = unset_key

    # what goes out

    def api_root(self, base_url: str) -> str:
        """Where this family's endpoints begin, given the base URL of a job."""
        return base_url

    def catalogue_root(self, base_url: str) -> str:
        """Where the unpaid endpoints begin, given the base URL of a job."""
        return self.api_root(base_url)

    def headers(self, call_id: str) -> dict[str, str]:
        """What identifies this attempt on the wire (OpenAI keeps it in its logs)."""
        return {"X-Client-Request-Id": call_id}

    def dress(self, request: Request) -> bytes:
        """The body as this family wants it; never part of the fingerprint."""
        return request.body

    def streamed(self, body: bytes) -> bytes:
        """A dressed body that asks for events, and for the usage at their end."""
        return body[:-1] + b',"stream":true,"stream_options":{"include_usage":true}}'

    # what comes back

    def classify(self, reply: Reply, endpoint: str = CHAT) -> Verdict:
        """What this reply means. Never raises."""
        if reply.status == 200 and is_answer(reply.json, endpoint):
            return _OK
        if reply.failure is not None:
            sent, code, message = reply.failure.sent, reply.failure.code, reply.failure.message
            kind = Kind.TRANSIENT if sent else Kind.OUTAGE
            tries = _TRIES.get(code)
            return Verdict(kind=kind, code=code, message=message, ambiguous=sent, unsent=not sent, most_tries=tries)
        verdict = self._look_up(reply)
        # Who has a budget that is used up was let in.
        refused = verdict.kind is Kind.FATAL and verdict.code != BUDGET.means.code
        if refused and reply.status in (401, 403) and self._unset_key is not None:
            text = f"{complaint_of(reply).sentence.rstrip('. ')}. No key was sent: export {self._unset_key}=..."
            return replace(verdict, code="no_api_key", message=text)
        return verdict

    def _look_up(self, reply: Reply) -> Verdict:
        said = complaint_of(reply)
        rule = next(rule for rule in self.rules if rule.fits(said))
        means = rule.means
        kind = Kind.REJECTED if rule.of_model and self._model_is_the_rows else means.kind
        told = self._retry_after(reply) if rule.heeds_retry_after and kind not in _FINAL else None
        return replace(
            means,
            kind=kind,
            code=rule.code_for(said),
            message=rule.message_for(said),
            retry_after_s=means.retry_after_s if told is None else told,
        )

    def _retry_after(self, reply: Reply) -> float | None:
        return retry_after(reply)

    def completion(self, reply: Reply, endpoint: str = CHAT) -> Completion:
        """The answer in a reply that was classified OK."""
        if endpoint == EMBEDDINGS:
            return embedding_of(reply, model=self.served_model(reply))
        return completion_of(reply.json, reply.body, model=self.served_model(reply))

    def content(self, raw: bytes) -> str | None:
        """The answer's text in a body the journal kept; results are made from these."""
        body = loads(raw, exact=False)
        content = content_of(body)
        if content is None and message_in(body) is None and text_in(body) is None:
            return dumps(vectors_in(body)).decode()  # several that one batch line asked for
        return content

    def served_model(self, reply: Reply) -> str | None:
        """The model that answered, which need not be the one asked."""
        model = reply.json.get("model")
        return model if isinstance(model, str) else None

    def told_cost(self, reply: Reply) -> Cost | None:
        """What the gateway itself says this answer cost; None when it does not say."""
        return None

    def announced_limits(self, reply: Reply) -> Announced:
        """The key's limits, as far as this reply tells them."""
        return _NOTHING_TOLD

    def models(self, reply: Reply) -> list[ModelInfo]:
        """The models in a reply of ``catalogue_path`` or ``usable_path``."""
        return openai_models(reply.json)

    def key(self, reply: Reply) -> KeyInfo | None:
        """What a reply of ``key_path`` tells about the key."""
        return None

    def billed_path(self, call_id: str) -> str | None:
        """Where to ask, under ``catalogue_root``, what was billed for a request; None where nobody tells."""
        return None

    def billed(self, reply: Reply) -> Billed | None:
        """What a reply of ``billed_path`` says; None when it does not."""
        return None

    def request_id(self, reply: Reply) -> str | None:
        """The gateway's own name for this exchange, to quote to its operators."""
        return reply.headers.get("x-request-id") or body_id(reply)


def body_id(reply: Reply) -> str | None:
    """The ``id`` in the body."""
    name = reply.json.get("id") if isinstance(reply.json, dict) else None
    return name if isinstance(name, str) else None

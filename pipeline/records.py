"""The things that travel along the way of a row, one frozen record each.

``Row`` (source) -> ``Request`` (template) -> ``Reply`` (client) -> ``Verdict`` (gateways) -> ``Outcome`` (journal, sink).
All are frozen, slotted and keyword-only; a change is ``dataclasses.replace``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from enum import Enum
from typing import Any, Literal

from pipeline.ground.frozen import frozen

CHAT = "/chat/completions"
COMPLETIONS = "/completions"
EMBEDDINGS = "/embeddings"
WITNESSES = 8  # out at once, of as many models; the in-flight table has room for them beside the rows
Status = Literal["succeeded", "failed"]
CostSource = Literal["gateway", "price_table", "free", "reused", "unknown"]
Form = Literal["json", "float32"]
Scope = Literal["", "parallel", "requests", "tokens", "model"]


@frozen
class Row:
    """One input record.

    ``index`` is its place in its file, from 1: the line of a text file (where the record starts), the row of a Parquet
    file. ``custom_id`` is the id column's value as text, or None when the job names no id column.
    """

    custom_id: str | None
    index: int
    data: dict[str, Any]


@frozen
class Request:
    """What one row asks the gateway, before any dialect dresses it.

    ``index`` is the row's number in the journal. ``body`` is canonical JSON (sorted keys, UTF-8): it is what the
    fingerprint is made of and, unless the dialect adds something, what goes over the wire. ``fingerprint`` is 16 bytes.
    ``image_bytes`` of the body are images; the fingerprint knows those by their digests.
    """

    custom_id: str
    index: int
    endpoint: str
    model: str
    body: bytes
    fingerprint: bytes
    estimated_tokens: int
    image_bytes: int = 0


@frozen
class Proxy:
    """What stands between; ``headers`` say who we are there, and are for nobody else. Its repr does not tell them."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


@frozen
class Failure:
    """Why there is no reply. ``sent`` says whether the gateway may have seen, and billed, the request.

    ``stale``: an idle connection was used just as it was closed. Most likely the request was not read.
    """

    code: str
    message: str
    sent: bool
    stale: bool = False


@frozen
class Reply:
    """One HTTP answer, or the lack of one (``status`` 0 and a ``failure``).

    ``headers`` are looked up by lower-case names. ``json`` is the parsed body, None where the body is not JSON.
    ``elapsed_s`` runs from the start of the send to the last byte.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    json: Any
    elapsed_s: float
    failure: Failure | None = None


class Kind(Enum):
    """What a reply means for the run; ``gateways/`` decides it once, from status, headers and parsed body."""

    OK = "ok"
    THROTTLED = "throttled"  # rate, parallel slots, tokens: slow down; costs the row no attempt
    OUTAGE = "outage"  # gateway or model away: wait; costs the row no attempt
    TRANSIENT = "transient"  # this try went wrong: retry, bounded
    REJECTED = "rejected"  # the row's own fault: fail it
    FATAL = "fatal"  # key, access, budget: stop, rows stay pending


@frozen
class Verdict:
    """``code`` is a short stable word (``error_code`` in the results), ``message`` is for people.

    ``retry_after_s``: how long the gateway asks to wait; None when it does not say, or says what is not so.
    ``scope``: which limit a THROTTLED has met: the key's parallel slots, its requests or tokens a minute, or the
    model's own, which is everybody's ("" when not told).
    ``ambiguous``: the row or the gateway, only another request can tell. A TRANSIENT is the row's if a witness is
    answered; an OUTAGE that comes back for the same row while others are answered is that row's, too.
    ``recheck_s``: a FATAL that, once this key has worked, is held as an outage first, and believed after so long.
    ``unsent``: the request never left, nobody was there to take it.
    ``of_model``: an OUTAGE of the model asked; others may be there.
    ``most_tries``: a TRANSIENT that more tries than these do not mend, whatever the job allows.
    """

    kind: Kind
    code: str = ""
    message: str = ""
    retry_after_s: float | None = None
    scope: Scope = ""
    ambiguous: bool = False
    recheck_s: float = 0.0
    most_tries: int | None = None
    unsent: bool = False
    of_model: bool = False


@frozen
class Usage:
    """Tokens as the gateway counted them. None is unknown, never 0."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    estimated: bool = False

    @property
    def total_tokens(self) -> int | None:
        """Prompt and completion together; None when either is unknown."""
        if self.prompt_tokens is None or self.completion_tokens is None:
            return None
        return self.prompt_tokens + self.completion_tokens


@frozen
class Cost:
    """``amount`` in ``unit`` (USD or coins); None with source ``unknown`` when nobody told us."""

    amount: float | None = None
    unit: str = "USD"
    source: CostSource = "unknown"


UNKNOWN_COST = Cost()


@frozen
class ModelInfo:
    """A model as its gateway lists it; None where it does not say. Prices are per million tokens in ``unit``.

    ``upstream`` are the real models behind an alias, one for each deployment; where these differ in price, the price is
    None. ``free``: nobody is billed for it, whatever the prices say. ``zero_priced``: both prices are 0 by name, not just
    left out. ``decimals``: the gateway rounds each cost to so many.
    """

    id: str
    mode: str | None = None
    context: int | None = None
    max_output: int | None = None
    input_per_million: float | None = None
    output_per_million: float | None = None
    cached_per_million: float | None = None
    unit: str = "USD"
    upstream: tuple[str, ...] = ()
    prompt_caching: bool | None = None
    status: str | None = None
    free: bool = False
    zero_priced: bool = False
    decimals: int | None = None


@frozen
class KeyInfo:
    """What a gateway tells about a key; None where it does not say. ``models`` is empty when it may ask them all."""

    spend: float | None = None
    max_budget: float | None = None
    budget_resets: str | None = None
    expires: str | None = None
    blocked: bool = False
    models: tuple[str, ...] = ()
    parallel: int | None = None
    rpm: int | None = None
    tpm: int | None = None


@frozen
class Billed:
    """What a gateway's ledger holds under one call id, in USD: ``calls`` is 0 when nothing was billed, so far."""

    calls: int
    cost: float
    prompt_tokens: int
    completion_tokens: int


@frozen
class Completion:
    """The answer in a good reply. ``model`` is the one that answered; ``raw`` is the whole body as received.

    ``remark`` marks an answer that is none: ``empty``, ``refusal``. ``form`` says what ``raw`` is: the reply's JSON, or
    the numbers of a vector (little-endian float32).
    """

    content: str | None
    finish_reason: str | None
    model: str | None
    usage: Usage
    raw: bytes
    remark: str | None = None
    form: Form = "json"


@frozen
class Attempt:
    """One charged try that did not end the row: kept so that money and lost answers are never forgotten.

    ``lost`` is True when the gateway may have billed it without our seeing the answer. A witness belongs to no row: its
    fingerprint is all zero.
    """

    custom_id: str
    fingerprint: bytes
    call_id: str
    code: str
    lost: bool
    model: str
    cost: Cost
    at: float


@frozen
class Outcome:
    """A row's end: an answer or an error. ``cost`` is that of the last try; the journal adds the earlier ones.

    ``completed_at`` is Unix time in seconds, ``latency_s`` the duration of the last try;
    ``sent`` is False for a row that never became a request, ``lost`` True when its last try may have been billed unseen;
    ``call_id`` is then what the gateway's ledger may know that try by.
    """

    custom_id: str
    index: int
    fingerprint: bytes
    status: Status
    model: str | None = None
    completion: Completion | None = None
    error_code: str | None = None
    error_message: str | None = None
    cost: Cost = UNKNOWN_COST
    latency_s: float | None = None
    request_id: str | None = None
    completed_at: float = 0.0
    sent: bool = True
    lost: bool = False
    call_id: str | None = None


@frozen
class Summary:
    """How a run ended, and what the journal then holds for its input. ``exit_code`` as in the command-line contract.

    ``cost`` is by unit and leaves out what nobody told us (``cost_unknown`` rows, and ``lost_attempts``); witnesses are in
    it. ``spent`` is what this run alone cost, by model and unit, and ``ledger`` what the gateway's ledger says was spent
    with this key in that time, in USD; None where it cannot tell, or was not asked. ``sent`` counts rows that ended in
    this run, ``reused`` rows that were given the answer of another; ``in_flight`` names the requests that this run, cut
    short, may have been billed for without an answer, and
    ``recovered`` those of the run before. ``trouble`` is the last that went wrong on the way to the gateway, ``outages`` are (start, end, cause) in Unix time. ``results`` is
    the results file when it is there and complete.
    """

    exit_code: int
    reason: str
    total: int
    completed: int
    failed: int
    pending: int
    reused: int = 0
    accepted: int = 0
    unsent: int = 0
    new: int = 0
    changed: int = 0
    kept: int = 0
    sent: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    cost_unknown: int = 0
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    ledger: float | None = None
    empty: int = 0
    cut_off: int = 0
    refusals: int = 0
    attempts: int = 0
    lost_attempts: int = 0
    elapsed_s: float = 0.0
    run_folder: str = ""
    results: str | None = None
    in_flight: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    trouble: str | None = None
    outages: list[tuple[float, float | None, str]] = field(default_factory=list)
    failures: list[tuple[str, int, list[str], str]] = field(default_factory=list)
    served_models: dict[str, int] = field(default_factory=dict)

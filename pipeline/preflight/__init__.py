"""What can be found out about gateway, key and model without paying: so that what cannot work stops before row 1.

``preflight`` asks the unpaid endpoints and judges. A gateway that has none of them is fine: then nothing is known. One
that does not answer now is a warning only, since a run waits for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from pipeline.accounting import Accounting, PriceOf, listed_price
from pipeline.client import Client, Connection
from pipeline.errors import BudgetError, GatewayError, PipelineError, UsageError
from pipeline.gateways import OpenAI
from pipeline.gateways.unreadable import carefully
from pipeline.ground.wording import money
from pipeline.job import Job
from pipeline.pool.patience import UNREACHED_S
from pipeline.records import CHAT, EMBEDDINGS, KeyInfo, Kind, ModelInfo, Reply, Verdict
from pipeline.workspace import Workspace

Level = Literal["ok", "warn", "away", "ask", "stop"]  # from the least to the gravest
LEDGER_LATE_S = 10.0  # LiteLLM writes what was spent at the latest after so long, unless told otherwise
# Modes that answer a chat request; "completion" and "responses" models are translated by the gateways.
CHAT_MODES = frozenset({"chat", "completion", "responses"})
_ERRORS: dict[int, type[PipelineError]] = {2: UsageError, 4: GatewayError, 5: BudgetError}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found out. ``ask``: a run wants a yes first. ``exit_code`` is that of the contract for a ``stop``."""

    level: Level
    text: str
    exit_code: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What was found out. ``models`` are those this key may ask, by name, where the gateway lists them; ``away``: nothing
    is known, for the gateway does not answer now; ``odd``: it answers, but not with a list."""

    findings: tuple[Finding, ...] = ()
    models: dict[str, ModelInfo] = field(default_factory=dict)
    key: KeyInfo | None = None
    away: Verdict | None = None
    odd: Verdict | None = None

    @property
    def error(self) -> PipelineError | None:
        """The first finding that stops a run, as the error it is."""
        stop = next((finding for finding in self.findings if finding.level == "stop"), None)
        return None if stop is None else _ERRORS[stop.exit_code](stop.text)

    @property
    def waiting_for_budget(self) -> Preflight:
        """The same, where an empty budget stops nothing: the run waits for it to fill up."""
        findings = (
            replace(finding, level="warn") if finding.exit_code == BudgetError.exit_code else finding
            for finding in self.findings
        )
        return replace(self, findings=tuple(findings))

    @property
    def warnings(self) -> list[str]:
        """What a person should know, though it stops nothing."""
        return [finding.text for finding in self.findings if finding.level in ("warn", "away")]


async def preflight(
    connection: Connection, dialect: OpenAI, *, model: str | None, endpoint: str | None = None, reached: bool = False
) -> Preflight:
    """Ask what is unpaid, and judge. ``model`` or ``endpoint`` None: the rows name their own.

    ``reached``: this journal has answers from there. A refusal then need not be one for good (see ``recheck_s``), and is
    left to the run to believe.
    """
    asking = _Asking(dialect, has_key=connection.api_key is not None, reached=reached)
    async with Client(unpaid(connection, dialect)) as client:
        await asking.ask(client)
    asking.judge(model, endpoint)
    return Preflight(
        findings=tuple(asking.findings), models=asking.models, key=asking.key, away=asking.away, odd=asking.odd
    )


async def preflight_of(space: Workspace, connection: Connection, *, reached: bool = False) -> Preflight:
    """The same for the job of a workspace."""
    endpoint = EMBEDDINGS if space.job.request.endpoint == "embeddings" else CHAT
    if space.template.kind == "batch":
        return await preflight(connection, space.dialect, model=space.job.model, reached=reached)
    return await preflight(connection, space.dialect, model=space.job.model, endpoint=endpoint, reached=reached)


def connection_to(job: Job, base_url: str, dialect: OpenAI, key: str | None) -> Connection:
    """How to reach the job's gateway."""
    return Connection(
        base_url=dialect.api_root(base_url),
        api_key=key,
        timeout_s=job.gateway.timeout,
        connect_timeout_s=job.gateway.connect_timeout,
        first_byte_timeout_s=job.gateway.first_byte_timeout,
        idle_timeout_s=job.gateway.idle_timeout,
        ip_version=job.gateway.ip_version,
        max_reply_bytes=job.gateway.max_reply_bytes,
    )


def unpaid(connection: Connection, dialect: OpenAI) -> Connection:
    """How to reach the endpoints that cost nothing."""
    return replace(connection, base_url=dialect.catalogue_root(connection.base_url))


def accounting_of(job: Job, known: Preflight) -> Accounting:
    """Prices as the gateway lists them, and as the job does."""
    own = {
        model: PriceOf(
            prompt=price.input_per_million,
            completion=price.output_per_million,
            cached=price.cached_per_million,
            unit=price.unit,
        )
        for model, price in job.prices.items()
    }
    listed = {name: price for name, info in known.models.items() if (price := listed_price(info)) is not None}
    return Accounting(own, listed=listed)


class _Asking:
    """Collects answers, then findings."""

    def __init__(self, dialect: OpenAI, *, has_key: bool, reached: bool) -> None:
        self._dialect = dialect
        self._has_key = has_key
        self._reached = reached
        self._over_budget: str | None = None
        self._listed = False  # the names in ``models`` are all that this key may use
        self.findings: list[Finding] = []
        self.models: dict[str, ModelInfo] = {}
        self.key: KeyInfo | None = None
        self.away: Verdict | None = None
        self.odd: Verdict | None = None

    async def ask(self, client: Client) -> None:
        """The list of what this key may use is the door: who is refused there is refused. The rest is welcome, not needed."""
        dialect = self._dialect
        reply = await client.get(dialect.usable_path or dialect.catalogue_path)
        if not self._enter(reply):
            return
        if self._listed:
            self.models = {info.id: info for info in carefully(dialect.models, reply)}
        if dialect.usable_path is not None:
            reply = await client.get(dialect.catalogue_path)
            if _is_told(reply):
                told = {info.id: info for info in carefully(dialect.models, reply)}
                names = self.models if self._listed else told
                self.models = {name: told.get(name, info) for name, info in (names or told).items()}
        if dialect.key_path is not None and _is_told(reply := await client.get(dialect.key_path)):
            self.key = carefully(dialect.key, reply)

    def _enter(self, reply: Reply) -> bool:
        """Whether it is worth asking on."""
        if _is_told(reply):
            self._listed = True
            self._say("ok", f"the gateway answers{' and takes the key' if self._has_key else ''}")
            return True
        if reply.status in (404, 405) or (not self._dialect.lists_all and _is_no_scope(reply)):
            self._say("ok", "the gateway answers, and lists no models")
            return True
        verdict = carefully(self._dialect.classify, reply)
        if verdict.code == "budget_exceeded":
            self._over_budget = verdict.message
            return True
        if verdict.kind is Kind.FATAL:
            self._refuse(verdict)
        elif verdict.kind is not Kind.REJECTED:
            if verdict.kind is Kind.OUTAGE and reply.status == 200:  # only the list may be odd: the first row tells
                self.odd = verdict
            elif verdict.kind is Kind.OUTAGE:
                self.away = verdict
            what = "was not reached, so what it would say is not known" if verdict.unsent else "cannot be asked now"
            waits = "waits for it" if self._reached else f"waits for it {UNREACHED_S:.0f} s, with --wait however long"
            self._say("away", f"the gateway {what} ({verdict.code}); a run {waits}: {verdict.message}")
        return verdict.kind is Kind.REJECTED

    def _refuse(self, verdict: Verdict) -> None:
        what = "a request without a key" if verdict.code == "no_api_key" else "this key"
        text = f"the gateway refuses {what} ({verdict.code}): {verdict.message}"
        if self._reached and verdict.recheck_s:
            self._say("warn", text)
        else:
            self._stop(4, text)

    def judge(self, model: str | None, endpoint: str | None) -> None:
        """What the answers mean for a job with this model."""
        if self.key is not None and self.key.blocked:
            self._stop(4, "this key is blocked: ask the gateway's operators, or use another one")
        info = self._judge_model(model) if model is not None else None
        self._judge_budget(info)
        if info is None:
            return
        if info.status in ("down", "degraded"):
            self._say("warn", f"the model {info.id!r} is {info.status} now; a run waits until it answers")
        fits = info.mode == "embedding" if endpoint == EMBEDDINGS else info.mode in CHAT_MODES
        if endpoint is not None and info.mode is not None and not fits:
            self._stop(2, f"the model {info.id!r} is for {info.mode}, not for requests to {endpoint}; choose another")

    def _judge_model(self, model: str) -> ModelInfo | None:
        info = self.models.get(model)
        if info is None:
            if not self._listed or any("*" in name and fnmatchcase(model, name) for name in self.models):
                return None
            text = f"the model {model!r} is not among the {len(self.models)} that this key may ask"
            text += close_names(model, self.models)
            if self._dialect.lists_all and not self._reached:
                self._stop(4, f"{text}: {self._dialect.absent_means}")
            else:
                self._say("warn", text)
            return None
        self._say("ok", f"the model {model!r} is there")
        return info

    def _judge_budget(self, info: ModelInfo | None) -> None:
        text = self._over_budget
        key = self.key
        if key is not None and key.spend is not None and key.max_budget is not None:
            spent = f"{money({'USD': key.spend})} of the key's {money({'USD': key.max_budget})} are spent"
            if key.spend < key.max_budget:
                self._say("ok", spent)
            else:
                text = text or spent
        if text is None:
            return
        if info is not None and info.zero_priced:
            self._say("warn", f"the budget is used up, but {info.id!r} costs nothing: {text}")
            return
        resets = f"; it is renewed at {key.budget_resets}" if key is not None and key.budget_resets else ""
        self._stop(
            5, f"the gateway's budget is used up: {text.rstrip('. ')}{resets}. Free models are refused then, too"
        )

    def _say(self, level: Level, text: str) -> None:
        self.findings.append(Finding(level=level, text=text))

    def _stop(self, exit_code: int, text: str) -> None:
        self.findings.append(Finding(level="stop", text=text, exit_code=exit_code))


def close_names(model: str, names: Iterable[str]) -> str:
    """``; did you mean a, b?``, or the names themselves where they are few and none is close."""
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    close = [by_lower[name] for name in get_close_matches(model.lower(), by_lower, n=3, cutoff=0.5)]
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(sorted(names))}" if 0 < len(names) <= 8 else ""


def _is_told(reply: Reply) -> bool:
    return reply.status == 200 and isinstance(reply.json, dict) and ("data" in reply.json or "info" in reply.json)


def _is_no_scope(reply: Reply) -> bool:
    """OpenAI's restricted keys may not list models, and yet ask them."""
    return reply.status == 403 or (reply.status == 401 and b"insufficient permissions" in reply.body)

"""The script of what goes wrong: a TOML file, a JSON file, or a list of dicts.

TOML has one ``[[faults]]`` table a rule, JSON a list of objects (or ``{"faults": [...]}``)::

    [[faults]]                    # every 10th request is told to slow down
    fault = 429
    retry_after = 2
    every = 10

    [[faults]]                    # a maintenance restart while request 100 is served
    fault = "refused"
    seconds = 3
    between = [100, 100]

    [[faults]]                    # each prompt with "refund" in it fails once; its retry succeeds
    fault = "empty_content"
    match = "refund"
    per_body = 1

``fault`` is one of:

=================  ==================================================================================================
a status, 200-599  that answer, number or text ("503"). ``retry_after`` (seconds or text), ``body`` (text, or a table
                   for JSON; an OpenAI error unless given), ``headers`` (a table).
"html"             a web page, as from a proxy in front. ``status`` (200), ``body``.
"refused"          the listening socket closes for ``seconds`` (1). What is in flight, this request too, is answered.
"reset"            TCP reset. ``at`` = "request" (nothing done or billed; the default), "reply" (the answer was made and
                   billed, no byte of it sent), "body" (billed, cut off halfway).
"hang"             no answer until the client leaves; or ``seconds``, then the connection closes. Not billed.
"slow_headers"     ``seconds`` (1) before the answer is made; billed even when the client left meanwhile.
"slow_body"        the body trickles for ``seconds`` (1).
"truncated_json"   a complete HTTP answer, its JSON (a stream: its events) cut in half.
"front_html"       the bare page of a front proxy, without a header of the gateway's. ``status`` (502), ``body``.
"cut_stream"       streams only: the events end halfway, as if that were all: no finish_reason, no [DONE]. Not billed.
"stream_error"     streams only: an error halfway, as the dialect tells it. Not billed.
"drift"            another model answers: ``upstream``. With ``after = n`` an alias that is moved behind your back.
"empty_choices"    ``choices`` (embeddings: ``data``) is [].
"no_usage"         no ``usage``.
"empty_content"    chat only: ``content`` is "".
"refusal"          chat only: ``message.refusal`` is set, ``content`` is null.
an error by name   as the dialect gives it (``measured``), after ``seconds`` (0). Not billed. What comes from the model,
                   or from the way to it, strikes only chats and embeddings.
=================  ==================================================================================================

=======  ============================================================================================================
openai   bad_key no_key budget parallel requests tokens unknown_model context policy no_route
litellm  bad_key not_a_key no_key expired_key database budget user_budget model_denied bad_json missing internal
         parallel requests tokens unknown_model cooldown model_parallel context policy timeout upstream_400
         upstream_401 upstream_403 upstream_404 upstream_422 upstream_429 (with ``retry_after``, 2) upstream_500
         upstream_refused upstream_reset upstream_html no_route wrong_method. After cooldown, upstream_401 and
         upstream_404 nobody gets to the model until its cooldown is over.
lumen    no_key bad_key disabled requests bad_body missing unknown_model model_denied budget no_endpoints internal
         context policy upstream_400 upstream_401 upstream_429 upstream_500 upstream_html bad_parameter timeout
         no_route wrong_method
=======  ============================================================================================================

When: all keys given must hold; with none the rule applies to every request. Requests are numbered from 1 by arrival,
``GET /ledger`` not counted. The first rule in the script that applies decides, and only its own limits are used up.

=================  ==================================================================================================
every = k          request k, 2k, 3k, ...
first = n          requests 1 to n
after = n          requests n + 1 and on
between = [a, b]   requests a to b, both included
during = [a, b]    so many seconds after the first request: from a on, until b
match = "text"     "text" is in the body
path = "text"      "text" is in the path ("/embeddings")
probability = p    by chance, drawn from the seed, the body and how often it came before: the same in every run
times = n          at most n times
per_body = n       at most n times for each distinct body
=================  ==================================================================================================
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.errors import UsageError
from pipeline.simulator.measured import MEASURED
from pipeline.simulator.problem import Problem

_PAGE = b"<!DOCTYPE html><html><head><title>One moment</title></head><body>Please try again later.</body></html>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One ``[[faults]]`` table, checked. ``match`` holds the text as it may stand in JSON: plain, and escaped."""

    fault: str
    status: int | None = None
    retry_after: str | None = None
    body: bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float | None = None
    at: str = "request"
    every: int | None = None
    first: int | None = None
    after: int | None = None
    between: tuple[int, int] | None = None
    during: tuple[float, float] | None = None
    match: tuple[bytes, ...] = ()
    path: str | None = None
    probability: float | None = None
    times: int | None = None
    per_body: int | None = None
    upstream: str | None = None

    def problem(self) -> Problem:
        """What is answered, where the rule says it all."""
        status = self.status or 200
        web_page = self.fault in ("html", "front_html")
        kind = "requests" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        wait = (("Retry-After", self.retry_after),) if self.retry_after is not None else ()
        return Problem(
            status=status,
            type=kind,
            message="Scripted fault.",
            code="scripted",
            headers=(*wait, *self.headers),
            body=_PAGE if self.body is None and web_page else self.body,
            bare=self.fault == "front_html",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """A checked script; without rules nothing goes wrong."""

    rules: tuple[Rule, ...] = ()

    @classmethod
    def from_list(cls, script: Iterable[Mapping[str, Any]], *, source: str = "faults") -> Faults:
        """Checks the rules; ``source`` is what an error calls the script."""
        return cls(rules=tuple(_rule(table, f"{source}[{index}]") for index, table in enumerate(script)))

    @classmethod
    def from_file(cls, path: Path) -> Faults:
        """Reads a script: JSON if the name ends in ``.json``, else TOML."""
        try:
            text = path.read_text(encoding="utf-8")
            script = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as exc:
            raise UsageError(f"cannot read the fault script {path}: {exc.strerror}") from exc
        except ValueError as exc:  # both decoders, and text that is not UTF-8
            raise UsageError(f"{path}: expected a TOML or .json fault script: {exc}") from exc
        if isinstance(script, dict):
            for key in script.keys() - {"faults"}:
                raise UsageError(f'{path}: {key}: expected only "faults", a list of rules ([[faults]] in TOML)')
            script = script.get("faults")
        if not isinstance(script, list):
            raise UsageError(f"{path}: faults: expected a list of rules ([[faults]] in TOML), got {script!r}")
        return cls.from_list(script, source=f"{path}: faults")

    def check(self, dialect: str) -> None:
        """Raises where a rule names an error that this dialect does not have."""
        for index, rule in enumerate(self.rules):
            speakers = [name for name, errors in MEASURED.items() if rule.fault in errors]
            if speakers and dialect not in speakers:
                known = ", ".join(f'"{name}"' for name in MEASURED[dialect])
                raise UsageError(
                    f'faults[{index}].fault: "{rule.fault}" is an error of {" and ".join(speakers)}, not of the dialect '
                    f"{dialect}, which has {known}"
                )


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError
    return value


def _number(value: Any, most: float = 1e6) -> float:
    if type(value) not in (int, float) or not 0 <= value <= most:
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError
    return value


def _span(value: Any) -> tuple[int, int]:
    first, last = map(_count, value)
    if first > last:
        raise ValueError
    return first, last


def _stretch(value: Any) -> tuple[float, float]:
    begins, ends = map(_number, value)
    if begins >= ends:
        raise ValueError
    return begins, ends


def _status(value: Any) -> int:
    if type(value) not in (int, str) or not 200 <= int(value) <= 599:
        raise ValueError
    return int(value)


def _body(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def _headers(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((_text(name), str(text)) for name, text in value.items())


def _needles(value: Any) -> tuple[bytes, ...]:
    text = _text(value)
    forms = (json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (False, True))
    return tuple(dict.fromkeys(forms))


def _at(value: Any) -> str:
    if value not in ("request", "reply", "body"):
        raise ValueError
    return str(value)


def _retry_after(value: Any) -> str:
    return value if isinstance(value, str) else f"{_number(value):g}"


_COUNT = ("a whole number of at least 1", _count)
_CHECKS: Mapping[str, tuple[str, Callable[[Any], Any]]] = MappingProxyType(
    {
        "status": ("a status from 200 to 599", _status),
        "retry_after": ("a number of seconds, or text", _retry_after),
        "body": ("text, or a table for JSON", _body),
        "headers": ("a table of header names and values", _headers),
        "seconds": ("a number of seconds", _number),
        "at": ('"request", "reply" or "body"', _at),
        "every": _COUNT,
        "first": _COUNT,
        "after": _COUNT,
        "between": ("two arrival numbers, [first, last]", _span),
        "during": ("two numbers of seconds, [from, until]", _stretch),
        "match": ("some text", _needles),
        "path": ("some text", _text),
        "probability": ("a number from 0 to 1", lambda value: _number(value, most=1)),
        "times": _COUNT,
        "per_body": _COUNT,
        "upstream": ("some text", _text),
    }
)
_WHEN = ("every", "first", "after", "between", "during", "match", "path", "probability", "times", "per_body")
_STATUS_KEYS = ("retry_after", "body", "headers")
_FAULT_KEYS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **{name: ("seconds",) for errors in MEASURED.values() for name in errors},
        "upstream_429": ("seconds", "retry_after"),
        **dict.fromkeys(("html", "front_html"), ("status", "body")),
        **dict.fromkeys(("refused", "hang", "slow_headers", "slow_body"), ("seconds",)),
        **dict.fromkeys(("truncated_json", "cut_stream", "stream_error"), ()),
        **dict.fromkeys(("empty_choices", "no_usage", "empty_content", "refusal"), ()),
        "reset": ("at",),
        "drift": ("upstream",),
    }
)


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    if not isinstance(table, Mapping):
        raise UsageError(f"{where}: expected a table with a fault, got {table!r}")
    fault, fields, own_keys = _fault(table.get("fault"), where)
    for key, value in table.items():
        if key == "fault":
            continue
        if key not in own_keys and key not in _WHEN:
            raise UsageError(f'{where}.{key}: expected one of {", ".join((*own_keys, *_WHEN))} with fault "{fault}"')
        expected, check = _CHECKS[key]
        try:
            fields[key] = check(value)
        except (ValueError, TypeError, AttributeError) as exc:
            raise UsageError(f"{where}.{key}: expected {expected}, got {value!r}") from exc
    return Rule(fault=fault, **fields)


def _fault(value: Any, where: str) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """The fault's name in the ledger, the fields it implies, and the keys it takes."""
    if isinstance(value, str) and value in _FAULT_KEYS:
        page = {"html": 200, "front_html": 502}.get(value)
        return value, {} if page is None else {"status": page}, _FAULT_KEYS[value]
    try:
        status = _status(value)
    except (ValueError, TypeError) as exc:
        known = ", ".join(f'"{name}"' for name in _FAULT_KEYS)
        raise UsageError(f"{where}.fault: expected a status from 200 to 599 or one of {known}, got {value!r}") from exc
    return str(status), {"status": status}, _STATUS_KEYS

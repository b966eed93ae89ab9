"""A row becomes a request: template + system + params -> canonical JSON -> fingerprint.

The template is the job's; row data only ever fills it and is never compiled. A null column is the row's error unless the
template says what to do with it (``{{ body or "" }}``), a column that no row has is the job's error before the start.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.meta
import jinja2.nodes
import jinja2.sandbox
import orjson

from pipeline.errors import InputError, RowError, TemplateError
from pipeline.jsonio import dumps, loads
from pipeline.records import Row

CHAT = "/chat/completions"
BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})
_ENDPOINTS = {"/v1/chat/completions": CHAT}
_BYTES_PER_TOKEN = 4  # a rough, cheap estimate for English and JSON


class Null(jinja2.Undefined):
    """A null or absent column in a template: false, replaced by ``default``, and an error where it would be written."""

    def _fail_with_undefined_error(self, *_: Any, **__: Any) -> Any:
        name = self._undefined_name
        raise RowError("null_field", f"the column {name!r} is null; write {{{{ {name} or '' }}}} to allow that")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = (
        _fail_with_undefined_error
    )
    __mod__ = __rmod__ = __pos__ = __neg__ = __call__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = (
        _fail_with_undefined_error
    )
    __int__ = __float__ = __complex__ = __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = _fail_with_undefined_error
    __str__ = __len__ = __iter__ = __contains__ = __abs__ = __round__ = _fail_with_undefined_error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail_with_undefined_error()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return "None"  # as it looks inside a struct or a list that is written whole


_MISFITS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, MemoryError)
_WRITABLE = (str, int, float, Decimal, date, time, timedelta, list, tuple, dict, jinja2.Undefined)


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """One request's endpoint, model, canonical body and fingerprint (16 bytes)."""

    endpoint: str
    model: str
    body: bytes
    fingerprint: bytes

    @property
    def estimated_tokens(self) -> int:
        """A rough count of prompt tokens, for reservations only."""
        return len(self.body) // _BYTES_PER_TOKEN


class Template:
    """``compose(row)`` for every row of one job.

    ``columns`` are the names the first rows have: they decide whether the rows are OpenAI batch lines, bring ``messages``
    or a ``prompt``, or need the job's template, and the template is checked against them. Raises ``TemplateError``.
    """

    def __init__(
        self,
        *,
        family: str,
        model: str | None,
        prompt: str | None,
        system: str | None,
        params: dict[str, Any],
        replace_model: bool,
        columns: Collection[str],
    ) -> None:
        self._salt = family.encode() + b"\0"
        self._model = model
        self._params = params
        self._replace_model = replace_model
        self.kind, self._compose = self._choose(prompt, system, columns)
        environment = _environment(columns)
        self._prompt = _Text(environment, "prompt", prompt, columns) if prompt is not None else None
        self._system = _Text(environment, "system", system, columns) if system is not None else None

    def _choose(self, prompt: str | None, system: str | None, columns: Collection[str]) -> tuple[str, Any]:
        if prompt is None and {"custom_id", "url", "body"} <= set(columns):
            if system is not None:
                raise TemplateError("request.system: batch lines bring their own messages; take it out")
            return "batch", self._from_batch_line
        if self._model is None:
            raise TemplateError("model is missing (or -m MODEL): only OpenAI batch lines bring their own")
        if prompt is not None or "prompt" in columns:
            return "prompt", self._from_prompt
        if "messages" in columns:
            return "messages", self._from_messages
        raise TemplateError(
            "request.prompt is missing (or -p TEMPLATE): the input has no column 'prompt' or 'messages'; "
            f"its columns are: {', '.join(sorted(columns))}"
        )

    def compose(self, row: Row) -> Composed:
        """The request of one row. Raises ``RowError`` for what is this row's own fault, ``InputError`` for a bad line."""
        endpoint, body = self._compose(row.data)
        canonical = dumps(body, sort_keys=True)
        return Composed(
            endpoint=endpoint,
            model=body["model"],
            body=canonical,
            fingerprint=self._fingerprint(endpoint, canonical),
        )

    def fingerprint_of_error(self, row: Row, error: RowError) -> bytes:
        """The identity of a row that cannot become a request: the same row with the same error has the same one."""
        return self._fingerprint("error " + error.code, dumps([error.message, row.data], sort_keys=True))

    def _fingerprint(self, endpoint: str, canonical: bytes) -> bytes:
        digest = hashlib.blake2b(self._salt, digest_size=16)
        digest.update(endpoint.encode())
        digest.update(b"\0")
        digest.update(canonical)
        return digest.digest()

    def _from_prompt(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        text: Any
        if self._prompt is not None:
            text = self._prompt.render(data)
        else:
            text = data.get("prompt")
            if text is None:
                raise RowError("null_field", "the column 'prompt' is null")
            if not isinstance(text, str):
                raise RowError("bad_prompt", f"the column 'prompt' is {_kind(text)}, not text")
        return CHAT, self._body(data, [{"role": "user", "content": text}])

    def _from_messages(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        messages = _parsed(data.get("messages"), "messages")
        if (
            not isinstance(messages, list)
            or not messages
            or not all(isinstance(m, dict) and m.get("role") for m in messages)
        ):
            raise RowError("bad_messages", "the column 'messages' must be a list of objects with 'role' and 'content'")
        return CHAT, self._body(data, [{k: v for k, v in m.items() if v is not None} for m in messages])

    def _body(self, data: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
        if self._system is not None:
            messages = [{"role": "system", "content": self._system.render(data)}, *messages]
        body = {"model": self._model, **self._params, "messages": messages}
        if data.get("params") not in (None, ""):  # "" is the only null that CSV has
            for name, value in self._row_params(data).items():
                if value is None:
                    body.pop(name, None)
                else:
                    body[name] = value
        return body

    def _row_params(self, data: dict[str, Any]) -> dict[str, Any]:
        params = _parsed(data["params"], "params")
        if not isinstance(params, dict):
            raise RowError("bad_params", f"the column 'params' is {_kind(params)}, not an object")
        for name in ("messages", "stream"):
            if params.get(name) is not None:
                raise RowError("bad_params", f"the column 'params' must not set {name!r}")
        model = params.get("model")
        if model is not None and (not isinstance(model, str) or not model):
            raise RowError("bad_params", f"the column 'params' sets 'model' to {_kind(model)}, not a model's name")
        return {name: value for name, value in params.items() if value is not None or name not in ("model", "messages")}

    def _from_batch_line(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        body = _parsed(data.get("body"), "body")
        if not isinstance(body, dict):
            raise InputError(f"the batch line's 'body' is {_kind(body)}, not an object")
        if data.get("method", "POST") != "POST":
            raise InputError(f"the batch line's 'method' is {data['method']!r}, not 'POST'")
        endpoint = _ENDPOINTS.get(str(data.get("url")))
        if endpoint is None:
            raise InputError(
                f"the batch line's 'url' is {data.get('url')!r}; this version takes {', '.join(_ENDPOINTS)}"
            )
        if body.get("stream"):
            raise InputError("the batch line asks for 'stream': true; take it out, the answer comes whole")
        return endpoint, self._with_model({**self._params, **body})

    def _with_model(self, body: dict[str, Any]) -> dict[str, Any]:
        named = body.get("model")
        if self._model is None:
            if not isinstance(named, str) or not named:
                raise InputError("the batch line names no model, and neither does the job; add model (or -m MODEL)")
        elif named is None or self._replace_model:
            body["model"] = self._model
        elif named != self._model:
            raise InputError(
                f"the batch line names the model {named!r}, the job {self._model!r}: leave out the job's model, or say "
                "request.replace_model = true (--set request.replace_model=true)"
            )
        return body


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Data first: ``{{ s.items }}`` is the member of that name, not a method of Python's. What is unsafe raises at once."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of {_kind(obj)} is not for templates")


def _environment(columns: Collection[str]) -> _Environment:
    environment = _Environment(undefined=Null, finalize=_finalize, keep_trailing_newline=True, autoescape=False)
    environment.tests["none"] = lambda value: value is None or isinstance(value, Null)
    environment.filters["tojson"] = _tojson
    # Chance has no place here: a request is composed more than once, and is known by its fingerprint.
    del environment.filters["random"], environment.globals["lipsum"]
    for name in columns:
        environment.globals.pop(name, None)  # a column called "range" is no function in rows that lack it
    return environment


def _finalize(value: Any) -> Any:
    if isinstance(value, _WRITABLE):
        return value
    if value is None:
        raise RowError("null_field", "a value that the template writes is null; say what to write then: {{ x or '' }}")
    if isinstance(value, bytes):
        raise RowError("binary_field", "a value that the template writes is binary, not text")
    # Functions and generators would be written as their address in memory: another request each time.
    found = type(value).__name__
    raise RowError("template_error", f"the template writes a {found}, not a value; call it, or add |list")


def _tojson(value: Any, indent: int | None = None) -> str:
    text = dumps(_with_nones(value)).decode()
    return text if indent is None else json.dumps(json.loads(text), indent=indent, ensure_ascii=False)


def _with_nulls(value: Any, name: str) -> Any:
    """Null wherever there is None, however deep: ``{{ s.a|upper }}`` must not write NONE."""
    if value is None:
        return Null(name=name)
    if isinstance(value, dict):
        return {key: _with_nulls(member, f"{name}[{key!r}]") for key, member in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item, f"{name}[{at}]") for at, item in enumerate(value)]
    return value


def _with_nones(value: Any) -> Any:
    if isinstance(value, Null):
        return None
    if isinstance(value, dict):
        return {key: _with_nones(member) for key, member in value.items()}
    return [_with_nones(item) for item in value] if isinstance(value, list | tuple) else value


class _Text:
    """One compiled template text and the columns it asks for. Raises ``TemplateError``."""

    def __init__(self, environment: _Environment, what: str, text: str, columns: Collection[str]) -> None:
        try:
            tree = environment.parse(text)
            self._template = environment.from_string(text)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"request.{what}, line {exc.lineno}: {exc.message}") from None
        self._names = sorted(jinja2.meta.find_undeclared_variables(tree))
        for name in self._names:
            if name not in columns and name != "row" and name not in environment.globals:
                line = min(node.lineno for node in tree.find_all(jinja2.nodes.Name) if node.name == name)
                raise TemplateError(f"request.{what}, line {line}: {_no_column(name, columns)}")

    def render(self, data: dict[str, Any]) -> str:
        """The text for one row. Raises ``RowError``."""
        names = {name: _with_nulls(data[name], name) for name in self._names if name in data}
        if "row" in self._names:
            names.setdefault("row", _with_nulls(data, "row"))
        try:
            return self._template.render(names)
        except jinja2.TemplateError as exc:
            raise RowError("template_error", f"the template does not fit this row: {exc.message}") from exc
        except _MISFITS as exc:
            words = str(exc) or type(exc).__name__
            raise RowError("template_error", f"the template does not fit this row: {words}") from exc


def _no_column(name: str, columns: Collection[str]) -> str:
    close = difflib.get_close_matches(name, columns, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    return f"the input has no column {name!r}{hint}; its columns are: {', '.join(sorted(columns))}"


def _parsed(value: Any, column: str) -> Any:
    """A column that holds JSON, or JSON as text (CSV has nothing else)."""
    if value is None:
        raise RowError("null_field", f"the column {column!r} is null")
    if isinstance(value, str):
        try:
            return loads(value.encode())
        except ValueError as exc:
            raise RowError(f"bad_{column}", f"the column {column!r} is not JSON: {exc}") from exc
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)


def spec_digest(**parts: Any) -> str:
    """A digest of all that makes a request besides the row: when it is the same, fingerprints are."""
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS, default=str), digest_size=16).hexdigest()

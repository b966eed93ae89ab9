"""A row becomes a request: template + system + params -> canonical JSON -> fingerprint.

The template is the job's; row data only ever fills it and is never compiled. A null column is the row's error unless the
template says what to do with it (``{{ body or "" }}``), a column that no row has is the job's error before the start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import orjson

from pipeline.errors import InputError, RowError, TemplateError
from pipeline.ground.frozen import frozen
from pipeline.ground.jsonio import dumps, loads
from pipeline.ground.visible import listed
from pipeline.records import CHAT, COMPLETIONS, EMBEDDINGS, Row
from pipeline.template.images import Images
from pipeline.template.text import Text, environment_for, kind_of, no_column

__all__ = ["BATCH_KEYS", "Composed", "Images", "Template", "spec_digest"]

BATCH_KEYS = frozenset({"custom_id", "method", "url", "body"})
_ENDPOINTS = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETIONS, "/v1/embeddings": EMBEDDINGS}
_BYTES_PER_TOKEN = 4  # a rough, cheap estimate for English and JSON
_TOKENS_PER_IMAGE = 1000


@frozen
class Composed:
    """One request's endpoint, model, body and fingerprint (16 bytes). The body is canonical, save for its ``images``:
    they stand in it as they go out (``image_bytes`` more), while the fingerprint knows them by their digests."""

    endpoint: str
    model: str
    body: bytes
    fingerprint: bytes
    images: int = 0
    image_bytes: int = 0

    @property
    def estimated_tokens(self) -> int:
        """A rough count of prompt tokens, for reservations only."""
        return (len(self.body) - self.image_bytes) // _BYTES_PER_TOKEN + _TOKENS_PER_IMAGE * self.images


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
        endpoint: str = "chat",
        images: Images | None = None,
        endpoints: Collection[str] = frozenset(_ENDPOINTS.values()),
    ) -> None:
        """``endpoints`` are those the gateway has; ``endpoint`` is the job's."""
        self.images = images
        self._embeds = endpoint == "embeddings"
        self._endpoints = endpoints
        self._family = family
        self._salt = family.encode()
        self._begun: dict[str, Any] = {}  # digests of what the requests of an endpoint begin with
        self._model = model
        self._params = params
        self._replace_model = replace_model
        self.kind, self._compose = self._choose(prompt, system, columns)
        environment = environment_for(columns)
        self._prompt = Text(environment, "prompt", prompt, columns) if prompt is not None else None
        self._system = Text(environment, "system", system, columns) if system is not None else None

    def _choose(self, prompt: str | None, system: str | None, columns: Collection[str]) -> tuple[str, Any]:
        for column in self.images.columns if self.images is not None else ():
            if column not in columns:
                raise TemplateError(f"request.images: {no_column(column, columns)}")
        if prompt is None and {"custom_id", "url", "body"} <= set(columns):
            if self.images is not None:
                raise TemplateError("request.images: batch lines bring their own; take it out")
            if system is not None:
                raise TemplateError("request.system: batch lines bring their own messages; take it out")
            return "batch", self._from_batch_line
        if self._model is None:
            raise TemplateError("model is missing (or -m MODEL): only OpenAI batch lines bring their own")
        if prompt is not None or "prompt" in columns:
            return "prompt", self._from_text if self._embeds else self._from_prompt
        if self._embeds:
            if self.images is not None:
                return "images", self._from_image
            raise TemplateError(
                "request.prompt is missing (or -p TEMPLATE): embeddings are made of one text a row, and the input has no "
                f"column 'prompt'; its columns are: {listed(sorted(columns))}"
            )
        if "messages" in columns:
            return "messages", self._from_messages
        raise TemplateError(
            "request.prompt is missing (or -p TEMPLATE): the input has no column 'prompt' or 'messages'; "
            f"its columns are: {listed(sorted(columns))}"
        )

    def compose(self, row: Row, folder: Path | None = None, *, whole: bool = True) -> Composed:
        """The request of one row. Raises ``RowError`` for what is this row's own fault, ``InputError`` for a bad line.

        ``folder`` is what paths of images are relative to. Unless ``whole``, images stand in the body as their digests:
        enough for the fingerprint, and for people.
        """
        if self.images is not None:
            return self._with_images(self.images, row.data, folder or Path(), whole=whole)
        endpoint, body = self._compose(row.data)
        canonical = dumps(body, sort_keys=True)
        return Composed(
            endpoint=endpoint,
            model=body["model"],
            body=canonical,
            fingerprint=self._fingerprint(endpoint, canonical),
        )

    def _with_images(self, images: Images, data: dict[str, Any], folder: Path, *, whole: bool) -> Composed:
        found = images.of(data, folder, whole=whole)
        endpoint, body = self._compose(data)
        canonical = dumps(_showing([image.identity for image in found], body), sort_keys=True)
        sent = dumps(_showing([image.url for image in found], body), sort_keys=True) if whole else canonical
        return Composed(
            endpoint=endpoint,
            model=body["model"],
            body=sent,
            fingerprint=self._fingerprint(endpoint, canonical),
            images=len(found),
            image_bytes=len(sent) - len(canonical),
        )

    def fingerprint(self, data: dict[str, Any], folder: Path) -> bytes:
        """That of the request which ``compose`` would make of a row, or of its error. Raises ``InputError`` for a bad line."""
        try:
            if self.images is not None:
                return self._with_images(self.images, data, folder, whole=False).fingerprint
            endpoint, body = self._compose(data)
        except RowError as error:
            return self.fingerprint_of_error(data, error)
        return self._fingerprint(endpoint, dumps(body, sort_keys=True))

    def fingerprint_of_error(self, data: dict[str, Any], error: RowError) -> bytes:
        """The identity of a row that cannot become a request: the same row with the same error has the same one."""
        return self._fingerprint("error " + error.code, dumps([error.message, data], sort_keys=True))

    def _fingerprint(self, endpoint: str, canonical: bytes) -> bytes:
        if endpoint not in self._begun:
            self._begun[endpoint] = hashlib.blake2b(b"%b\0%b\0" % (self._salt, endpoint.encode()), digest_size=16)
        digest = self._begun[endpoint].copy()
        digest.update(canonical)
        return bytes(digest.digest())

    def _from_text(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return EMBEDDINGS, self._with_params(data, {"model": self._model, **self._params, "input": self._text(data)})

    def _from_image(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return EMBEDDINGS, self._with_params(data, {"model": self._model, **self._params})

    def _from_prompt(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        return CHAT, self._body(data, [{"role": "user", "content": self._text(data)}])

    def _text(self, data: dict[str, Any]) -> str:
        if self._prompt is not None:
            return self._prompt.render(data)
        text = data.get("prompt")
        if text is None:
            raise RowError("null_field", "the column 'prompt' is null")
        if not isinstance(text, str):
            raise RowError("bad_prompt", f"the column 'prompt' is {kind_of(text)}, not text")
        return text

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
        return self._with_params(data, {"model": self._model, **self._params, "messages": messages})

    def _with_params(self, data: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
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
            raise RowError("bad_params", f"the column 'params' is {kind_of(params)}, not an object")
        for name in (
            "messages",
            "stream",
            "stream_options",
            "api_key",
            "extra_headers",
            *(("input", "encoding_format") if self._embeds else ()),
        ):
            if params.get(name) is not None:
                raise RowError("bad_params", f"the column 'params' must not set {name!r}")
        model = params.get("model")
        if model is not None and (not isinstance(model, str) or not model or "," in model):
            raise RowError("bad_params", f"the column 'params' sets 'model' to {model!r}, not the name of one model")
        return {
            name: value
            for name, value in params.items()
            if value is not None or name not in ("model", "messages", "input")
        }

    def _from_batch_line(self, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        try:
            body = _parsed(data.get("body"), "body")
        except RowError as exc:
            raise InputError(f"the batch line is not whole: {exc.message}") from exc
        if not isinstance(body, dict):
            raise InputError(f"the batch line's 'body' is {kind_of(body)}, not an object")
        if data.get("method", "POST") != "POST":
            raise InputError(f"the batch line's 'method' is {data['method']!r}, not 'POST'")
        endpoint = _ENDPOINTS.get(str(data.get("url")))
        if endpoint is None:
            raise InputError(
                f"the batch line's 'url' is {data.get('url')!r}; this version takes {', '.join(_ENDPOINTS)}"
            )
        self._check_endpoint(endpoint, body)
        if body.get("stream"):
            raise InputError("the batch line asks for 'stream': true; take it out, the answer comes whole")
        return endpoint, self._with_model({**self._params, **body})

    def _check_endpoint(self, endpoint: str, body: dict[str, Any]) -> None:
        if endpoint not in self._endpoints:
            there = ", ".join(url for url, one in _ENDPOINTS.items() if one in self._endpoints)
            raise InputError(
                f"the batch line's 'url' is '/v1{endpoint}', which {self._family} does not have; it has {there}"
            )
        if self._embeds and endpoint != EMBEDDINGS:
            raise InputError(
                f"the batch line's 'url' is '/v1{endpoint}', but the job says request.endpoint = \"embeddings\""
            )
        if endpoint != EMBEDDINGS:
            return
        if body.get("input") in (None, "", []):
            raise InputError("the batch line's 'body' has no 'input' to embed")
        several = isinstance(body["input"], list) and len(body["input"]) > 1 and type(body["input"][0]) is not int
        if self._embeds and several:
            raise InputError(
                f"the batch line asks for {len(body['input'])} vectors: a row of the results has one. Write a line for each, "
                "or leave request.endpoint out"
            )

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
        if "," in body["model"]:
            raise InputError(
                f"the batch line names several models, {body['model']!r}: each would be paid for; name one"
            )
        return body


def _showing(urls: list[str], body: dict[str, Any]) -> dict[str, Any]:
    """The body with these images after the text of its last user message; for embeddings the one image is the input."""
    if "messages" not in body:
        if "input" in body or len(urls) != 1:
            raise RowError("too_many_images", "a vector is made of one text or of one image, not of several")
        return {**body, "input": urls[0]}
    messages = list(body["messages"])
    at = next((at for at in reversed(range(len(messages))) if messages[at]["role"] == "user"), None)
    if at is None:
        raise RowError("bad_messages", "there is no user message for the image to go with")
    content = messages[at].get("content") or []
    text = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    messages[at] = {**messages[at], "content": [*text, *parts]}
    return {**body, "messages": messages}


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


def spec_digest(**parts: Any) -> str:
    """A digest of all that makes a request besides the row: when it is the same, fingerprints are."""
    return hashlib.blake2b(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS, default=str), digest_size=16).hexdigest()

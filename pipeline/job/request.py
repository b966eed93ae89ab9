"""``[request]``: how a row becomes a request."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipeline.errors import JobError
from pipeline.ground.readable import read_text
from pipeline.job.table import FilePath, Table, Text

_RESERVED_PARAMS = {
    "model": "'model' has a place of its own: model = ... at the top of the job, or -m MODEL",
    "messages": "'messages' are made from request.prompt and request.system, or come in a column of that name",
    "stream": "'stream' is said in the gateway's table: stream = true",
    "stream_options": "'stream_options' are ours to set, with gateway.stream",
    "api_key": "'api_key' cannot stand in a job: a key comes from the environment, see gateway.api_key_env",
    "extra_headers": "'extra_headers' cannot be set: a job is stored, and headers carry keys",
}


class RequestSettings(Table):
    """``[request]``: how a row becomes a request.

    ``images`` names columns whose pictures are shown to the model after the prompt. Embeddings rows share calls: ``pack``
    of them, as long as they are of about ``pack_tokens`` together. ``dedupe`` sends rows that ask the same once.
    """

    endpoint: Literal["chat", "embeddings"] = "chat"
    system: str | None = None
    prompt: Text | None = None
    prompt_file: FilePath | None = None
    params: dict[str, Any] = Field(default_factory=dict)
    replace_model: bool = False
    on_length: Literal["keep", "fail"] = "keep"
    images: list[Text] = Field(default_factory=list)
    max_images: int = Field(default=16, ge=1)
    max_image_bytes: int = Field(default=20 << 20, ge=1)
    pack: int = Field(default=32, ge=1, le=2048)
    pack_tokens: int = Field(default=50_000, ge=1)
    dedupe: bool = False

    def prompt_text(self) -> str | None:
        """The prompt template, from its file if it is in one. Raises ``JobError`` where that cannot be read."""
        path = self.prompt_file
        if path is None:
            return self.prompt
        try:
            text = read_text(path)
        except UnicodeDecodeError as exc:
            raise JobError(f"request.prompt_file: {path} is not UTF-8 text (byte {exc.start + 1})") from exc
        except OSError as exc:
            raise JobError(f"request.prompt_file: cannot read {path}: {exc.strerror}") from exc
        if not text.strip():
            raise JobError(f"request.prompt_file: {path} is empty; it must hold the prompt template")
        return text

    @field_validator("params")
    @classmethod
    def _no_reserved(cls, params: dict[str, Any]) -> dict[str, Any]:
        for name, value in params.items():
            if name in _RESERVED_PARAMS:
                raise ValueError(_RESERVED_PARAMS[name])
            if not _is_json(value):
                raise ValueError(
                    f"{name} is no JSON value: expected text, a finite number of 64 bits, true, false, a list or a table"
                )
        return params

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("prompt and prompt_file are both given; keep one")
        return self

    @model_validator(mode="after")
    def _fits_the_endpoint(self) -> Self:
        if self.endpoint != "embeddings":
            return self
        if self.system is not None:
            raise ValueError(
                'system does not go with endpoint = "embeddings": put an instruction into the prompt itself'
            )
        for name in ("input", "encoding_format"):
            if name in self.params:
                raise ValueError(
                    f"params.{name} cannot be set: the text is request.prompt, and vectors come in full precision"
                )
        return self


def _is_json(value: Any) -> bool:
    match value:
        case dict():
            return all(_is_json(member) for member in value.values())
        case list():
            return all(_is_json(item) for item in value)
        case float():
            return math.isfinite(value)
        case bool():
            return True
        case int():
            return -(2**63) <= value < 2**64
    return value is None or isinstance(value, str)

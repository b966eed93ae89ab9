"""A job: one TOML file, or none, plus options, as one frozen, checked ``Job``. Every setting is written once, here.

Order: option > environment (``PIPELINE_*``) > job file > preset. All problems are reported at once, each with its key.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from pipeline.errors import JobError
from pipeline.presets import PRESETS, Preset

OutputFormat = Literal["parquet", "jsonl", "csv", "batch"]
FORMAT_OF_ENDING: dict[str, OutputFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
}
_RESERVED_PARAMS = ("model", "messages", "stream")


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Gateway(_Table):
    """``[gateway]``: which server, with which key, and how to reach it. Times in seconds."""

    preset: str = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: Path | None = Field(default=None, strict=False)
    concurrency: int | None = Field(default=None, ge=1, le=10_000)
    timeout: float = Field(default=600.0, gt=0)
    connect_timeout: float = Field(default=30.0, gt=0)
    ip_version: Literal["auto", 4, 6] = "auto"

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are: {', '.join(sorted(PRESETS))}")
        return name

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"a base URL starts with http:// or https://, not {url!r}")
        if url is not None and "@" in url.split("/")[2]:
            raise ValueError("a base URL must not hold a key or password; put the key in the environment")
        return url.rstrip("/") if url else url


class Input(_Table):
    """``[input]``: the prompt set. ``path`` is a file, glob or folder, or ``-`` for JSONL on standard input."""

    path: str
    id: str | None = None


class RequestSettings(_Table):
    """``[request]``: how a row becomes a request."""

    system: str | None = None
    prompt: str | None = None
    prompt_file: Path | None = Field(default=None, strict=False)
    params: dict[str, Any] = Field(default_factory=dict)
    replace_model: bool = False
    on_length: Literal["keep", "fail"] = "keep"

    @field_validator("params")
    @classmethod
    def _no_reserved(cls, params: dict[str, Any]) -> dict[str, Any]:
        for name in _RESERVED_PARAMS:
            if name in params:
                raise ValueError(f"{name!r} is not a parameter: it has a place of its own in the job")
        try:
            orjson.dumps(params)
        except TypeError as exc:
            raise ValueError(f"params must be JSON values: {exc}") from exc
        return params

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt is not None and self.prompt_file is not None:
            raise ValueError("prompt and prompt_file are both given; keep one")
        return self


class Limits(_Table):
    """``[limits]``: what ends a row. ``max_attempts`` counts tries that went wrong through the server."""

    max_attempts: int = Field(default=5, ge=1, le=100)


class Output(_Table):
    """``[output]``: the results file. ``keep`` names the input columns to keep (None: all)."""

    path: Path = Field(strict=False)
    format: OutputFormat | None = None
    keep: list[str] | None = None
    prefix: str = ""


class Price(_Table):
    """``[prices."MODEL"]``: per million tokens, in ``unit``."""

    input_per_million: float = Field(ge=0)
    output_per_million: float = Field(default=0.0, ge=0)
    cached_per_million: float | None = Field(default=None, ge=0)
    unit: Literal["USD", "coins"] = "USD"


class Job(_Table):
    """Everything a run needs to know. Make one with ``Job.load`` or, in Python, ``Job(model=..., input=..., ...)``."""

    gateway: Gateway = Field(default_factory=Gateway)
    model: str | None = Field(default=None, min_length=1)
    input: Input
    request: RequestSettings = Field(default_factory=RequestSettings)
    limits: Limits = Field(default_factory=Limits)
    output: Output
    prices: dict[str, Price] = Field(default_factory=dict)
    run_dir: Path | None = Field(default=None, strict=False)
    source: Path | None = Field(default=None, exclude=True, strict=False)

    @field_validator("gateway", mode="before")
    @classmethod
    def _gateway_by_name(cls, value: Any) -> Any:
        return {"preset": value} if isinstance(value, str) else value

    @field_validator("input", "output", mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": str(value)} if isinstance(value, str | Path) else value

    @field_validator("model")
    @classmethod
    def _one_model(cls, model: str | None) -> str | None:
        if model is not None and "," in model:
            raise ValueError("one model a job: a comma would ask several models at once, and pay for all of them")
        return model

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.gateway.base_url is None and self.preset.base_url is None and self.preset.name != "simulator":
            raise ValueError(f"gateway.base_url: the preset {self.preset.name!r} needs one, e.g. https://host/v1")
        if self.gateway.base_url is not None:
            _check_ip_version(self.gateway.base_url, self.gateway.ip_version)
        if self.output.format is None and self.output.path.suffix.lower() not in FORMAT_OF_ENDING:
            raise ValueError(
                f"output.path: the ending of {self.output.path.name!r} names no format; use "
                f"{', '.join(FORMAT_OF_ENDING)}, or set output.format to one of {', '.join(get_args(OutputFormat))}"
            )
        return self

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        overrides: Mapping[str, Any] | None = None,
    ) -> Job:
        """Read a job file, if any, and lay ``overrides`` (dotted key -> value) over it.

        Paths in the file are relative to the file, paths in ``overrides`` to the working folder. Raises ``JobError``
        that lists every problem with its key path.
        """
        tables: dict[str, Any] = {}
        if path is not None:
            tables = _read_toml(Path(path))
            _anchor(tables, Path(path).resolve().parent)
            tables["source"] = str(Path(path).resolve())
        laid: dict[str, Any] = {}
        for key, value in (overrides or {}).items():
            _lay(laid, key, value)
        _anchor(laid, Path.cwd())
        _merge(tables, laid)
        try:
            return cls.model_validate(tables)
        except ValidationError as exc:
            raise JobError(_problems(exc, path)) from None

    @property
    def preset(self) -> Preset:
        """The preset this job builds on."""
        return PRESETS[self.gateway.preset]

    @property
    def base_url(self) -> str | None:
        """Where requests go, without a trailing slash; None for the embedded simulator."""
        return self.gateway.base_url or self.preset.base_url

    @property
    def concurrency(self) -> int:
        """How many requests at once (``slots``)."""
        return self.gateway.concurrency or self.preset.concurrency

    @property
    def output_format(self) -> OutputFormat:
        """The results file's format."""
        return self.output.format or FORMAT_OF_ENDING[self.output.path.suffix.lower()]

    @property
    def run_folder(self) -> Path:
        """Where the journal lives: ``<output>.run`` unless given."""
        return self.run_dir or self.output.path.with_name(self.output.path.name + ".run")

    def api_key(self, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
        """The key: from the variable the job or the preset names, or a 0600 file; None when there is none to send.

        Raises ``JobError`` when a key was asked for and is not there, or its file is open to others.
        """
        if self.gateway.api_key_file is not None:
            return SecretStr(_key_from_file(self.gateway.api_key_file))
        name = self.gateway.api_key_env or self.preset.api_key_env
        if name is None:
            return None
        key = environ.get(name, "").strip()
        if not key and (self.gateway.api_key_env is not None or self.preset.base_url is not None):
            raise JobError(
                f"the environment variable {name} is not set: export {name}=... with your key for this gateway"
            )
        if not key.isascii() or any(c.isspace() for c in key):
            raise JobError(f"the key in {name} has spaces or characters no key has; copy it again")
        return SecretStr(key) if key else None


def _check_ip_version(url: str, version: str | int) -> None:
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return  # a name: whether it has such an address is for the resolver to say
    if version not in ("auto", address.version):
        raise ValueError(f"gateway.ip_version: {version} does not fit the IPv{address.version} address in base_url")


def _key_from_file(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        key = path.read_text(encoding="ascii").strip()
    except OSError as exc:
        raise JobError(f"gateway.api_key_file: cannot read {path}: {exc.strerror}") from exc
    except UnicodeDecodeError:
        raise JobError(f"gateway.api_key_file: {path} holds something that is no key") from None
    if stat.S_IMODE(mode) & 0o077:
        raise JobError(f"gateway.api_key_file: {path} can be read by others; do: chmod 600 {path}")
    if not key or len(key.split()) != 1:
        raise JobError(f"gateway.api_key_file: {path} must hold one key and nothing else")
    return key


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise JobError(f"there is no job file {path}") from None
    except IsADirectoryError:
        raise JobError(f"{path} is a folder; give the job's .toml file") from None
    except UnicodeDecodeError as exc:
        raise JobError(f"{path} is not UTF-8 text (byte {exc.start})") from None
    except OSError as exc:
        raise JobError(f"cannot read the job file {path}: {exc.strerror}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise JobError(f"{path} is not valid TOML: {exc}") from None


def _lay(tables: dict[str, Any], key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        inner = tables.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = tables[part] = {"preset" if part == "gateway" else "path": inner}
        tables = inner
    if last == "gateway" and isinstance(tables.get(last), dict):
        tables[last]["preset"] = value
    else:
        tables[last] = value


def _merge(below: dict[str, Any], above: dict[str, Any]) -> None:
    for key, value in above.items():
        have = below.get(key)
        if key == "gateway":
            below[key] = {**_as_table(have, "preset"), **_as_table(value, "preset")}
        elif key in ("input", "output"):
            below[key] = {**_as_table(have, "path"), **_as_table(value, "path")}
        elif isinstance(value, dict) and isinstance(have, dict):
            _merge(have, value)
        else:
            below[key] = value


def _as_table(value: Any, key: str) -> dict[str, Any]:
    return value if isinstance(value, dict) else {} if value is None else {key: value}


def _anchor(tables: dict[str, Any], base: Path) -> None:
    """Make the paths of one layer absolute, relative to where that layer was written."""

    def absolute(text: Any) -> Any:
        return os.path.normpath(base / Path(text).expanduser()) if isinstance(text, str) and text != "-" else text

    for table, key in (("input", "path"), ("output", "path"), ("request", "prompt_file"), ("gateway", "api_key_file")):
        if isinstance(tables.get(table), dict) and key in tables[table]:
            tables[table][key] = absolute(tables[table][key])
        elif table in ("input", "output") and table in tables:
            tables[table] = absolute(tables[table])
    if "run_dir" in tables:
        tables["run_dir"] = absolute(tables["run_dir"])


def _problems(error: ValidationError, path: Path | str | None) -> str:
    where = str(path) if path is not None else "the options"
    lines = [_problem(item) for item in error.errors(include_url=False)]
    return f"{where}: " + (lines[0] if len(lines) == 1 else f"{len(lines)} problems\n  " + "\n  ".join(lines))


_OPTION_OF = {"input": "-i FILE", "output": "-o FILE", "input.path": "-i FILE", "output.path": "-o FILE"}


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        option = f" (or {_OPTION_OF[key]})" if key in _OPTION_OF else ""
        return f"{key} is missing{option}"
    if item["type"] == "extra_forbidden":
        return f"{key} is not a key of a job{_did_you_mean(item['loc'])}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message[0].lower()}{message[1:]}, not {item['input']!r}"


def _did_you_mean(loc: tuple[Any, ...]) -> str:
    model: Any = Job
    for part in loc[:-1]:
        if part not in getattr(model, "model_fields", {}):
            return ""
        model = model.model_fields[part].annotation
    names = [name for name in getattr(model, "model_fields", {}) if name != "source"]
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(sorted(names))}"

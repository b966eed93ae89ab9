"""A job: one TOML file, or none, plus options, as one frozen, checked ``Job``. Every setting is written once, here.

Order: option > environment (``PIPELINE_*``) > job file > preset. All problems are reported at once, each with its key.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from datetime import tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from pipeline.errors import JobError
from pipeline.job.format import OutputFormat, format_of_ending
from pipeline.job.key import key_from_file, key_from_variable
from pipeline.job.layers import anchor, checked, lay, merge, read_toml
from pipeline.job.request import RequestSettings
from pipeline.job.table import FilePath, PathText, Seconds, Table, Text
from pipeline.job.words import problems
from pipeline.limits.hours import Deadline, Hours, Window
from pipeline.presets import DEFAULT_KEY_VARIABLE, PRESETS, Preset

_ENDPOINT = re.compile(r"/(chat/completions|completions|embeddings|responses)/*$")


def _count_or_auto(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 1 <= value <= 10_000):
        return value
    raise ValueError(f'expected a whole number from 1 to 10,000, or "auto", not {value!r}')


Concurrency = Annotated[int | Literal["auto"], BeforeValidator(_count_or_auto)]


class Gateway(Table):
    """``[gateway]``: which server, with which key, and how to reach it. Times in seconds.

    ``concurrency`` is the most that may be in flight; "auto" leaves that to what the gateway says and does. ``rpm`` and
    ``tpm`` are requests and tokens a minute. ``timeout`` is for a whole answer, ``first_byte_timeout`` for the silence before
    it. ``stream`` asks for every answer in events (a retry after a timeout does so by itself), ``idle_timeout`` bounds the
    silence between them. ``max_reply_bytes``: what is larger is not read to its end. ``lease`` False: other runs with this key
    are not heeded. ``proxy_retries`` lets a LiteLLM proxy retry too; its tries multiply with ours.
    """

    preset: str = "openai"
    base_url: str | None = None
    api_key_env: str | None = None
    api_key_file: FilePath | None = None
    concurrency: Concurrency | None = None
    rpm: float | None = Field(default=None, gt=0)
    tpm: float | None = Field(default=None, gt=0)
    lease: bool = True
    timeout: Seconds = Field(default=1800.0, gt=0)
    connect_timeout: Seconds = Field(default=30.0, gt=0)
    first_byte_timeout: Seconds = Field(default=600.0, gt=0)
    idle_timeout: Seconds = Field(default=300.0, gt=0)
    max_reply_bytes: int = Field(default=64 << 20, ge=1)
    ip_version: Literal["auto", 4, 6] = "auto"
    stream: bool = False
    proxy_retries: bool = False

    @field_validator("preset")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in PRESETS:
            raise ValueError(f"no preset is called {name!r}; there are: {', '.join(sorted(PRESETS))}")
        return name

    @field_validator("base_url")
    @classmethod
    def _is_http(cls, url: str | None) -> str | None:
        return None if url is None else _base_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _names_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError("expected the name of an environment variable that holds the key, not the key itself")
        return name

    @model_validator(mode="after")
    def _one_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both given; keep one")
        return self


class Input(Table):
    """``[input]``: the prompt set. ``path`` is a file, glob or folder, or ``-`` for JSONL on standard input."""

    path: PathText
    id: Text | None = None


class Limits(Table):
    """``[limits]``: what ends a row, and what ends a run. ``max_attempts`` counts tries that went wrong through the server.

    ``max_cost`` is for one run, ``max_cost_total`` for all runs of a journal, both in the unit of the model's price.
    ``on_budget`` "wait" waits for the gateway's own budget to fill up again, ``max_budget_wait`` at the most. An outage longer
    than ``max_outage`` ends the run, and so do more failed rows than ``max_failures`` (a count, or a share such as "5%").
    ``window`` (``20:00-06:00``) and ``deadline`` (``06:00``, ``8h``) are on the wall clock: see ``limits.hours``.
    """

    max_attempts: int = Field(default=5, ge=1, le=100)
    max_cost: float | None = Field(default=None, gt=0)
    max_cost_total: float | None = Field(default=None, gt=0)
    on_budget: Literal["stop", "wait"] = "stop"
    max_budget_wait: Seconds = Field(default=3 * 3600.0, gt=0)
    max_outage: Seconds | None = Field(default=None, gt=0)
    max_failures: Annotated[int, Field(ge=0)] | str | None = None
    window: str | None = None
    deadline: str | None = None

    @field_validator("max_failures")
    @classmethod
    def _is_share(cls, most: int | str | None) -> int | str | None:
        if isinstance(most, str) and not re.fullmatch(r"(\d{1,2}(\.\d+)?|100)%", most):
            raise ValueError(f'expected a number of rows, or a share such as "5%", not {most!r}')
        return most

    @field_validator("window")
    @classmethod
    def _is_window(cls, text: str | None) -> str | None:
        return text if text is None else str(Window.parse(text))

    @field_validator("deadline")
    @classmethod
    def _is_deadline(cls, text: str | None) -> str | None:
        if text is not None:
            Deadline.parse(text)
        return text

    def most_failures(self, rows: int) -> int | None:
        """How many of so many rows may fail; None: all of them."""
        most = self.max_failures
        return int(rows * float(most[:-1]) / 100) if isinstance(most, str) else most

    def hours(self, began: float, zone: tzinfo | None = None) -> Hours:
        """When a run that began then (Unix seconds) may send, by the clock of ``zone`` (None: this machine's)."""
        deadline = None if self.deadline is None else Deadline.parse(self.deadline).moment(began, zone)
        return Hours(window=None if self.window is None else Window.parse(self.window), deadline=deadline, zone=zone)


class Output(Table):
    """``[output]``: the results file. ``keep`` names the input columns to keep (None: all)."""

    path: FilePath
    format: OutputFormat | None = None
    keep: list[str] | None = None
    prefix: str = ""


class Price(Table):
    """``[prices."MODEL"]``: per million tokens, in ``unit``."""

    input_per_million: float = Field(ge=0)
    output_per_million: float = Field(ge=0)
    cached_per_million: float | None = Field(default=None, ge=0)
    unit: Literal["USD", "coins"] = "USD"


class Job(Table):
    """Everything a run needs to know. Make one with ``Job.load`` or, in Python, ``Job(model=..., input=..., ...)``."""

    gateway: Gateway = Field(default_factory=Gateway)
    model: Text | None = None
    input: Input
    request: RequestSettings = Field(default_factory=RequestSettings)
    limits: Limits = Field(default_factory=Limits)
    output: Output
    prices: dict[str, Price] = Field(default_factory=dict)
    run_dir: FilePath | None = None
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
            raise ValueError(
                f"gateway.base_url: the preset {self.preset.name!r} needs one (or --base-url URL), e.g. https://host/v1"
            )
        if self.gateway.base_url is not None:
            _check_ip_version(self.gateway.base_url, self.gateway.ip_version)
        if self.run_dir == self.output.path:
            raise ValueError(f"run_dir: {self.run_dir} is the output itself; the run folder needs a name of its own")
        try:
            _ = self.output_format
        except ValueError as exc:
            raise ValueError(
                f"output.path: {exc}, or set output.format to one of {', '.join(get_args(OutputFormat))}"
            ) from None
        return self

    @classmethod
    def load(
        cls,
        path: Path | str | None = None,
        *,
        overrides: Mapping[str, Any] | Mapping[tuple[str, ...], Any] | None = None,
    ) -> Job:
        """Read a job file, if any, and lay ``overrides`` (dotted key -> value) over it.

        Paths in the file are relative to the file, paths in ``overrides`` to the working folder. Raises ``JobError``
        that lists every problem with its key path.
        """
        tables: dict[str, Any] = {}
        if path is not None:
            tables = read_toml(Path(path))
            anchor(tables, Path(path).resolve().parent)
            tables["source"] = str(Path(path).resolve())
        laid: dict[str, Any] = {}
        for key, value in (overrides or {}).items():
            lay(laid, key, str(value) if isinstance(value, Path) else value)
        checked(laid, "the options")
        anchor(laid, Path.cwd())
        merge(tables, laid)
        try:
            return cls.model_validate(tables)
        except ValidationError as exc:
            raise JobError(problems(exc, path, cls, laid)) from None

    @classmethod
    def again(cls, text: str, where: Path) -> Self:
        """The job that was written as JSON into the journal ``where``. Raises ``JobError``."""
        try:
            return cls.model_validate_json(text, strict=False)
        except ValidationError as exc:
            raise JobError(problems(exc, where, cls)) from None

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
        """How many requests at once at the most (the ceiling of ``slots``)."""
        asked = self.gateway.concurrency
        if asked == "auto":
            return self.preset.ceiling
        return asked or self.preset.concurrency

    @property
    def pack(self) -> int:
        """How many rows a call asks for at the most."""
        return self.request.pack if self.request.endpoint == "embeddings" else 1

    @property
    def rows_at_once(self) -> int:
        """How many rows can be in flight."""
        return self.concurrency * self.pack

    @property
    def output_format(self) -> OutputFormat:
        """The results file's format."""
        return self.output.format or format_of_ending(self.output.path)

    @property
    def run_folder(self) -> Path:
        """Where the journal lives: ``<output>.run`` unless given."""
        return self.run_dir or self.output.path.with_name(self.output.path.name + ".run")

    def api_key(self, environ: Mapping[str, str] = os.environ) -> SecretStr | None:
        """The key: from the variable the job or the preset names, or a 0600 file; None when there is none to send.

        Raises ``JobError`` when a key was asked for and is not there, or its file is open to others.
        """
        if self.gateway.api_key_file is not None:
            return SecretStr(key_from_file(self.gateway.api_key_file))
        name = self.gateway.api_key_env or self.preset.api_key_env
        if name is None:
            return None
        needed = self.gateway.api_key_env is not None or name != DEFAULT_KEY_VARIABLE
        key = key_from_variable(name, environ.get(name, ""), needed=needed)
        return None if key is None else SecretStr(key)

    def unset_key(self, environ: Mapping[str, str] = os.environ) -> str | None:
        """The variable that would hold the key, where none goes out because that is not set."""
        name = self.preset.api_key_env
        optional = name == DEFAULT_KEY_VARIABLE and (self.gateway.api_key_env or self.gateway.api_key_file) is None
        return name if optional and not environ.get(DEFAULT_KEY_VARIABLE, "").strip() else None


def _base_url(url: str) -> str:
    """What may be a key in a URL is refused unseen: it must not show in the error either."""
    if any(sign in url for sign in "@?#"):
        raise ValueError("a base URL must not hold a key, a password or a query; put the key in the environment")
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        (parts.hostname or "").encode("idna")
    except ValueError:  # a port that is no number, half an IPv6 address, a name with two dots in a row
        whole = False
    if not whole or any(c.isspace() for c in url):
        raise ValueError(f"expected a URL such as https://host/v1, not {url!r}")
    if endpoint := _ENDPOINT.search(parts.path):
        raise ValueError(f"a base URL ends before the endpoint: take {endpoint[0]} off its end")
    return url.rstrip("/")


def _check_ip_version(url: str, version: str | int) -> None:
    try:
        address = ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return  # a name: whether it has such an address is for the resolver to say
    if version not in ("auto", address.version):
        raise ValueError(f"gateway.ip_version: {version} does not fit the IPv{address.version} address in base_url")

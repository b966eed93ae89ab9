"""What pydantic finds wrong with a job, in words: key, what was expected, what was found. Keys never show their value."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from datetime import time
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from pipeline.ground.visible import visible

_OPTION_OF = {"input": "-i FILE", "output": "-o FILE", "input.path": "-i FILE", "output.path": "-o FILE"}
_EXPECTED = {
    "string_type": "text in quotes",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "path_type": "a path in quotes",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "literal_error": "{expected}",
    "greater_than": "a number over {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than_equal": "at most {le:g}",
}
_SECRETS = frozenset({"api_key", "apikey", "key", "token", "secret", "password"})


def problems(
    error: ValidationError,
    path: Path | str | None,
    job: type[BaseModel],
    options: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """All of them, each with its key path; ``path`` is the job file, if there is one, ``options`` what was laid over it."""
    items = error.errors(include_url=False)
    lines = [visible(_problem(item, job)) for item in items]
    where = _where(path, [_has(options, item["loc"]) for item in items])
    return f"{where}: " + (lines[0] if len(lines) == 1 else f"{len(lines)} problems\n  " + "\n  ".join(lines))


def _where(path: Path | str | None, in_options: Sequence[bool]) -> str:
    """Nobody should look into the job file for what an option said."""
    if path is None or all(in_options):
        return "the options"
    return f"{path} and the options" if any(in_options) else str(path)


def _has(tables: Any, loc: Sequence[Any]) -> bool:
    """Whether the value at ``loc`` comes from these tables; a table may be of several layers, and then it does not."""
    for part in loc:
        if not isinstance(tables, Mapping):
            break
        if part not in tables:
            return False
        tables = tables[part]
    return not isinstance(tables, Mapping)


def _problem(item: Any, job: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        option = f" (or {_OPTION_OF[key]})" if key in _OPTION_OF else ""
        return f"{key} is missing{option}"
    if item["type"] == "extra_forbidden":
        return _unknown(item["loc"], key, job)
    if item["type"] == "value_error":
        message = item["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    expected = _EXPECTED.get(item["type"])
    if expected is None:  # its own words may have braces in them: they are no format
        words = item["msg"][:1].lower() + item["msg"][1:]
    else:
        words = f"expected {expected.format(**item.get('ctx', {}))}"
    return f"{key}: {words}{_not(item['loc'], item['input'])}" if key else words


def _not(loc: Sequence[Any], found: Any) -> str:
    if any("key" in str(part) for part in loc):
        return ""
    kinds = {dict: "a table", list: "a list", bool: str(found).lower(), time: str(found)}
    return f", not {kinds.get(type(found), repr(found))}"


def _unknown(loc: Sequence[Any], key: str, job: type[BaseModel]) -> str:
    if str(loc[-1]).lower() in _SECRETS:
        return (
            f"{key}: a job holds no secrets: put the key into an environment variable and name that with "
            "gateway.api_key_env, or into a file of mode 0600 with gateway.api_key_file"
        )
    names = _names(loc[:-1], job)
    close = difflib.get_close_matches(str(loc[-1]), names, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(sorted(names))}"
    return f"{key} is not a key of a job; {hint}"


def _names(loc: Sequence[Any], job: type[BaseModel]) -> list[str]:
    """The keys that the table at ``loc`` can have."""
    model: Any = job
    for part in loc:
        fields = getattr(model, "model_fields", {})
        model = fields[part].annotation if part in fields else get_args(model)[-1]  # prices: dict[str, Price]
    return [name for name in model.model_fields if name != "source"]

"""JSON for every value that meets us: orjson, and the standard library where orjson refuses or loses something.

``loads`` reads what other writers wrote: integers of any length keep their digits (orjson makes floats of them), lone
surrogates become U+FFFD. ``dumps`` writes every Python value that JSON, Parquet or CSV can give us.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from datetime import time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import orjson

# Integers that may not fit 64 bits: 20 digits, or a minus and 19. Turning all digits into zeros makes that a substring
# search, five times as quick as a regex over every line (0.4 us for 300 bytes); ``in`` takes three times as long as ``find``.
_DIGITS = bytes.maketrans(b"123456789", b"000000000")
_LONG = b"0" * 20
_LONG_NEGATIVE = b"-" + b"0" * 19
_LONG_INTEGER = re.compile(rb"(?:^|[\[,:\s])-?[0-9]{19,}(?![0-9.eE])")

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[^\s\[\]{},:"]+')


def loads(data: bytes, *, exact: bool = True) -> Any:
    """The value of one JSON text; ValueError says in words what is wrong and at which column.

    Unless ``exact``, an integer of over 64 bits may come as a float: half the time, for replies, whose counts are no such.
    """
    if exact and _has_long_integer(data):
        return _loads_slowly(data)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _loads_slowly(data)


def all_loaded(lines: list[bytes]) -> list[Any] | None:
    """The value of each of these JSON texts; None where ``loads`` must see to one of them by itself."""
    if _has_long_integer(b"\n".join(lines)):
        return None
    try:
        return list(map(orjson.loads, lines))
    except orjson.JSONDecodeError:
        return None


def _has_long_integer(data: bytes) -> bool:
    zeros = data.translate(_DIGITS)
    return (zeros.find(_LONG) >= 0 or zeros.find(_LONG_NEGATIVE) >= 0) and _LONG_INTEGER.search(data) is not None


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """Compact UTF-8 JSON, as orjson writes it (NaN is null, times are ISO 8601); see ``to_json`` for the rest."""
    try:
        return orjson.dumps(value, default=to_json, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except orjson.JSONEncodeError:
        return _dumps_slowly(value, sort_keys)


def text_or_json(value: Any) -> str:
    """Text as it is, anything else as JSON: other than ``str``, it does not fail on deep values."""
    return value if isinstance(value, str) else dumps(value).decode()


def to_json(value: Any) -> Any:
    """For ``default``: Decimal -> str, bytes -> base64, timedelta -> seconds, tuple and set -> list."""
    match value:
        case Decimal():
            return str(value)
        case bytes() | bytearray() | memoryview():
            return base64.b64encode(value).decode()
        case timedelta():
            return value.total_seconds()
        case tuple() | set() | frozenset():
            return list(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")


def utf8(data: bytes) -> str:
    """The text of ``data``; ValueError names the first byte that is not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise ValueError(
            f"byte {exc.start + 1} (0x{data[exc.start]:02x}) is not UTF-8; save the file as UTF-8"
        ) from exc


def _loads_slowly(data: bytes) -> Any:
    text = utf8(data)
    refuse = partial(_refuse, text)
    try:
        value = json.loads(text, parse_constant=refuse, parse_float=partial(_finite, refuse), parse_int=_whole)
        return _without_surrogates(value) if _SURROGATE_ESCAPE.search(text) else value
    except json.JSONDecodeError as exc:
        found = repr(text[exc.pos : exc.pos + 20]) if text[exc.pos :].strip() else "the end of the line"
        what = exc.msg[:1].lower() + exc.msg[1:]
        raise ValueError(f"not valid JSON at column {exc.pos + 1}: {what}, found {found}") from exc
    except RecursionError as exc:
        raise ValueError("nested too deeply for JSON (about 1,000 levels)") from exc


def _refuse(text: str, literal: str) -> Any:
    column = next(token.start() + 1 for token in _TOKEN.finditer(text) if token[0].startswith(literal))
    raise ValueError(f"not valid JSON at column {column}: {literal} is not a finite number; write null instead")


def _finite(refuse: Callable[[str], Any], literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else refuse(literal)


def _whole(literal: str) -> int:
    try:
        return int(literal)
    except ValueError:  # Python's own limit: what is longer takes long
        raise ValueError(
            f"a whole number of {len(literal):,} digits; write what is longer than 4,300 as text"
        ) from None


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return _SURROGATE.sub("\ufffd", value)
        case list():
            return [_without_surrogates(item) for item in value]
        case dict():
            return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    return value


def _dumps_slowly(value: Any, sort_keys: bool) -> bytes:
    """A stack instead of recursion: ``loads`` takes 1,024 levels, orjson writes 254, the standard library about 990."""
    written: list[bytes] = []
    todo: list[tuple[bool, Any]] = [(False, value)]
    while todo:
        done, item = todo.pop()
        if done:
            written.append(item)
        elif isinstance(item, dict):
            todo.append((True, b"}"))
            members = [(_key(key, sort_keys), member) for key, member in item.items()]
            if sort_keys:
                members.sort(key=lambda pair: orjson.loads(pair[0]))
            for comma, (key, member) in reversed(list(enumerate(members))):
                todo += [(False, member), (True, (b"," if comma else b"") + key + b":")]
            todo.append((True, b"{"))
        elif isinstance(item, list | tuple | set | frozenset):
            todo.append((True, b"]"))
            for comma, member in reversed(list(enumerate(item))):
                todo += [(False, member), (True, b"," if comma else b"")]
            todo.append((True, b"["))
        else:
            written.append(_leaf(item))
    return b"".join(written)


def _leaf(value: Any) -> bytes:
    if isinstance(value, str):
        return orjson.dumps(_SURROGATE.sub("\ufffd", value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(int(value)).encode()
    if isinstance(value, time):  # orjson refuses those with a zone
        return orjson.dumps(value.isoformat())
    return orjson.dumps(value, default=to_json)


def _key(key: Any, sort_keys: bool) -> bytes:
    text = _dumps_slowly(key, sort_keys)
    return text if text.startswith(b'"') else orjson.dumps(text.decode())

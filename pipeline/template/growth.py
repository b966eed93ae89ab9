"""What makes much of little, filter by filter and method by method: its result is worked out and checked before it is made."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import jinja2.exceptions

from pipeline.template.meter import Meter, TooMuchError

REFUSED = frozenset({"translate", "maketrans", "to_bytes", "scaleb", "shift", "fma"})
_PIECES = 100_000  # as many as a range may have
_INDENT = 100
_BASE_DIGITS = 5000
_DIGITS = re.compile(r"[0-9]{4,}")
_SLOW = frozenset({"rfind", "rindex", "rsplit", "rpartition"})  # they may try every place anew
_CODECS = frozenset(
    {"utf8", "utf_8", "utf_8_sig", "ascii", "us_ascii", "latin1", "latin_1", "iso_8859_1", "utf_16", "utf_32"}
)
Before = Callable[..., Any]


def check_digits(form: str) -> None:
    """How wide and how precise a format may be."""
    if _DIGITS.search(form):
        raise TooMuchError("it pads to more than 999 characters")


def before_operator(meter: Meter, operator: str, left: Any, right: Any) -> None:
    """Check what an operator would make."""
    meter.take(1)
    meter.number(left)
    meter.number(right)
    if operator == "*":
        _times(meter, left, right)
        _times(meter, right, left)
    elif operator == "**":
        if isinstance(right, int) and isinstance(left, int | Decimal):
            meter.bits(left.bit_length() * abs(right) if isinstance(left, int) else abs(right))
    elif operator == "%" and isinstance(left, str | bytes):
        _percent(meter, left, right if isinstance(right, tuple) else (right,))
    elif operator == "+":
        if isinstance(left, tuple):
            meter.walk(left)
            meter.walk(right)
        meter.touch(left)
        meter.touch(right)
        if isinstance(left, str) and isinstance(right, str):
            meter.fits(len(left) + len(right))


def _times(meter: Meter, value: Any, times: Any) -> None:
    if not isinstance(times, int):
        return
    if isinstance(value, int):
        meter.bits(value.bit_length() + times.bit_length())
    elif isinstance(value, str | bytes):
        meter.text(len(value) * max(times, 0))
    elif isinstance(value, list | tuple) and times > 0:
        before = meter.left
        meter.walk(value)
        meter.take((before - meter.left) * (times - 1))


def _percent(meter: Meter, form: str | bytes, values: Iterable[Any]) -> None:
    check_digits(form if isinstance(form, str) else form.decode("latin-1"))
    for value in values:
        meter.walk(value)
        if isinstance(value, int) and "*" in str(form) and abs(value) > 999:
            raise TooMuchError("it pads to more than 999 characters")
        # One value may be written as often as there are signs for it.
        if isinstance(value, dict | str):
            meter.text(len(str(value)) * (form.count("%") if isinstance(form, str) else 1))


# methods


def before_method(meter: Meter, method: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Check what a method of Python's would make; gives its arguments back."""
    owner, name = method.__self__, method.__name__
    meter.touch(owner)
    meter.number(owner)
    for value in args:
        meter.touch(value)
    if not isinstance(owner, str | bytes):
        if name in ("count", "index"):
            meter.walk(owner)
        return args
    if name in ("center", "ljust", "rjust", "zfill") and args and isinstance(args[0], int):
        meter.text(args[0])
    elif name == "expandtabs":
        tabs = owner.count("\t" if isinstance(owner, str) else b"\t")  # type: ignore[arg-type]  # text or bytes, both alike
        size = args[0] if args else kwargs.get("tabsize", 8)
        meter.text(len(owner) + tabs * max(size, 0) if isinstance(size, int) else 0)
    elif name == "replace" and len(args) > 1:
        _replacing(meter, owner, args[0], args[1])
    elif name == "join" and args:
        return (_joining(meter, owner, args[0]), *args[1:])
    elif name in _SLOW and args and isinstance(args[0], str | bytes):
        meter.take(len(owner) * len(args[0]) // 1024)
    elif name in ("encode", "decode"):
        codec = str(args[0] if args else kwargs.get("encoding", "utf-8")).lower().replace("-", "_")
        if codec not in _CODECS:
            raise jinja2.exceptions.SecurityError(f"{codec!r} is no encoding for templates")
    return args


def _replacing(meter: Meter, text: Any, old: Any, new: Any) -> None:
    if isinstance(text, str | bytes) and isinstance(old, type(text)) and isinstance(new, type(text)):
        meter.text(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]  # text or bytes, both alike


def _joining(meter: Meter, sign: Any, values: Iterable[Any]) -> list[Any]:
    items = list(values)
    sizes = (len(item) if isinstance(item, str | bytes) else 0 for item in items)
    meter.take(len(items))
    meter.text(len(sign) * len(items) + sum(sizes))
    return items


# filters: each gives back what to filter


def _center(meter: Meter, value: Any, width: Any = 80) -> Any:
    if isinstance(width, int):
        meter.text(width)
    return value


def _indent(meter: Meter, value: Any, width: Any = 4, *more: Any, **named: Any) -> Any:
    size = len(width) if isinstance(width, str) else width
    if isinstance(size, int):
        if size > _INDENT:
            raise TooMuchError(f"it indents by more than {_INDENT} characters")
        meter.text(len(str(value)) + str(value).count("\n") * max(size, 0))
    return value


def _replace(meter: Meter, value: Any, old: Any, new: Any, *more: Any) -> Any:
    _replacing(meter, str(value), str(old), str(new))
    return value


def _join(meter: Meter, value: Any, sign: Any = "", *more: Any, **named: Any) -> Any:
    return _joining(meter, str(sign), value)


def _format(meter: Meter, value: Any, *values: Any, **named: Any) -> Any:
    _percent(meter, str(value), values or (named,))
    return value


def _wordwrap(meter: Meter, value: Any, width: Any = 79, *more: Any, **named: Any) -> Any:
    size = max(width, 1) if isinstance(width, int) else 1
    longest = max(map(len, str(value).split()), default=0)
    meter.take(longest // size * longest // 1024)  # a word longer than a line is cut off again and again
    for sign in (*more, *named.values()):
        if isinstance(sign, str) and len(sign) > _INDENT:
            raise TooMuchError(f"it ends lines with more than {_INDENT} characters")
    return value


def _batch(meter: Meter, value: Any, pieces: Any, *fill: Any, **named: Any) -> Any:
    if isinstance(pieces, int):
        if pieces > _PIECES:
            raise TooMuchError(f"it makes more than {_PIECES:,} pieces")
        for one in (*fill, *named.values()):
            _times(meter, [one], pieces)
        meter.take(max(pieces, 0))
    return value


def _round(meter: Meter, value: Any, precision: Any = 0, *more: Any, **named: Any) -> Any:
    meter.number(value)
    meter.power(precision)
    return value


def _int(meter: Meter, value: Any, *more: Any, **named: Any) -> Any:
    meter.number(value)
    if isinstance(value, str | bytes) and len(value) > _BASE_DIGITS:
        raise TooMuchError(f"it makes a number of a text of more than {_BASE_DIGITS:,} characters")
    return value


def _sum(meter: Meter, value: Any, *more: Any, **named: Any) -> Any:
    start = named.get("start", more[1] if len(more) > 1 else 0)
    if not isinstance(start, int | float | Decimal):
        raise TooMuchError("it sums up what are no numbers; use join")
    return value


def _list(meter: Meter, value: Any) -> Any:
    if isinstance(value, str | bytes):
        meter.take(len(value))
    return value


def _tojson(meter: Meter, value: Any, indent: Any = None) -> Any:
    size = indent if isinstance(indent, int) else 0
    if size > _INDENT:
        raise TooMuchError(f"it indents by more than {_INDENT} characters")
    meter.walk(value, indent=max(size, 0))
    return value


def _divides(meter: Meter, value: Any, by: Any) -> Any:
    meter.number(value)
    meter.number(by)
    return value


FILTERS: dict[str, Before] = {
    "center": _center,
    "indent": _indent,
    "replace": _replace,
    "join": _join,
    "format": _format,
    "wordwrap": _wordwrap,
    "batch": _batch,
    "slice": _batch,
    "round": _round,
    "int": _int,
    "sum": _sum,
    "list": _list,
    "tojson": _tojson,
    "divisibleby": _divides,
}

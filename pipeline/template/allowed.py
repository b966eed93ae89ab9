"""What a template may use: the filters, the tests and the methods whose result is about as large as what goes in.

A name has what it costs beyond that with it: worked out, and checked, before the result is made. What is not here is refused:
the clock, what depends on the machine, what changes data, and what nobody writes a prompt with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any

from pipeline.template.meter import CHARACTERS, POWER, Meter, TooMuchError

Price = Callable[..., None]
WIDTH = 999
_INDENT = 100
_SPEC = 100
_PIECES = 100_000
_BASE_DIGITS = 5000
_COLLIDING = 200  # steps for a number that may have the hash of others: a set of them takes the square of their count
_WIDE = re.compile(r"[0-9]{4}|%[-_0^#]*s")  # or with %s of the C library, which counts in the machine's zone
_SIGN = re.compile(r"%(?:%|[-+ #0]*(\*|[0-9]*)(?:\.(\*|[0-9]*))?(\(?))")
_SPACES, _WORDS = re.compile(r"\s+"), re.compile(r"\w+")
_TITLED = re.compile(r"[-\s({\[<]+")
_LINES = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def spec(form: str) -> None:
    """Check how one value, or one date, is to be written."""
    if len(form) > _SPEC or _WIDE.search(form):
        raise TooMuchError(
            f"it writes a value with more than {_SPEC} signs, or pads it to more than {WIDTH} characters, or uses %s"
        )


def percent(meter: Meter, form: str, values: Any) -> None:
    """Check ``form % values``."""
    size = len(form)
    for found in _SIGN.finditer(form):
        meter.take(1)
        if found[3] or "*" in (found[1], found[2]):
            raise TooMuchError("of what % can do, templates have neither %(name)s nor %*d; write ~ or format")
        size += _width(int(found[1] or 0)) + _width(int(found[2] or 0))
    meter.text(size)
    meter.walk(values)


def times(meter: Meter, value: Any, count: Any) -> None:
    """Check ``value * count``."""
    if not isinstance(count, int):
        return
    if isinstance(value, int):
        meter.bits(value.bit_length() + count.bit_length())
    elif isinstance(value, str | bytes):
        meter.text(len(value) * max(count, 0))
    elif isinstance(value, list | tuple) and count > 0:
        before = meter.left
        meter.walk(value)
        meter.take((before - meter.left) * (count - 1))


def _width(width: Any) -> int:
    if isinstance(width, int) and abs(width) > WIDTH:
        raise TooMuchError(f"it pads to more than {WIDTH} characters")
    return width if isinstance(width, int) else 0


def _padded(meter: Meter, value: Any, width: Any = 80, *_: Any, **__: Any) -> None:
    _width(width)


def _narrow(size: Any) -> int:
    if isinstance(size, int) and size > _INDENT:
        raise TooMuchError(f"it indents, or ends lines, with more than {_INDENT} characters")
    return max(size, 0) if isinstance(size, int) else 0


def _pieces(meter: Meter, value: Any, pattern: re.Pattern[str], each: int = 1) -> None:
    """So many pieces as there are matches, counted no further than the steps reach."""
    meter.take(each * sum(1 for _ in islice(pattern.finditer(str(value)), meter.left + 1)))


def _replaced(meter: Meter, value: Any, old: Any, new: Any, *_: Any, **__: Any) -> None:
    text = str(value)
    meter.text(len(text) + text.count(str(old)) * len(str(new)))


def _joined(meter: Meter, sign: Any, values: Any) -> None:
    sizes = (len(value) if isinstance(value, str | bytes) else 0 for value in values)
    meter.text(len(str(sign)) * len(values) + sum(sizes))


# methods


def _split(meter: Meter, text: str, sign: Any = None, maxsplit: Any = -1) -> None:
    if isinstance(maxsplit, int) and maxsplit >= 0:
        meter.take(min(maxsplit, len(text)))
    elif isinstance(sign, str) and sign:
        meter.take(text.count(sign))
    else:
        _pieces(meter, text, _SPACES)


def _rsplit(meter: Meter, text: str, sign: Any = None, maxsplit: Any = -1) -> None:
    meter.take(len(text) * (len(sign) if isinstance(sign, str) else 1) // 1024)  # it may try every place anew
    _split(meter, text, sign, maxsplit)


def _free(names: str) -> dict[str, Price | None]:
    return dict.fromkeys(names.split())


METHODS: Mapping[type | tuple[type, ...], Mapping[str, Price | None]] = {
    str: {
        **_free("capitalize casefold count endswith find format index isalnum isalpha isascii isdecimal isdigit"),
        **_free("islower isnumeric isspace istitle isupper lower lstrip partition removeprefix removesuffix rstrip"),
        **_free("startswith strip swapcase title upper"),
        **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _padded),
        "join": _joined,
        "replace": _replaced,
        "rsplit": _rsplit,
        "split": _split,
        "splitlines": lambda meter, text, *_, **__: _pieces(meter, text, _LINES),
    },
    dict: _free("get items keys values"),
    (list, tuple): _free("count index"),
    (date, time): {
        **_free("date isocalendar isoformat isoweekday replace time weekday"),
        "strftime": lambda meter, value, form: spec(str(form)),
    },
    timedelta: _free("total_seconds"),
}


def methods_of(value: Any) -> Mapping[str, Price | None]:
    """The methods that templates may call of a value."""
    return next((names for kinds, names in METHODS.items() if isinstance(value, kinds)), {})


# filters


def _indented(meter: Meter, value: Any, width: Any = 4, *_: Any, **__: Any) -> None:
    text, size = str(value), _narrow(len(width) if isinstance(width, str) else width)
    meter.text(len(text) + text.count("\n") * size)


def _wrapped(meter: Meter, value: Any, width: Any = 79, *more: Any, **named: Any) -> None:
    text, size = str(value), max(width, 1) if isinstance(width, int) else 1
    _pieces(meter, text, _SPACES, 2)
    longest = max(map(len, text.split()), default=0)
    meter.take(longest // size * longest // 1024)  # a word longer than a line is cut off again and again
    for sign in (*more, *named.values()):
        _narrow(len(sign) if isinstance(sign, str) else 0)


def _cut(meter: Meter, value: Any, pieces: Any = 1, *fill: Any, **named: Any) -> None:
    pieces = named.pop("linecount", named.pop("slices", pieces))
    if isinstance(pieces, int):
        if pieces > _PIECES:
            raise TooMuchError(f"it makes more than {_PIECES:,} pieces")
        times(meter, [*fill, *named.values(), None], pieces)


def _rounded(meter: Meter, value: Any, precision: Any = 0, *_: Any, **__: Any) -> None:
    if isinstance(precision, int) and abs(precision) > POWER:
        raise TooMuchError(f"it rounds to more than {POWER} places")


def _int(meter: Meter, value: Any, *_: Any, **__: Any) -> None:
    if isinstance(value, str | bytes) and len(value) > _BASE_DIGITS:
        raise TooMuchError(f"it makes a number of a text of more than {_BASE_DIGITS:,} characters")


def _summed(meter: Meter, value: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, int | float | Decimal):
        raise TooMuchError("it sums up what are no numbers; use join")


def _listed(meter: Meter, value: Any) -> None:
    meter.take(len(value) if isinstance(value, str | bytes) else 0)


def _swollen(meter: Meter, value: Any, *_: Any, **__: Any) -> None:
    meter.text(len(str(value)) * 6)  # each sign may become &quot; or %F0%9F..


def _as_json(meter: Meter, value: Any, indent: Any = None) -> None:
    meter.walk(value, indent=_narrow(indent))


def _stripped(meter: Meter, value: Any) -> None:
    text = str(value)
    meter.take(text.count("<") * len(text) // (64 * CHARACTERS))  # the text is copied for each tag that goes


def _join(meter: Meter, value: Any, sign: Any = "", attribute: Any = None, **named: Any) -> None:
    _joined(meter, named.get("d", sign), value)


def _format(meter: Meter, value: Any, *values: Any, **_: Any) -> None:
    percent(meter, str(value), values)


SHALLOW = frozenset({"count", "d", "default", "first", "last", "length", "items", "list"})  # do not look into members
FILTERS: Mapping[str, Price | None] = {
    **_free("abs capitalize count d default dictsort first float groupby items last length lower map max min"),
    **_free("reject rejectattr reverse safe select selectattr sort string trim truncate upper"),
    **dict.fromkeys(("e", "escape", "urlencode"), _swollen),
    "batch": _cut,
    "center": _padded,
    "format": _format,
    "indent": _indented,
    "int": _int,
    "join": _join,
    "list": _listed,
    "replace": _replaced,
    "round": _rounded,
    "slice": _cut,
    "striptags": _stripped,
    "sum": _summed,
    "title": lambda meter, value: _pieces(meter, value, _TITLED, 2),
    "tojson": _as_json,
    "unique": lambda meter, value, *_, **__: meter.walk(value, colliding=_COLLIDING),
    "wordcount": lambda meter, value: _pieces(meter, value, _WORDS),
    "wordwrap": _wrapped,
}
TESTS = frozenset(
    _free("!= < <= == > >= boolean defined divisibleby eq equalto even false float ge greaterthan gt in integer")
    | _free("iterable le lessthan lower lt mapping ne none number odd sequence string true undefined upper")
)

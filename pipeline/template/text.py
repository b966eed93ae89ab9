"""One template text over a row's columns: Jinja2, sandboxed, and strict about null. Home of Jinja2."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection
from functools import partial
from typing import Any

import jinja2
import jinja2.exceptions
import jinja2.meta
import jinja2.nodes
import jinja2.runtime
import jinja2.utils

from pipeline.errors import RowError, TemplateError
from pipeline.ground.jsonio import dumps
from pipeline.ground.visible import listed
from pipeline.template.bounds import Bounded
from pipeline.template.meter import STEPS, Meter

_MISFITS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError, MemoryError)
_BRACES = re.compile(r"\{\s*(\w+)\s*\}")
_IN_BRACES = re.compile(r"\{\{([^{}|]+)")
_NAMES = (jinja2.nodes.Name, jinja2.nodes.NSRef)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # another one each time, and so another row
_SMALL = frozenset({str, int, float, bool})  # written as they are; how long a text is counts in the whole
_PLAIN = (
    jinja2.nodes.Output,
    jinja2.nodes.TemplateData,
    jinja2.nodes.Name,
    jinja2.nodes.Const,
    jinja2.nodes.Getattr,
    jinja2.nodes.Getitem,
)
_SAID = 300  # characters


class Null(jinja2.Undefined):
    """A null or absent column in a template: false, replaced by ``default``, and an error where it would be written."""

    def _fail_with_undefined_error(self, *_: Any, **__: Any) -> Any:
        name, owner = self._undefined_name, self._undefined_obj
        if owner is not jinja2.utils.missing and not isinstance(owner, dict | list):
            raise RowError("template_error", f"the template does not fit this row: {kind_of(owner)} has no {name!r}")
        raise RowError("null_field", f"the column {name!r} is null; write {{{{ {name} or '' }}}} to allow that")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = (
        _fail_with_undefined_error
    )
    __mod__ = __rmod__ = __pos__ = __neg__ = __call__ = __getitem__ = __lt__ = __le__ = __gt__ = __ge__ = (
        _fail_with_undefined_error
    )
    __int__ = __float__ = __complex__ = __pow__ = __rpow__ = __floordiv__ = __rfloordiv__ = _fail_with_undefined_error
    __str__ = __len__ = __iter__ = __contains__ = __abs__ = __round__ = _fail_with_undefined_error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail_with_undefined_error()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, Null)

    def __hash__(self) -> int:
        return hash(None)

    def __repr__(self) -> str:
        return "None"  # as it looks inside a struct or a list that is written whole


class Environment(Bounded):
    """Data first: ``{{ s.items }}`` is the member of that name, not a method of Python's."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj:
            return obj[attribute]
        return super().getattr(obj, attribute)


def environment_for(columns: Collection[str]) -> Environment:
    """Where the texts of one job are compiled; ``columns`` are the names that the rows have."""
    environment = Environment(undefined=Null, keep_trailing_newline=True, autoescape=False)
    environment.finalize = partial(_finalize, environment.meter)
    environment.tests["none"] = lambda value: value is None or isinstance(value, Null)
    environment.filters["tojson"] = _tojson
    environment.seal()
    for name in columns:
        environment.globals.pop(name, None)  # a column called "range" is no function in rows that lack it
    return environment


def _finalize(meter: Meter, value: Any) -> Any:
    if type(value) in _SMALL:
        return value
    if value is None:
        raise RowError("null_field", "a value that the template writes is null; say what to write then: {{ x or '' }}")
    if isinstance(value, bytes):
        raise RowError("binary_field", "a value that the template writes is binary, not text")
    meter.walk(value)  # a list is written with all that is in it
    return value


def _tojson(value: Any, indent: int | None = None) -> str:
    text = dumps(_with_nones(value)).decode()
    return text if indent is None else json.dumps(json.loads(text), indent=indent, ensure_ascii=False)


def _with_nulls(value: Any, name: str) -> Any:
    """Null wherever there is None, however deep: ``{{ s.a|upper }}`` must not write NONE."""
    if type(value) is str:
        return value
    if value is None:
        return Null(name=name)
    if isinstance(value, dict):
        return {key: _with_nulls(member, f"{name}[{key!r}]") for key, member in value.items()}
    if isinstance(value, list):
        return [_with_nulls(item, f"{name}[{at}]") for at, item in enumerate(value)]
    return value


def _with_nones(value: Any) -> Any:
    if isinstance(value, Null):
        return None
    if isinstance(value, dict):
        return {key: _with_nones(member) for key, member in value.items()}
    return [_with_nones(item) for item in value] if isinstance(value, list | tuple) else value


class Text:
    """One compiled template text and the columns it asks for. Raises ``TemplateError``."""

    def __init__(self, environment: Environment, what: str, text: str, columns: Collection[str]) -> None:
        try:
            tree = environment.parse(text)
            environment.check(tree)
            self._names = sorted(jinja2.meta.find_undeclared_variables(tree))
            nodes: list[Any] = list(tree.find_all(_NAMES))
            lines = {node.name: node.lineno for node in sorted(nodes, key=lambda node: -node.lineno)}
            self._plain = all(isinstance(node, _PLAIN) for node in tree.find_all(jinja2.nodes.Node))
            self._template = environment.compiled(tree)
        except jinja2.TemplateSyntaxError as exc:
            raise TemplateError(f"request.{what}, line {exc.lineno}: {exc.message}{_no_word(text, columns)}") from None
        except (
            SyntaxError,
            ValueError,
            ArithmeticError,
            RecursionError,
            MemoryError,
        ) as exc:  # Python cannot compile it
            raise TemplateError(
                f"request.{what}: too large or too deeply nested for a template ({_words(exc)})"
            ) from exc
        self._environment = environment
        self._globals = dict(self._template.globals)  # as a chain of maps it would be walked for every row
        self._reused = self._context({})
        if what == "prompt" and not self._names:
            _check_braces(text, columns)
        for name in self._names:
            if name not in columns and name != "row" and name not in environment.globals:
                words = no_column(name, columns, in_text=True) + _no_word(text, columns)
                raise TemplateError(f"request.{what}, line {lines.get(name, 1)}: {words}")

    def render(self, data: dict[str, Any]) -> str:
        """The text for one row. Raises ``RowError``."""
        self._environment.meter.left = STEPS
        try:
            names = self._globals.copy()
            for name in self._names:
                if name in data:
                    value = data[name]
                    names[name] = value if type(value) in _SMALL else _with_nulls(value, name)
                elif name == "row":
                    names[name] = _with_nulls(data, name)
            return self._written(names)
        except jinja2.TemplateError as exc:
            raise RowError("template_error", f"the template does not fit this row: {_words(exc)}") from exc
        except _MISFITS as exc:
            raise RowError("template_error", f"the template does not fit this row: {_words(exc)}") from exc

    def _written(self, names: dict[str, Any]) -> str:
        """What ``Template.render`` does, but for the sets and maps that it makes anew each time."""
        if not self._plain:
            return self._environment.concat(self._template.root_render_func(self._context(names)))
        self._reused.parent = names  # nothing in it sets a name, so that all it knows is these
        # As many pieces as the template has: they need no counting on the way.
        written = list(self._template.root_render_func(self._reused))
        self._environment.meter.fits(sum(map(len, written)))
        return "".join(written)

    def _context(self, names: dict[str, Any]) -> jinja2.runtime.Context:
        template = self._template
        return jinja2.runtime.new_context(self._environment, template.name, template.blocks, names, shared=True)


def _words(exc: BaseException) -> str:
    if isinstance(exc, RecursionError):
        return "nested too deeply"
    return _ADDRESS.sub("", str(exc)).partition("\n")[0].partition(" (<template>")[0][:_SAID] or type(exc).__name__


def _check_braces(text: str, columns: Collection[str]) -> None:
    """A prompt that uses no column, but names one as Python's format does, or is one's name, would be the same for every row."""
    if (name := text.strip()) in columns:
        written = f"{{{{ {name} }}}}" if name.isidentifier() else _of_row(name)
        raise TemplateError(
            f"request.prompt, line 1: {name!r} would be sent as it stands; write {written} for the column"
        )
    for found in _BRACES.finditer(text):
        if found[1] in columns:
            line = text.count("\n", 0, found.start()) + 1
            raise TemplateError(
                f"request.prompt, line {line}: {found[0]} would be sent as it stands; write {{{{ {found[1]} }}}} for the column"
            )


def _no_word(text: str, columns: Collection[str]) -> str:
    """What to write instead, where a column whose name is no word stands in braces like one that is."""
    names = map(str.strip, _IN_BRACES.findall(text))
    found = next((name for name in names if name in columns and not name.isidentifier()), None)
    return "" if found is None else f"; a column whose name is no word is written {_of_row(found)}"


def _of_row(name: str) -> str:
    return f"{{{{ row[{dumps(name).decode()}] }}}}"


def no_column(name: str, columns: Collection[str], *, in_text: bool = False) -> str:
    """What to tell about a name that is no column; ``in_text`` of a template, where not all names are written alike."""
    close = difflib.get_close_matches(name, columns, n=1)
    written = f", written {_of_row(close[0])}" if in_text and close and not close[0].isidentifier() else ""
    hint = f" (did you mean {close[0]!r}{written}?)" if close else ""
    return f"the input has no column {name!r}{hint}; its columns are: {listed(sorted(columns))}"


def kind_of(value: Any) -> str:
    """What a value is called in messages."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)

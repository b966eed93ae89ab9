"""JSON answers: an object that fits the schema, or has the keys the prompt asks for."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import Any

import orjson

from pipeline.simulator.answers import Prompt, Task, choose, first_sentences, pick, understand

_ASKS = re.compile(r"\b(?:answer|reply|respond|return|output|give|write|produce)\b[^.\n]{0,40}\bjson\b", re.IGNORECASE)
_QUOTED_KEY = re.compile(r'"(\w+)"\s*:')
_LISTED_KEYS = re.compile(r"\b(?:keys|fields)\b:?\s+([^.\n]+)", re.IGNORECASE)
_LABEL_KEY = re.compile(r"label|categor|class|topic|intent|sentiment", re.IGNORECASE)
_FORMATS = MappingProxyType({"date": "2026-01-01", "date-time": "2026-01-01T00:00:00Z"})
# A schema may contain itself: deep down its lists are left empty, and at some depth it ends.
_SHALLOW, _DEEPEST = 4, 12

_Schema = dict[str, Any]


def wanted(prompt: Prompt, response_format: _Schema) -> bool:
    """Whether the answer is to be JSON: the request or the text says so."""
    if response_format.get("type") in ("json_object", "json_schema"):
        return True
    return any("json" in text.lower() and _ASKS.search(text) for text in (prompt.system, prompt.user))


def answer(prompt: Prompt, response_format: _Schema) -> str:
    """The JSON text."""
    task = understand(prompt)
    schema = (response_format.get("json_schema") or {}).get("schema")
    if isinstance(schema, dict):
        value = _Filler(task, schema).fill(schema, "", 0)
    else:
        value = {key: _text(key, task) for key in _keys(prompt, task)}
    return orjson.dumps(value).decode()


def _keys(prompt: Prompt, task: Task) -> list[str]:
    text = f"{prompt.system}\n{prompt.user}"
    if quoted := _QUOTED_KEY.findall(text):
        return list(dict.fromkeys(quoted))
    if listed := _LISTED_KEYS.search(text):
        return re.findall(r"\b(?!and\b|or\b)\w+", listed[1])
    return ["label"] if task.labels else ["answer"]


def _text(key: str, task: Task) -> str:
    if task.labels and _LABEL_KEY.search(key):
        return task.label()
    return first_sentences(task.text, 80)


class _Filler:
    """Makes up a value for a schema; ``fill`` takes the key it is for and how deep it lies."""

    def __init__(self, task: Task, root: _Schema) -> None:
        self._task = task
        self._root = root

    def fill(self, schema: Any, key: str, depth: int) -> Any:
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return None
        if "$ref" in schema:
            return self.fill(self._resolve(schema["$ref"]), key, depth + 1)
        if options := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            real = [option for option in options if option != {"type": "null"}]
            return self.fill((real or options)[0], key, depth + 1)
        if "const" in schema:
            return schema["const"]
        if values := schema.get("enum"):
            texts = tuple(value for value in values if isinstance(value, str))
            return choose(texts, self._task.text) if texts else values[self._pick(key, len(values))]
        return self._by_type(schema, key, depth)

    def _resolve(self, ref: str) -> Any:
        node: Any = self._root
        for name in ref.split("/")[1:]:
            node = node.get(name) if isinstance(node, dict) else None
        return node

    def _by_type(self, schema: _Schema, key: str, depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return {name: self.fill(one, name, depth + 1) for name, one in schema.get("properties", {}).items()}
            case "array":
                length = schema.get("minItems", 1 if depth < _SHALLOW else 0)
                return [self.fill(schema.get("items"), key, depth + 1) for _ in range(length)]
            case "boolean":
                return self._pick(key, 2) == 1
            case "integer":
                return self._integer(schema, key)
            case "number":
                return self._number(schema, key)
            case "string":
                return self._string(schema, key)
        return None

    def _pick(self, key: str, choices: int) -> int:
        return pick(f"{key}:{self._task.text}", choices)

    def _integer(self, schema: _Schema, key: str) -> int:
        low: int = schema.get("minimum", schema.get("exclusiveMinimum", 0) + 1)
        high: int = schema.get("maximum", schema.get("exclusiveMaximum", low + 5) - 1)
        return min(low, high) + self._pick(key, max(high - low, 0) + 1)

    def _number(self, schema: _Schema, key: str) -> float:
        low: Any = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high: Any = schema.get("maximum", schema.get("exclusiveMaximum", low + 1))
        share = (self._pick(key, 99) + 1) / 100  # never an end of the range: it may be exclusive
        return float(low + (high - low) * share)

    def _string(self, schema: _Schema, key: str) -> str:
        text = _FORMATS.get(schema.get("format", "")) or _text(key, self._task)
        return text[: schema.get("maxLength", len(text))].ljust(schema.get("minLength", 0), ".")

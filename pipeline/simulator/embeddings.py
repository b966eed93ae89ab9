"""Embeddings: unit vectors made from a hash of the text."""

from __future__ import annotations

import math
import struct
from array import array
from dataclasses import dataclass, replace
from hashlib import shake_256
from typing import Any

from pipeline.records import Usage
from pipeline.simulator import tokens
from pipeline.simulator.problem import Problem, invalid

_MOST_INPUTS = 2048
_LONGEST_VECTOR = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingAsk:
    """A valid request."""

    model: str
    inputs: tuple[str, ...]
    base64: bool
    dimensions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """The answer, one float32 vector an input."""

    model: str
    vectors: tuple[array[float], ...]
    base64: bool
    usage: Usage | None


def read(payload: dict[str, Any], default_dimensions: int, *, fewest: int) -> EmbeddingAsk | Problem:
    """Checks a request as OpenAI does, but for how many inputs are enough. Lists of token ids count as texts."""
    given = payload.get("input")
    if given is None:
        return invalid("input", "Missing required parameter: 'input'.")
    inputs = given if isinstance(given, list) and not (given and all(type(one) is int for one in given)) else [given]
    if not fewest <= len(inputs) <= _MOST_INPUTS or not all(one and isinstance(one, str | list) for one in inputs):
        return invalid("input", f"Invalid 'input': expected a text or 1 to {_MOST_INPUTS} texts, none of them empty.")
    dimensions = payload.get("dimensions") or default_dimensions
    if type(dimensions) is not int or not 1 <= dimensions <= _LONGEST_VECTOR:
        return invalid("dimensions", f"Invalid 'dimensions': expected an integer from 1 to {_LONGEST_VECTOR}.")
    encoding = payload.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        return invalid("encoding_format", f"Invalid 'encoding_format': expected float or base64, got {encoding!r}.")
    return EmbeddingAsk(
        model=payload["model"],
        inputs=tuple(one if isinstance(one, str) else " ".join(map(str, one)) for one in inputs),
        base64=encoding == "base64",
        dimensions=dimensions,
    )


def embed(ask: EmbeddingAsk) -> Vectors:
    """The answer to ``ask``, always the same."""
    return Vectors(
        model=ask.model,
        vectors=tuple(_vector(text, ask.dimensions) for text in ask.inputs),
        base64=ask.base64,
        usage=Usage(prompt_tokens=sum(map(tokens.count, ask.inputs)), completion_tokens=0),
    )


def spoil(answer: Vectors, fault: str) -> Vectors:
    """The answer as ``fault`` leaves it; as it is when the fault lies elsewhere."""
    match fault:
        case "no_usage":
            return replace(answer, usage=None)
        case "empty_choices":
            return replace(answer, vectors=())
    return answer


def _vector(text: str, dimensions: int) -> array[float]:
    digest = shake_256(text.encode("utf-8", "replace")).digest(2 * dimensions)
    values = [number or 1 for number in struct.unpack(f"<{dimensions}h", digest)]  # not even one dimension is zero
    length = math.hypot(*values)
    return array("f", [value / length for value in values])

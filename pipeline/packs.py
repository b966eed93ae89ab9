"""Several embeddings rows in one call: what goes out for them together, and who gets what of the answer.

A row that cannot share its call (several inputs in one batch line) is no pack and goes the way of a chat row.
"""

from __future__ import annotations

import base64
import binascii
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.gateways.complaint import complaint_of
from pipeline.jsonio import dumps, loads
from pipeline.records import Attempt, Completion, Cost, Kind, Outcome, Reply, Request, Usage, Verdict

OPENING_CHARACTERS = 300
_ASKS_BASE64 = b',"encoding_format":"base64"}'
_OK = Verdict(kind=Kind.OK)


def rest_of(request: Request) -> bytes | None:
    """What must be equal in rows of one call: all but the input. None when the row has several inputs of its own."""
    body = loads(request.body, exact=False)
    text = _single(body["input"])
    if isinstance(text, list) and not all(type(token) is int for token in text):
        return None
    for name in ("input", "encoding_format"):  # how vectors come is ours to choose
        body.pop(name, None)
    return type(text).__name__.encode() + dumps(body, sort_keys=True)  # texts and token ids do not mix


def input_of(request: Request) -> Any:
    """A text, or a list of token ids; a list of just one of them means that one."""
    return _single(loads(request.body)["input"])


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 and type(value[0]) is not int else value


def joined(rows: Sequence[Request]) -> Request:
    """One request for all of them. Their bodies differ in nothing but the input."""
    inputs = [input_of(row) for row in rows]
    body = loads(rows[0].body)
    body.pop("encoding_format", None)
    body["input"] = inputs if len(rows) > 1 else inputs[0]
    tokens = sum(row.estimated_tokens for row in rows)
    images = sum(row.image_bytes for row in rows)
    return replace(rows[0], body=dumps(body, sort_keys=True), estimated_tokens=tokens, image_bytes=images)


def asking_base64(body: bytes) -> bytes:
    """A dressed body that wants its vectors as base64: a quarter of the bytes, and exact."""
    return body[:-1] + _ASKS_BASE64


def refuses_base64(reply: Reply) -> bool:
    """Whether the gateway does not know base64: it says so in the error."""
    if reply.status not in (400, 422):
        return False
    opening = complaint_of(reply).message[:OPENING_CHARACTERS]
    return "encoding_format" in opening or "base64" in opening


def read(reply: Reply, rows: int) -> tuple[Reply, Verdict]:
    """A good reply with its vectors as its body, float32 in the order of the inputs; a verdict when it is not whole."""
    try:
        vectors = _vectors(reply.json["data"], rows)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as exc:
        message = f"The vectors are not whole: {exc}"
        return reply, Verdict(kind=Kind.TRANSIENT, code="malformed_reply", message=message)
    return replace(reply, body=b"".join(vectors)), _OK


def _vectors(data: list[dict[str, Any]], rows: int) -> list[bytes]:
    if len(data) != rows:
        raise ValueError(f"{len(data)} for {rows} inputs")
    places = [item.get("index", at) for at, item in enumerate(data)]
    if sorted(places) != list(range(rows)):
        raise ValueError("an index is missing or stands twice")
    vectors = [b""] * rows
    for place, item in zip(places, data, strict=True):
        vectors[place] = _vector(item["embedding"])
    if len({len(vector) for vector in vectors}) > 1:
        raise ValueError("their dimensions differ")
    return vectors


def _vector(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            numbers = array("f", base64.b64decode(value, validate=True))
        except binascii.Error as exc:
            raise ValueError(f"no base64: {exc}") from exc
        if sys.byteorder == "big":
            numbers.byteswap()
    else:
        numbers = array("f", value)
    if sys.byteorder == "big":
        numbers.byteswap()
    blob = numbers.tobytes()
    if not numbers or not _is_finite(blob):
        raise ValueError("a vector is empty, or has a number that is none")
    return blob


def _is_finite(blob: bytes) -> bool:
    """Whether little-endian float32 are all numbers. Adding 768 of them up takes 9 us, a look at their exponents 1 us."""
    highest = blob[3::4]
    if b"\x7f" not in highest and b"\xff" not in highest:
        return True
    return not any(high & 0x7F == 0x7F and low & 0x80 for high, low in zip(highest, blob[2::4], strict=True))


def parted(rows: Sequence[Request], record: Outcome | Attempt) -> Sequence[Outcome | Attempt]:
    """The record of one call as one for each of its rows; tokens and cost are shared out by the length of the inputs."""
    weights = [_weight(row) for row in rows]
    if isinstance(record, Attempt):
        amounts = shares(record.cost.amount, weights)
        return [
            replace(
                record, custom_id=row.custom_id, fingerprint=row.fingerprint, cost=replace(record.cost, amount=amount)
            )
            for row, amount in zip(rows, amounts, strict=True)
        ]
    completion = record.completion
    usages = [Usage()] * len(rows) if completion is None else _usages(completion.usage, weights)
    size = 0 if completion is None else len(completion.raw) // len(rows)
    unit, source = record.cost.unit, record.cost.source
    return [
        replace(
            record,
            custom_id=row.custom_id,
            index=row.index,
            fingerprint=row.fingerprint,
            cost=Cost(amount=amount, unit=unit, source=source),
            completion=completion and _part(completion, usage, completion.raw[at * size : (at + 1) * size]),
        )
        for at, (row, usage, amount) in enumerate(zip(rows, usages, shares(record.cost.amount, weights), strict=True))
    ]


def _part(whole: Completion, usage: Usage, vector: bytes) -> Completion:
    """One row's share; ``replace`` takes as long again."""
    return Completion(
        content=whole.content,
        finish_reason=whole.finish_reason,
        model=whole.model,
        usage=usage,
        raw=vector,
        remark=whole.remark,
        form="float32",
    )


def _weight(row: Request) -> int:
    text = _single(loads(row.body, exact=False)["input"])
    return len(text.encode()) if isinstance(text, str) else len(text)


def _usages(usage: Usage, weights: list[int]) -> list[Usage]:
    columns = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    estimated = len(weights) > 1 and any(count is not None for count in columns)
    return [
        Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=cached,
            reasoning_tokens=reasoning,
            estimated=estimated or usage.estimated,
        )
        for prompt, completion, cached, reasoning in zip(
            *(whole_shares(count, weights) for count in columns), strict=True
        )
    ]


def whole_shares(total: int | None, weights: Sequence[int]) -> Sequence[int | None]:
    """``total`` shared out in whole numbers that sum up to it: the largest remainders get one more."""
    if total is None:
        return [None] * len(weights)
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda at: -(total * weights[at] % whole))
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts


def shares(total: float | None, weights: Sequence[int]) -> Sequence[float | None]:
    """``total`` shared out in the same proportion."""
    if total is None:
        return [None] * len(weights)
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    return [total * weight / whole for weight in weights]

"""Several embeddings rows in one call: what goes out for them together, and who gets what of the answer.

A row that cannot share its call (several inputs in one batch line) is no pack and goes the way of a chat row.
"""

from __future__ import annotations

import binascii
import sys
from array import array
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pipeline.gateways.complaint import complaint_of
from pipeline.ground.jsonio import dumps, loads
from pipeline.records import Attempt, Completion, Cost, Kind, Outcome, Reply, Request, Usage, Verdict

OPENING_CHARACTERS = 300
_ASKS_BASE64 = b',"encoding_format":"base64"}'
_OK = Verdict(kind=Kind.OK)


def opened(row: Request) -> tuple[Any, bytes | None]:
    """A row's input, a text or a list of token ids, and all else, which must be equal in rows of one call. No else when the row
    has several inputs of its own."""
    body = loads(row.body)
    value = _single(body.pop("input"))
    if isinstance(value, list) and not all(type(token) is int for token in value):
        return value, None
    body.pop("encoding_format", None)  # how vectors come is ours to choose
    return value, type(value).__name__.encode() + dumps(body, sort_keys=True)  # texts and token ids do not mix


def _single(value: Any) -> Any:
    """A list of just one input means that one."""
    return value[0] if isinstance(value, list) and len(value) == 1 and type(value[0]) is not int else value


def joined(rows: Sequence[Request], inputs: Sequence[Any] = ()) -> Request:
    """One request for all of them. Their bodies differ in nothing but the input; ``inputs`` where those are known."""
    inputs = inputs or [opened(row)[0] for row in rows]
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
    blob = _decoded(value) if isinstance(value, str) else _little_endian(array("f", value))
    if not blob or not _is_finite(blob):
        raise ValueError("a vector is empty, or has a number that is none")
    return blob


def _decoded(text: str) -> bytes:
    """It is little-endian as it comes."""
    try:
        blob = binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error as exc:
        raise ValueError(f"no base64: {exc}") from exc
    if len(blob) % 4:
        raise ValueError(f"{len(blob)} bytes are no float32")
    return blob


def _little_endian(numbers: array[float]) -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _is_finite(blob: bytes) -> bool:
    """Whether little-endian float32 are all numbers. Adding 768 of them up takes 9 us, a look at their exponents 1 us."""
    highest = blob[3::4]
    if 0x7F not in highest and 0xFF not in highest:
        return True
    return not any(high & 0x7F == 0x7F and low & 0x80 for high, low in zip(highest, blob[2::4], strict=True))


def parted(whole: Request, rows: Sequence[Request], record: Outcome | Attempt) -> Sequence[Outcome | Attempt]:
    """The record of one call as one for each of its rows; tokens and cost are shared out by the length of the inputs."""
    asked = loads(whole.body)["input"]
    weights = [_weight(one) for one in (asked if len(rows) > 1 else [asked])]
    costs = _costs(record.cost, weights)
    if isinstance(record, Attempt):
        return [
            replace(record, custom_id=row.custom_id, fingerprint=row.fingerprint, cost=cost)
            for row, cost in zip(rows, costs, strict=True)
        ]
    completions = _completions(record.completion, weights)
    return [
        _outcome(record, row, cost, completion) for row, cost, completion in zip(rows, costs, completions, strict=True)
    ]


def _outcome(whole: Outcome, row: Request, cost: Cost, completion: Completion | None) -> Outcome:
    """One row's share; ``replace`` takes three times as long."""
    return Outcome(
        custom_id=row.custom_id,
        index=row.index,
        fingerprint=row.fingerprint,
        status=whole.status,
        model=whole.model,
        completion=completion,
        error_code=whole.error_code,
        error_message=whole.error_message,
        cost=cost,
        latency_s=whole.latency_s,
        request_id=whole.request_id,
        completed_at=whole.completed_at,
        sent=whole.sent,
        lost=whole.lost,
        call_id=whole.call_id,
    )


def _completions(whole: Completion | None, weights: list[int]) -> Sequence[Completion | None]:
    if whole is None:
        return [None] * len(weights)
    size = len(whole.raw) // len(weights)
    return [
        _part(whole, usage, whole.raw[at * size : (at + 1) * size])
        for at, usage in enumerate(_usages(whole.usage, weights))
    ]


def _part(whole: Completion, usage: Usage, vector: bytes) -> Completion:
    return Completion(
        content=whole.content,
        finish_reason=whole.finish_reason,
        model=whole.model,
        usage=usage,
        raw=vector,
        remark=whole.remark,
        form="float32",
    )


def _weight(value: Any) -> int:
    return len(value.encode()) if isinstance(value, str) else len(value)


def _costs(whole: Cost, weights: list[int]) -> Sequence[Cost]:
    if whole.amount is None:
        return [whole] * len(weights)
    return [Cost(amount=amount, unit=whole.unit, source=whole.source) for amount in shares(whole.amount, weights)]


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
    if not total:
        return [total] * len(weights)
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda at: -(total * weights[at] % whole))
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts


def shares(total: float, weights: Sequence[int]) -> Sequence[float]:
    """``total`` shared out in the same proportion."""
    weights = weights if any(weights) else [1] * len(weights)
    whole = sum(weights)
    return [total * weight / whole for weight in weights]

"""The kept replies: their bytes are those that came, and they say what the outcome's columns say."""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pipeline.gateways import OpenAI
from pipeline.gateways.answer import is_answer, message_in, text_in
from pipeline.ground.jsonio import loads
from pipeline.records import CHAT, COMPLETIONS, EMBEDDINGS, Reply
from pipeline.verify.report import Proof

_KEPT = """
SELECT o.custom_id, o.served_model, o.finish_reason, o.remark, o.prompt_tokens, o.completion_tokens, o.cached_tokens,
    o.reasoning_tokens, o.cost_source = 'reused', r.body, r.form, r.crc
FROM outcome o JOIN reply r ON r.no = o.no ORDER BY o.no
"""
_EXPONENT = 0x7F80_0000


class Kept(NamedTuple):
    """A reply beside the columns that were read out of it."""

    custom_id: str
    served_model: str | None
    finish_reason: str | None
    remark: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    reused: int
    body: bytes
    form: str
    crc: int | None


def untrue_replies(db: sqlite3.Connection, dialect: OpenAI, proof: Proof) -> Iterator[str]:
    """Replies that are not what was received, that cannot be read, or that say something else than the outcome does."""
    for kept in map(Kept._make, db.execute(_KEPT)):
        proof.counted("replies", 1)
        proof.counted("checksums of replies", kept.crc is not None)
        if not isinstance(kept.body, bytes) or (kept.crc is not None and zlib.crc32(kept.body) != kept.crc):
            yield f"the kept answer of {kept.custom_id!r} is not the one that was received: its checksum is another"
        elif kept.form == "float32":
            if not _is_vector(kept.body):
                yield f"the kept vector of {kept.custom_id!r} is none"
        elif kept.form != "json":
            yield f"the kept answer of {kept.custom_id!r} has the unknown form {kept.form!r}"
        elif (problem := _unlike_its_columns(kept, dialect)) is not None:
            yield f"the kept answer of {kept.custom_id!r} {problem}"


def _is_vector(body: bytes) -> bool:
    if not body or len(body) % 4:
        return False
    return all(bits & _EXPONENT != _EXPONENT for (bits,) in struct.iter_unpack("<I", body))


def _unlike_its_columns(kept: Kept, dialect: OpenAI) -> str | None:
    try:
        body = loads(kept.body, exact=False)
    except ValueError:
        return "is no JSON"
    endpoint = _endpoint_of(body)
    if not is_answer(body, endpoint):
        return "is no answer"
    reply = Reply(status=200, headers={}, body=kept.body, json=body, elapsed_s=0.0)
    try:
        completion = dialect.completion(reply, endpoint)
        dialect.content(kept.body)
    except (ValueError, TypeError, LookupError, AttributeError):
        return "cannot be read"
    usage = completion.usage
    told: dict[str, tuple[str | int | None, str | int | None]] = {
        "finish_reason": (kept.finish_reason, completion.finish_reason),
        "remark": (kept.remark, completion.remark),
    }
    if not dialect.names_model_in_headers:
        told["served_model"] = (kept.served_model, completion.model)
    if not kept.reused:  # a copy used none
        told |= {
            "prompt_tokens": (kept.prompt_tokens, usage.prompt_tokens),
            "completion_tokens": (kept.completion_tokens, usage.completion_tokens),
            "cached_tokens": (kept.cached_tokens, usage.cached_tokens),
            "reasoning_tokens": (kept.reasoning_tokens, usage.reasoning_tokens),
        }
    for name, (column, said) in told.items():
        if column != said:
            return f"says {said!r} for {name}, the outcome {column!r}"
    return None


def _endpoint_of(body: Any) -> str:
    if not isinstance(body, dict) or message_in(body) is not None:
        return CHAT
    return COMPLETIONS if text_in(body) is not None else EMBEDDINGS

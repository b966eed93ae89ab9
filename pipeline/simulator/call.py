"""One request as it arrived."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``number`` counts arrivals from 1; ``occurrence`` counts this body's earlier ones (0 where nobody asks).

    ``endpoint`` is "chat", "embeddings", "models", or "" for a route that is not there. ``digest`` is the BLAKE2b-128
    of the raw body; ``call_id`` is what the client calls this try, if it said so in a header.
    """

    number: int
    at: float
    method: str
    path: str
    endpoint: str
    body: bytes
    digest: bytes
    occurrence: int
    call_id: str | None

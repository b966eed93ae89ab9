"""One request as it arrived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``number`` counts arrivals from 1; ``occurrence`` counts this body's earlier ones (0 where nobody asks).

    ``endpoint`` is "chat", "embeddings", "models", or a page of the dialect's own; "" for a route that is not there.
    ``digest`` is the BLAKE2b-128 of the raw body; ``payload`` is its JSON, or None and its ``flaw``. ``call_id`` is what
    the client calls this try, if it said so in a header; otherwise what the gateway calls it, if anything.
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
    payload: Any = None
    flaw: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_slot(self) -> bool:
        """Whether it keeps a model busy."""
        return self.endpoint in ("chat", "embeddings")

    @property
    def stream(self) -> bool:
        """Whether the answer is to come as events."""
        return self.endpoint == "chat" and isinstance(self.payload, dict) and bool(self.payload.get("stream"))

    @property
    def model(self) -> str:
        """The model asked for; "" when none is."""
        name = self.payload.get("model") if isinstance(self.payload, dict) else None
        return name if isinstance(name, str) else ""

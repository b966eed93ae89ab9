"""The gateway's own books: every request it saw, and what it would put on the bill."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType

import orjson

from pipeline.records import Usage
from pipeline.simulator.call import Call
from pipeline.simulator.gate import Gate
from pipeline.simulator.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What an answer is sold for: which model ``served`` it, the tokens that count, the cost in the gateway's unit."""

    served: str
    usage: Usage
    cost: float

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.usage.total_tokens or 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One request. ``status`` 0: no answer was sent. Tokens and cost are those billed, 0 when nothing was.

    ``model`` was asked, ``served`` is the one that answered. ``billed``: an answer was made, whether or not the client was still there to read it; or a stream ran to its end.
    """

    number: int
    at: float
    ended_at: float
    method: str
    path: str
    body_digest: str
    call_id: str | None
    model: str | None
    served: str | None
    status: int
    fault: str | None
    billed: bool
    prompt_tokens: int
    completion_tokens: int
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """The books in short. ``in_flight`` counts the calls that hold a slot now; ``requests`` are those that ended."""

    requests: int = 0
    billed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    unit: str = "USD"
    in_flight: int = 0
    peak_parallel: int = 0
    by_status: dict[str, int] = field(default_factory=dict)
    by_fault: dict[str, int] = field(default_factory=dict)


class Line:
    """A request's line while it is written: closed once, at the latest (unanswered, unbilled) when its block ends."""

    __slots__ = ("_call", "_closed", "_ledger", "fault", "model", "tokens")

    def __init__(self, ledger: Ledger, call: Call) -> None:
        self._ledger = ledger
        self._call = call
        self._closed = False
        self.fault: str | None = None
        self.model: str | None = None
        self.tokens = 0

    def close(self, status: int, bill: Bill | None = None) -> None:
        """Books the request, and the ``bill`` if there is one. Called before the last byte goes out, so that a client that
        has its answer finds it in the books."""
        if not self._closed:
            self._closed = True
            self.tokens = bill.tokens if bill else 0
            self._ledger.book(self._call, self, status, bill)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(0)


class Ledger:
    """Totals always; every single entry unless told not to."""

    def __init__(self, settings: Settings, gate: Gate) -> None:
        self._settings = settings
        self._gate = gate
        self._entries: list[Entry] = []
        self._requests = self._billed = self._prompt_tokens = self._completion_tokens = 0
        self._cost = 0.0
        self._by_status: Counter[str] = Counter()
        self._by_fault: Counter[str] = Counter()

    @property
    def entries(self) -> list[Entry]:
        """The closed lines, by arrival."""
        return sorted(self._entries, key=lambda entry: entry.number)

    @property
    def totals(self) -> Totals:
        """A snapshot."""
        return Totals(
            requests=self._requests,
            billed=self._billed,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cost=self._cost,
            unit=self._settings.unit,
            in_flight=self._gate.parallel,
            peak_parallel=self._gate.peak,
            by_status=dict(self._by_status),
            by_fault=dict(self._by_fault),
        )

    def to_json(self, *, totals_only: bool) -> bytes:
        """The body of ``GET /ledger``."""
        if totals_only:
            return orjson.dumps({"totals": self.totals})
        return orjson.dumps({"requests": self.entries, "totals": self.totals})

    def open(self, call: Call) -> Line:
        """A line for this request; use it in a ``with`` block."""
        return Line(self, call)

    def book(self, call: Call, line: Line, status: int, bill: Bill | None) -> None:
        """Adds a finished line, and has the account charged; ``Line.close`` calls it once."""
        prompt = (bill.usage.prompt_tokens or 0) if bill else 0
        completion = (bill.usage.completion_tokens or 0) if bill else 0
        cost = bill.cost if bill else 0.0
        self._requests += 1
        self._billed += bill is not None
        self._prompt_tokens += prompt
        self._completion_tokens += completion
        self._cost += cost
        self._by_status[str(status)] += 1
        if cost:
            self._gate.account.charge(cost)
        if line.fault is not None:
            self._by_fault[line.fault] += 1
        if self._settings.ledger:
            entry = Entry(
                number=call.number,
                at=call.at,
                ended_at=self._settings.clock(),
                method=call.method,
                path=call.path,
                body_digest=call.digest.hex(),
                call_id=call.call_id,
                model=line.model,
                served=bill.served if bill else None,
                status=status,
                fault=line.fault,
                billed=bill is not None,
                prompt_tokens=prompt,
                completion_tokens=completion,
                cost=cost,
            )
            self._entries.append(entry)

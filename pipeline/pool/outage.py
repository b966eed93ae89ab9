"""An outage is a state of the whole run: everyone waits at one gate while one probe asks whether the gateway is back.

No row is charged for it. The probe is an unpaid call first. Where that is answered and the trouble was not that nobody
could be reached, a *witness* asks the model: the shortest request there is, which costs a token and is booked as overhead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson

from pipeline.gateways import OpenAI
from pipeline.gateways.unreadable import carefully
from pipeline.records import CHAT, COMPLETIONS, EMBEDDINGS, WITNESSES, Kind, Reply, Request, Verdict

FIRST_PROBE_S = 1.0
MOST_PROBE_S = 30.0
PROLONGED = 0.05  # by so much of its length, and no more, does asking ever less often prolong an outage
WITNESS = "(witness)"
_SHORTEST: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1},
    COMPLETIONS: {"prompt": "yes", "max_tokens": 1},
    EMBEDDINGS: {"input": "yes"},
}
WITNESS_HOLDS_S = 5.0  # what one witness said of the gateway stands for others who ask right after


class Prober(Protocol):
    """How to ask the gateway whether it is there."""

    async def reach(self) -> Verdict: ...
    async def witness(self, request: Request) -> Verdict: ...


class Sender(Protocol):
    """The seam to the network."""

    async def send(self, endpoint: str, body: bytes, headers: Mapping[str, str], *, stream: bool) -> Reply: ...
    async def get(self, path: str) -> Reply: ...
    async def drop(self) -> None: ...


class GatewayProber:
    """Probes over the network. ``enter`` notes each witness as in flight, in an entry; ``booked`` is told what came of it."""

    def __init__(
        self,
        sender: Sender,
        dialect: OpenAI,
        *,
        run_name: str,
        enter: Callable[[Request, str], int],
        booked: Callable[[Request, str, Reply, int], Awaitable[None]],
    ) -> None:
        self._sender = sender
        self._dialect = dialect
        self._run_name = run_name
        self._enter = enter
        self._booked = booked
        self._count = 0
        self._few = asyncio.Semaphore(WITNESSES)

    async def reach(self) -> Verdict:
        """Whether anyone answers at all, by an unpaid call."""
        reply = await self._sender.get(self._dialect.probe_path)
        verdict = carefully(self._dialect.classify, reply)
        away = reply.failure is not None or reply.status >= 500 or verdict.kind is Kind.OUTAGE
        return verdict if away else Verdict(kind=Kind.OK)

    async def witness(self, request: Request) -> Verdict:
        """The shortest request to the same model: what it meets is not the fault of any row."""
        body = orjson.dumps({"model": request.model, **_SHORTEST[request.endpoint]}, option=orjson.OPT_SORT_KEYS)
        asked = replace(request, custom_id=WITNESS, index=0, body=body, fingerprint=bytes(16))
        reply = await self._ask(asked)
        if reply.failure is not None and reply.failure.stale:  # the connection of the call before: it says nothing
            reply = await self._ask(asked)
        return carefully(lambda reply: self._dialect.classify(reply, asked.endpoint), reply)

    async def _ask(self, asked: Request) -> Reply:
        async with self._few:
            self._count += 1
            call_id = f"{self._run_name}-witness-{self._count}"
            body, headers = self._dialect.dress(asked), self._dialect.headers(call_id)
            entry = self._enter(asked, call_id)
            reply = await self._sender.send(asked.endpoint, body, headers, stream=False)
            await self._booked(asked, call_id, reply, entry)
            return reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """One outage. Wall-clock times in seconds; ``ended_at`` None while it lasts. ``cause`` begins with the verdict's ``code``."""

    started_at: float
    ended_at: float | None
    cause: str
    code: str

    @property
    def told(self) -> tuple[float, float | None, str]:
        """Its beginning, end and cause, as a summary has them."""
        return self.started_at, self.ended_at, self.cause


class Outage:
    """``await gate()`` before every send; ``open`` on an OUTAGE verdict; ``blames_gateway`` before charging a row.

    ``believed`` tells what a verdict is worth now. ``lasts`` is told after each probe that found nobody: what it found, and
    how long this outage is now, in seconds; ``ended`` when it is over.
    """

    def __init__(
        self,
        prober: Prober,
        *,
        believed: Callable[[Verdict], Verdict],
        wall_clock: Callable[[], float],
        lasts: Callable[[Verdict, float], None],
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self._prober = prober
        self._believed = believed
        self._now = wall_clock
        self._lasts = lasts
        self._ended = ended
        self._passable = asyncio.Event()
        self._passable.set()
        self._released = False
        self._opened = asyncio.Event()
        self._asking = asyncio.Lock()  # one witness at a time; who waits takes its word
        self._witnessed_at = float("-inf")
        self._request: Request | None = None
        self._first_probe_s = FIRST_PROBE_S
        self._spell: Spell | None = None
        self._past: list[Spell] = []

    @property
    def spell(self) -> Spell | None:
        """The outage that lasts now."""
        return self._spell

    @property
    def spells(self) -> list[Spell]:
        """All there were, and the one that lasts now."""
        return self._past + ([self._spell] if self._spell else [])

    async def gate(self) -> None:
        """Pass when there is no outage."""
        await self._passable.wait()

    def release(self) -> None:
        """Let everyone through from now on, to see that the run is ending."""
        self._released = True
        self._passable.set()

    def open(self, verdict: Verdict, request: Request) -> None:
        """The gateway or its model is away, as ``request`` found."""
        if self._spell is not None:
            return
        cause = f"{verdict.code}: {verdict.message}"
        self._spell = Spell(started_at=self._now(), ended_at=None, cause=cause, code=verdict.code)
        self._request = None if verdict.unsent else request
        self._first_probe_s = FIRST_PROBE_S if verdict.retry_after_s is None else max(0.1, verdict.retry_after_s)
        if not self._released:
            self._passable.clear()
        self._opened.set()

    async def blames_gateway(self, verdict: Verdict, request: Request) -> bool:
        """Whether an ambiguous error is the gateway's doing: a witness fails, too. Then the outage is open."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        async with self._asking:
            if self._spell is not None:
                return True
            if self._witnessed_at >= asked_at - WITNESS_HOLDS_S:
                return False
            said = await self._prober.witness(request)
            if is_back(self._believed(said)):
                self._witnessed_at = loop.time()
                return False
        self.open(verdict, request)
        return True

    async def watch(self) -> None:
        """The one probe: sleeps until there is an outage, then asks, less and less often, until it is over."""
        loop = asyncio.get_running_loop()
        while True:
            await self._opened.wait()
            self._opened.clear()
            since, delay_s = loop.time(), self._first_probe_s
            while True:
                await asyncio.sleep(delay_s)
                there = said = self._believed(await self._prober.reach())
                if is_back(there) and self._request is not None:
                    said = self._believed(await self._prober.witness(self._request))
                if is_back(said):
                    break
                lasts_s = loop.time() - since
                self._lasts(said, lasts_s)
                delay_s = self._doubled(delay_s) if is_back(there) else _cheap_delay(there, lasts_s)
            self._close()

    def _doubled(self, delay_s: float) -> float:
        """Until the next witness: it is one more request to a model in trouble."""
        return min(2.0 * delay_s, max(self._first_probe_s, MOST_PROBE_S))

    def _close(self) -> None:
        if self._spell is not None:
            self._past.append(replace(self._spell, ended_at=self._now()))
            self._spell = None
        self._passable.set()
        self._ended()


def _cheap_delay(said: Verdict, lasts_s: float) -> float:
    """Until the next unpaid call. Where it does not even arrive it bothers nobody."""
    return FIRST_PROBE_S if said.unsent else min(max(FIRST_PROBE_S, PROLONGED * lasts_s), MOST_PROBE_S)


def is_back(said: Verdict) -> bool:
    """An answer, a limit or a plain refusal come from a gateway that works."""
    return said.kind in (Kind.OK, Kind.THROTTLED, Kind.REJECTED, Kind.FATAL)

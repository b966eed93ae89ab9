"""What the gateway's ledger has under the call ids of lost tries: ``pipeline verify --billing``.

Our call id goes out with every request, so a ledger that can be asked for it tells what a try was billed whose answer
nobody saw. The answer itself is gone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pipeline.client import Client
from pipeline.gateways import dialect_of
from pipeline.gateways.complaint import complaint_of
from pipeline.ground.wording import money, plural
from pipeline.job import Job
from pipeline.journal import Journal, Lock, lost, sentences
from pipeline.owner import job_of
from pipeline.preflight import LEDGER_LATE_S, connection_to, unpaid
from pipeline.records import Billed, Reply

ASKED_AT_ONCE = 4
AGAIN_S = 2.0
SAY_EVERY_S = 10.0
MOST_FAILURES = 3  # in a row; then the gateway cannot tell, or not now
MOST_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One lost call and what is known of its bill: of ``rows`` rows, ``custom_id`` among them. ``cost`` is in USD, None
    unless it was billed; tokens are None unless they were told just now."""

    call_id: str
    custom_id: str
    rows: int
    code: str
    at: float
    told: Literal["billed", "not billed", "unknown"]
    cost: float | None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """All lost tries of a journal. ``cost`` is the sum of what was billed, in USD; ``why`` says why some are unknown."""

    billed: int
    not_billed: int
    unknown: int
    cost: float
    why: str
    tries: list[Try]

    @property
    def lines(self) -> Iterator[str]:
        """It all for people; long lists are cut."""
        if not self.tries:
            yield "No try was lost: there is nothing to ask the gateway for."
            return
        yield from map(_line, self.tries[:MOST_LINES])
        if len(self.tries) > MOST_LINES:
            yield f"  ... and {len(self.tries) - MOST_LINES:,} more (--json has them all)"
        unknown = f", {self.unknown:,} cannot be told" if self.unknown else ""
        yield (
            f"{plural(len(self.tries), 'lost try', 'lost tries')}: {self.billed:,} billed ({money({'USD': self.cost})}), {self.not_billed:,} not "
            f"billed{unknown}."
        )
        if self.why:
            yield self.why
        if self.billed:
            yield "The journal has what they cost; the next run, or an export, puts it into the results."


async def billing(folder: Path, *, say: Callable[[str], None]) -> Billing:
    """Ask for the lost tries in a run folder's journal, and book what they cost there. ``say`` is told how far it is.

    Raises ``LockedError`` while a run works there, ``JobError`` when the key is missing.
    """
    with Lock(folder), closing(Journal.open(folder, slots=1)) as journal, sentences(journal.path):
        tries = lost.tries(journal.db)
        inquiry = _Inquiry(job_of(journal), say)
        await inquiry.ask([one for one in tries if one.cost is None])
        costs = {call_id: told.cost for call_id, told in inquiry.told.items() if told.calls}
        lost.price(journal.db, costs)
    return _sum_up([_found(one, inquiry.told.get(one.call_id)) for one in tries], inquiry.why)


class _Inquiry:
    """Collects in ``told`` what the ledger has, by call id; ``why`` is why it has not all."""

    def __init__(self, job: Job, say: Callable[[str], None]) -> None:
        self._job = job
        self._say = say
        self._dialect = dialect_of(job.preset.family, model_is_the_rows=True, unset_key=job.unset_key())
        self._failures = 0
        self._said_at = time.monotonic()
        self.told: dict[str, Billed] = {}
        self.why = ""

    async def ask(self, tries: Sequence[lost.Lost]) -> None:
        """Ask for each. One that is not there, and so young that it may be late, is asked for again."""
        base_url = self._job.base_url
        if not tries:
            return
        if base_url is None or self._dialect.billed_path("") is None:
            self.why = (
                f"The gateway {self._job.gateway.preset!r} does not tell what a request was billed; LiteLLM proxies "
                "(CBorg) do."
            )
            return
        key = self._job.api_key()
        connection = connection_to(self._job, base_url, self._dialect, key.get_secret_value() if key else None)
        async with Client(unpaid(connection, self._dialect)) as client:
            while tries:
                await self._ask_all(client, tries)
                tries = [one for one in tries if self._may_be_late(one)]
                if tries:
                    self._say(
                        f"{plural(len(tries), 'is', 'are')} not in the ledger; it is written late, and asked for again"
                    )
                    await asyncio.sleep(AGAIN_S)

    def _may_be_late(self, one: lost.Lost) -> bool:
        told = self.told.get(one.call_id)
        return told is not None and not told.calls and time.time() - one.at < LEDGER_LATE_S

    async def _ask_all(self, client: Client, tries: Sequence[lost.Lost]) -> None:
        left = iter(tries)
        async with asyncio.TaskGroup() as group:
            for number in range(min(ASKED_AT_ONCE, len(tries))):
                group.create_task(self._ask_some(client, left, len(tries)), name=f"billing-{number}")

    async def _ask_some(self, client: Client, left: Iterator[lost.Lost], count: int) -> None:
        for one in left:
            if self._failures >= MOST_FAILURES:
                return
            reply = await client.get(self._dialect.billed_path(one.call_id) or "")
            billed = self._dialect.billed(reply)
            if billed is None:
                self._failures += 1
                self.why = f"{self._job.base_url} could not tell: {_complaint(reply)}"
                continue
            self._failures = 0
            self.told[one.call_id] = billed
            if time.monotonic() - self._said_at >= SAY_EVERY_S:
                self._said_at = time.monotonic()
                self._say(f"the gateway has told about {len(self.told):,} of {plural(count, 'lost try', 'lost tries')}")


def _complaint(reply: Reply) -> str:
    return complaint_of(reply).sentence if reply.failure is None else reply.failure.message


def _found(one: lost.Lost, told: Billed | None) -> Try:
    known = Try(
        call_id=one.call_id,
        custom_id=one.custom_id,
        rows=one.rows,
        code=one.code,
        at=one.at,
        told="unknown" if one.cost is None else "billed",
        cost=one.cost,
    )
    if told is None:
        return known
    if not told.calls:
        return replace(known, told="not billed")
    return replace(
        known,
        told="billed",
        cost=told.cost,
        prompt_tokens=told.prompt_tokens,
        completion_tokens=told.completion_tokens,
    )


def _sum_up(tries: list[Try], why: str) -> Billing:
    return Billing(
        billed=sum(one.told == "billed" for one in tries),
        not_billed=sum(one.told == "not billed" for one in tries),
        unknown=sum(one.told == "unknown" for one in tries),
        cost=math.fsum(one.cost for one in tries if one.cost is not None),
        why=why,
        tries=tries,
    )


def _line(one: Try) -> str:
    others = f" and {one.rows - 1:,} more" if one.rows > 1 else ""
    tokens = "" if one.prompt_tokens is None else f", {one.prompt_tokens:,} + {one.completion_tokens:,} tokens"
    cost = "" if one.cost is None else f" {money({'USD': one.cost})}"
    told = "cannot be told" if one.told == "unknown" else one.told
    return f"  {one.custom_id}{others} ({one.code}, {one.call_id}): {told}{cost}{tokens}"

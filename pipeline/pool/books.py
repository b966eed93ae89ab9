"""How one exchange goes into the books: as its row's outcome, or as an attempt that did not end it; and what it cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from pipeline.accounting import Accounting
from pipeline.gateways import OpenAI
from pipeline.gateways.answer import usage_told
from pipeline.gateways.unreadable import carefully
from pipeline.pool.backlog import Ticket
from pipeline.records import UNKNOWN_COST, Attempt, Completion, Cost, Kind, Outcome, Reply, Request, Verdict

SLOW = frozenset({"timeout", "http_524", "http_504"})


class Keeper(Protocol):
    """Where ends of requests are kept: the journal's writer, or a list in tests."""

    def enter(self, request: Request, call_id: str) -> int: ...
    def clear(self, entry: int) -> None: ...
    async def keep(self, records: Sequence[Outcome | Attempt], entries: Sequence[int] = ()) -> None: ...


class Books:
    """Makes the records of a run."""

    def __init__(
        self,
        *,
        dialect: OpenAI,
        accounting: Accounting,
        wall_clock: Callable[[], float],
        fail_on_length: bool,
    ) -> None:
        self._dialect = dialect
        self._accounting = accounting
        self._now = wall_clock
        self._fail_on_length = fail_on_length

    def outcome(self, ticket: Ticket, reply: Reply, verdict: Verdict, call_id: str) -> Outcome:
        """The end of a row: an answer, or an error. Notes in the ticket what the exchange cost."""
        request = ticket.request
        completion: Completion | None = None
        if verdict.kind is not Kind.OK:
            cost = self._told_cost(reply, request)
        else:
            completion = self._dialect.completion(reply, request.endpoint)
            cost = self._cost_of(request, completion, reply)
            if self._fail_on_length and completion.finish_reason == "length":
                verdict = Verdict(kind=Kind.REJECTED, code="length", message="the answer was cut off by max_tokens")
        succeeded, lost = verdict.kind is Kind.OK, may_be_billed(reply, verdict, cost.amount)
        ticket.spent = _spent(reply, cost, lost=lost)
        return Outcome(
            custom_id=request.custom_id,
            index=request.index,
            fingerprint=request.fingerprint,
            status="succeeded" if succeeded else "failed",
            model=request.model,
            completion=completion,
            error_code=None if succeeded else verdict.code,
            error_message=None if succeeded else _with_tries(verdict.message, ticket.tries),
            cost=cost,
            latency_s=round(reply.elapsed_s, 6),  # further digits are noise of the clock
            request_id=self._dialect.request_id(reply),
            completed_at=self._now(),
            lost=lost,
            call_id=call_id if lost else None,
        )

    def attempt(self, ticket: Ticket, reply: Reply, verdict: Verdict, call_id: str) -> Attempt:
        """A try that did not end its row. Notes in the ticket what it cost."""
        cost = self._told_cost(reply, ticket.request)
        lost = may_be_billed(reply, verdict, cost.amount)
        ticket.spent = _spent(reply, cost, lost=lost)
        return Attempt(
            custom_id=ticket.request.custom_id,
            fingerprint=ticket.request.fingerprint,
            call_id=call_id,
            code=verdict.code,
            lost=lost,
            model=ticket.request.model,
            cost=cost,
            at=self._now(),
        )

    def witness(self, request: Request, call_id: str, reply: Reply) -> Attempt:
        """A witness belongs to no row; what it cost is part of what the journal cost."""
        return carefully(partial(self._witness, request, call_id), reply)

    def _witness(self, request: Request, call_id: str, reply: Reply) -> Attempt:
        verdict = self._dialect.classify(reply, request.endpoint)
        attempt = self.attempt(Ticket(request=request), reply, replace(verdict, code="witness"), call_id)
        if verdict.kind is not Kind.OK:
            return replace(attempt, lost=may_be_billed(reply, verdict, attempt.cost.amount))
        completion = self._dialect.completion(reply, request.endpoint)
        return replace(attempt, cost=self._cost_of(request, completion, reply))

    def _told_cost(self, reply: Reply, request: Request) -> Cost:
        """What a try cost that gave no answer: as the gateway says, or by the tokens it counted for nothing."""
        if reply.status != 200:
            return UNKNOWN_COST
        told = self._dialect.told_cost(reply)
        usage = usage_told(reply, request.endpoint)
        return told or self._accounting.cost(usage, model=request.model, served_model=None)

    def _cost_of(self, request: Request, completion: Completion, reply: Reply) -> Cost:
        return self._dialect.told_cost(reply) or self._accounting.cost(
            completion.usage, model=request.model, served_model=completion.model
        )


def may_be_billed(reply: Reply, verdict: Verdict, cost: float | None) -> bool:
    """Sent, and its answer was not seen. 504 and 524 are a front proxy's, who did not wait for the gateway's; and what a
    200 holds that cannot be read nobody knows, unless tokens or cost stand beside it."""
    if reply.failure is not None:
        return reply.failure.sent
    unread = reply.status == 200 and verdict.kind is Kind.TRANSIENT and usage_told(reply).prompt_tokens is None
    return verdict.code in SLOW or (unread and cost is None)


def _spent(reply: Reply, cost: Cost, *, lost: bool) -> float | None:
    """What the budget has to count; None when that may have been billed unseen."""
    return None if lost or (reply.status == 200 and cost.amount is None) else cost.amount or 0.0


def _with_tries(message: str, tries: int) -> str:
    return message if tries <= 1 else f"{message} (after {tries} tries)"

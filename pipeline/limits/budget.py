"""What may still be spent: an upper bound is put aside for each request in flight, and settled when it has ended.

So parallel requests cannot all pass the same check, and the limit is kept; where a request has no upper bound (neither
``max_tokens`` nor a known maximum of the model), the excess is at most what the requests in flight cost more than the
dearest one seen so far.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from pipeline.errors import BudgetError
from pipeline.records import EMBEDDINGS, Request

Price = Callable[[str, int, int], float | None]
"""(model, prompt tokens, completion tokens) -> cost, None when the price is unknown"""


class Budget:
    """``limit`` for this run, in the unit of the prices. ``most_output``: what the model writes at the most, if known.

    ``name`` is the key it stands under in the job; ``renewed``: the next run has as much again.
    """

    def __init__(
        self, limit: float, *, price: Price, most_output: int | None, name: str, renewed: bool = False
    ) -> None:
        self._limit = limit
        self._price = price
        self._most_output = most_output
        self._name = name
        self._renewed = renewed
        self.spent = 0.0
        self._unseen = 0.0
        self._reserved = 0.0
        self._in_flight = 0
        self._dearest = 0.0
        self._settled = asyncio.Event()

    async def reserve(self, requests: Sequence[Request]) -> float:
        """Put aside what requests sent together may cost; waits while those in flight may still turn out cheaper.

        Raises ``BudgetError`` when nothing is in flight any more and it still does not fit.
        """
        amount = sum(map(self._most, requests))
        while self.spent + self._reserved + amount > self._limit:
            if not self._in_flight:
                enough = self._renewed and amount <= self._limit
                go_on = (
                    "it is what one run may spend, and the next may as much again" if enough else "raise it to go on"
                )
                lost = f" (up to {self._unseen:.6g} by tries that were lost)" if self._unseen else ""
                raise BudgetError(
                    f"{self._name} is reached: {self.spent:.6g} of {self._limit:.6g} are spent in this run{lost}, and the next row "
                    f"may cost {amount:.6g}; {go_on}"
                )
            self._settled.clear()
            await self._settled.wait()
        self._reserved += amount
        self._in_flight += 1
        return amount

    def settle(self, reserved: float, cost: float | None) -> None:
        """The request has ended. A ``cost`` of None may have been billed unseen: what was put aside counts as spent."""
        self._in_flight -= 1
        self._reserved = self._reserved - reserved if self._in_flight else 0.0
        self.spent += reserved if cost is None else cost
        self._unseen += reserved if cost is None else 0.0
        self._dearest = max(self._dearest, cost or 0.0)
        self._settled.set()

    def _most(self, request: Request) -> float:
        """A token is at least a byte long, so the body has no more of them than bytes."""
        body: dict[str, Any] = orjson.loads(request.body)
        told = [body.get(name) for name in ("max_tokens", "max_completion_tokens")]
        # -1 is some servers' word for no bound.
        output = next((value for value in told if isinstance(value, int) and value >= 0), self._most_output)
        if request.endpoint == EMBEDDINGS:
            output = 0
        size = len(request.body)
        if request.image_bytes:  # those are no text: what was estimated for them, four times over
            size += 4 * request.estimated_tokens - request.image_bytes
        cost = self._price(request.model, size, (output or 0) * _answers(body))
        if cost is None:
            raise BudgetError(
                f"{self._name} cannot be kept: the price of {request.model!r} is not known; give it in [prices]"
            )
        return cost if output is not None else max(cost, self._dearest)


def _answers(body: dict[str, Any]) -> int:
    """How many texts a request may have written: ``n`` for each prompt, or ``best_of`` of which only the best are told."""
    prompts, asked = 1, body.get("prompt")
    if isinstance(asked, list) and asked and type(asked[0]) is not int:  # else it is one, as token ids
        prompts = len(asked)
    wanted = [value for name in ("n", "best_of") if type(value := body.get(name)) is int]
    return prompts * max([1, *wanted])

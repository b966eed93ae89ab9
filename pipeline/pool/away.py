"""Who is away: the gateway, which holds everyone, or one of several models, which holds the rows that ask it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pipeline.pool.outage import Outage, Spell
from pipeline.records import Request, Verdict


class Away:
    """One ``Outage`` for the gateway and, where rows name their own models, one for each model that was ever away.

    ``new`` makes an outage, told what to do when it is over; ``back`` is told of a model that is there again.
    """

    def __init__(self, new: Callable[[Callable[[], None]], Outage], *, many: bool, back: Callable[[str], None]) -> None:
        self._new = new
        self._many = many
        self._back = back
        self._gateway = new(lambda: None)
        self._models: dict[str, Outage] = {}
        self._group: asyncio.TaskGroup | None = None

    @property
    def spell(self) -> Spell | None:
        """An outage that lasts now, the gateway's before a model's."""
        return next((outage.spell for outage in self._all if outage.spell is not None), None)

    @property
    def spells(self) -> list[Spell]:
        """All there were, by their beginning."""
        return sorted((spell for outage in self._all for spell in outage.spells), key=lambda spell: spell.started_at)

    @property
    def gateway(self) -> bool:
        """Whether nobody at all may send."""
        return self._gateway.spell is not None

    def model(self, model: str) -> bool:
        """Whether this one of several models is away."""
        return self._many and model in self._models and self._models[model].spell is not None

    async def gate(self) -> None:
        """Pass when the gateway is there."""
        await self._gateway.gate()

    def release(self) -> None:
        """Let everyone through who waits, to see that the run is ending."""
        for outage in self._all:
            outage.release()

    def open(self, verdict: Verdict, request: Request) -> None:
        """Somebody is away, as ``request`` found."""
        self._of(verdict, request).open(verdict, request)

    async def blames_gateway(self, verdict: Verdict, request: Request) -> bool:
        """Whether an ambiguous error is not the row's doing: see ``Outage``."""
        return await self._of(verdict, request).blames_gateway(verdict, request)

    async def watch(self) -> None:
        """Probe whoever is away, until cancelled."""
        async with asyncio.TaskGroup() as self._group:
            self._group.create_task(self._gateway.watch(), name="outage")

    @property
    def _all(self) -> list[Outage]:
        return [self._gateway, *self._models.values()]

    def _of(self, verdict: Verdict, request: Request) -> Outage:
        if not self._many or not (verdict.of_model or verdict.ambiguous):  # a witness asks the model
            return self._gateway
        if request.model not in self._models:
            outage = self._new(lambda: self._back(request.model))
            self._models[request.model] = outage
            if self._group is not None:
                self._group.create_task(outage.watch(), name=f"outage of {request.model}")
        return self._models[request.model]

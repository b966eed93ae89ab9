"""What a run cost by our books, beside what the gateway's ledger says was spent with its key in that time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping

from pipeline.client import Client, Connection
from pipeline.gateways import OpenAI
from pipeline.ground.wording import money
from pipeline.preflight import LEDGER_LATE_S, unpaid
from pipeline.records import Summary

FIRST_PAUSE_S = 0.25
MOST_PAUSE_S = 2.0
UNIT = "USD"  # the only one that a ledger is known to count in
SAME = 1e-9
ROUNDED = 1e-12  # of all that was ever spent with the key: what summing it up leaves
NOT_SHOWN = 5e-8  # less than the last digit that ``money`` shows


def total(spent: Mapping[str, Mapping[str, float]]) -> float:
    """The sum of what a run cost, by model and unit, in the ledger's unit."""
    return math.fsum(amounts.get(UNIT, 0.0) for amounts in spent.values())


async def ledger_since(
    connection: Connection,
    dialect: OpenAI,
    *,
    before: float,
    ours: float,
    over: Callable[[], bool],
    say: Callable[[str], None],
) -> float | None:
    """What the ledger says this key has spent since it stood at ``before``; None where it does not say.

    It is written late: asked until it has moved by ``ours``, for ten seconds at the most, or until ``over``.
    """
    path = dialect.key_path
    if path is None or ours <= 0:
        return None
    loop = asyncio.get_running_loop()
    until, pause_s = loop.time() + LEDGER_LATE_S, FIRST_PAUSE_S
    moved: float | None = None
    async with Client(unpaid(connection, dialect)) as client:
        while not over():
            reply = await client.get(path)
            key = dialect.key(reply) if reply.status == 200 else None
            if key is not None and key.spend is not None:
                moved = key.spend - before
                if moved >= ours or math.isclose(moved, ours, rel_tol=SAME, abs_tol=ROUNDED * key.spend):
                    break
            if loop.time() + pause_s > until:
                break
            if pause_s == FIRST_PAUSE_S:
                say(f"Waiting for the gateway's ledger, which is written late ({LEDGER_LATE_S:.0f} s at the most).")
            await asyncio.sleep(pause_s)
            pause_s = min(MOST_PAUSE_S, 2 * pause_s)
        else:
            return None
    return moved if moved is not None and moved >= 0 else None  # below: its budget began anew meanwhile


def described(summary: Summary) -> list[str]:
    """Both sums in a sentence; no line where the ledger was not asked."""
    if summary.ledger is None:
        return []
    ours = total(summary.spent)
    models = [f"{name} {money({UNIT: amounts[UNIT]})}" for name, amounts in summary.spent.items() if UNIT in amounts]
    split = f" ({', '.join(models)})" if len(models) > 1 else ""
    return [
        f"This run cost {money({UNIT: ours})} by our books{split}; the gateway's ledger says {_beside(ours, summary)}"
    ]


def _beside(ours: float, summary: Summary) -> str:
    theirs = summary.ledger or 0.0
    more = theirs - ours
    if abs(more) < max(NOT_SHOWN, SAME * ours):
        return "the same"
    said = f"{money({UNIT: theirs})} for this key in that time, {money({UNIT: abs(more)})}"
    if more < 0:
        return f"{said} less: it is written late, or its prices are not those we know"
    return f"{said} more: other runs with this key, or tries whose answers were lost"

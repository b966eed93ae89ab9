"""Costs and tokens: none that cannot be, unknown is null, a copy costs nothing, and the rows sum up to the totals."""

from __future__ import annotations

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterator

from pipeline.journal import Journal, Projection, Totals
from pipeline.results import without_input
from pipeline.sink import TYPES, values
from pipeline.verify.report import Proof

CENT = 1e-9
_BOTH = (
    (
        "has a cost that is no amount of money",
        "cost < 0 OR abs(cost) > 1e300 OR typeof(cost) NOT IN ('real', 'integer', 'null')",
    ),
    ("has a cost of unknown source; unknown is null, never a number", "cost_source = 'unknown' AND cost IS NOT NULL"),
    ("has no cost, although its source is known", "cost_source <> 'unknown' AND cost IS NULL"),
    ("is free, and has a cost", "cost_source = 'free' AND cost <> 0"),
    (
        "has a source of cost that there is not",
        "cost_source NOT IN ('gateway', 'price_table', 'free', 'reused', 'unknown')",
    ),
    ("has a unit of cost that there is not", "cost IS NOT NULL AND ifnull(cost_unit, '') NOT IN ('USD', 'coins')"),
    ("was lost or not: neither is written", "lost NOT IN (0, 1)"),
    ("has a call id of nothing, though it was lost", "lost AND ifnull(call_id, '') = ''"),
)
_COUNTS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
_OF_OUTCOMES = (
    *_BOTH,
    *(
        (f"has {name} that are no count", f"{name} < 0 OR typeof({name}) NOT IN ('integer', 'null')")
        for name in _COUNTS
    ),
    (
        "is a copy that cost money, took tokens or was sent",
        "cost_source = 'reused' AND (cost <> 0 OR sent OR lost OR "
        + " OR ".join(f"ifnull({name}, 0) <> 0" for name in _COUNTS)
        + ")",
    ),
    ("was never sent, and has a cost", "NOT sent AND cost_source NOT IN ('reused', 'unknown')"),
    ("was sent or not: neither is written", "sent NOT IN (0, 1)"),
    ("has a status that there is not", "status NOT IN ('succeeded', 'failed')"),
    ("succeeded, and has an error", "status = 'succeeded' AND error_code IS NOT NULL"),
    ("failed, and nothing says why", "status = 'failed' AND ifnull(error_code, '') = ''"),
    ("took less than no time", "latency_s < 0"),
)


def impossible_amounts(db: sqlite3.Connection, proof: Proof) -> Iterator[str]:
    """Outcomes and tries with costs, tokens or flags that cannot be."""
    for table, name, doubts in (("outcome", "row", _OF_OUTCOMES), ("attempt", "try of the row", _BOTH)):
        proof.counted(f"{table}s", int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]))  # noqa: S608 - one of two constants
        for words, condition in doubts:
            for (custom_id,) in db.execute(f"SELECT custom_id FROM {table} WHERE {condition} LIMIT 2"):  # noqa: S608 - made of constants
                yield f"the {name} {custom_id!r} {words}"


def unlike_the_totals(journal: Journal, totals: Totals) -> Iterator[str]:
    """The results' own columns, and what stands in none of them, summed up anew, beside the totals that are shown."""
    costs: defaultdict[str, list[float]] = defaultdict(list)
    sums = dict.fromkeys(("attempts", "lost_attempts", "prompt_tokens", "completion_tokens"), 0)
    projection = Projection(journal.db)
    for stretch in without_input(journal):
        projected = projection.stretch(stretch.path, stretch.first, stretch.last)
        rows = [row for row in projected if row.status is not None]
        columns = dict(zip(TYPES, values(rows, _nothing, _nothing), strict=True))
        for name in sums:
            sums[name] += sum(filter(None, columns[name]))
        for row, cost, unit in zip(rows, columns["cost"], columns["cost_unit"], strict=True):
            if cost is not None:
                costs[unit].append(cost)
            elif row.earlier_cost is not None:  # in no column: that of the last try is unknown, and so the row's
                costs[row.earlier_cost_unit or ""].append(row.earlier_cost)
    for unit, amount in journal.db.execute(
        "SELECT cost_unit, cost FROM attempt WHERE cost IS NOT NULL AND fingerprint = zeroblob(16)"
    ):
        costs[unit].append(amount)
    pending = journal.db.execute(
        "SELECT a.cost_unit, a.cost, a.lost FROM input i JOIN attempt a ON a.fingerprint = i.fingerprint "
        "AND a.custom_id = i.custom_id WHERE i.no NOT IN (SELECT no FROM outcome)"
    )
    for unit, amount, lost in pending:
        sums["attempts"] += 1
        sums["lost_attempts"] += lost
        if amount is not None:
            costs[unit].append(amount)
    for name, found in sums.items():
        if found != getattr(totals, name):
            yield f"the rows have {found:,} {name} together, the totals say {getattr(totals, name):,}"
    yield from unlike_amounts({unit: math.fsum(amounts) for unit, amounts in costs.items()}, totals.cost, "the rows")


def _nothing(_: bytes) -> None:
    return None


def unlike_amounts(found: dict[str, float], known: dict[str, float], whose: str) -> Iterator[str]:
    """Where two sums of money, by unit, are not the same."""
    for unit in sorted({*found, *known}):
        one, other = found.get(unit, 0.0), known.get(unit, 0.0)
        if not math.isclose(one, other, rel_tol=CENT, abs_tol=CENT):
            yield f"{whose} say that {one:.9g} {unit} were spent, the journal's totals say {other:.9g}"

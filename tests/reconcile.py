"""Do the gateway's ledger, the journal and the results file tell the same? To the last request, and 1e-9 of cost.

Every bill must be found in the journal: as the answer of a row, as a try that did not end one, as a witness; or else it
is unseen, and then a lost attempt of its row must name it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

from conftest import read_jsonl

from pipeline.errors import RowError
from pipeline.journal import reader
from pipeline.pool import packs
from pipeline.pool.outage import WITNESS
from pipeline.records import EMBEDDINGS, Request, Row
from pipeline.simulator import Entry
from pipeline.source import chunks
from pipeline.workspace import Workspace, opened_for_reading

CENT = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """A request that was put on the bill. ``names``: what the client may know it by; ``digest`` is that of its body."""

    names: frozenset[str]
    digest: str
    cost: float
    prompt_tokens: int
    completion_tokens: int


def bill_of(entry: Entry) -> Bill:
    """A line of the simulator's ledger; it tells clients such ids as these."""
    names = {f"req_{entry.number:x}", f"chatcmpl-{entry.body_digest}", entry.call_id or ""}
    return Bill(
        names=frozenset(names),
        digest=entry.body_digest,
        cost=entry.cost,
        prompt_tokens=entry.prompt_tokens,
        completion_tokens=entry.completion_tokens,
    )


@dataclass(slots=True, kw_only=True, eq=False)
class Claim:
    """What the journal says of one request; ``rows`` are those that shared it. ``bill``: the one found for it."""

    kind: Literal["answer", "failure", "try", "witness"]
    rows: tuple[str, ...]
    name: str
    cost: float | None
    lost: bool
    tokens: tuple[int | None, int | None] = (None, None)
    bill: Bill | None = None

    @property
    def takes_any(self) -> bool:
        """Whether a bill of its rows may be its own although no name says so."""
        return self.bill is None and (self.lost or self.cost is not None or self.kind == "answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reckoning:
    """What was found. ``unseen`` bills are covered by ``lost`` attempts of unknown cost; ``untold`` are answers whose cost
    is null."""

    rows: int
    bills: int
    answers: int
    tries: int
    witnesses: int
    unseen: int
    lost: int
    untold: int
    billed: float
    known: float

    @property
    def line(self) -> str:
        """All of it."""
        return (
            f"{self.rows} rows, {self.bills} bills: {self.answers} answers, {self.tries} tries, {self.witnesses} witnesses, "
            f"{self.unseen} unseen of {self.lost} lost, {self.untold} untold; billed {self.billed:.9f}, known {self.known:.9f}"
        )


def reconcile(folder: Path, bills: Sequence[Bill], *, results: Path | None = None) -> Reckoning:
    """Compare the ``bills`` with the journal in a run folder, and that with the ``results`` (JSONL), if there are any.

    Raises ``AssertionError`` for whatever does not agree.
    """
    with opened_for_reading(folder) as space:
        claims = list(_claims(space))
        spare = _match(claims, bills, dict(_owners(space)), dict(_numbers(space)))
        spent = reader.spent(space.journal.db)
        totals = reader.totals(space.journal.db)
    found = [claim for claim in claims if claim.bill is not None]
    seen = [claim for claim in found if not claim.lost]
    unseen = [claim for claim in found if claim.lost and claim.cost is None]
    untold = [claim for claim in seen if claim.cost is None]
    reckoning = Reckoning(
        rows=totals.completed + totals.failed,
        bills=len(bills),
        answers=sum(claim.kind == "answer" for claim in seen),
        tries=sum(claim.kind in ("try", "failure") for claim in seen),
        witnesses=sum(claim.kind == "witness" for claim in seen),
        unseen=len(unseen),
        lost=sum(claim.lost for claim in claims),
        untold=len(untold),
        billed=math.fsum(bill.cost for bill in bills),
        known=spent,
    )
    assert not spare, f"billed, and nowhere in the journal: {spare}\n{reckoning.line}"
    odd = [claim for claim in untold if claim.kind != "answer"]
    assert not odd, f"billed, of unknown cost, and no lost attempt: {odd}\n{reckoning.line}"
    for claim in claims:
        _agree(claim)
    taken_out = math.fsum(claim.bill.cost for claim in (*unseen, *untold) if claim.bill)
    assert math.isclose(reckoning.billed - taken_out, spent, abs_tol=CENT), reckoning.line
    if results is not None:
        _agree_with_results(claims, read_jsonl(results), totals)
    return reckoning


# What the journal says


def _claims(space: Workspace) -> Iterator[Claim]:
    calls: defaultdict[object, list[tuple[Any, ...]]] = defaultdict(list)
    packed = space.job.request.endpoint == "embeddings"
    outcomes = space.journal.db.execute(
        "SELECT custom_id, coalesce(request_id, call_id), cost, lost, status, prompt_tokens, completion_tokens FROM outcome WHERE sent"
    )
    for outcome in outcomes:
        calls[outcome[1] if packed and outcome[1] else object()].append(outcome)
    for rows in calls.values():
        kind: Literal["answer", "failure"] = "answer" if rows[0][4] == "succeeded" else "failure"
        tokens = (_whole(row[5] for row in rows), _whole(row[6] for row in rows))
        yield _claim(kind, rows, tokens)
    attempts: defaultdict[object, list[tuple[Any, ...]]] = defaultdict(list)
    for attempt in space.journal.db.execute("SELECT custom_id, call_id, cost, lost FROM attempt"):
        attempts[attempt[1] or object()].append(attempt)
    for rows in attempts.values():
        yield _claim("witness" if rows[0][0] == WITNESS else "try", rows, (None, None))


def _claim(
    kind: Literal["answer", "failure", "try", "witness"],
    rows: list[tuple[Any, ...]],
    tokens: tuple[int | None, int | None],
) -> Claim:
    costs = [row[2] for row in rows]
    return Claim(
        kind=kind,
        rows=tuple(row[0] for row in rows),
        name=rows[0][1] or "",
        cost=None if None in costs else math.fsum(costs),
        lost=any(row[3] for row in rows),
        tokens=tokens,
    )


def _whole(counts: Iterable[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


# Whose bill it is


def _owners(space: Workspace) -> Iterator[tuple[str, str]]:
    """(digest of a body as it may have gone out, id of its row): plain, as a stream, and asking for base64."""
    ids = {(path, line): custom_id for path, line, custom_id in space.journal.db.execute(
        "SELECT f.path, i.line, i.custom_id FROM input i JOIN file f ON f.file = i.file"
    )}  # fmt: skip
    for file in space.files:
        for chunk in chunks(file):
            for line, data in chunk.rows():
                for body in _bodies(space, Row(custom_id=None, index=line, data=data), file.path.parent):
                    yield blake2b(body, digest_size=16).hexdigest(), ids[str(file.path), line]


def _bodies(space: Workspace, row: Row, folder: Path) -> tuple[bytes, ...]:
    try:
        composed = space.template.compose(row, folder)
    except RowError:
        return ()  # it never went out
    request = Request(
        custom_id="", index=0, endpoint=composed.endpoint, model="", body=composed.body, fingerprint=b"", estimated_tokens=0
    )  # fmt: skip
    alone = packs.joined([request]) if composed.endpoint == EMBEDDINGS else request
    plain = space.dialect.dress(alone)
    return plain, packs.asking_base64(plain) if composed.endpoint == EMBEDDINGS else space.dialect.streamed(plain)


def _numbers(space: Workspace) -> Iterator[tuple[str, str]]:
    """(number of a row in the journal, its id): a call id has the number in it."""
    for no, custom_id in space.journal.db.execute("SELECT no, custom_id FROM input"):
        yield str(no), custom_id


def _match(claims: list[Claim], bills: Sequence[Bill], owners: dict[str, str], numbers: dict[str, str]) -> list[Bill]:
    """Find each claim its bill: by name, else among those of its rows. Returns the bills that nobody claims."""
    spare = set(range(len(bills)))
    by_name: defaultdict[str, list[int]] = defaultdict(list)
    by_row: defaultdict[str, list[int]] = defaultdict(list)
    for number, bill in enumerate(bills):
        for name in bill.names - {""}:
            by_name[name].append(number)
        by_row[owners.get(bill.digest) or _row_in_name(bill.names, numbers) or WITNESS].append(number)
    for claim in sorted(claims, key=lambda claim: (claim.lost, claim.cost is None)):
        _take(claim, bills, spare, by_name.get(claim.name, []))
    for claim in sorted(claims, key=lambda claim: (claim.lost, claim.cost is None)):
        if claim.takes_any:
            _take(claim, bills, spare, [number for row in claim.rows for number in by_row[row]])
    return [bills[number] for number in sorted(spare)]


def _take(claim: Claim, bills: Sequence[Bill], spare: set[int], numbers: list[int]) -> None:
    free = [number for number in numbers if number in spare]
    if free:
        number = min(free, key=lambda number: abs(bills[number].cost - (claim.cost or 0.0)))
        spare.remove(number)
        claim.bill = bills[number]


def _row_in_name(names: frozenset[str], numbers: dict[str, str]) -> str | None:
    parts = (name.split("-") for name in names)
    return next((numbers[part[1]] for part in parts if len(part) == 3 and part[1] in numbers), None)


# Whether it agrees


def _agree(claim: Claim) -> None:
    if claim.kind == "answer" and claim.bill is None:
        assert claim.tokens == (None, None), f"an answer that was never billed: {claim}"
    if claim.cost is None:
        return
    if claim.bill is None:
        assert claim.cost == 0, f"the journal has a cost that was never billed: {claim}"
        return
    assert math.isclose(claim.cost, claim.bill.cost, abs_tol=CENT), claim
    told = (claim.bill.prompt_tokens, claim.bill.completion_tokens)
    assert claim.tokens in ((None, None), told), claim


def _agree_with_results(claims: list[Claim], results: list[dict[str, Any]], totals: reader.Totals) -> None:
    """One row each; tries, lost ones and cost are the sums of what the journal has."""
    of_row: defaultdict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        for row in claim.rows:
            of_row[row].append(claim)
    assert len(results) == totals.completed + totals.failed
    for row in results:
        mine = of_row[row["custom_id"]]
        assert row["attempts"] == len(mine), (row, mine)
        assert row["lost_attempts"] == sum(claim.lost for claim in mine), (row, mine)
        if all(len(claim.rows) == 1 for claim in mine):  # the shares of a pack are in the sum below
            want = _known(mine) if row["cost_source"] == "reused" else _cost_of(mine)
            assert (row["cost"] is None) == (want is None), (row, mine)
            assert want is None or math.isclose(row["cost"], want, abs_tol=CENT), (row, mine)
    told = math.fsum(row["cost"] for row in results if row["cost"] is not None)
    witnesses = math.fsum(claim.cost or 0.0 for claim in claims if claim.kind == "witness")
    known = math.fsum(claim.cost or 0.0 for claim in claims)
    hidden = math.fsum(_known(of_row[row["custom_id"]]) for row in results if row["cost"] is None)
    assert math.isclose(told + witnesses + hidden, known, abs_tol=CENT), (told, witnesses, hidden, known)
    assert (sum(row["attempts"] for row in results), sum(row["lost_attempts"] for row in results)) == (
        totals.attempts,
        totals.lost_attempts,
    )


def _cost_of(mine: list[Claim]) -> float | None:
    """A row's cost: all that is known of its tries; null where nothing is, or where its answer's own is not."""
    if any(claim.kind == "answer" and claim.cost is None for claim in mine):
        return None
    return _known(mine) if any(claim.cost is not None for claim in mine) else None


def _known(mine: list[Claim]) -> float:
    return math.fsum(claim.cost for claim in mine if claim.cost is not None and len(claim.rows) == 1)

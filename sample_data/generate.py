"""Write the sample data: tickets.parquet, abstracts.jsonl and batch_lines.jsonl.

    python sample_data/generate.py [FOLDER]

Every record has a random generator of its own, seeded with its name, and draws from it with `random()` only, whose
sequence Python guarantees. The same fragments therefore give the same records everywhere, and the same pyarrow the
same bytes.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

T = TypeVar("T")
HERE = Path(__file__).resolve().parent
SEED = "pipeline sample data 1"
TICKETS, ABSTRACTS, BATCH_LINES = 1_000, 200, 60
UNTAGGED = 0.08  # share of tickets with an empty list of tags

CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
SLOT = re.compile(r"\{(?:(?P<low>\d+(?:\.\d+)?)\.\.(?P<high>\d+(?:\.\d+)?)|(?P<name>[A-Za-z]\w*)(?P<nth>:\d)?)\}")


def stream(*name: object) -> Random:
    return Random("/".join(map(str, (SEED, *name))))


def pick(rng: Random, values: Sequence[T]) -> T:
    return values[int(rng.random() * len(values))]


def pick_weighted(rng: Random, weights: Mapping[T, int]) -> T:
    mark = rng.random() * sum(weights.values())
    for value, weight in weights.items():
        mark -= weight
        if mark < 0:
            return value
    raise AssertionError("random() is below 1")


def several(rng: Random, values: Sequence[T], count: int) -> list[T]:
    """`count` different values, in the order in which they are listed."""
    ranked = sorted((rng.random(), place) for place in range(len(values)))
    return [values[place] for _, place in sorted(ranked[:count], key=lambda pair: pair[1])]


class Phrases:
    """Fills the fragments of one record. A slot keeps its first value, so that a text agrees with itself."""

    def __init__(self, rng: Random, slots: Mapping[str, Sequence[str]]) -> None:
        self._rng = rng
        self._slots = slots
        self._bound: dict[str, str] = {}

    def fill(self, text: str) -> str:
        while CHOICE.search(text):
            text = CHOICE.sub(lambda found: pick(self._rng, found[1].split("|")), text)
        return SLOT.sub(self._value, text)

    def _value(self, found: re.Match[str]) -> str:
        if found["low"] is not None:
            return self._number(found["low"], found["high"])
        name, nth = found["name"], found["nth"] or ""
        if name in self._slots:
            return self._kept(name, nth)
        value = self._kept(name[0].lower() + name[1:], nth)
        return value[0].upper() + value[1:]

    def _number(self, low: str, high: str) -> str:
        places = len(low.partition(".")[2])
        steps = round((float(high) - float(low)) * 10**places)
        return f"{float(low) + int(self._rng.random() * (steps + 1)) / 10**places:.{places}f}"

    def _kept(self, name: str, nth: str) -> str:
        key = name + nth
        while key not in self._bound:
            value = self.fill(pick(self._rng, self._slots[name]))
            taken = {kept for other, kept in self._bound.items() if other.partition(":")[0] == name}
            if value not in taken:
                self._bound[key] = value
        return self._bound[key]


def unlike(field: str, count: int, make: Callable[[int, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """`count` records, no two with the same text in `field`: one that repeats an earlier text is made again."""
    seen: set[str] = set()
    records: list[dict[str, Any]] = []
    for number in range(count):
        attempts = (make(number, attempt) for attempt in range(100))
        record = next((candidate for candidate in attempts if candidate[field] not in seen), None)
        if record is None:
            raise SystemExit(f"record {number}: too few phrases for another {field}")
        seen.add(record[field])
        records.append(record)
    return records


def load(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / "phrases" / f"{name}.toml").read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------------------------ tickets

FIRST_DAY = dt.datetime(2025, 1, 6, tzinfo=dt.UTC)
ROLES = {
    "phd-student": 30,
    "postdoc": 24,
    "research-engineer": 12,
    "pi": 10,
    "technician": 7,
    "visiting-fellow": 6,
    "data-steward": 4,
    "lab-manager": 4,
    "intern": 3,
}
PRIORITIES: dict[int | None, int] = {1: 8, 2: 22, 3: 42, 4: 16, None: 12}
REOPENED: dict[bool | None, int] = {True: 9, False: 83, None: 8}
TICKET_SCHEMA = pa.schema(
    [
        ("ticket_id", pa.string()),
        ("opened_at", pa.timestamp("us", tz="UTC")),
        ("department", pa.dictionary(pa.int32(), pa.string())),
        ("subject", pa.string()),
        ("body", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("requester", pa.struct([("name", pa.string()), ("email_domain", pa.string())])),
        ("hours_waiting", pa.decimal128(8, 2)),
        ("priority", pa.int8()),
        ("reopened", pa.bool_()),
    ]
)


def opening_times(count: int) -> list[dt.datetime]:
    """Ascending; mostly on weekdays and in working hours."""
    rng = stream("opening times")
    times: list[dt.datetime] = []
    while len(times) < count:
        day = FIRST_DAY + dt.timedelta(days=int(rng.random() * 340))
        if day.weekday() >= 5 and rng.random() > 0.15:
            continue
        hour = 13 + 3.2 * sum(rng.random() * 2 - 1 for _ in range(3))
        times.append(day + dt.timedelta(microseconds=int(hour * 3_600_000_000)))
    return sorted(times)


def ticket(number: int, opened_at: dt.datetime, parts: Mapping[str, Any], attempt: int) -> dict[str, Any]:
    rng = stream("ticket", number, attempt)
    department = pick(rng, list(parts["departments"]))
    role = f"{pick_weighted(rng, ROLES)}-{1 + int(rng.random() * 60)}"
    scenario = pick(rng, parts[pick_weighted(rng, parts["weights"])])
    priority = pick_weighted(rng, PRIORITIES)
    phrases = Phrases(rng, ticket_slots(rng, opened_at, parts))
    subject = ticket_subject(rng, phrases, scenario)
    return {
        "ticket_id": f"T-{number:05d}",
        "opened_at": opened_at,
        "department": department,
        "subject": subject,
        "body": ticket_body(rng, phrases, scenario, parts, f"{role}, {department}"),
        "tags": [] if rng.random() < UNTAGGED else list(scenario["tags"]),
        "requester": {"name": role, "email_domain": parts["departments"][department]},
        "hours_waiting": hours_waiting(rng, priority),
        "priority": priority,
        "reopened": pick_weighted(rng, REOPENED),
    }


def ticket_slots(rng: Random, opened_at: dt.datetime, parts: Mapping[str, Any]) -> dict[str, list[str]]:
    site = {name: [value] for name, value in pick(rng, parts["sites"]).items()}
    return {**parts["slots"], **site, "yesterday": [(opened_at - dt.timedelta(days=1)).strftime("%Y-%m-%d")]}


def ticket_subject(rng: Random, phrases: Phrases, scenario: Mapping[str, Any]) -> str:
    subject = phrases.fill(pick(rng, scenario["subject"]))
    style = rng.random()
    if style < 0.04:
        return f"URGENT: {subject}"
    if style < 0.08:
        return f"Re: {subject}"
    return subject.lower() if style < 0.16 else subject


def ticket_body(
    rng: Random, phrases: Phrases, scenario: Mapping[str, Any], parts: Mapping[str, Any], signature: str
) -> str:
    lead = phrases.fill(pick(rng, scenario["lead"]))
    if scenario.get("whole"):
        return lead
    details = several(rng, scenario["detail"], pick_weighted(rng, {0: 12, 1: 40, 2: 48}))
    story = [lead, *map(phrases.fill, details)]
    log = phrases.fill(pick(rng, scenario["log"])) if "log" in scenario and rng.random() < 0.35 else ""
    end: list[str] = []
    if rng.random() < 0.55:
        end.append(phrases.fill(pick(rng, scenario.get("ask") or parts["asks"])))
    if rng.random() < 0.4:
        end.append(pick(rng, parts["closings"]))
    style = rng.random()
    if style < 0.08:
        story, end = [text.lower().rstrip(".") for text in story], []
        return "\n\n".join(filter(None, [" - ".join(story), log]))
    if log or style < 0.3:
        greeting = pick(rng, parts["greetings"]) if rng.random() < 0.6 else ""
        return letter([greeting, " ".join(story), log, " ".join(end)], signature if rng.random() < 0.5 else "")
    greeting = pick(rng, parts["greetings"]) + "\n" if style < 0.4 else ""
    return greeting + " ".join([*story, *end])


def letter(paragraphs: Iterable[str], signature: str) -> str:
    text = "\n\n".join(filter(None, paragraphs))
    return f"{text}\n-- \n{signature}" if signature else text


def hours_waiting(rng: Random, priority: int | None) -> Decimal:
    """Roughly exponential; urgent tickets (priority 1) wait less."""
    mean = 6.0 * (priority or 3)
    return Decimal(f"{-math.log(1 - rng.random()) * mean + 0.05:.2f}")


def write_tickets(folder: Path) -> None:
    parts = load("tickets")
    times = opening_times(TICKETS)
    rows = unlike("body", TICKETS, lambda n, attempt: ticket(n + 1, times[n], parts, attempt))
    table = pa.Table.from_pylist(rows, schema=TICKET_SCHEMA)
    pq.write_table(table, folder / "tickets.parquet", compression="zstd", compression_level=9, row_group_size=500)


# ---------------------------------------------------------------------------------------------------------- abstracts

ARTICLE = re.compile(r"^(?:an?|the) ")
BARE_A = re.compile(r"\b([Aa]) (?=[aeioAEIO]|8|1[18]\b)")


def abstract(number: int, designs: Sequence[Mapping[str, Any]], attempt: int) -> dict[str, Any]:
    rng = stream("abstract", number, attempt)
    design = designs[number % len(designs)]
    case = design["cases"][number // len(designs) % len(design["cases"])]
    phrases = Phrases(rng, {**design["slots"], **{name: [value] for name, value in case.items()}})
    year = 2012 + int(rng.random() * 14)
    title = phrases.fill(pick(rng, design["title"]))
    sentences = [phrases.fill(pick(rng, group)) for group in design["text"]]
    keywords = several(rng, design["keywords"], 2 + int(rng.random() * (len(design["keywords"]) - 1)))
    return {
        "id": f"A-{number + 1:04d}",
        "title": sentence(title),
        "abstract": " ".join(map(sentence, sentences)),
        "year": year,
        "keywords": [] if rng.random() < 0.05 else [ARTICLE.sub("", phrases.fill(word)) for word in keywords],
        "doi": None if rng.random() < 0.2 else f"10.5555/sample.{year}.{number + 1:04d}",
    }


def sentence(text: str) -> str:
    """With a capital, and `an` before a vowel (8, 11 and 18 begin with one too)."""
    text = BARE_A.sub(r"\1n ", text)
    return text[0].upper() + text[1:]


def write_abstracts(folder: Path) -> None:
    designs = load("abstracts")["design"]
    rows = unlike("title", ABSTRACTS, lambda number, attempt: abstract(number, designs, attempt))
    write_jsonl(folder / "abstracts.jsonl", rows)


# -------------------------------------------------------------------------------------------------------- batch lines


def batch_line(number: int, parts: Mapping[str, Any]) -> dict[str, Any]:
    rng = stream("note", number)
    task = parts["tasks"][max(0, number % 5 - 2)]
    phrases = Phrases(rng, parts["slots"])
    note = phrases.fill(parts["notes"]["list"][number // 3 % len(parts["notes"]["list"])]).strip()
    return {
        "custom_id": f"{task['name']}-{number + 1:04d}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "sim/labeler",
            "messages": [
                {"role": "system", "content": task["system"]},
                {"role": "user", "content": task["ask"].replace("{note}", note)},
            ],
            "max_tokens": task["max_tokens"],
            "temperature": 0,
        },
    }


def write_batch_lines(folder: Path) -> None:
    parts = load("notes")
    write_jsonl(folder / "batch_lines.jsonl", (batch_line(number, parts) for number in range(BATCH_LINES)))


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    write_tickets(folder)
    write_abstracts(folder)
    write_batch_lines(folder)
    for name in ("tickets.parquet", "abstracts.jsonl", "batch_lines.jsonl"):
        print(f"{folder / name}: {(folder / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""The runs of a journal: which ended, what was in flight when one was killed, and whether their times can be."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from pipeline.ground.wording import plural
from pipeline.journal import is_booked, left_in
from pipeline.verify.report import AGAIN, Proof

DAY_S = 86_400.0  # clocks are set, and machines have several
EARLIEST = 1_577_836_800.0  # 2020: older than any run there can be
NAMED = 5


def killed(db: sqlite3.Connection, folder: Path, proof: Proof) -> None:
    """A run that was killed is no damage: the next one names and books what was in flight."""
    last = db.execute("SELECT run, started_at, ended_at FROM run ORDER BY run DESC LIMIT 1").fetchone()
    left = [entry for entry in left_in(folder / "inflight") if not is_booked(db, entry)]
    proof.counted("runs", int(db.execute("SELECT count(*) FROM run").fetchone()[0]))
    if last is None:
        return
    names = ", ".join(entry.custom_id for entry in left[:NAMED]) + (", ..." if len(left) > NAMED else "")
    if last[2] is None:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last[1]))
        flight = f", with {plural(len(left), 'request')} in flight ({names})" if left else ""
        proof.unfinished.append(
            f"the run of {when} was killed{flight}: {AGAIN}, it books what was in flight and goes on"
        )
    elif left:
        proof.found(
            "runs",
            f"the in-flight table still names {plural(len(left), 'request')} ({names}), though the last run ended",
            do=f"{AGAIN}, it books them as tries that may have been billed",
        )


_DOUBTS = (
    (
        "run {} did not end, and others came after it",
        "SELECT run FROM run WHERE ended_at IS NULL AND run < (SELECT max(run) FROM run)",
    ),
    ("run {} ended, and nothing says how", "SELECT run FROM run WHERE (ended_at IS NULL) <> (how IS NULL)"),
    ("runs {} and {} have one name", "SELECT min(run), max(run) FROM run GROUP BY name HAVING count(*) > 1"),
    (
        "an outcome ({!r}) is of run {}, which there was not",
        "SELECT custom_id, run FROM outcome WHERE run NOT IN (SELECT run FROM run)",
    ),
    (
        "a try ({!r}) is of run {}, which there was not",
        "SELECT custom_id, run FROM attempt WHERE run NOT IN (SELECT run FROM run)",
    ),
    (
        "an outage ({!r}) is of run {}, which there was not",
        "SELECT cause, run FROM outage WHERE run NOT IN (SELECT run FROM run)",
    ),
    (
        "the request of {!r} that was in flight when a run was killed is not booked as lost",
        "SELECT custom_id FROM attempt WHERE code = 'killed' AND NOT lost",
    ),
    (
        "the row {!r} was cut off in run {}, but its call id is of another run",
        "SELECT a.custom_id, a.run FROM attempt a JOIN run r ON r.run <> a.run AND a.call_id LIKE r.name || '-%' "
        "WHERE a.code = 'killed'",
    ),
)
_TIMES = (
    ("run {}", "SELECT run, started_at, ended_at FROM run"),
    ("the outage {!r}", "SELECT cause, started_at, ended_at FROM outage"),
    ("the outcome of {!r}", "SELECT custom_id, completed_at, NULL FROM outcome"),
    ("a try of {!r}", "SELECT custom_id, at, NULL FROM attempt"),
)


def unsound_runs(db: sqlite3.Connection, proof: Proof) -> Iterator[str]:
    """Runs, tries and outages that do not fit together."""
    proof.counted("outages", int(db.execute("SELECT count(*) FROM outage").fetchone()[0]))
    for words, query in _DOUBTS:
        for found in db.execute(f"{query} LIMIT 2"):
            yield words.format(*found)


def impossible_times(db: sqlite3.Connection) -> Iterator[str]:
    """Of runs, outages, outcomes and tries: the times of the results are made of these."""
    latest = time.time() + DAY_S
    for words, query in _TIMES:
        name, start, end = query.removeprefix("SELECT ").split(" FROM ")[0].split(", ")
        is_off = (
            f"{query} WHERE typeof({start}) NOT IN ('real', 'integer') OR {start} NOT BETWEEN ? AND ? "
            f"OR {end} NOT BETWEEN {start} - ? AND ? LIMIT 2"
        )
        for found in db.execute(is_off, (EARLIEST, latest, DAY_S, latest)):
            yield f"{words.format(found[0])} has a time that cannot be ({name} {found[0]!r}: {found[1]} to {found[2]})"

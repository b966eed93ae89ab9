"""The index pass's half of the journal: every row of the input as (file, line) -> number, identity.

Identity is ``custom_id`` + fingerprint, never the position. A row that has an outcome for its identity takes that
outcome's number; all others get numbers no outcome has. So matching a million rows with a million outcomes is one join
here, once per changed input, and everything later is a lookup by number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property

from pipeline.journal import copies
from pipeline.journal.copies import IS_COPY, PENDING
from pipeline.journal.store import get, put, transaction

IndexRow = tuple[int, str | None, bytes]
"""(line, custom_id or None, fingerprint)"""

_IS_BOUGHT = "o.status = 'succeeded' AND NOT o.superseded AND NOT o.redo"
# Counted in one walk: to group a million rows they would be sorted.
_STATES = f"""
SELECT count(*), count(*) FILTER (WHERE o.no IS NULL), count(*) FILTER (WHERE o.redo),
    count(*) FILTER (WHERE o.status = 'succeeded' AND NOT o.redo), count(*) FILTER (WHERE {_IS_BOUGHT})
FROM input i LEFT JOIN outcome o ON o.no = i.no
"""  # noqa: S608 - _IS_BOUGHT is a constant of this module


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a run finds. ``changed`` rows have a succeeded outcome, but for another request; ``redo`` rows were asked for.

    ``copies`` of the pending rows are not sent: they get the answer of another row that asks the same.
    """

    rows: int
    succeeded: int
    failed: int
    redo: int
    new: int
    changed: int
    bought: int
    copies: int = 0

    @property
    def pending(self) -> int:
        """Rows without a final outcome."""
        return self.redo + self.new + self.changed

    @property
    def to_send(self) -> int:
        """Rows that this run would send."""
        return self.pending - self.copies

    @property
    def rebought(self) -> int:
        """Done rows that would be sent again because their request changed; at the most."""
        return min(self.changed, self.to_send)


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """Two rows of one id: (path, line) of the first and of the second."""

    custom_id: str
    first: tuple[str, int]
    second: tuple[str, int]


class Index:
    """The rows of the input, and which of them are pending."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._fed = PENDING

    @cached_property
    def _last(self) -> int:
        """The highest number there is; found by a look at every row, so only where a new one is to be given."""
        rows = self._db.execute("SELECT ifnull(max(no), 0) FROM input").fetchone()[0]
        outcomes = self._db.execute("SELECT ifnull(max(no), 0) FROM outcome").fetchone()[0]
        return max(int(rows), int(outcomes))

    def begin(self, spec: str, paths: list[str]) -> bool:
        """Start an index pass; True when something of an earlier pass must go: the request or the list of files changed.

        ``spec`` is a digest of all that makes a request besides the row; a new one makes every row's fingerprint new.
        """
        with transaction(self._db):
            changed = get(self._db, "spec") != spec
            if changed:
                self._db.execute("DELETE FROM input")
                self._db.execute("DELETE FROM file")
                put(self._db, "spec", spec)
            for place, path in enumerate(paths):
                self._db.execute("UPDATE file SET place = ? WHERE path = ?", (place, path))
            known = {path: file for file, path in self._db.execute("SELECT file, path FROM file")}
            for path in known.keys() - set(paths):
                self._db.execute("DELETE FROM input WHERE file = ?", (known[path],))
                self._db.execute("DELETE FROM file WHERE file = ?", (known[path],))
                changed = True
            if changed:
                self._outdate()
        return changed

    def is_current(self, path: str, mark: str) -> bool:
        """Whether the rows of this file are known as it is now (``mark`` tells one state of a file from another)."""
        found = self._db.execute("SELECT mark FROM file WHERE path = ?", (path,)).fetchone()
        return found is not None and found[0] == mark

    def replace_file(self, path: str, place: int, mark: str, rows: Iterable[IndexRow], columns: Collection[str]) -> int:
        """Put the rows of one file in place of what was known of it, in one transaction; returns how many.

        ``columns`` is read when ``rows`` has been read: the names of all columns that any row has.
        """
        with transaction(self._db):
            self._db.execute("DELETE FROM input WHERE file = (SELECT file FROM file WHERE path = ?)", (path,))
            self._db.execute("DELETE FROM file WHERE path = ?", (path,))
            cursor = self._db.execute(
                "INSERT INTO file (path, place, mark, rows, columns) VALUES (?, ?, ?, 0, '[]')", (path, place, mark)
            )
            file, first = cursor.lastrowid, self._last
            self._db.executemany("INSERT INTO input VALUES (?, ?, ?, ?, ?)", self._numbered(file, rows))
            count = self._last - first
            self._db.execute(
                "UPDATE file SET rows = ?, columns = ? WHERE file = ?", (count, json.dumps(list(columns)), file)
            )
            self._outdate()
        return count

    def _outdate(self) -> None:
        """The links and the results file are of an earlier input now."""
        put(self._db, "linked", "no")
        put(self._db, "results", "stale")

    def _numbered(
        self, file: int | None, rows: Iterable[IndexRow]
    ) -> Iterable[tuple[int | None, int, int, str, bytes]]:
        for line, custom_id, fingerprint in rows:
            self._last += 1
            yield file, line, self._last, custom_id if custom_id is not None else f"{fingerprint.hex()}-1", fingerprint

    def duplicates(self, *, most: int = 10) -> list[Duplicate]:
        """The first ids that stand more than once, with the first two places of each."""
        twice = "SELECT custom_id FROM input GROUP BY custom_id HAVING count(*) > 1"
        if self._db.execute(f"{twice} LIMIT 1").fetchone() is None:  # their order is looked up only where there are any
            return []
        found = []
        for (custom_id,) in self._db.execute(f"{twice} ORDER BY min(no) LIMIT ?", (most,)).fetchall():
            places = self._db.execute(
                "SELECT f.path, i.line FROM input i JOIN file f USING (file) WHERE i.custom_id = ? "
                "ORDER BY f.place, i.line LIMIT 2",
                (custom_id,),
            ).fetchall()
            found.append(Duplicate(custom_id=custom_id, first=places[0], second=places[1]))
        return sorted(found, key=lambda twice: twice.second)

    @property
    def is_linked(self) -> bool:
        """Whether nothing has changed since ``link``; then ids, which are looked at before it, are not there twice either."""
        return get(self._db, "linked") == "yes"

    def link(self, *, id_column: str | None) -> None:
        """Number equal requests (without ids) and give every row that has an outcome that outcome's number."""
        with transaction(self._db):
            if id_column is None:
                self._number_occurrences()
            if self._db.execute("SELECT 1 FROM outcome UNION ALL SELECT 1 FROM attempt LIMIT 1").fetchone():
                renamed = get(self._db, "id_column") not in (None, f"={id_column or ''}")
                self._link_outcomes(by_request=renamed or id_column is None)
                if renamed:
                    self._rename_attempts()
            put(self._db, "id_column", f"={id_column or ''}")
            put(self._db, "linked", "yes")

    def _link_outcomes(self, *, by_request: bool) -> None:
        self._db.execute("CREATE INDEX outcome_key ON outcome (custom_id, fingerprint)")
        self._db.execute(
            "UPDATE input SET no = o.no FROM outcome o "
            "WHERE o.custom_id = input.custom_id AND o.fingerprint = input.fingerprint AND o.no <> input.no"
        )
        self._db.execute("DROP INDEX outcome_key")
        if by_request:
            self._link_spare_outcomes()
        self._db.execute("UPDATE outcome SET superseded = 0 WHERE superseded AND no IN (SELECT no FROM input)")

    def _link_spare_outcomes(self) -> None:
        """Rows without an outcome take those that no row has any more, request by request, and their names with them.

        So equal rows of which one was removed, or rows that another column names now, are not bought again.
        """
        self._db.execute(
            "CREATE TEMP TABLE spare AS SELECT no, fingerprint, custom_id, row_number() OVER ("
            "  PARTITION BY fingerprint ORDER BY redo <> 0, status = 'failed', no) AS n"
            " FROM outcome WHERE no NOT IN (SELECT no FROM input)"
        )
        self._db.execute("CREATE INDEX temp.spare_key ON spare (fingerprint, n)")
        self._db.execute(
            "CREATE TEMP TABLE renamed AS SELECT i.file, i.line, i.custom_id AS new, s.no, s.fingerprint, s.custom_id AS old"
            " FROM (SELECT i.file, i.line, i.custom_id, i.fingerprint,"
            "  row_number() OVER (PARTITION BY i.fingerprint ORDER BY f.place, i.line) AS n"
            "  FROM input i JOIN file f ON f.file = i.file LEFT JOIN outcome o ON o.no = i.no"
            "  WHERE o.no IS NULL AND i.fingerprint IN (SELECT fingerprint FROM temp.spare)"
            " ) AS i JOIN temp.spare s ON s.fingerprint = i.fingerprint AND s.n = i.n"
        )
        self._db.execute(
            "UPDATE attempt SET custom_id = r.new FROM temp.renamed r "
            "WHERE r.fingerprint = attempt.fingerprint AND r.old = attempt.custom_id"
        )
        self._db.execute("UPDATE outcome SET custom_id = r.new FROM temp.renamed r WHERE r.no = outcome.no")
        self._db.execute(
            "UPDATE input SET no = r.no FROM temp.renamed r WHERE r.file = input.file AND r.line = input.line"
        )
        self._db.execute("DROP TABLE temp.renamed")
        self._db.execute("DROP TABLE temp.spare")

    def _rename_attempts(self) -> None:
        """A row that only has attempts, under another name: its request stands once, so it is the same row."""
        self._db.execute(
            "UPDATE attempt SET custom_id = i.custom_id FROM input i WHERE i.fingerprint = attempt.fingerprint "
            "AND (SELECT count(*) FROM input t WHERE t.fingerprint = attempt.fingerprint) = 1"
        )

    def _number_occurrences(self) -> None:
        """The n-th row with the same request is ``<fingerprint>-n``: intended duplicates stay n rows, in any order."""
        self._db.execute(
            "CREATE TEMP TABLE twice AS SELECT fingerprint FROM input GROUP BY fingerprint HAVING count(*) > 1"
        )
        self._db.execute("CREATE INDEX temp.twice_key ON twice (fingerprint)")
        # A row whose occurrence number moves must also leave the outcome it was linked to: it gets a number of its own.
        cursor = self._db.execute(
            "UPDATE input SET custom_id = lower(hex(input.fingerprint)) || '-' || n, no = ? + fresh FROM ("
            " SELECT i.file AS file, i.line AS line, row_number() OVER () AS fresh,"
            " row_number() OVER (PARTITION BY i.fingerprint ORDER BY f.place, i.line) AS n"
            " FROM temp.twice t JOIN input i ON i.fingerprint = t.fingerprint JOIN file f ON f.file = i.file) AS d "
            "WHERE d.file = input.file AND d.line = input.line",
            (self._last,),
        )
        self._last += max(cursor.rowcount, 0)
        self._db.execute("DROP TABLE temp.twice")

    def counts(self, *, has_ids: bool) -> Counts:
        """How many rows are done, new, changed or to be done again."""
        rows, new, redo, succeeded, bought = self._db.execute(_STATES).fetchone()
        outcomes = self._db.execute("SELECT count(*) FROM outcome").fetchone()[0]
        if outcomes > rows - new:  # some are of rows that are not in the input any more, or not in this form
            bought = self._db.execute(f"SELECT count(*) FROM outcome o WHERE {_IS_BOUGHT}").fetchone()[0]  # noqa: S608 - a constant
        changed = self._changed(has_ids=has_ids, new=new) if new and bought > succeeded else 0
        return Counts(
            rows=rows,
            succeeded=succeeded,
            failed=rows - new - redo - succeeded,
            redo=redo,
            new=new - changed,
            changed=changed,
            bought=bought,
        )

    def _changed(self, *, has_ids: bool, new: int) -> int:
        if has_ids:
            query = (
                "SELECT count(DISTINCT i.custom_id) FROM outcome p JOIN input i ON i.custom_id = p.custom_id "
                "LEFT JOIN outcome o ON o.no = i.no "
                "WHERE o.no IS NULL AND p.status = 'succeeded' AND NOT p.superseded"
            )
            return int(self._db.execute(query).fetchone()[0])
        # Without ids a changed row cannot be told from a removed and an added one: the smaller number is the suspicion.
        gone = self._db.execute(
            "SELECT count(*) FROM outcome WHERE status = 'succeeded' AND NOT superseded "
            "AND no NOT IN (SELECT no FROM input)"
        ).fetchone()[0]
        return min(int(gone), new)

    def supersede(self, *, has_ids: bool) -> None:
        """The changes are wanted: outcomes of earlier forms of these rows no longer count as bought."""
        self._db.execute(
            "UPDATE outcome SET superseded = 1 WHERE NOT superseded AND no NOT IN (SELECT no FROM input) "
            "AND (NOT ? OR custom_id IN (SELECT custom_id FROM input))",
            (has_ids,),
        )

    def find_copies(self, *, hold: bool) -> int:
        """Find the pending rows that ask what another row asks; with ``hold`` they are not among those to send."""
        found = copies.find(self._db)
        if hold:
            self._fed = f"{PENDING} AND NOT {IS_COPY}"
        return found

    def pending_files(self) -> list[str]:
        """Paths of the files that have rows to send, in input order."""
        return [
            path
            for path, count in self._db.execute(
                f"SELECT f.path, (SELECT count(*) FROM input i LEFT JOIN outcome o ON o.no = i.no "  # noqa: S608 - made of constants
                f"WHERE i.file = f.file AND {self._fed}) FROM file f ORDER BY f.place"
            )
            if count
        ]

    def pending(self, path: str, first: int, last: int) -> dict[int, tuple[int, str, bytes]]:
        """line -> (number, custom_id, fingerprint) of the rows to send of one stretch of a file."""
        return {
            line: (no, custom_id, fingerprint)
            for line, no, custom_id, fingerprint in self._db.execute(
                f"SELECT i.line, i.no, i.custom_id, i.fingerprint FROM input i LEFT JOIN outcome o ON o.no = i.no "  # noqa: S608 - made of constants
                f"WHERE i.file = (SELECT file FROM file WHERE path = ?) AND i.line BETWEEN ? AND ? AND {self._fed}",
                (path, first, last),
            )
        }

    def is_pending_after(self, path: str, line: int) -> bool:
        """Whether any row to send stands behind this line of a file; of all of them, which may be many, none is fetched."""
        found = self._db.execute(
            f"SELECT 1 FROM input i LEFT JOIN outcome o ON o.no = i.no "  # noqa: S608 - made of constants
            f"WHERE i.file = (SELECT file FROM file WHERE path = ?) AND i.line > ? AND {self._fed} LIMIT 1",
            (path, line),
        )
        return found.fetchone() is not None

    def sample(self, most: int) -> frozenset[int]:
        """Numbers of some rows to send, at random."""
        rows = self._db.execute(
            f"SELECT i.no FROM input i LEFT JOIN outcome o ON o.no = i.no WHERE {self._fed} ORDER BY random() LIMIT ?",  # noqa: S608 - made of constants
            (most,),
        )
        return frozenset(no for (no,) in rows)

    def columns(self) -> list[str]:
        """Names of all columns that any row has, in the order they first appear."""
        names: dict[str, None] = {}
        for (columns,) in self._db.execute("SELECT columns FROM file ORDER BY place"):
            try:
                names.update(dict.fromkeys(json.loads(columns)))
            except ValueError as exc:  # said like all that SQLite finds damaged
                raise sqlite3.DatabaseError("the names of a file's columns are no JSON") from exc
        return list(names)

    def rows(self) -> int:
        """Rows of the input."""
        return int(self._db.execute("SELECT ifnull(sum(rows), 0) FROM file").fetchone()[0])

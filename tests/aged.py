"""Journals as older versions of pipeline left them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

APPLICATION_ID = 0x70697065
# The schema as version 1 made it; never to be changed.
VERSION_1 = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE run (
    run INTEGER PRIMARY KEY, name TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL, how TEXT,
    host TEXT NOT NULL, pid INTEGER NOT NULL, boot_id TEXT NOT NULL);
CREATE TABLE file (
    file INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, place INTEGER NOT NULL, mark TEXT NOT NULL, rows INTEGER NOT NULL,
    columns TEXT NOT NULL);
CREATE TABLE input (
    file INTEGER NOT NULL, line INTEGER NOT NULL, no INTEGER NOT NULL, custom_id TEXT NOT NULL, fingerprint BLOB NOT NULL,
    PRIMARY KEY (file, line)) WITHOUT ROWID;
CREATE TABLE outcome (
    no INTEGER PRIMARY KEY, custom_id TEXT NOT NULL, fingerprint BLOB NOT NULL, status TEXT NOT NULL,
    error_code TEXT, error_message TEXT, model TEXT, served_model TEXT, finish_reason TEXT, remark TEXT,
    prompt_tokens INTEGER, completion_tokens INTEGER, cached_tokens INTEGER, reasoning_tokens INTEGER,
    usage_estimated INTEGER NOT NULL, cost REAL, cost_unit TEXT, cost_source TEXT NOT NULL, sent INTEGER NOT NULL, lost INTEGER NOT NULL,
    call_id TEXT, latency_s REAL, request_id TEXT, completed_at REAL NOT NULL, run INTEGER NOT NULL,
    redo INTEGER NOT NULL DEFAULT 0, accepted INTEGER NOT NULL DEFAULT 0, superseded INTEGER NOT NULL DEFAULT 0);
CREATE TABLE reply (no INTEGER PRIMARY KEY, body BLOB NOT NULL, form TEXT NOT NULL);
CREATE TABLE attempt (
    custom_id TEXT NOT NULL, fingerprint BLOB NOT NULL, call_id TEXT NOT NULL, code TEXT NOT NULL, lost INTEGER NOT NULL,
    model TEXT, cost REAL, cost_unit TEXT NOT NULL, cost_source TEXT NOT NULL, at REAL NOT NULL, run INTEGER NOT NULL);
CREATE TABLE outage (started_at REAL NOT NULL, ended_at REAL, cause TEXT NOT NULL, run INTEGER NOT NULL);
CREATE INDEX attempt_row ON attempt (fingerprint, custom_id);
PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 1;
"""
# What each later version added, taken away again.
_BACK = "ALTER TABLE reply DROP COLUMN crc"


def to_version_1(path: Path) -> None:
    """Make a journal that nobody has open one of version 1, with all that stands in it."""
    db = sqlite3.connect(path, isolation_level=None)
    db.executescript(f"BEGIN; {_BACK}; PRAGMA user_version = 1; COMMIT; PRAGMA wal_checkpoint(TRUNCATE);")
    db.close()
    fresh = sqlite3.connect(":memory:")
    fresh.executescript(VERSION_1)
    assert columns_of(path) == _columns(fresh), "version 1 has had other columns"
    fresh.close()


def columns_of(path: Path) -> list[tuple[object, ...]]:
    """(table, place, column, type, ...) of all of a journal's tables."""
    db = sqlite3.connect(path)
    found = _columns(db)
    db.close()
    return found


def _columns(db: sqlite3.Connection) -> list[tuple[object, ...]]:
    return db.execute(
        "SELECT m.type, m.name, c.* FROM sqlite_master m LEFT JOIN pragma_table_info(m.name) c ORDER BY m.type, m.name, c.cid"
    ).fetchall()

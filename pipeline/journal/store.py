"""The journal's file: its schema, how it is opened, and the seam where SQLite's errors become sentences.

Everything durable about a run is here. ``input`` is rebuilt whenever an input file or the request changes; ``outcome``,
``reply`` and ``attempt`` only ever grow or are replaced by a newer outcome of the same row, so nothing paid for is
forgotten. Replies stand in a table of their own: counting and matching a million outcomes must not read their text.
``reply.crc`` is the CRC-32 of ``body``, for SQLite's pages have no checksums; null in replies of version 1.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pipeline.errors import DamagedError, IncompleteError, NoJournalError, PipelineError, RunFolderError
from pipeline.ground.disk import cannot_write, file_system_of, free_on, mount_of, size, tried, unwritable
from pipeline.ground.folders import sync_folder
from pipeline.journal import migrate

VERSION = 2
APPLICATION_ID = 0x70697065  # "pipe"
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "lustre", "gpfs", "beegfs", "drvfs", "fuse.sshfs"}
)

_ROOM = frozenset({"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"})

SCHEMA = """
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
CREATE TABLE reply (no INTEGER PRIMARY KEY, body BLOB NOT NULL, form TEXT NOT NULL, crc INTEGER);
CREATE TABLE attempt (
    custom_id TEXT NOT NULL, fingerprint BLOB NOT NULL, call_id TEXT NOT NULL, code TEXT NOT NULL, lost INTEGER NOT NULL,
    model TEXT, cost REAL, cost_unit TEXT NOT NULL, cost_source TEXT NOT NULL, at REAL NOT NULL, run INTEGER NOT NULL);
CREATE TABLE outage (started_at REAL NOT NULL, ended_at REAL, cause TEXT NOT NULL, run INTEGER NOT NULL);
CREATE INDEX attempt_row ON attempt (fingerprint, custom_id);
"""


@contextmanager
def sentences(path: Path) -> Iterator[None]:
    """Map what SQLite raises to errors for people, once, here."""
    try:
        yield
    except sqlite3.DatabaseError as exc:
        raise meaning(path, exc) from exc
    except UnicodeDecodeError as exc:  # SQLite quotes what is damaged, and not all of that is text
        raise meaning(path, sqlite3.DatabaseError("it holds text that is no UTF-8")) from exc


def wants_room(exc: sqlite3.Error) -> bool:
    """Whether a write failed in a way that room on the disk may mend. A failed sync is none: nobody knows what is on disk then.

    SQLite knows ENOSPC; a quota and a limit of file sizes it takes for a failed write.
    """
    return getattr(exc, "sqlite_errorname", "") in _ROOM or "disk is full" in str(exc)


def meaning(path: Path, exc: sqlite3.Error, *, needed: float | None = None) -> PipelineError:
    """What an error of SQLite's means for the journal at ``path``; ``needed``: about how many bytes are wanted."""
    text = str(exc)
    if "disk is full" in text or "disk I/O" in text:
        return _disk_trouble(path, text, needed)
    if "locked" in text:
        return IncompleteError(f"the journal {path} is in use by another process; try again when it has ended")
    if "readonly" in text or "unable to open" in text:
        return RunFolderError(f"cannot open the journal {path} for writing ({text}): check its permissions")
    return DamagedError(
        f"the journal {path} is damaged ({text}): keep a copy of its folder, and give another --run-dir to start anew"
    )


def _disk_trouble(path: Path, text: str, needed: float | None) -> PipelineError:
    """SQLite does not pass on what the system said: ask it again."""
    why = tried(path.parent)
    if why is not None and why.errno:
        return IncompleteError(cannot_write(path, why, what="the journal", needed=needed))
    wanted = "" if needed is None else f", about {size(needed)} are needed"
    temporary = _temporary_folder()
    elsewhere = mount_of(temporary) != mount_of(path)
    also = (
        f"; {free_on(temporary)}, where its temporary files are (SQLITE_TMPDIR names another folder)"
        if elsewhere
        else ""
    )
    return IncompleteError(
        f"cannot write the journal {path} ({text}): {free_on(path.parent)}{wanted}{also}; make room on that disk, then run "
        "the same command again"
    )


def _temporary_folder() -> Path:
    """Where SQLite sorts what does not fit into memory; the order is its own."""
    named = (os.environ.get("SQLITE_TMPDIR"), os.environ.get("TMPDIR"), "/var/tmp", "/usr/tmp", "/tmp")  # noqa: S108 - SQLite looks there, we only say where
    found = (Path(name) for name in named if name and Path(name).is_dir() and os.access(name, os.W_OK | os.X_OK))
    return next(found, Path.cwd())


def connect(path: Path, *, create: bool) -> sqlite3.Connection:
    """Open the journal for a run (``create``) or for reading only, after checking that it is one of ours.

    One of an older version is raised to this one by a run, and only seen as this one by a reader. Raises
    ``RunFolderError`` when it is missing (reading), damaged, something else, or of a newer version.
    """
    if not create and not path.exists():
        raise NoJournalError(f"there is no journal at {path}: nothing has been run there yet")
    if path.exists() and not path.is_file():
        raise RunFolderError(f"{path} is no file; give another --run-dir")
    with sentences(path):
        if create:
            _touch(path)
        shared = is_shared(path)
        db = sqlite3.connect(
            f"{path.resolve().as_uri()}?{'mode=rw' if create else way_to_read(path, shared=shared)}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            cached_statements=64,
            timeout=5,
        )
        try:
            if not shared:  # WAL's shared memory does not work across a network; nor is there any then
                db.execute("PRAGMA locking_mode = EXCLUSIVE")
            _prepare(db, path, create=create)
            if create:
                _sync_folder(path)
        except BaseException:
            db.close()
            raise
    return db


def _sync_folder(path: Path) -> None:
    """The names of journal and log must last as what is in them does. SQLite syncs them, too, and goes on when that fails."""
    try:
        sync_folder(path.parent)
    except OSError as exc:
        raise IncompleteError(cannot_write(path.parent, exc, what="the run folder")) from exc


def is_shared(path: Path) -> bool:
    """Whether several connections may be open at once: not across a network, where WAL's shared memory does not work."""
    return file_system_of(path) not in NETWORK_FILE_SYSTEMS


def way_to_read(path: Path, *, shared: bool) -> str:
    """Readers share memory with a writer in a file beside the journal, and alone in a network they lock it.

    In a folder that cannot be written there is neither; nor is it needed where the last run left no log behind.
    """
    if os.access(path.parent, os.W_OK):
        return "mode=ro" if shared else "mode=rw"
    log = path.with_name(path.name + "-wal")
    if log.exists() and log.stat().st_size:
        if path.with_name(path.name + "-shm").exists():
            return "mode=ro"
        raise RunFolderError(
            f"the last run of {path} was cut off, and what it wrote last can be read only where it may be written: "
            f"copy {path.parent} to such a place, and read it there"
        )
    return "mode=ro&immutable=1"


def _touch(path: Path) -> None:
    """Make the file with the permissions that SQLite's -wal and -shm then take over."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as exc:
        why = RunFolderError(f"cannot open the journal {path} for writing ({exc.strerror}): check its permissions")
        raise unwritable(path, exc, what="the journal", otherwise=why) from exc


def _prepare(db: sqlite3.Connection, path: Path, *, create: bool) -> None:
    application_id = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables == 0 and create:
        _have_log(db)
        db.executescript(
            f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}; COMMIT;"
        )
    elif tables == 0 and application_id in (0, APPLICATION_ID):  # killed, or busy, before its schema was there
        raise NoJournalError(f"there is no journal at {path} yet: nothing has been run there")
    elif application_id != APPLICATION_ID:
        raise RunFolderError(f"{path} is an SQLite file, but no journal of pipeline's; give another --run-dir")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if not 1 <= version <= VERSION:
        raise RunFolderError(
            f"the journal {path} has schema version {version}, this pipeline reads versions 1 to {VERSION}: "
            "run it with the pipeline that wrote it, or give another --run-dir"
        )
    if create:
        _have_log(db)
    db.execute("PRAGMA cache_size = -8000")  # 32 MB were no quicker, at a million rows, and sorting takes as much again
    db.execute("PRAGMA temp_store = FILE")  # drops temporary views: before any is made
    if version < VERSION:
        (migrate.raised if create else migrate.seen)(db, VERSION)


def _have_log(db: sqlite3.Connection) -> None:
    """WAL, synced at every COMMIT. SQLite tells an error of the change to it only with the row that it answers, and goes on in
    its older way: there a COMMIT lasts only once the folder is synced, too."""
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    db.execute(f"PRAGMA synchronous = {'FULL' if mode == 'wal' else 'EXTRA'}")


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing of it; inside another transaction it is part of that one."""
    if db.in_transaction:
        yield
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        roll_back(db)
        raise


def roll_back(db: sqlite3.Connection) -> None:
    """Nothing of the transaction stays, if there still is one."""
    if db.in_transaction:  # not when the disk is full: then it has been rolled back already
        db.execute("ROLLBACK")


@contextmanager
def undone(db: sqlite3.Connection) -> Iterator[None]:
    """Whatever the block does is seen in it, and gone after it."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        roll_back(db)


def get(db: sqlite3.Connection, key: str) -> str | None:
    """One fact about the journal as a whole."""
    found = db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return None if found is None else str(found[0])


def put(db: sqlite3.Connection, key: str, value: str) -> None:
    """Write one fact about the journal as a whole."""
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def schema_of(db: sqlite3.Connection) -> dict[str, list[tuple[str, str]]]:
    """What a journal file is made of: each table with the names and types of its columns, each index with its columns."""
    found: dict[str, list[tuple[str, str]]] = {}
    for kind, name in db.execute("SELECT type, name FROM main.sqlite_master WHERE name NOT LIKE 'sqlite%'").fetchall():
        pragma = "pragma_index_info" if kind == "index" else "pragma_table_info"
        what = "name, ''" if kind == "index" else "name, type"
        columns = db.execute(f"SELECT {what} FROM {pragma}(?, 'main')", (name,)).fetchall()  # noqa: S608 - made of constants
        found[f"{kind} {name}"] = columns
    return found


def present_schema() -> dict[str, list[tuple[str, str]]]:
    """The same of a journal as it is made now."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.executescript(SCHEMA)
        return schema_of(db)

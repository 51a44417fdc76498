"""The studio's one SQLite file: its tables, and how they are changed and read.

Write-ahead log, `synchronous=FULL`, one connection that writes, each change a transaction of its own. What is told of a
change is told after its commit. `journal` keeps jobs in it, `album` pictures and the bin.
"""

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

_WAIT = 5.0  # seconds for a database that another program has locked
_VERSION = 2
_log = logging.getLogger(__name__)
_TABLES = """
-- pictures.deleted: when it was, in seconds since 1970; 0 where it was not
CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL,
  kind TEXT NOT NULL, state TEXT NOT NULL, key TEXT, body_hash TEXT, request TEXT NOT NULL, steps INTEGER NOT NULL,
  step INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 1, turn INTEGER NOT NULL DEFAULT 0,
  wish TEXT NOT NULL DEFAULT '', created TEXT NOT NULL, started TEXT, finished TEXT, subject TEXT,
  losses TEXT NOT NULL DEFAULT '[]', likenesses TEXT NOT NULL DEFAULT '[]', kept INTEGER,
  warnings TEXT NOT NULL DEFAULT '[]', error TEXT);
CREATE UNIQUE INDEX jobs_key ON jobs (client, key) WHERE key IS NOT NULL;
CREATE INDEX jobs_state ON jobs (state);
CREATE INDEX jobs_turn ON jobs (client, turn);
CREATE TABLE pictures (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, job TEXT NOT NULL,
  created TEXT NOT NULL, seed INTEGER NOT NULL, data TEXT NOT NULL, request TEXT NOT NULL,
  starred INTEGER NOT NULL DEFAULT 0, note TEXT NOT NULL DEFAULT '', deleted INTEGER NOT NULL DEFAULT 0);
CREATE INDEX pictures_job ON pictures (job);
CREATE TABLE picture_subjects (picture INTEGER NOT NULL, name TEXT NOT NULL, PRIMARY KEY (name, picture));
CREATE TABLE bin (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, name TEXT NOT NULL,
  class_word TEXT, deleted TEXT NOT NULL);
CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, job TEXT NOT NULL, picture TEXT);
"""
_SINCE_1 = """
ALTER TABLE jobs ADD COLUMN likenesses TEXT NOT NULL DEFAULT '[]';
ALTER TABLE jobs ADD COLUMN kept INTEGER;
UPDATE pictures SET deleted = CAST(strftime('%s', 'now') AS INTEGER) WHERE deleted = 1;
"""

Row = dict[str, Any]


class Event(NamedTuple):
    """A change that clients hear of: `state` of a job, or `result`, a picture of it."""

    number: int
    kind: str
    job: str
    picture: str | None


def now() -> str:
    """Return the time in ISO 8601, UTC; only ever shown, never compared but for the age of what is forgotten."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Database:
    """The file. Threads may share it; `heard` is called with every event, after its commit.

    Raises:
        sqlite3.Error: from all that reads or changes it, where the disk is full or another program holds the file.
    """

    def __init__(self, path: Path) -> None:
        self.heard: Callable[[Event], None] = lambda _: None
        self._path, self._lock, self._readers = path, threading.RLock(), threading.local()
        self._writer = self._connect()
        with self._lock:
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version < _VERSION:
                script = _SINCE_1 if version else _TABLES
                self._writer.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version={_VERSION};COMMIT;")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def close(self) -> None:
        """Close the file; readers close with their threads."""
        self._writer.close()

    @contextlib.contextmanager
    def change(self) -> Iterator[tuple[sqlite3.Connection, list[Event]]]:
        """Hold a transaction for a `with` block; what the block puts into the list is told after the commit."""
        events: list[Event] = []
        with self._lock:
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield self._writer, events
                self._writer.execute("COMMIT")
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise
        for event in events:
            try:
                self.heard(event)
            except Exception:  # it is in the journal, so whoever asks is told
                _log.exception("an event could not be told")

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """Return the rows of a query, on a connection of this thread's own."""
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            reader = self._readers.connection = self._connect()
        return [as_row(row) for row in reader.execute(query, values)]


def enter_event(database: sqlite3.Connection, kind: str, job: str, picture: str | None = None) -> Event:
    """Enter an event into an open transaction, and return it."""
    added = database.execute("INSERT INTO events (kind, job, picture) VALUES (?, ?, ?)", (kind, job, picture))
    return Event(added.lastrowid or 0, kind, job, picture)


def marks(count: int) -> str:
    """Return so many question marks for a query's values."""
    return ", ".join("?" * count)


def as_row(row: sqlite3.Row) -> Row:
    """Return a row as a dict, its JSON columns read."""
    found = dict(row)
    for name in ("request", "losses", "likenesses", "warnings", "error", "data"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return found

"""The journal: jobs, pictures and the bin in one SQLite file that survives a kill at any moment.

Write-ahead log, `synchronous=FULL`, one connection that writes, each change a transaction of its own. Files are on the
disk before the row that names them, so a row without its file can't be. Nothing is ordered by the clock: jobs have a
number, and clients take turns.
"""

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

from cones2.studio.problems import KeyReusedError, NameTakenError, QueueFullError
from cones2.studio.turns import fair_order

QUEUED, QUEUED_PER_CLIENT = 64, 16
"""How many jobs may wait, of all and of one client."""
MOST_ATTEMPTS = 3
KEY_HOURS = 24
_KEPT_EVENTS = 20_000
_WAIT = 5.0  # seconds for a database that another program has locked
_VERSION = 1
_log = logging.getLogger(__name__)
_TABLES = """
CREATE TABLE jobs (number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, client TEXT NOT NULL,
  kind TEXT NOT NULL, state TEXT NOT NULL, key TEXT, body_hash TEXT, request TEXT NOT NULL, steps INTEGER NOT NULL,
  step INTEGER NOT NULL DEFAULT 0, attempt INTEGER NOT NULL DEFAULT 1, turn INTEGER NOT NULL DEFAULT 0,
  wish TEXT NOT NULL DEFAULT '', created TEXT NOT NULL, started TEXT, finished TEXT, subject TEXT,
  losses TEXT NOT NULL DEFAULT '[]', warnings TEXT NOT NULL DEFAULT '[]', error TEXT);
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

Row = dict[str, Any]


class Event(NamedTuple):
    """A change that clients hear of: `state` of a job, or `result`, a picture of it."""

    number: int
    kind: str
    job: str
    picture: str | None


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job to be queued; `key` is the client's Idempotency-Key, and `body_hash` tells whether it is the same job."""

    id: str
    client: str
    kind: str
    request: Mapping[str, Any]
    steps: int
    subject: str | None = None
    key: str | None = None
    body_hash: str | None = None


def now() -> str:
    """Return the time in ISO 8601, UTC; only ever shown, never compared but for the age of keys."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Journal:
    """The journal's file. Threads may share it; `heard` is called with every event, after its commit.

    Raises:
        sqlite3.Error: from every method, where the disk is full or another program holds the file.
    """

    def __init__(self, path: Path) -> None:
        self.heard: Callable[[Event], None] = lambda _: None
        self._path, self._lock, self._readers = path, threading.RLock(), threading.local()
        self._writer = self._connect()
        with self._lock:
            if self._writer.execute("PRAGMA user_version").fetchone()[0] == 0:
                script = f"BEGIN IMMEDIATE;{_TABLES}PRAGMA user_version={_VERSION};COMMIT;"
                self._writer.executescript(script)

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
    def _change(self) -> Iterator[tuple[sqlite3.Connection, list[Event]]]:
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

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            reader = self._readers.connection = self._connect()
        return [_row(row) for row in reader.execute(query, values)]

    def add(self, job: NewJob) -> tuple[Row, bool]:
        """Queue a job, and return its row and whether it is new: with a key that is known, it is the job of that key.

        Raises:
            QueueFullError: so many wait already.
            KeyReusedError: the key was used for another body.
            NameTakenError: a subject of this name is being taught.
        """
        with self._change() as (database, events):
            oldest = (datetime.now(UTC) - timedelta(hours=KEY_HOURS)).isoformat()
            database.execute("UPDATE jobs SET key = NULL WHERE key IS NOT NULL AND created < ?", (oldest,))
            known = database.execute("SELECT * FROM jobs WHERE client = ? AND key = ?", (job.client, job.key))
            if (row := known.fetchone()) is not None:
                if row["body_hash"] != job.body_hash:
                    raise KeyReusedError(
                        "this Idempotency-Key was used for another body: send a new key with a new body."
                    )
                return _row(row), False
            _check_room(database, job.client)
            _check_untaught(database, job.kind, job.subject)
            request = json.dumps(job.request)
            columns = "id, client, kind, state, key, body_hash, request, steps, created, subject"
            values = (job.id, job.client, job.kind, "queued", job.key, job.body_hash, request, job.steps)
            database.execute(f"INSERT INTO jobs ({columns}) VALUES ({_marks(10)})", (*values, now(), job.subject))
            events.append(_event(database, "state", job.id))
            return _get(database, job.id), True

    def claim(self) -> Row | None:
        """Take the job whose turn it is, and return its row; None where none waits."""
        with self._change() as (database, events):
            order = self._order(database)
            if not order:
                return None
            changed = database.execute(
                "UPDATE jobs SET state = 'running', started = ?, turn = (SELECT MAX(turn) FROM jobs) + 1"
                " WHERE id = ? RETURNING *",
                (now(), order[0]["id"]),
            )
            row = _row(changed.fetchone())
            events.append(_event(database, "state", row["id"]))
            return row

    def waiting(self) -> list[Row]:
        """Return the jobs that wait, in the order in which they are taken."""
        with self._lock:
            return self._order(self._writer)

    def _order(self, database: sqlite3.Connection) -> list[Row]:
        queued = [_row(row) for row in database.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY number")]
        turns = database.execute("SELECT client, MAX(turn) AS turn FROM jobs GROUP BY client") if queued else ()
        return fair_order(queued, {row["client"]: row["turn"] for row in turns})

    def finish(self, job: str, state: str, *, error: Mapping[str, str] | None = None) -> bool:
        """Let a running job end as `succeeded`, `failed` or `cancelled`; False where it was not running."""
        with self._change() as (database, events):
            changed = database.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ?, wish = '' WHERE id = ? AND state = 'running'",
                (state, now(), json.dumps(error) if error else None, job),
            )
            if not changed.rowcount:
                return False
            events.append(_event(database, "state", job))
            return True

    def progress(self, job: str, *, step: int, losses: Sequence[Any], warnings: Sequence[str]) -> None:
        """Keep how far a running job is, so that its curve survives a restart; nobody hears of it."""
        with self._change() as (database, _):
            values = (step, json.dumps(losses), json.dumps(warnings), job)
            database.execute("UPDATE jobs SET step = ?, losses = ?, warnings = ? WHERE id = ?", values)

    def wish(self, job: str, wish: str) -> Row | None:
        """Note that a job is to `cancel` or to `finish`: one that waits is cancelled at once, one that ended stays.

        Returns its row; None where there is no such job.
        """
        with self._change() as (database, events):
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                return None
            if row["state"] == "queued" and wish == "cancel":
                values = (now(), job)
                database.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ?", values)
                events.append(_event(database, "state", job))
            elif row["state"] == "running" and row["wish"] != "cancel":
                database.execute("UPDATE jobs SET wish = ? WHERE id = ?", (wish, job))
            return _get(database, job)

    def retry(self, job: str) -> Row | None:
        """Queue a job again that failed or was cancelled, and return its row; one in another state stays as it is."""
        with self._change() as (database, events):
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is not None and row["state"] in ("failed", "cancelled"):
                _check_room(database, row["client"])
                _check_untaught(database, row["kind"], row["subject"])
                clean = "state = 'queued', attempt = 1, error = NULL, finished = NULL, started = NULL, wish = ''"
                database.execute(f"UPDATE jobs SET {clean} WHERE id = ?", (job,))
                events.append(_event(database, "state", job))
            return None if row is None else _get(database, job)

    def requeue(self, job: str | None = None, *, is_counted: bool = True) -> list[str]:
        """Put a running job, or all of them, back into the queue: the worker or the server died over it, or was ended.

        After its third attempt that counts a job fails. One that was to be cancelled is. Returns the ids.
        """
        with self._change() as (database, events):
            running = database.execute("SELECT * FROM jobs WHERE state = 'running' AND id = COALESCE(?, id)", (job,))
            found = [_row(row) for row in running]
            for row in found:
                if row["wish"] == "cancel":
                    change, values = "state = 'cancelled', finished = ?, wish = ''", [now()]
                elif is_counted and row["attempt"] >= MOST_ATTEMPTS:
                    detail = (
                        f"It was begun {MOST_ATTEMPTS} times, and the worker or the server ended each time. Try again."
                    )
                    error = {"type": "/problems/given_up", "title": "given up", "detail": detail}
                    change, values = "state = 'failed', finished = ?, error = ?", [now(), json.dumps(error)]
                else:
                    change, values = f"state = 'queued', attempt = attempt + {int(is_counted)}", []
                database.execute(f"UPDATE jobs SET {change} WHERE id = ?", (*values, row["id"]))
                events.append(_event(database, "state", row["id"]))
            return [row["id"] for row in found]

    def job(self, job: str) -> Row | None:
        """Return a job's row; None where there is none."""
        return next(iter(self._read("SELECT * FROM jobs WHERE id = ?", (job,))), None)

    def jobs(self, *, states: Iterable[str] = (), kind: str | None = None, limit: int = 200) -> list[Row]:
        """Return jobs, the newest first; those that wait or run are among them, however old."""
        states = tuple(states)
        where = f"state IN ({_marks(len(states))})" if states else "1"
        query = f"SELECT * FROM jobs WHERE {where} AND kind = COALESCE(?, kind)"
        active = f"{query} AND state IN ('queued', 'running')"
        values = (*states, kind)
        rows = self._read(
            f"SELECT * FROM ({query} ORDER BY number DESC LIMIT ?) UNION {active}", (*values, limit, *values)
        )
        return sorted(rows, key=lambda row: -row["number"])

    def with_key(self, client: str, key: str | None) -> Row | None:
        """Return the job of a client's Idempotency-Key; None where it is new, or there is none."""
        return next(iter(self._read("SELECT * FROM jobs WHERE client = ? AND key = ?", (client, key))), None)

    def learning(self, name: str) -> Row | None:
        """Return the job that waits or runs to teach a subject of this name."""
        query = "SELECT * FROM jobs WHERE kind = 'learn' AND subject = ? AND state IN ('queued', 'running')"
        return next(iter(self._read(query, (name,))), None)

    def add_picture(self, picture: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
        """Enter a picture whose file is on the disk; False where it was entered before, or its job no longer runs."""
        data = {name: picture[name] for name in ("width", "height", "attention", "prompt", "subjects", "layout")}
        with self._change() as (database, events):
            row = database.execute("SELECT state FROM jobs WHERE id = ?", (picture["job"],)).fetchone()
            if row is None or row["state"] != "running":
                return False
            values = (picture["id"], picture["job"], now(), picture["seed"], json.dumps(data), json.dumps(request))
            columns = "id, job, created, seed, data, request"
            added = database.execute(f"INSERT OR IGNORE INTO pictures ({columns}) VALUES ({_marks(6)})", values)
            if not added.rowcount:
                return False
            names = [(added.lastrowid, name) for name in picture["subjects"]]
            database.executemany("INSERT OR IGNORE INTO picture_subjects VALUES (?, ?)", names)
            events.append(_event(database, "result", picture["job"], picture["id"]))
            return True

    def pictures(
        self,
        *,
        before: int | None = None,
        limit: int = 50,
        subject: str | None = None,
        starred: bool | None = None,
        deleted: bool = False,
    ) -> list[Row]:
        """Return pictures, the newest first, of numbers below `before`."""
        named = "number IN (SELECT picture FROM picture_subjects WHERE name = ?)"
        given = {"deleted = ?": deleted, "number < ?": before, "starred = ?": starred, named: subject}
        asked = {condition: value for condition, value in given.items() if value is not None}
        where = f"{' AND '.join(asked)} ORDER BY number DESC LIMIT ?"
        return self._read(f"SELECT * FROM pictures WHERE {where}", (*asked.values(), limit))

    def picture(self, picture: str) -> Row | None:
        """Return a picture's row; None where there is none."""
        return next(iter(self._read("SELECT * FROM pictures WHERE id = ?", (picture,))), None)

    def pictures_of(self, jobs: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of the pictures of jobs, by job, in their order."""
        found: dict[str, list[str]] = {job: [] for job in jobs}
        for row in self._read(f"SELECT job, id FROM pictures WHERE job IN ({_marks(len(jobs))}) ORDER BY number", jobs):
            found[row["job"]].append(row["id"])
        return found

    def picture_ids(self) -> set[str]:
        """Return the ids of all pictures."""
        return {row["id"] for row in self._read("SELECT id FROM pictures")}

    def change_picture(self, picture: str, **changes: Any) -> Row | None:
        """Set `starred`, `note` or `deleted` of a picture, and return its row; None where there is none."""
        with self._change() as (database, _):
            for name, value in changes.items():
                database.execute(f"UPDATE pictures SET {name} = ? WHERE id = ?", (value, picture))
        return self.picture(picture)

    def put_into_bin(self, binned: str, name: str, class_word: str | None) -> None:
        """Enter a subject whose file is in the bin."""
        with self._change() as (database, _):
            values = (binned, name, class_word, now())
            database.execute("INSERT INTO bin (id, name, class_word, deleted) VALUES (?, ?, ?, ?)", values)

    def in_bin(self, binned: str | None = None) -> list[Row]:
        """Return what is in the bin, or the one of an id, the newest first."""
        return self._read("SELECT * FROM bin WHERE id = COALESCE(?, id) ORDER BY number DESC LIMIT 1000", (binned,))

    def out_of_bin(self, binned: str) -> None:
        """Take a subject out of the bin."""
        with self._change() as (database, _):
            database.execute("DELETE FROM bin WHERE id = ?", (binned,))

    def events_after(self, number: int, *, limit: int = 1000) -> list[Event]:
        """Return the events after the one of a number, in their order: the newest of each job and picture."""
        newest = "SELECT MAX(number) AS number, kind, job, picture FROM events WHERE number > ? GROUP BY 2, 3, 4"
        rows = self._read(f"{newest} ORDER BY 1 DESC LIMIT ?", (number, limit))
        return [Event(**row) for row in reversed(rows)]

    def last_event(self) -> int:
        """Return the number of the last event."""
        return int(self._read("SELECT COALESCE(MAX(number), 0) AS number FROM events")[0]["number"])

    def forget_old_events(self) -> None:
        """Delete all but the newest events: whoever was away for longer gets the snapshot alone."""
        with self._change() as (database, _):
            database.execute("DELETE FROM events WHERE number <= (SELECT MAX(number) FROM events) - ?", (_KEPT_EVENTS,))


def _check_room(database: sqlite3.Connection, client: str) -> None:
    count = "SELECT COUNT(*) AS all_jobs, COALESCE(SUM(client = ?), 0) AS own FROM jobs WHERE state = 'queued'"
    waiting = database.execute(count, (client,)).fetchone()
    if waiting["all_jobs"] >= QUEUED or waiting["own"] >= QUEUED_PER_CLIENT:
        own = f"{waiting['own']} of yours wait, at most {QUEUED_PER_CLIENT} may"
        raise QueueFullError(f"the queue is full: {waiting['all_jobs']} of {QUEUED} jobs wait, {own}. Try again later.")


def _check_untaught(database: sqlite3.Connection, kind: str, name: str | None) -> None:
    """Check that no other job teaches a subject of this name: the later one would have learned for nothing."""
    query = "SELECT 1 FROM jobs WHERE kind = 'learn' AND subject = ? AND state IN ('queued', 'running')"
    if kind == "learn" and database.execute(query, (name,)).fetchone() is not None:
        raise NameTakenError(f"{name!r} is being taught already: wait for it, or choose another name.")


def _get(database: sqlite3.Connection, job: str) -> Row:
    return _row(database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone())


def _event(database: sqlite3.Connection, kind: str, job: str, picture: str | None = None) -> Event:
    added = database.execute("INSERT INTO events (kind, job, picture) VALUES (?, ?, ?)", (kind, job, picture))
    return Event(added.lastrowid or 0, kind, job, picture)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _row(row: sqlite3.Row) -> Row:
    """Return a row as a dict, its JSON columns read."""
    found = dict(row)
    for name in ("request", "losses", "warnings", "error", "data"):
        if isinstance(found.get(name), str):
            found[name] = json.loads(found[name])
    return found

"""The journal: jobs and what happened to them, which survive a kill at any moment.

Nothing is ordered by the clock: jobs have a number, and clients take turns.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from cones2.studio.database import Database, Event, Row, as_row, enter_event, marks, now
from cones2.studio.problems import KeyReusedError, NameTakenError, QueueFullError
from cones2.studio.turns import fair_order

QUEUED, QUEUED_PER_CLIENT = 64, 16
"""How many jobs may wait, of all and of one client."""
MOST_ATTEMPTS = 3
KEY_HOURS = 24
LISTED = 200
"""How many jobs are listed, beside all that wait or run."""
_KEPT_EVENTS = 20_000
_KEPT_JOBS = timedelta(days=2)  # longer than a key is known, and than the photos of a learning that failed are kept


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


class Journal(Database):
    """Jobs and events, in the studio's file."""

    def add(self, job: NewJob) -> tuple[Row, bool]:
        """Queue a job, and return its row and whether it is new: with a key that is known, it is the job of that key.

        Raises:
            QueueFullError: so many wait already.
            KeyReusedError: the key was used for another body.
            NameTakenError: a subject of this name is being taught.
        """
        with self.change() as (database, events):
            oldest = (datetime.now(UTC) - timedelta(hours=KEY_HOURS)).isoformat()
            database.execute("UPDATE jobs SET key = NULL WHERE key IS NOT NULL AND created < ?", (oldest,))
            known = database.execute("SELECT * FROM jobs WHERE client = ? AND key = ?", (job.client, job.key))
            if (row := known.fetchone()) is not None:
                if row["body_hash"] != job.body_hash:
                    raise KeyReusedError(
                        "this Idempotency-Key was used for another body: send a new key with a new body."
                    )
                return as_row(row), False
            _check_room(database, job.client)
            _check_untaught(database, job.kind, job.subject)
            request = json.dumps(job.request)
            columns = "id, client, kind, state, key, body_hash, request, steps, created, subject"
            values = (job.id, job.client, job.kind, "queued", job.key, job.body_hash, request, job.steps)
            database.execute(f"INSERT INTO jobs ({columns}) VALUES ({marks(10)})", (*values, now(), job.subject))
            events.append(enter_event(database, "state", job.id))
            return _get(database, job.id), True

    def claim(self) -> Row | None:
        """Take the job whose turn it is, and return its row; None where none waits."""
        with self.change() as (database, events):
            order = self._order(database)
            if not order:
                return None
            changed = database.execute(
                "UPDATE jobs SET state = 'running', started = ?, turn = (SELECT MAX(turn) FROM jobs) + 1"
                " WHERE id = ? RETURNING *",
                (now(), order[0]["id"]),
            )
            row = as_row(changed.fetchone())
            events.append(enter_event(database, "state", row["id"]))
            return row

    def waiting(self) -> list[Row]:
        """Return the jobs that wait, in the order in which they are taken."""
        with self._lock:
            return self._order(self._writer)

    def _order(self, database: sqlite3.Connection) -> list[Row]:
        queued = [as_row(row) for row in database.execute("SELECT * FROM jobs WHERE state = 'queued' ORDER BY number")]
        turns = database.execute("SELECT client, MAX(turn) AS turn FROM jobs GROUP BY client") if queued else ()
        return fair_order(queued, {row["client"]: row["turn"] for row in turns})

    def finish(self, job: str, state: str, *, error: Mapping[str, str] | None = None) -> bool:
        """Let a running job end as `succeeded`, `failed` or `cancelled`; False where it was not running."""
        with self.change() as (database, events):
            changed = database.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ?, wish = '' WHERE id = ? AND state = 'running'",
                (state, now(), json.dumps(error) if error else None, job),
            )
            if not changed.rowcount:
                return False
            events.append(enter_event(database, "state", job))
            return True

    def progress(
        self,
        job: str,
        *,
        step: int,
        losses: Sequence[Any],
        likenesses: Sequence[Any] = (),
        kept: int | None = None,
        warnings: Sequence[str] = (),
    ) -> None:
        """Keep how far a running job is, so that its curves survive a restart; nobody hears of it."""
        with self.change() as (database, _):
            lists = (json.dumps(each) for each in (losses, likenesses, warnings))
            columns = "step = ?, losses = ?, likenesses = ?, warnings = ?, kept = ?"
            database.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (step, *lists, kept, job))

    def wish(self, job: str, wish: str) -> Row | None:
        """Note that a job is to `cancel` or to `finish`: one that waits is cancelled at once, one that ended stays.

        Returns its row; None where there is no such job.
        """
        with self.change() as (database, events):
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is None:
                return None
            if row["state"] == "queued" and wish == "cancel":
                values = (now(), job)
                database.execute("UPDATE jobs SET state = 'cancelled', finished = ? WHERE id = ?", values)
                events.append(enter_event(database, "state", job))
            elif row["state"] == "running" and row["wish"] != "cancel":
                database.execute("UPDATE jobs SET wish = ? WHERE id = ?", (wish, job))
            return _get(database, job)

    def retry(self, job: str) -> Row | None:
        """Queue a job again that failed or was cancelled, and return its row; one in another state stays as it is."""
        with self.change() as (database, events):
            row = database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()
            if row is not None and row["state"] in ("failed", "cancelled"):
                _check_room(database, row["client"])
                _check_untaught(database, row["kind"], row["subject"])
                clean = "state = 'queued', attempt = 1, error = NULL, finished = NULL, started = NULL, wish = ''"
                database.execute(f"UPDATE jobs SET {clean} WHERE id = ?", (job,))
                events.append(enter_event(database, "state", job))
            return None if row is None else _get(database, job)

    def requeue(self, job: str | None = None, *, is_counted: bool = True) -> list[str]:
        """Put a running job, or all of them, back into the queue: the worker or the server died over it, or was ended.

        After its third attempt that counts a job fails. One that was to be cancelled is. Returns the ids.
        """
        with self.change() as (database, events):
            running = database.execute("SELECT * FROM jobs WHERE state = 'running' AND id = COALESCE(?, id)", (job,))
            found = [as_row(row) for row in running]
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
                events.append(enter_event(database, "state", row["id"]))
            return [row["id"] for row in found]

    def job(self, job: str) -> Row | None:
        """Return a job's row; None where there is none."""
        return next(iter(self.read("SELECT * FROM jobs WHERE id = ?", (job,))), None)

    def jobs(self, *, states: Iterable[str] = (), kind: str | None = None, limit: int = LISTED) -> list[Row]:
        """Return jobs, the newest first; those that wait or run are among them, however old."""
        states = tuple(states)
        where = f"state IN ({marks(len(states))})" if states else "1"
        query = f"SELECT * FROM jobs WHERE {where} AND kind = COALESCE(?, kind)"
        active = f"{query} AND state IN ('queued', 'running')"
        values = (*states, kind)
        rows = self.read(
            f"SELECT * FROM ({query} ORDER BY number DESC LIMIT ?) UNION {active}", (*values, limit, *values)
        )
        return sorted(rows, key=lambda row: -row["number"])

    def with_key(self, client: str, key: str | None) -> Row | None:
        """Return the job of a client's Idempotency-Key; None where it is new, or there is none."""
        return next(iter(self.read("SELECT * FROM jobs WHERE client = ? AND key = ?", (client, key))), None)

    def learning(self, name: str) -> Row | None:
        """Return the job that waits or runs to teach a subject of this name."""
        query = "SELECT * FROM jobs WHERE kind = 'learn' AND subject = ? AND state IN ('queued', 'running')"
        return next(iter(self.read(query, (name,))), None)

    def events_after(self, number: int, *, limit: int = 1000) -> list[Event]:
        """Return the events after the one of a number, in their order: the newest of each job and picture."""
        newest = "SELECT MAX(number) AS number, kind, job, picture FROM events WHERE number > ? GROUP BY 2, 3, 4"
        rows = self.read(f"{newest} ORDER BY 1 DESC LIMIT ?", (number, limit))
        return [Event(**row) for row in reversed(rows)]

    def last_event(self) -> int:
        """Return the number of the last event."""
        return int(self.read("SELECT COALESCE(MAX(number), 0) AS number FROM events")[0]["number"])

    def forget(self) -> None:
        """Delete jobs that ended days ago, have no picture left and are listed no more, and what happened to them.

        Of all events only the newest are kept: whoever was away for longer gets the snapshot alone.
        """
        limit = (datetime.now(UTC) - _KEPT_JOBS).isoformat(timespec="milliseconds")
        listed = f"SELECT number FROM jobs ORDER BY number DESC LIMIT {LISTED}"
        old = f"state IN ('succeeded', 'failed', 'cancelled') AND finished < ? AND number NOT IN ({listed})"
        with self.change() as (database, _):
            database.execute(f"DELETE FROM jobs WHERE {old} AND id NOT IN (SELECT job FROM pictures)", (limit,))
            database.execute("DELETE FROM events WHERE job NOT IN (SELECT id FROM jobs)")
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
    return as_row(database.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone())

"""The album: pictures and deleted subjects, in the studio's SQLite file.

A picture's file is on the disk before the row that names it, and goes after it, so a row without its file can't be;
files without a row are deleted when the server starts.
"""

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from cones2.studio.database import Database, Row, enter_event, marks, now


class Album:
    """Pictures, those in the bin too, and the subjects that are in the bin.

    Raises:
        sqlite3.Error: from every method, as of the file.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, picture: Mapping[str, Any], request: Mapping[str, Any]) -> bool:
        """Enter a picture whose file is on the disk; False where it was entered before, or its job no longer runs."""
        data = {name: picture[name] for name in ("width", "height", "attention", "prompt", "subjects", "layout")}
        with self._database.change() as (database, events):
            row = database.execute("SELECT state FROM jobs WHERE id = ?", (picture["job"],)).fetchone()
            if row is None or row["state"] != "running":
                return False
            values = (picture["id"], picture["job"], now(), picture["seed"], json.dumps(data), json.dumps(request))
            columns = "id, job, created, seed, data, request"
            added = database.execute(f"INSERT OR IGNORE INTO pictures ({columns}) VALUES ({marks(6)})", values)
            if not added.rowcount:
                return False
            names = [(added.lastrowid, name) for name in picture["subjects"]]
            database.executemany("INSERT OR IGNORE INTO picture_subjects VALUES (?, ?)", names)
            events.append(enter_event(database, "result", picture["job"], picture["id"]))
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
        given = {"(deleted > 0) = ?": deleted, "number < ?": before, "starred = ?": starred, named: subject}
        asked = {condition: value for condition, value in given.items() if value is not None}
        where = f"{' AND '.join(asked)} ORDER BY number DESC LIMIT ?"
        return self._database.read(f"SELECT * FROM pictures WHERE {where}", (*asked.values(), limit))

    def picture(self, picture: str) -> Row | None:
        """Return a picture's row; None where there is none."""
        return next(iter(self._database.read("SELECT * FROM pictures WHERE id = ?", (picture,))), None)

    def of_jobs(self, jobs: Sequence[str]) -> dict[str, list[str]]:
        """Return the ids of the pictures of jobs, by job, in their order."""
        found: dict[str, list[str]] = {job: [] for job in jobs}
        for row in self._database.read(
            f"SELECT job, id FROM pictures WHERE job IN ({marks(len(jobs))}) ORDER BY number", jobs
        ):
            found[row["job"]].append(row["id"])
        return found

    def ids(self) -> set[str]:
        """Return the ids of all pictures."""
        return {row["id"] for row in self._database.read("SELECT id FROM pictures")}

    def change(self, picture: str, **changes: Any) -> Row | None:
        """Set `starred`, `note` or `deleted` of a picture, and return its row; None where there is none.

        What was deleted before stays deleted since then.
        """
        if changes.get("deleted"):
            changes["deleted"] = int(time.time())
        with self._database.change() as (database, _):
            for name, value in changes.items():
                unless = " AND deleted = 0" if name == "deleted" and value else ""
                database.execute(f"UPDATE pictures SET {name} = ? WHERE id = ?{unless}", (value, picture))
        return self.picture(picture)

    def forget_deleted(self, older_than: timedelta | None = None) -> list[str]:
        """Forget the pictures that are in the bin, or that long, and return their ids; their files are to go next.

        What is starred stays, and what an unfinished job drew: without its row it would be drawn again.
        """
        most = 2**62 if older_than is None else int(time.time() - older_than.total_seconds())
        unfinished = "SELECT id FROM jobs WHERE state IN ('queued', 'running')"
        where = f"deleted BETWEEN 1 AND ? AND starred = 0 AND job NOT IN ({unfinished})"
        with self._database.change() as (database, _):
            gone = database.execute(f"DELETE FROM pictures WHERE {where} RETURNING number, id", (most,)).fetchall()
            database.executemany("DELETE FROM picture_subjects WHERE picture = ?", [(row["number"],) for row in gone])
            database.executemany("DELETE FROM events WHERE picture = ?", [(row["id"],) for row in gone])
        return [row["id"] for row in gone]

    def hashes(self) -> set[str]:
        """Return the hashes of all residuals that pictures and jobs were asked with."""
        each = "json_extract(value, '$.sha256') AS sha256"
        queries = [f"SELECT {each} FROM {table}, json_each(request, '$.subjects')" for table in ("pictures", "jobs")]
        query = " UNION ".join([*queries, "SELECT json_extract(request, '$.sha256') FROM jobs"])
        return {row["sha256"] for row in self._database.read(query) if row["sha256"]}

    def put_into_bin(self, binned: str, name: str, class_word: str | None) -> None:
        """Enter a subject whose file is in the bin."""
        with self._database.change() as (database, _):
            values = (binned, name, class_word, now())
            database.execute("INSERT INTO bin (id, name, class_word, deleted) VALUES (?, ?, ?, ?)", values)

    def in_bin(self, binned: str | None = None) -> list[Row]:
        """Return what is in the bin, or the one of an id, the newest first."""
        return self._database.read(
            "SELECT * FROM bin WHERE id = COALESCE(?, id) ORDER BY number DESC LIMIT 1000", (binned,)
        )

    def forget_binned(self, older_than: timedelta | None = None) -> list[str]:
        """Forget the subjects that are in the bin, or that long, and return their ids; their files are to go next."""
        limit = "9" if older_than is None else (datetime.now(UTC) - older_than).isoformat(timespec="milliseconds")
        with self._database.change() as (database, _):
            gone = database.execute("DELETE FROM bin WHERE deleted <= ? RETURNING id", (limit,)).fetchall()
        return [row["id"] for row in gone]

    def out_of_bin(self, binned: str) -> None:
        """Take a subject out of the bin."""
        with self._database.change() as (database, _):
            database.execute("DELETE FROM bin WHERE id = ?", (binned,))

"""The album: pictures and deleted subjects, in the studio's SQLite file.

A picture's file is on the disk before the row that names it, so a row without its file can't be.
"""

import json
from collections.abc import Mapping, Sequence
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
        given = {"deleted = ?": deleted, "number < ?": before, "starred = ?": starred, named: subject}
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
        """Set `starred`, `note` or `deleted` of a picture, and return its row; None where there is none."""
        with self._database.change() as (database, _):
            for name, value in changes.items():
                database.execute(f"UPDATE pictures SET {name} = ? WHERE id = ?", (value, picture))
        return self.picture(picture)

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

    def out_of_bin(self, binned: str) -> None:
        """Take a subject out of the bin."""
        with self._database.change() as (database, _):
            database.execute("DELETE FROM bin WHERE id = ?", (binned,))

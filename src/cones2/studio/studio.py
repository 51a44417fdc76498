"""The studio's folder, and what the routes share: the journal, the worker's supervisor, the streams and the subjects.

In the folder: `journal.sqlite3`, `token`, `pictures` (each a PNG with its record, a thumbnail and heat maps),
`learning` (photos and checkpoints of what is being taught), `residuals` (the file of every subject that was drawn, by
hash), `thumbs` and `bin`.
"""

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from cones2.errors import OutputError
from cones2.files import locked, make_folder, read_bounded, write_atomically
from cones2.studio.album import Album
from cones2.studio.database import Row
from cones2.studio.events import Broker
from cones2.studio.journal import Journal
from cones2.studio.problems import DiskFullError
from cones2.studio.schema import FINAL
from cones2.studio.shelf import Shelf
from cones2.studio.supervisor import Supervisor

LEAST_FREE = 64 * 2**20
"""Bytes that must be free on the disk before a job is taken."""
KEPT_DAYS = 30
"""How long what was deleted lies in the bin before it goes by itself."""
_FOLDERS = ("pictures", "learning", "residuals", "thumbs", "bin")
_PART = re.compile(r"\.[0-9a-f]{16}\.part")
_KEPT_PHOTOS = 24 * 3600  # seconds that photos of a learning that failed or was cancelled are kept for another try


class Studio:
    """All that the server has, apart from its routes.

    Raises:
        OutputError: the folder can't be written.
        BlockingIOError: another studio works in it.
    """

    def __init__(self, folder: Path, library: Path, model: Mapping[str, Any], *, token: str | None = None) -> None:
        self.folder = folder
        for name in _FOLDERS:
            make_folder(folder / name)
        self._held = contextlib.ExitStack()
        self._held.enter_context(locked(folder / "lock", wait=False))
        self.token = token or self._token()
        self.journal, self.broker = Journal(folder / "journal.sqlite3"), Broker()
        self.album = Album(self.journal)
        self.supervisor = Supervisor(
            self.journal,
            self.album,
            self.broker,
            folder=folder,
            library=library,
            model=model,
            brief=self._brief,
            show=show_picture,
        )
        self.shelf = Shelf(folder, library, self.album, self.supervisor)

    def start(self) -> None:
        """Clear what a killed server left, and begin."""
        self._sweep()
        self.shelf.tidy_bin()
        self.supervisor.start()

    def forget(self) -> None:
        """Delete what is kept for a time alone: old jobs, old photos of learnings, and what was deleted long ago."""
        limit = datetime.now(UTC) - timedelta(seconds=_KEPT_PHOTOS)
        for path in (self.folder / "learning").iterdir():
            row = self.journal.job(path.name)
            if row is not None and row["state"] in FINAL and datetime.fromisoformat(row["finished"]) < limit:
                shutil.rmtree(path, ignore_errors=True)
        self.empty_bin(timedelta(days=KEPT_DAYS))
        self.journal.forget()

    def empty_bin(self, older_than: timedelta | None = None) -> tuple[int, int]:
        """Delete what is in the bin, or that long, for good; return how many pictures and subjects that were.

        Rows go before their files: what a kill leaves is then a file that no row knows, which the next start deletes.
        """
        pictures = self.album.forget_deleted(older_than)
        folder = self.folder / "pictures"
        for picture in pictures:
            for path in (folder / f"{picture}.png", folder / f"{picture}.webp", *folder.glob(f"{picture}-*.heat.png")):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        subjects, hashes = self.shelf.empty_bin(older_than)
        self.shelf.drop_unused(hashes, older_than=timedelta(days=KEPT_DAYS))
        return len(pictures), subjects

    def stop(self) -> None:
        """End the worker and let the folder go; jobs go on with the next server."""
        self.supervisor.stop()
        self.journal.close()
        self._held.close()

    def check_room(self) -> None:
        """Check that there is room on the disk; DiskFullError where there is not."""
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_FREE:
            raise DiskFullError(f"the disk has {free >> 20} MiB left, expected {LEAST_FREE >> 20}: make room on it.")

    def _token(self) -> str:
        """Return the folder's token: a server that is started again takes the cookies of the one before."""
        path = self.folder / "token"
        with contextlib.suppress(OutputError, UnicodeDecodeError):
            kept = read_bounded(path, limit=200, error=OutputError).decode("ascii").strip()
            if re.fullmatch(r"[\w-]{16,}", kept):  # an empty one would let in everyone
                return kept
        token = secrets.token_urlsafe(24)
        previous = os.umask(0o077)
        try:
            write_atomically(path, token.encode())
        finally:
            os.umask(previous)
        return token

    def _brief(self, row: Row) -> dict[str, Any]:
        """Return what the worker needs to know of a job beside its request."""
        if row["kind"] == "push":
            return {"file": str(self.shelf.stored(row["request"]["sha256"]))}
        if row["kind"] == "learn":
            return {}
        done = [int(each.rpartition("-")[2]) for each in self.album.of_jobs([row["id"]])[row["id"]]]
        subjects = {
            each["name"]: {**each, "file": str(self.shelf.stored(each["sha256"])) if each["sha256"] else None}
            for each in row["request"]["subjects"]
        }
        return {"done": done, "subjects": subjects}

    def _sweep(self) -> None:
        """Delete files that no row knows, and never will: what was written when a server or worker was killed."""
        known, active = (
            self.album.ids(),
            {row["id"] for row in self.journal.jobs(states=("queued", "running"))},
        )
        for path in self._files():
            name = path.name
            picture = re.fullmatch(
                r"([0-9a-f]+)-\d+", name.partition(".")[0].rpartition("-")[0] if ".heat" in name else path.stem
            )
            is_lost = picture is not None and picture[0] not in known and picture[1] not in active
            if _PART.fullmatch(name) or (path.parent.name == "pictures" and is_lost):
                path.unlink(missing_ok=True)
        for path in (self.folder / "learning").iterdir():
            row = self.journal.job(path.name)
            is_over = row is None or row["state"] == "succeeded"
            if is_over or (path.name not in active and time.time() - path.stat().st_mtime > _KEPT_PHOTOS):
                shutil.rmtree(path, ignore_errors=True)

    def _files(self) -> Iterator[Path]:
        for name in _FOLDERS:
            yield from (path for path in (self.folder / name).iterdir() if path.is_file())


def show_picture(row: Row) -> dict[str, Any]:
    """Return a picture's row as clients see it."""
    return {
        **{name: row[name] for name in ("id", "job", "created", "seed", "note")},
        **row["data"],
        "starred": bool(row["starred"]),
        "deleted": bool(row["deleted"]),
        "file": f"/v1/pictures/{row['id']}/file",
        "thumb": f"/v1/pictures/{row['id']}/thumb",
    }


def _studio(request: Request) -> Studio:
    studio: Studio = request.app.state.studio
    return studio


def _client(request: Request) -> str:
    client: str = request.scope["client_id"]
    return client


InStudio = Annotated[Studio, Depends(_studio)]
Client = Annotated[str, Depends(_client)]

"""The subjects that can be drawn: the library's, the examples, what is in the bin, and the files that were drawn."""

import contextlib
import io
import os
import secrets
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image

from cones2.errors import Cones2Error, LibraryError, OutputError, ResidualError
from cones2.examples import EXAMPLES, Example
from cones2.files import create_atomically, make_folder, read_bounded, write_atomically
from cones2.library import Library, check_name
from cones2.residual import MAX_FILE_BYTES, describe_file
from cones2.studio.album import Album
from cones2.studio.journal import Journal
from cones2.studio.problems import NotReadyError
from cones2.studio.supervisor import Supervisor

THUMB_SIDE = 256
_LARGEST_PHOTO = 2**24


class Shelf:
    """Subjects by name; a name of the library hides an example of the same name.

    What a file says is read once, and read again when it changes.
    """

    def __init__(self, folder: Path, library: Path, album: Album, supervisor: Supervisor) -> None:
        self.library = Library(library)
        self._folder, self._album, self._supervisor = folder, album, supervisor
        self._read: dict[Path, tuple[object, dict[str, Any]]] = {}
        self._fits: dict[str, bool] = {}
        self._thumbs: dict[str, bytes] = {}
        self._lock, self._binning = threading.Lock(), threading.Lock()

    def all(self) -> list[dict[str, Any]]:
        """Return the library's subjects, then the examples, as clients see them."""
        found = [self._of_library(name) for name in self.library.names()]
        names = {each["name"] for each in found}
        found += [self._of_example(each) for name, each in EXAMPLES.items() if name not in names]
        self._ask_what_fits(found)
        return [self._shown(each) for each in found]

    def find(self, name: str) -> dict[str, Any]:
        """Return a subject as clients see it, and its `path`; LibraryError where there is none."""
        found = self._find(name)
        self._ask_what_fits([found])
        return self._shown(found) | {"path": found["path"]}

    def _find(self, name: str) -> dict[str, Any]:
        if name in self.library.names():
            return self._of_library(name)
        if name in EXAMPLES:
            return self._of_example(EXAMPLES[name])
        return {**self._facts(self.library.file_of(name)), "name": name, "source": "library"}  # it says what is wrong

    def thumb(self, name: str) -> bytes | None:
        """Return a WebP of a subject, of its first photo; None where there is none."""
        found = self._find(name)
        if found["source"] == "library":
            path = self._folder / "thumbs" / f"{found['sha256']}.webp"
            return path.read_bytes() if found["sha256"] and path.is_file() else None
        if name not in self._thumbs:
            photo = min((EXAMPLES[name].folder / "photos").iterdir())
            self._thumbs[name] = make_thumb(read_bounded(photo, limit=_LARGEST_PHOTO, error=OutputError))
        return self._thumbs[name]

    def store(self, name: str) -> str:
        """Keep the file of a subject as it is now, and return its hash: jobs draw that, whatever becomes of the name.

        Raises:
            LibraryError: there is no such subject.
            ResidualError: its file is damaged.
        """
        found = self._find(name)
        if found["sha256"] is None:
            raise ResidualError(found["problem"])
        content = read_bounded(found["path"], limit=MAX_FILE_BYTES, error=ResidualError)
        sha256 = str(describe_file(content, origin=name)["sha256"])  # of these bytes: the file may be another by now
        keep_residual(self._stored(sha256), content)
        return sha256

    def stored(self, sha256: str) -> Path:
        """Return the file that was kept under a hash; LibraryError where there is none."""
        path = self._stored(sha256)
        if not path.is_file():
            raise LibraryError(f"the file of the subject {sha256[:12]} is gone: import it again.")
        return path

    def with_hash(self, sha256: str) -> dict[str, Any] | None:
        """Return the subject whose file has this hash, of the library or the examples; None where there is none."""
        return next((each for each in self.all() if each["sha256"] == sha256), None)

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        """Put a stranger's file into the library, checked and as it came.

        Raises:
            ResidualError: it is no sound residual.
            LibraryError: the name can't be one, or is taken.
        """
        check_name(name)
        describe_file(content, origin="the file")
        make_folder(self.library.folder)
        self.library.check_free(name)
        if not create_atomically(self.library.path_of(name), content):
            raise LibraryError(f"the library has a subject {name!r} already: choose another name.")
        return self.find(name)

    def rename(self, name: str, new: str) -> dict[str, Any]:
        """Give a subject of the library another name; LibraryError where that can't be."""
        with self._binning:
            self.library.rename(name, new)
        return self.find(new)

    def delete(self, name: str) -> None:
        """Move a subject of the library into the bin: first a copy, then its row, then the file goes."""
        with self._binning:  # else two who delete it at once put it there twice
            path = self.library.file_of(name)
            binned = secrets.token_hex(8)
            content = read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError)
            write_atomically(self._folder / "bin" / f"{binned}.safetensors", content)
            self._album.put_into_bin(binned, name, self._facts(path)["class_word"])
            self.library.remove(name)

    def restore(self, binned: str) -> dict[str, Any]:
        """Take a subject out of the bin; LibraryError where its name is taken, or it is not there."""
        with self._binning:
            rows = self._album.in_bin(binned)
            if not rows:
                raise LibraryError("the bin has no such subject.")
            path = self._folder / "bin" / f"{binned}.safetensors"
            found = self.add(rows[0]["name"], read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError))
            self._album.out_of_bin(binned)
            path.unlink(missing_ok=True)
            return found

    def empty_bin(self, older_than: timedelta | None = None) -> tuple[int, set[str]]:
        """Delete the subjects that are in the bin, or that long; return how many, and the hashes of their files.

        The rows go first: a file without a row is deleted by the next start, a row without a file would be offered.
        """
        with self._binning:
            paths = [self._folder / "bin" / f"{binned}.safetensors" for binned in self._album.forget_binned(older_than)]
            hashes = _hashes_of(paths)
            for path in paths:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            return len(paths), hashes

    def drop_unused(self, hashes: set[str], *, older_than: timedelta) -> None:
        """Delete thumbnails that no subject has, and kept files that no picture or job has either.

        They go at once where they are of these hashes, and else when they are old: what was read from a stranger's
        picture may be in a draft, which no row knows.
        """
        own = _hashes_of((self._folder / "bin").iterdir())
        own |= {self._of_library(name)["sha256"] for name in self.library.names()}
        limit = datetime.now(UTC) - older_than
        for folder, used in (("thumbs", own), ("residuals", own | self._album.hashes())):
            for path in (self._folder / folder).iterdir():
                with contextlib.suppress(OSError):
                    is_old = datetime.fromtimestamp(path.stat().st_mtime, UTC) < limit
                    if path.stem not in used and (is_old or path.stem in hashes):
                        path.unlink()

    def tidy_bin(self) -> None:
        """End what a killed server had begun: the bin has nothing that the library has, and no file without a row."""
        for path in (self._folder / "bin").glob("*.safetensors"):
            rows = self._album.in_bin(path.stem)
            kept = self.library.folder / f"{rows[0]['name']}.safetensors" if rows else path
            if kept.is_file() and kept.read_bytes() == path.read_bytes():
                self._album.out_of_bin(path.stem)
                path.unlink(missing_ok=True)

    def _stored(self, sha256: str) -> Path:
        return self._folder / "residuals" / f"{sha256}.safetensors"

    def _of_library(self, name: str) -> dict[str, Any]:
        return {**self._facts(self.library.folder / f"{name}.safetensors"), "name": name, "source": "library"}

    def _of_example(self, example: Example) -> dict[str, Any]:
        path = example.folder / f"{example.name}.safetensors"
        return {**self._facts(path), "name": example.name, "source": "example", "created": None}

    def _facts(self, path: Path) -> dict[str, Any]:
        """Return what a file says, from memory where it has not changed."""
        found: dict[str, Any] = dict.fromkeys(("class_word", "sha256", "problem", "learned_on", "created"))
        found |= {"path": path, "bytes": 0}
        with contextlib.suppress(OSError):
            status = path.stat()
            key = (status.st_mtime_ns, status.st_size, status.st_ino)
            with self._lock:
                known = self._read.get(path)
            if known is not None and known[0] == key:
                return dict(known[1])
            found["bytes"] = status.st_size
            found["created"] = datetime.fromtimestamp(status.st_mtime, UTC).isoformat(timespec="seconds")
            try:
                check_name(path.stem)
                content = read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError)
                facts = describe_file(content, origin=path.name)
                found |= {"class_word": facts["class_word"], "sha256": facts["sha256"]}
                found["learned_on"] = facts["parts"][0]["fits"]
            except Cones2Error as error:
                found["problem"] = str(error)
            with self._lock:
                self._read[path] = (key, dict(found))
        return found

    def _ask_what_fits(self, subjects: list[dict[str, Any]]) -> None:
        """Ask the worker once which files fit its model; until it is ready, the model's name decides."""
        new = [each for each in subjects if each["sha256"] and each["sha256"] not in self._fits]
        if new:
            with contextlib.suppress(NotReadyError):
                answer = self._supervisor.ask("fits", files=[str(each["path"]) for each in new])
                self._fits |= {each["sha256"]: fits for each, fits in zip(new, answer or (), strict=False)}

    def _shown(self, found: dict[str, Any]) -> dict[str, Any]:
        info, sha256, problem = self._supervisor.info, found["sha256"], found["problem"]
        fits = self._fits.get(sha256, info is None or found["learned_on"] == info["name"]) if sha256 else False
        if not fits and problem is None:
            model = info["name"] if info else "this model"
            problem = f"It was learned on {found['learned_on']}, and does not fit {model}: teach it again here."
        has_thumb = found["source"] == "example" or (self._folder / "thumbs" / f"{sha256}.webp").is_file()
        shown = {name: value for name, value in found.items() if name != "path"}
        thumb = f"/v1/subjects/{found['name']}/thumb" if has_thumb else None
        return {**shown, "fits": fits, "problem": problem, "thumb": thumb}


def _hashes_of(paths: Iterable[Path]) -> set[str]:
    """Return the hashes of residuals' files; those that can't be read have none."""
    found = set()
    for path in paths:
        with contextlib.suppress(Cones2Error, OSError):
            content = read_bounded(path, limit=MAX_FILE_BYTES, error=ResidualError)
            found.add(str(describe_file(content, origin=path.name)["sha256"]))
    return found


def keep_residual(path: Path, content: bytes) -> None:
    """Keep a residual under its hash; one that was kept before counts as new."""
    if not create_atomically(path, content):
        os.utime(path)


def make_thumb(content: bytes) -> bytes:
    """Return a WebP of a picture of ours, at most 256 pixels long."""
    with Image.open(io.BytesIO(content), formats=["PNG", "JPEG", "WEBP"]) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMB_SIDE, THUMB_SIDE))
    written = io.BytesIO()
    small.save(written, format="WEBP", quality=80)
    return written.getvalue()


def names_in_use(shelf: Shelf, journal: Journal, name: str) -> Iterator[str]:
    """Say why a name can't be taken by a new subject: nothing, where it can."""
    try:
        shelf.library.check_free(name)
    except LibraryError as error:
        yield str(error)
    if journal.learning(name) is not None:
        yield f"{name!r} is being taught already: wait for it, or choose another name."

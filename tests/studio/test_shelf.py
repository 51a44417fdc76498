"""Subjects that many change at once, what a killed server left of the bin, and what goes when it is emptied."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cones2.errors import LibraryError
from cones2.studio.journal import NewJob
from cones2.studio.studio import Studio
from studio_server import MODEL, REX

CONTENT = (REX / "rex.safetensors").read_bytes()
OTHER = (REX.parent / "fido" / "fido.safetensors").read_bytes()


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    found = Studio(tmp_path / "data", tmp_path / "library", MODEL)
    yield found
    found.stop()


def test_who_delete_a_subject_at_once_put_it_into_the_bin_once(studio: Studio) -> None:
    studio.shelf.add("max", CONTENT)

    def delete(_: int) -> bool:
        try:
            studio.shelf.delete("max")
        except LibraryError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(delete, range(8))) == 1
    assert [row["name"] for row in studio.album.in_bin()] == ["max"]
    assert len(list((studio.folder / "bin").iterdir())) == 1


def test_what_a_killed_server_left_of_the_bin_is_tidied(studio: Studio) -> None:
    studio.shelf.add("max", CONTENT)
    studio.shelf.delete("max")
    studio.shelf.add("max", CONTENT)  # killed before the subject left the library, or after it came back
    studio.shelf.add("moritz", CONTENT)
    studio.shelf.delete("moritz")
    studio.shelf.add("moritz", OTHER)  # another one: both are kept
    (studio.folder / "bin" / "0123456789abcdef.safetensors").write_bytes(CONTENT)  # killed before its row
    studio.shelf.tidy_bin()
    assert [row["name"] for row in studio.album.in_bin()] == ["moritz"]
    assert [path.read_bytes() for path in (studio.folder / "bin").iterdir()] == [CONTENT]


@pytest.mark.parametrize(("hours", "are_kept"), [(23, True), (25, False)])
def test_photos_of_what_failed_are_kept_for_a_day(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, hours: int, are_kept: bool
) -> None:
    for name in ("ended", "waits", "check-x"):
        (studio.folder / "learning" / name / "photos").mkdir(parents=True)
    past = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
    for name in ("ended", "waits"):
        studio.journal.add(NewJob(id=name, client="a", kind="learn", request={}, steps=3, subject=name))
    with monkeypatch.context() as patched:
        patched.setattr("cones2.studio.journal.now", lambda: past)
        studio.journal.wish("ended", "cancel")
    studio.forget()
    kept = {path.name for path in (studio.folder / "learning").iterdir()}
    assert kept == {"waits", "check-x"} | ({"ended"} if are_kept else set())


def test_a_file_is_kept_under_its_own_hash_also_where_it_was_just_replaced(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.shelf.add("max", CONTENT)
    before = studio.shelf._find("max")
    (studio.shelf.library.folder / "max.safetensors").write_bytes(OTHER)
    monkeypatch.setattr(studio.shelf, "_find", lambda _: before)  # as if it were replaced after that
    sha256 = studio.shelf.store("max")
    assert sha256 != before["sha256"]
    assert studio.shelf.stored(sha256).read_bytes() == OTHER


def drawn(studio: Studio, job: str, sha256: str) -> list[Path]:
    """Enter a picture that was drawn with a residual, and its files; return the files."""
    request = {"subjects": [{"name": "max", "sha256": sha256}, {"name": "ball", "sha256": None}]}
    studio.journal.add(NewJob(id=job, client="a", kind="draw", request=request, steps=3))
    studio.journal.claim()
    paths = [studio.folder / "pictures" / f"{job}-1{end}" for end in (".png", ".webp", "-0.heat.png")]
    for path in paths:
        path.write_bytes(b"x")
    facts = {"width": 8, "height": 8, "attention": [], "prompt": "", "subjects": ["max"], "layout": None}
    studio.album.add({"id": f"{job}-1", "job": job, "seed": 1, **facts}, request)
    studio.journal.finish(job, "succeeded")
    return paths


def test_an_emptied_bin_leaves_no_file_that_nothing_has(studio: Studio) -> None:
    studio.shelf.add("max", CONTENT)
    studio.shelf.add("moritz", OTHER)
    hashes = [studio.shelf.store(name) for name in ("max", "moritz")]
    kept = [studio.folder / "residuals" / f"{sha256}.safetensors" for sha256 in hashes]
    thumbs = [studio.folder / "thumbs" / f"{sha256}.webp" for sha256 in hashes]
    for path in thumbs:
        path.write_bytes(b"x")
    shown, gone = drawn(studio, "d1", hashes[0]), drawn(studio, "d2", hashes[1])
    studio.album.change("d2-1", deleted=True)
    for name in ("max", "moritz"):
        studio.shelf.delete(name)
    assert studio.empty_bin() == (1, 2)
    assert list((studio.folder / "bin").iterdir()) == []
    assert all(path.exists() for path in shown)
    assert not any(path.exists() for path in gone)
    assert [path.exists() for path in (*kept, *thumbs)] == [True, True, False, False]  # the jobs have the former still
    with studio.journal.change() as (database, _):
        database.execute("DELETE FROM jobs WHERE id = 'd2'")  # as when it is forgotten
    studio.shelf.drop_unused(set(hashes), older_than=timedelta(days=30))
    assert [path.exists() for path in kept] == [True, False]
    assert studio.empty_bin() == (0, 0)


def test_what_was_kept_of_a_strangers_picture_goes_after_a_month(studio: Studio) -> None:
    studio.shelf.add("max", CONTENT)
    path = studio.shelf.stored(studio.shelf.store("max"))
    studio.shelf.library.remove("max")
    month = timedelta(days=30)
    studio.shelf.drop_unused(set(), older_than=month)
    assert path.exists()
    past = (datetime.now(UTC) - timedelta(days=31)).timestamp()
    os.utime(path, (past, past))
    studio.shelf.add("max", CONTENT)
    studio.shelf.store("max")  # it is used again
    studio.shelf.library.remove("max")
    studio.shelf.drop_unused(set(), older_than=month)
    assert path.exists()
    os.utime(path, (past, past))
    studio.shelf.drop_unused(set(), older_than=month)
    assert not path.exists()


def test_a_kill_amid_emptying_leaves_files_that_the_next_start_deletes(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio.shelf.add("max", CONTENT)
    gone = drawn(studio, "d1", studio.shelf.store("max"))
    studio.album.change("d1-1", deleted=True)
    studio.shelf.delete("max")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)  # as if it were killed there
        assert studio.empty_bin() == (1, 1)
    assert all(path.exists() for path in gone)
    assert (studio.album.pictures(deleted=True), studio.album.in_bin()) == ([], [])
    studio._sweep()
    studio.shelf.tidy_bin()
    assert not any(path.exists() for path in gone)
    assert list((studio.folder / "bin").iterdir()) == []

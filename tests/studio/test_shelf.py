"""Subjects that many change at once, and what a killed server left of the bin."""

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

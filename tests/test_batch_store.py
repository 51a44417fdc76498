"""Storages: a thing is written whole or not at all, and created once."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec  # type: ignore[import-untyped]
import pytest
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from cones2.batch.store import LocalStore, RemoteStore, Store, check_store, open_store
from cones2.errors import Cones2Warning, OutputError


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(tmp_path / "out")
    MemoryFileSystem.store.clear()
    return open_store("memory://bucket/out")


def test_a_thing_is_created_once(store: Store) -> None:
    assert store.create("commit/a.json", b"one")
    assert not store.create("commit/a.json", b"two")
    assert store.create("commit/a.json", b"one")  # the same content: a try that was thought to have failed
    assert store.read("commit/a.json") == b"one"


def test_reading_listing_writing_and_deleting(store: Store, tmp_path: Path) -> None:
    assert store.read("data/none") is None
    assert store.names("data") == []
    store.write("data/b", b"0123456789")
    store.write("data/a", b"x")
    store.write("data/a", b"y")
    (tmp_path / "file").write_bytes(b"moved")
    store.put("data/c", tmp_path / "file")
    assert not (tmp_path / "file").exists()
    assert store.names("data") == ["a", "b", "c"]
    assert (store.read("data/a"), store.read("data/b", 2, 5), store.read("data/c")) == (b"y", b"234", b"moved")
    store.get("data/b", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"0123456789"
    store.delete("data/b")
    store.delete("data/b")
    assert store.names("data") == ["a", "c"]


def test_of_many_that_create_a_thing_at_once_one_wins(tmp_path: Path) -> None:
    store, won = LocalStore(tmp_path), []

    def create(number: int) -> None:
        if store.create("commit/a.json", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read("commit/a.json") == b"%d" % won[0]
    assert len(won) == 1
    assert sorted(path.name for path in (tmp_path / "commit").iterdir()) == ["a.json"]


def test_where_there_are_no_hard_links_a_lock_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    store = LocalStore(tmp_path)
    assert store.create("commit/a.json", b"one")
    assert not store.create("commit/a.json", b"two")
    assert store.names("commit") == ["a.json"]


def test_a_sound_storage_passes_the_check_and_is_left_empty(store: Store) -> None:
    check_store(store)
    assert not [name for name in store.names("") if name.startswith("probe")]


def test_a_storage_that_does_not_know_creating_gives_a_warning() -> None:
    class Careless(MemoryFileSystem):  # type: ignore[misc]
        protocol = "careless"
        store: ClassVar[dict[str, Any]] = {}

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:  # noqa: ARG002
            super().pipe_file(path, value)

    fsspec.register_implementation("careless", Careless, clobber=True)
    with pytest.warns(Cones2Warning, match="only once"):
        check_store(open_store("careless://out"))


def test_a_storage_that_looks_before_it_writes_gives_a_warning_too(tmp_path: Path) -> None:
    class Looking(LocalFileSystem):  # type: ignore[misc]
        protocol = "looking"
        pipe_file = fsspec.AbstractFileSystem.pipe_file

    fsspec.register_implementation("looking", Looking, clobber=True)
    (tmp_path / "out").mkdir()
    with pytest.warns(Cones2Warning, match="only once"):
        check_store(open_store(f"looking://{tmp_path.as_posix()}/out"))


def test_a_busy_storage_is_tried_again_and_one_that_stays_so_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    MemoryFileSystem.store.clear()
    store, left = RemoteStore("memory://busy"), [3]
    write = MemoryFileSystem.pipe_file

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        write(self, path, value, mode, **options)
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("503 SlowDown")  # after it wrote: the worst moment

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    assert store.create("commit/a.json", b"one")
    left[0] = 99
    with pytest.warns(Cones2Warning, match="SlowDown"), pytest.raises(OutputError, match="SlowDown"):
        store.write("commit/b.json", b"two")


def test_what_can_not_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        open_store(tmp_path / "file").write("commit/a.json", b"")
    with pytest.raises(OutputError, match="nosuch"):
        open_store("nosuch://bucket")


def test_a_throttled_storage_is_waited_for_longer_and_that_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    MemoryFileSystem.store.clear()
    store, left = RemoteStore("memory://busy"), [10]
    write = MemoryFileSystem.pipe_file

    def pipe_file(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EBUSY, "Please reduce your request rate.")
        write(self, path, value, mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    with pytest.warns(Cones2Warning, match="busy, and waited for: .*request rate") as said:
        assert store.create("commit/a.json", b"one")
    assert len(said) == 1
    left[0] = 10
    assert store.create("commit/b.json", b"two")  # without another warning
    assert 60 < sum(pauses[:10]) < 240
    assert max(pauses) <= 45
    left[0] = 99
    with pytest.raises(OutputError, match="fewer workers"):
        store.write("commit/c.json", b"three")


def test_a_note_that_can_not_be_written_costs_no_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    store, tries = RemoteStore("memory://busy"), [0]

    def pipe_file(*_: Any, **__: Any) -> None:
        tries[0] += 1
        raise OSError("503 SlowDown")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it waits"))
    store.note("engines/a.json", b"{}")
    assert tries == [1]
    (tmp_path / "file").write_text("")
    LocalStore(tmp_path / "file").note("engines/a.json", b"{}")

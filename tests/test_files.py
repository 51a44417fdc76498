"""A file is whole or absent, and only regular files within bounds are read."""

import errno
import os
import stat
from pathlib import Path

import pytest

from cones2.errors import CaptionError, OutputError
from cones2.files import make_folder, read_bounded, write_atomically


def fail_with(code: int):
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> bytes:
    return read_bounded(path, limit=10, error=CaptionError)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    write_atomically(tmp_path / "a", b"new")
    assert read(tmp_path / "a") == b"new"
    assert names(tmp_path) == ["a"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_failing_disk_leaves_the_old_content_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    (tmp_path / "a").write_bytes(b"old")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail_with(code))
    with pytest.raises(OutputError, match=f"can't write .*a: {os.strerror(code)}. Choose another place, or make room"):
        write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_an_interrupt_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a", b"new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["missing/a", "file/a", "folder", "x" * 300, "nul\0"])
def test_places_that_can_not_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="can't write"):
        write_atomically(tmp_path / name, b"new")
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == []


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_a_folder_s_way(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError, match=r"can't make the folder .*a: File exists. Choose another --out"):
        make_folder(tmp_path / "a")


def test_the_limit_is_met_exactly(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read(tmp_path / "a") == b"0123456789"
    (tmp_path / "a").write_bytes(b"0123456789+")
    with pytest.raises(CaptionError, match="a is too large: expected at most 10 bytes"):
        read(tmp_path / "a")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read(tmp_path / "link") == b"content"


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CaptionError, match="pipe: it is a pipe or device, expected a regular file"):
        read(tmp_path / "pipe")
    with pytest.raises(CaptionError, match="it is a pipe or device"):
        read(Path(os.devnull))
    with pytest.raises(CaptionError, match=r"Is a directory. Check the path and its permissions"):
        read(tmp_path)
    with pytest.raises(CaptionError, match=r"can't read .*missing: No such file or directory"):
        read(tmp_path / "missing")
    with pytest.raises(CaptionError, match="null byte"):
        read(tmp_path / "nul\0")

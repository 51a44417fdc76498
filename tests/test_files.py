"""A file is whole or absent, only regular files within bounds are read, and a lock keeps others out."""

import contextlib
import errno
import os
import stat
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cones2.errors import CaptionError, Cones2Error, Cones2Warning, HubError, OutputError, SettingsError
from cones2.files import expanded, locked, make_folder, read_bounded, read_toml, write_atomically


def fail_with(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(path: Path) -> bytes:
    return read_bounded(path, limit=10, error=CaptionError)


def test_errors_are_the_built_in_ones_that_fit() -> None:
    assert issubclass(SettingsError, ValueError)
    assert issubclass(OutputError, OSError)
    assert issubclass(HubError, OSError)
    with contextlib.suppress(OSError):
        raise OutputError("x")
    assert str(OutputError("what, got, expected")) == "what, got, expected"


def test_a_message_is_one_short_line_whatever_a_file_put_into_it() -> None:
    assert str(SettingsError("a\nb\r\n\x1b[2J\u202e é")) == r"a b \x1b[2J\u202e é"
    long = str(OutputError("first " + "x" * 10_000 + " last"))
    assert len(long) < 1010
    assert long.startswith("first ")
    assert long.endswith(" last")


@pytest.mark.parametrize(
    "text",
    [
        "a." * 40_000 + "a = 1",
        f"[{'a . ' * 40_000}a]",
        f"x = {{{'.'.join([chr(34) * 2] * 40_000)} = 1}}",
        ".".join(["'a.b'"] * 40_000) + " = 1",
        ".".join([r'"\""'] * 40_000) + " = 1",
        "x = " + "[" * 40_000,
        "x = " + "{a=" * 40_000,
        "x = " + "1" * 5000,
    ],
)
def test_toml_that_would_take_minutes_is_refused(text: str, tmp_path: Path) -> None:
    path, began = tmp_path / "a.toml", time.process_time()
    path.write_text(text)
    with pytest.raises(SettingsError, match=r"parts|brackets|digits|too large"):
        read_toml(path, example="x = 1")
    assert time.process_time() - began < 5  # Python's own reader takes hours for such a key


@pytest.mark.parametrize("text", ["a.b.c.d = 1", 'x = "so... it goes. On. and. on..."', f"x = {[0.5, 1.25] * 300}"])
def test_toml_with_dots(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_toml(path, example="x = 1") == tomllib.loads(text)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    write_atomically(tmp_path / "a", b"new")
    assert read(tmp_path / "a") == b"new"
    assert names(tmp_path) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
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
    monkeypatch.setattr(os if call == "fsync" else Path, call, fail_with(code))
    with pytest.raises(OutputError, match=os.strerror(code)):
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


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
@pytest.mark.parametrize("failure", [None, *(OSError(code, "") for code in (errno.EINVAL, errno.EIO, errno.ENOTSUP))])
def test_a_finished_file_stays_where_its_folder_can_not_be_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError | None
) -> None:
    synced = []

    def fsync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append("folder" if is_folder else "file")
        if is_folder:
            assert names(tmp_path) == ["a"]
            if failure is not None:
                raise failure

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomically(tmp_path / "a", b"new")
    assert synced == ["file", "folder"]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("name", ["missing/a", "file/a", "folder", "x" * 300, "nul\0"])
def test_places_that_can_not_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        write_atomically(tmp_path / name, b"new")
    assert names(tmp_path) == ["file", "folder"]
    assert names(tmp_path / "folder") == []


def test_a_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_file_in_a_folder_s_way(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with pytest.raises(OutputError, match=str(tmp_path / "a")):
        make_folder(tmp_path / "a")


def test_the_limit_is_met_exactly(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    assert read(tmp_path / "a") == b"0123456789"
    (tmp_path / "a").write_bytes(b"0123456789+")
    with pytest.raises(CaptionError, match="10 bytes"):
        read(tmp_path / "a")


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read(tmp_path / "link") == b"content"


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), tmp_path, tmp_path / "missing", tmp_path / "nul\0"):
        with pytest.raises(CaptionError, match="can't read"):
            read(path)


@pytest.mark.parametrize("error", [CaptionError, OutputError])
def test_errors_keep_their_type(tmp_path: Path, error: type[Cones2Error]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(error):
        read_bounded(tmp_path / "pipe", limit=1, error=error)


@given(st.text(max_size=20))
def test_any_text_is_a_path_or_an_error(name: str) -> None:
    with contextlib.suppress(CaptionError):
        read(expanded(Path("/nowhere") / name))
    assert str(expanded("~nobody-has-this-name/x")).endswith("x")


# Locks


def test_a_lock_keeps_others_out_until_the_block_ends(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", wait=False):
        code = (
            "import sys; from pathlib import Path; from cones2.files import locked\n"
            "with locked(Path(sys.argv[1]), wait=False): pass"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "lock")]
        held = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "BlockingIOError" in held.stderr
        with pytest.raises(BlockingIOError), locked(tmp_path / "lock", wait=False):
            pass
    subprocess.run(command, check=True)
    with locked(tmp_path / "lock", wait=True):
        pass


def test_a_user_s_file_of_the_lock_s_name_keeps_its_content(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("dear diary")
    with locked(tmp_path / "lock", wait=False):
        assert (tmp_path / "lock").read_text() == "dear diary"
    assert (tmp_path / "lock").read_text() == "dear diary"


def test_a_lock_is_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "dangling").symlink_to(tmp_path / "new")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "folder", "pipe", "nul\0"):
        with pytest.raises(OutputError), locked(tmp_path / name, wait=False):
            pass
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such flag, nor pipes")
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_what_is_swapped_in_before_it_is_opened_is_refused_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mine, lock = tmp_path / "mine", tmp_path / "lock"
    mine.write_text("dear diary")
    regular = mine.lstat()
    if kind == "pipe":
        os.mkfifo(lock)
    else:
        lock.symlink_to(mine if kind == "link" else tmp_path / "new")
    monkeypatch.setattr(Path, "lstat", lambda _: regular)  # what was there a moment before
    if kind == "pipe":  # it is not waited for, and holds nothing that could be lost
        with locked(lock, wait=False):
            pass
    else:
        with pytest.raises(OutputError), locked(lock, wait=False):
            pass
    assert mine.read_text() == "dear diary"
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_locks_are_unsupported_the_block_is_entered_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(code))
    for _ in range(2):
        entered = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with locked(tmp_path / "lock", wait=True):
                entered += 1
        assert entered == 1
        assert [one.category for one in caught] == [Cones2Warning]


@pytest.mark.skipif(os.name == "nt", reason="fcntl")
def test_another_failure_of_the_lock_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", fail_with(errno.EIO))
    with pytest.raises(OutputError), locked(tmp_path / "lock", wait=True):
        pass


def test_no_module_that_windows_lacks_is_imported() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['fcntl', 'pwd', 'resource', 'termios'])); import cones2.files"
    subprocess.run([sys.executable, "-c", code], check=True)

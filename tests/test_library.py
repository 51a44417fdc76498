"""The library of subjects: names, broken files, and several writers at once."""

import contextlib
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cones2.errors import LayoutError, LibraryError, OutputError, ResidualError
from cones2.examples import EXAMPLES
from cones2.layout import Layout
from cones2.library import FOLDER_VARIABLE, Library, check_name, find_by_hash, find_residual
from cones2.residual import EncoderId, Residual, ResidualPart
from subjects_for_tests import residual_for


def residual(number: float) -> Residual:
    encoder = EncoderId("text_encoder", "mini", 2, "ab" * 32, (1.0,))
    return Residual("dog", (ResidualPart(encoder, ("dog</w>",), torch.tensor([[number, 0.0]])),), {}, (), "0")


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library(tmp_path / "new" / "subjects")


def test_what_is_added_is_there_until_it_is_removed(library: Library) -> None:
    assert list(library.entries()) == []
    assert library.add("rex", residual(1)) == library.folder / "rex.safetensors"
    library.add("fido", residual(2))
    assert [entry.name for entry in library.entries()] == ["fido", "rex"]
    assert library.load("rex").sha256 == residual(1).sha256
    library.remove("rex")
    assert [entry.name for entry in library.entries()] == ["fido"]
    with pytest.raises(LibraryError, match="'rex'; it has fido"):
        library.remove("rex")


def test_a_name_is_taken_only_once_unless_it_is_replaced(library: Library) -> None:
    library.check_free("rex")
    library.add("rex", residual(1))
    with pytest.raises(LibraryError, match="'rex'"):
        library.check_free("rex")
    with pytest.raises(LibraryError, match="'rex'"):
        library.add("rex", residual(2))
    with pytest.raises(LibraryError, match="'Rex' differs from 'rex'"):
        library.check_free("Rex", replace=True)
    with pytest.raises(LibraryError, match="'Rex' differs from 'rex'"):
        library.add("Rex", residual(2), replace=True)
    library.add("rex", residual(2), replace=True)
    assert library.load("rex").sha256 == residual(2).sha256


def test_a_subject_gets_another_name(library: Library) -> None:
    with pytest.raises(LibraryError, match="'rex'"):
        library.rename("rex", "max")
    library.add("rex", residual(1))
    library.add("fido", residual(2))
    assert library.rename("rex", "max") == library.folder / "max.safetensors"
    assert library.load("max").sha256 == residual(1).sha256
    assert library.names() == ["fido", "max"]
    with pytest.raises(LibraryError, match="'rex'"):
        library.rename("rex", "other")
    with pytest.raises(LibraryError, match="'fido'"):
        library.rename("max", "fido")
    with pytest.raises(LibraryError, match="'FIDO' differs from 'fido'"):
        library.rename("max", "FIDO")
    library.rename("max", "Max")  # its own name in another case
    library.rename("Max", "Max")
    library.rename("Max", "fido", replace=True)
    assert library.names() == ["fido"]
    assert library.load("fido").sha256 == residual(1).sha256
    (library.folder / "torn.safetensors").write_bytes(b"torn")
    library.rename("torn", "broken")
    assert library.names() == ["broken", "fido"]


def test_a_name_that_is_not_there(library: Library) -> None:
    for use in (library.load, library.remove):
        with pytest.raises(LibraryError, match="'rex'"):
            use("rex")
    library.add("rexi", residual(1))
    with pytest.raises(LibraryError, match="did you mean 'rexi'"):
        library.load("rex")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../rex", "/etc/passwd", "a/b", "a.b", "1a", "a b", "a\0", "a\n", "é", "x" * 65]
)
def test_names_that_lead_out_of_the_folder_or_into_no_prompt(library: Library, name: str) -> None:
    uses = (
        *(library.load, library.remove, lambda name: library.add(name, residual(1))),
        *(lambda name: library.rename(name, "rex"), lambda name: library.rename("rex", name)),
    )
    for use in uses:
        with pytest.raises(LibraryError, match="can't name a subject"):
            use(name)
    assert not library.folder.exists()


@given(st.text())
def test_a_name_is_one_file_in_the_folder(name: str) -> None:
    with contextlib.suppress(LibraryError):
        path = Library(Path("/library")).path_of(name)
        assert (path.parent, path.stem) == (Path("/library"), check_name(name))


def test_broken_files_are_listed_with_what_is_wrong(library: Library, tmp_path: Path) -> None:
    library.add("rex", residual(1))
    sound = (library.folder / "rex.safetensors").read_bytes()
    (library.folder / "torn.safetensors").write_bytes(sound[:-3])
    (library.folder / "my-dog.safetensors").write_bytes(sound)
    (library.folder / "folder.safetensors").mkdir()
    (library.folder / "gone.safetensors").symlink_to(tmp_path / "nothing")
    (library.folder / "loop.safetensors").symlink_to("loop.safetensors")
    os.mkfifo(library.folder / "pipe.safetensors")
    (library.folder / "notes.txt").write_text("dear diary")
    problems = {entry.name: entry.problem for entry in library.entries()}
    assert problems.pop("rex") == ""
    assert "torn.safetensors" in problems["torn"]
    assert "'my-dog'" in problems["my-dog"]
    assert set(problems) == {"torn", "my-dog", "folder", "gone", "loop", "pipe"}
    assert all(problems.values())
    with pytest.raises(ResidualError, match="torn"):
        library.load("torn")
    library.remove("torn")
    library.remove("gone")
    with pytest.raises(LibraryError, match="folder"):
        library.remove("folder")


def test_an_entry_that_vanishes_while_the_library_is_listed_is_left_out(library: Library) -> None:
    for name in ("ann", "bob", "cy"):
        library.add(name, residual(1.0))
    entries = library.entries()
    assert next(entries).name == "ann"
    library.remove("bob")
    assert [entry.name for entry in entries] == ["cy"]


@pytest.mark.parametrize(("name", "offered"), [("my-dog", "my_dog"), ("my dog.v2", "my_dog_v2"), ("2dogs", "_2dogs")])
def test_a_name_as_people_write_it_is_offered_as_one_that_can_be(library: Library, name: str, offered: str) -> None:
    with pytest.raises(LibraryError, match=f"Take '{offered}'"):
        library.path_of(name)
    with pytest.raises(LayoutError, match=f"Take '{offered}'"):
        Layout.of({name: (0, 0, 1, 1)})
    assert check_name(offered) == offered


def test_a_file_in_the_folder_s_place(tmp_path: Path) -> None:
    (tmp_path / "subjects").write_text("dear diary")
    library = Library(tmp_path / "subjects")
    with pytest.raises(LibraryError, match="subjects"):
        list(library.entries())
    with pytest.raises(OutputError, match="subjects"):
        library.add("rex", residual(1))
    with pytest.raises(LibraryError, match="'rex'"):
        library.load("rex")


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)
    assert Library.open().folder.is_relative_to(tmp_path)
    assert Library.open().folder.parts[-2:] == ("cones2", "subjects")
    monkeypatch.setenv(FOLDER_VARIABLE, "~/mine")
    assert Library.open().folder == tmp_path / "mine"
    assert Library.open(tmp_path / "other").folder == tmp_path / "other"


def _add_and_replace(folder: str, number: int, results: "multiprocessing.Queue[int]") -> None:
    library = Library(Path(folder))
    won = 0
    for turn in range(20):
        try:
            library.add(f"new{turn}", residual(number))
            won += 1
        except LibraryError:
            pass
        library.add("shared", residual(number), replace=True)
    results.put(won)


def test_of_many_writers_one_wins_each_name_and_no_file_is_torn(library: Library) -> None:
    context = multiprocessing.get_context("fork")
    results: multiprocessing.Queue[int] = context.Queue()
    writers = [context.Process(target=_add_and_replace, args=(str(library.folder), n, results)) for n in range(4)]
    for writer in writers:
        writer.start()
    reads = 0
    while any(writer.is_alive() for writer in writers):
        assert all(entry.problem == "" for entry in library.entries())
        reads += 1
    assert sum(results.get() for _ in writers) == 20
    assert reads > 0
    assert [entry.problem for entry in library.entries()] == [""] * 21
    assert sorted(path.name for path in library.folder.glob(".*")) == [".lock"]
    shutil.rmtree(library.folder)


# Files, names, examples


def test_a_file_a_name_or_an_example(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own, other = residual_for(tiny), residual_for(tiny, size=2.0)
    shipped = EXAMPLES["rex"].residual
    assert find_residual("rex").sha256 == shipped.sha256
    Library.open().add("rex", own)
    assert find_residual("rex").sha256 == own.sha256
    other.save(tmp_path / "rex")
    assert find_residual("rex").sha256 == own.sha256  # a name is never a file
    assert find_residual("./rex").sha256 == find_residual(tmp_path / "rex").sha256 == other.sha256
    (tmp_path / "rex").rename(tmp_path / "my-rex")
    assert find_residual("my-rex").sha256 == other.sha256


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LibraryError, match="hugoo"):
        find_residual("hugoo")
    with pytest.raises(LibraryError, match="no name"):
        find_residual("no name")
    with pytest.raises(ResidualError, match=r"none\.safetensors"):
        find_residual(tmp_path / "none.safetensors")


def test_a_subject_that_vanishes_while_its_hash_is_looked_for(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own, library = residual_for(tiny), Library.open()
    gone, kept = library.add("a", own), library.add("b", own)
    load = Residual.load

    def vanishing(path: Path) -> Residual:
        gone.unlink(missing_ok=True)
        return load(path)

    monkeypatch.setattr(Residual, "load", vanishing)
    found = find_by_hash(own.sha256)
    assert found is not None
    assert found.sha256 == own.sha256
    library.add("a", own)
    kept.unlink()
    assert find_by_hash(own.sha256) is None


def test_a_residual_is_found_by_its_hash(tiny: Any) -> None:
    own = residual_for(tiny)
    assert find_by_hash(own.sha256) is None
    Library.open().add("any", own)
    for residual in (own, EXAMPLES["rex"].residual):
        found = find_by_hash(residual.sha256)
        assert found is not None
        assert found.sha256 == residual.sha256

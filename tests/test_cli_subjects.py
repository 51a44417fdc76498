"""`cones2 subjects` and `mix`, and subjects by name in other commands."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from command import refused, run
from cones2.library import Library
from cones2.png import read_record
from cones2.residual import Residual
from subjects_for_tests import residual_for


@pytest.fixture(scope="module")
def residual(tiny: Any) -> Residual:
    return residual_for(tiny)


@pytest.fixture
def rex(residual: Residual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file outside of an empty library."""
    monkeypatch.setenv("COLUMNS", "200")
    residual.save(tmp_path / "rex.safetensors")
    return tmp_path / "rex.safetensors"


def test_add_list_show_rename_remove(rex: Path, residual: Residual) -> None:
    folder = Library.open().folder
    empty = run("subjects", "list")
    assert str(folder) in empty.stdout
    assert "cones2 learn" in empty.stderr
    assert json.loads(run("subjects", "list", "--json").stdout) == {"library": str(folder), "subjects": []}
    run("subjects", "add", "rex", rex)
    assert "--replace" in refused("subjects", "add", "rex", rex)
    run("subjects", "add", "rex", rex, "--replace")
    run("subjects", "add", "fido", rex)
    assert "--replace" in refused("subjects", "rename", "fido", "rex")
    run("subjects", "rename", "fido", "max")
    (first, second) = json.loads(run("subjects", "list", "--json").stdout)["subjects"]
    assert (first["name"], second["name"], first["sha256"]) == ("max", "rex", residual.sha256)
    assert json.loads(run("subjects", "show", "rex", "--json").stdout)["sha256"] == residual.sha256
    assert "cat" in run("subjects", "show", "rex").stdout
    assert "--yes" in refused("subjects", "remove", "rex")
    run("subjects", "remove", "rex", "--yes")
    run("subjects", "remove", "max", "--yes")
    assert Library.open().names() == []
    assert "'rex'" in refused("subjects", "show", "rex")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pseudo-terminals")
@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, ["rex"]), ("y", 0, [])])
def test_a_terminal_is_asked_before_a_subject_is_deleted(rex: Path, answer: str, code: int, left: list[str]) -> None:
    import pty

    run("subjects", "add", "rex", rex)
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    command = [sys.executable, "-m", "cones2", "subjects", "remove", "rex"]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, check=False)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code
    assert "rex.safetensors?" in done.stderr
    assert Library.open().names() == left


def test_two_subjects_are_mixed(rex: Path, residual: Residual, tmp_path: Path) -> None:
    part = residual.parts[0]
    Library.open().add(
        "fido", dataclasses.replace(residual, parts=(dataclasses.replace(part, vector=-2 * part.vector),))
    )
    out = tmp_path / "mixed" / "both.safetensors"
    told = json.loads(run("mix", rex, "fido", "--weight", 0.25, "--out", out, "--json").stdout)
    mixed = Residual.load(out)
    assert told == {"residual": str(out), "sha256": mixed.sha256, "class_word": "cat", "weight": 0.25}
    assert torch.allclose(mixed.parts[0].vector, 0.25 * part.vector)
    assert "--replace" in refused("mix", rex, "fido", "--out", out)
    run("mix", rex, "fido", "--out", out, "--replace")
    assert torch.allclose(Residual.load(out).parts[0].vector, -0.5 * part.vector)
    Library.open().add("dog", dataclasses.replace(residual, class_word="dog"))
    assert "'dog'" in refused("mix", rex, "dog", "--out", tmp_path / "new.safetensors")
    assert "nan" in refused("mix", rex, "fido", "--weight", "nan", "--out", tmp_path / "new.safetensors")


def test_broken_files_and_hostile_names_are_told(rex: Path) -> None:
    run("subjects", "add", "rex", rex)
    (Library.open().folder / "[red]\x1b[2J.safetensors").write_bytes(b"dear diary")
    listed = run("subjects", "list").stdout
    assert r"[red]\x1b[2J" in listed
    assert "broken: " in listed
    assert "'../rex'" in refused("subjects", "remove", "../rex")


def test_another_folder(rex: Path, tmp_path: Path) -> None:
    run("subjects", "add", "rex", rex, "--library", tmp_path / "other")
    assert (tmp_path / "other" / "rex.safetensors").read_bytes() == rex.read_bytes()
    assert not Library.open().folder.exists()


def test_subjects_by_name_and_names_are_never_paths(
    rex: Path, residual: Residual, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("subjects", "add", "rex", rex)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rex").write_bytes(b"not this one")
    out = tmp_path / "one.png"
    command = ("compose", "a {rex} and a {max}", "--model", small_folder, "--steps", 1, "--out", out)
    run(*command, "--subject", "rex", "--subject", "max=rex")
    assert [each["residual"] for each in read_record(out)["subjects"].values()] == [residual.sha256] * 2
    assert "'max'" in refused(*command, "--subject", "rex", "--subject", "max")
    assert "./rex" in refused(*command, "--subject", "rex", "--subject", "max=./rex").replace("error: rex ", "./rex")


def test_a_home_folder_inside_an_option(
    rex: Path, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(rex.parent))
    command = ("compose", "a {rex}", "--subject", f"rex=~/{rex.name}", "--model", small_folder, "--steps", 1)
    run(*command, "--out", tmp_path / "one.png")

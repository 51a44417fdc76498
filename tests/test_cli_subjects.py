"""`cones2 subjects`, and subjects by name in other commands."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from command import refused, run
from cones2.backbones import Backbone
from cones2.library import FOLDER_VARIABLE, Library
from cones2.picture import read_record
from cones2.residual.residual import Residual


@pytest.fixture
def residual(tiny: Backbone) -> Residual:
    vector = torch.randn(1, tiny.width, generator=torch.Generator().manual_seed(1))
    return Residual("cat", vector, ("cat</w>",), tiny.encoder_id, {"steps": 7}, (), "0")


@pytest.fixture
def rex(residual: Residual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file outside of an empty library."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "library"))
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "rex.safetensors"
    residual.save(path)
    return path


def test_add_list_show_remove(rex: Path, residual: Residual) -> None:
    folder = rex.parent / "library"
    assert json.loads(run("subjects", "list", "--json").stdout) == {"library": str(folder), "subjects": []}
    assert run("subjects", "add", "rex", rex).stdout == f"{folder / 'rex.safetensors'}: added.\n"
    assert "has a subject 'rex' already" in refused("subjects", "add", "rex", rex)
    run("subjects", "add", "rex", rex, "--replace")
    told = json.loads(run("subjects", "list", "--json").stdout)["subjects"]
    assert told == [
        {
            "name": "rex",
            "file": str(folder / "rex.safetensors"),
            "class_word": "cat",
            "learned_on": "tiny",
            "sha256": residual.sha256,
            "problem": None,
        }
    ]
    assert json.loads(run("subjects", "show", "rex", "--json").stdout)["sha256"] == residual.sha256
    assert "recipe.steps" in run("subjects", "show", "rex").stdout
    assert run("subjects", "remove", "rex").stdout == f"rex: removed from {folder}.\n"
    assert "has no subject 'rex'" in refused("subjects", "show", "rex")


def test_two_subjects_are_mixed(rex: Path, residual: Residual, tmp_path: Path) -> None:
    fido = dataclasses.replace(residual, vector=-2 * residual.vector)
    Library.open().add("fido", fido)
    out = tmp_path / "mixed" / "both.safetensors"
    told = json.loads(run("mix", rex, "fido", "--weight", 0.25, "--out", out, "--json").stdout)
    mixed = Residual.load(out)
    assert told == {"residual": str(out), "sha256": mixed.sha256, "class_word": "cat", "weight": 0.25}
    assert torch.allclose(mixed.vector, 0.25 * residual.vector)
    assert "is there already. Add --replace if it may be lost" in refused("mix", rex, "fido", "--out", out)
    assert Residual.load(out).sha256 == mixed.sha256
    again = ("mix", rex, "fido", "--out", out, "--replace")
    assert run(*again).stdout == f"{out}: 'cat', the sum of {rex} and fido.\n"
    assert torch.equal(Residual.load(out).vector, -residual.vector)
    assert "0.75 and 0.25 of" in run(*again, "--weight", 0.25).stdout
    Library.open().add("dog", dataclasses.replace(residual, class_word="dog"))
    assert "residuals of 'cat' and 'dog' can't be combined" in refused("mix", rex, "dog", "--out", out)
    assert "weight nan can't be used" in refused("mix", rex, "fido", "--weight", "nan", "--out", out)


def test_broken_files_and_hostile_names_are_told(rex: Path) -> None:
    run("subjects", "add", "rex", rex)
    (rex.parent / "library" / "[red]\x1b[2J.safetensors").write_bytes(b"dear diary")
    listed = run("subjects", "list").stdout
    assert r"[red]\x1b[2J" in listed
    assert "broken: " in listed
    assert "'../rex' can't name a subject" in refused("subjects", "remove", "../rex")
    assert "no sound residual file" in refused("subjects", "add", "fido", rex.parent / "library" / ".lock")


def test_another_folder(rex: Path, tmp_path: Path) -> None:
    run("subjects", "add", "rex", rex, "--library", tmp_path / "other")
    assert (tmp_path / "other" / "rex.safetensors").read_bytes() == rex.read_bytes()
    assert not (tmp_path / "library").exists()


def test_subjects_by_name_and_names_are_never_paths(
    rex: Path, residual: Residual, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("subjects", "add", "rex", rex)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rex").write_bytes(b"not this one")
    out = tmp_path / "one.png"
    command = ("compose", "a {rex} and a {fido}", "--model", small_folder, "--steps", 1, "--out", out)
    run(*command, "--subject", "rex", "--subject", "fido=rex")
    taught = {"class_word": "cat", "residual": residual.sha256, "strength": 1.0}
    assert read_record(out)["subjects"] == {"rex": taught, "fido": taught}
    assert "has no subject 'fido'; " in refused(*command, "--subject", "rex", "--subject", "fido")
    assert "rex is no sound residual file" in refused(*command, "--subject", "rex", "--subject", "fido=./rex")
    assert "--subject names 'rex' twice" in refused(*command, "--subject", "rex", "--subject", "rex=rex.safetensors")

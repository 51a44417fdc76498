"""`cones2 compose --from`: the same picture, and the same but for the options given."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from command import refused, run
from cones2.backbones import Backbone
from cones2.composing.again import threads
from cones2.layout.box import Box
from cones2.layout.regions import Layout
from cones2.library import FOLDER_VARIABLE, Library
from cones2.picture import read_record, write_picture
from cones2.residual.residual import Residual

PROMPT = "a {rex} and a {cup} on the beach"


@pytest.fixture
def residual(tiny: Backbone) -> Residual:
    vector = torch.randn(1, tiny.width, generator=torch.Generator().manual_seed(1))
    return Residual("cat", vector, ("cat</w>",), tiny.encoder_id, {}, (), "0")


@pytest.fixture
def picture(residual: Residual, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The second of three, drawn on one thread with a subject of the library."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "library"))
    Library.open().add("rex", residual)
    places = ("--box", "rex=0,0,0.5,1", "--box", "cup=0.5,0.5,1,1", "--strength", "rex=0.5")
    how = ("--negative", "fog", "--preset", "official-layout", "--scheduler", "euler-a", "--steps", 2, "--force")
    out = tmp_path / "first"
    with threads(1):
        subjects = ("--subject", "rex", "--plain", "cup=mug")
        run(
            "compose",
            PROMPT,
            *subjects,
            *places,
            *how,
            "--seed",
            5,
            "--count",
            3,
            "--model",
            small_folder,
            "--out",
            out,
        )
    return out / "0001-seed6.png"


def again(picture: Path, model: Path, *options: object) -> dict[str, Any]:
    """Draw the picture again with options, and give its record."""
    out = picture.parent.parent / "again.png"
    result = run("compose", "--from", picture, "--model", model, *options, "--out", out, "--json")
    (told,) = json.loads(result.stdout)["pictures"]
    assert told["record"] == read_record(out)
    return told["record"]


def test_the_same_file_bit_for_bit(picture: Path, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    result = run("compose", "--from", picture, "--model", small_folder, "--out", out)
    assert (result.stdout, result.stderr.startswith("1 of 'a cat and a mug")) == (f"{out}\n", True)
    assert out.read_bytes() == picture.read_bytes()
    assert (read_record(out)["seed"], read_record(out)["batch"], read_record(out)["threads"]) == (6, [5, 6, 7], 1)


def test_the_same_but_for_what_is_given(picture: Path, small_folder: Path) -> None:
    first = read_record(picture)
    settings: dict[str, Any] = dict(first["settings"])  # type: ignore[call-overload]
    made = again(picture, small_folder, "--steps", 3, "--guidance-scale", 5, "--negative", "rain")
    assert made["settings"] == {**settings, "steps": 3, "guidance_scale": 5.0, "negative_prompt": "rain"}
    assert {**made, "settings": settings} == first
    made = again(picture, small_folder, "--strength", "rex=2", "--box", "cup=0,0,1,1")
    assert made["subjects"] == {
        "rex": {**first["subjects"]["rex"], "strength": 2.0},  # type: ignore[call-overload,index]
        "cup": first["subjects"]["cup"],  # type: ignore[call-overload,index]
    }
    assert made["layout"]["regions"] == {"rex": [[0, 0, 0.5, 1]], "cup": [[0, 0, 1, 1]]}
    assert (again(picture, small_folder, "--seed", 9)["batch"], made["batch"]) == ([9], [5, 6, 7])


def test_seeds_that_are_asked_for_are_drawn_also_where_they_are_the_pictures_own(
    picture: Path, small_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "all"
    run("compose", "--from", picture, "--model", small_folder, "--seed", 5, "--count", 3, "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["0000-seed5.png", "0001-seed6.png", "0002-seed7.png"]


def test_the_pictures_own_regions_can_be_adjusted(picture: Path, small_folder: Path) -> None:
    changes = ("--z", "cup=2", "--feather", "cup=0.1", "--region-weight", "cup=3")
    regions = again(picture, small_folder, *changes, "--box", "rex=0,0,1,1")["layout"]["regions"]
    assert regions["rex"] == [[0, 0, 1, 1]]
    assert regions["cup"] == {"shapes": [[0.5, 0.5, 1, 1]], "z": 2, "feather": 0.1, "weight": 3}
    out = picture.parent.parent / "refused"
    refusal = refused("compose", "--from", picture, "--model", small_folder, "--z", "hat=1", "--out", out)
    assert "--z names 'hat', which has no region; those that have: rex, cup" in refusal


def test_a_picture_by_the_authors_sampler(small_folder: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    how = ("--plain", "rex=cat", "--box", "rex=0,0,0.5,1", "--preset", "official", "--guided-steps", 1, "--steps", 2)
    run("compose", "a {rex}", *how, "--model", small_folder, "--out", first)
    run("compose", "--from", first, "--model", small_folder, "--out", second)
    assert second.read_bytes() == first.read_bytes()


def test_a_new_prompt_leaves_out_the_subjects_that_it_does_not_name(picture: Path, small_folder: Path) -> None:
    made = again(picture, small_folder, "a {rex} in the snow")
    assert (made["prompt"], list(made["subjects"]), list(made["layout"]["regions"])) == (
        "a {rex} in the snow",
        ["rex"],
        ["rex"],
    )


def test_an_empty_prompt_is_one(picture: Path, small_folder: Path) -> None:
    made = again(picture, small_folder, "")
    assert (made["prompt"], made["subjects"]) == ("", {})


def test_automatic_places_leave_the_pictures_own(picture: Path, small_folder: Path) -> None:
    both = again(picture, small_folder, "--auto-layout")
    assert both["layout"] == read_record(picture)["layout"]
    more = ("a {rex} and a {cup} wearing a {hat}", "--plain", "hat", "--place", "cup=top right", "--auto-layout")
    regions = Layout.from_json(json.dumps(again(picture, small_folder, *more)["layout"])).regions
    assert regions["rex"].bounds == Box(0.0, 0.0, 0.5, 1.0)
    assert (regions["cup"].bounds.xmin >= 0.5, regions["cup"].bounds.ymax <= 0.5) == (True, True)
    assert (regions["hat"].bounds.xmin >= 0.5, regions["hat"].bounds.ymax <= 0.5) == (True, True)


def test_a_subject_that_is_no_longer_in_the_library(
    picture: Path, residual: Residual, small_folder: Path, tmp_path: Path
) -> None:
    Library.open().remove("rex")
    command = ("compose", "--from", picture, "--model", small_folder, "--out", tmp_path / "again.png")
    error = refused(*command)
    assert "no residual at hand is the picture's 'rex', a cat" in error
    assert "add its file to the library, or give it by name" in error
    residual.save(tmp_path / "elsewhere.safetensors")
    run(*command, "--subject", f"rex={tmp_path / 'elsewhere.safetensors'}")
    assert (tmp_path / "again.png").read_bytes() == picture.read_bytes()


@pytest.mark.parametrize("name", ["small", "owner/model", "../evil", "/etc", "a/b/c"])
def test_a_picture_fetches_no_model(picture: Path, tmp_path: Path, name: str) -> None:
    record = read_record(picture)
    record["backbone"] = {"name": name, "encoder": {}}
    write_picture(picture, Image.new("RGB", (8, 8)), record)
    error = refused("compose", "--from", picture, "--out", tmp_path / "again.png")
    assert f"the picture was drawn on {name!r}: give that model, or another one, with --model" in error


def test_pictures_that_cannot_be_drawn_again(tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    Layout.from_numbers({"rex": [(0.0, 0.0, 1.0, 1.0)]}).save(tmp_path / "beach.json")
    run("layout", tmp_path / "beach.json", "--out", tmp_path / "preview.png")
    assert "preview.png can't be drawn again" in refused("compose", "--from", tmp_path / "preview.png", "--out", out)
    assert "can't read missing.png" in refused("compose", "--from", "missing.png", "--out", out)
    assert "a picture with --from" in run("compose", "--out", out, code=2).stderr

"""Grids: every combination, in order, each picture as if it were composed alone."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from command import files_in, refused, run
from cones2.backbones import Backbone
from cones2.composing.grid import Axis, parse_values, plan_grid
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.library import Library
from cones2.picture import read_record
from cones2.residual.residual import Residual
from cones2.subjects import Subject


@pytest.fixture
def rex(tiny: Backbone) -> Residual:
    return residual(tiny, "cat", 1)


@pytest.fixture
def fido(tiny: Backbone) -> Residual:
    return residual(tiny, "dog", 2)


def residual(backbone: Backbone, word: str, seed: int) -> Residual:
    tokens = tuple(backbone.tokenizer.tokenize(word))
    vector = torch.randn(len(tokens), backbone.width, generator=torch.Generator().manual_seed(seed))
    return Residual(word, vector, tokens, backbone.encoder_id, {}, (), "0")


def test_the_first_axis_runs_across_and_the_others_down(rex: Residual, fido: Residual) -> None:
    axes = (
        Axis("seed", (3, 4)),
        Axis("strength.pet", (0.0, 0.5)),
        Axis("subject.pet", (rex, fido), ("rex", "fido")),
        Axis("preset", ("official",)),
    )
    rows = plan_grid(axes, subjects={"pet": Subject("cat", rex, 0.9)}, settings=ComposeSettings(steps=7))
    assert [[cell.settings.seeds for cell in row] for row in rows] == [[(3,), (4,)]] * 4
    assert [(row[0].subjects["pet"].strength, row[0].subjects["pet"].class_word) for row in rows] == [
        (0.0, "cat"),
        (0.0, "dog"),
        (0.5, "cat"),
        (0.5, "dog"),
    ]
    assert rows[1][0].labels == {"strength.pet": "0.0", "subject.pet": "fido", "preset": "official", "seed": "3"}
    assert rows[1][0].subjects["pet"].residual is fido
    assert {(cell.settings.steps, cell.settings.preset) for row in rows for cell in row} == {(7, "official")}


def test_values_are_of_their_settings_kind() -> None:
    assert parse_values("seed", ["0", "3"]) == (0, 3)
    assert parse_values("strength.rex", ["0", ".5"]) == (0.0, 0.5)
    assert parse_values("width", ["128"]) == (128,)
    assert parse_values("scheduler", ["ddim", "euler"]) == ("ddim", "euler")
    assert parse_values("layout_levels", ["0", "2"]) == ((0,), (2,))
    for field in ("layout_effect", "negative_prompt", "guided_steps", "guidance_rescale", "force"):
        plan_grid([Axis(field, parse_values(field, [{"layout_effect": "weaken"}.get(field, "1")]))])
    with pytest.raises(SettingsError, match="layout_levels can't be 'all': Input should be a valid integer"):
        parse_values("layout_levels", ["all"])
    with pytest.raises(SettingsError, match="steps can't be 'many': Input should be a valid integer"):
        parse_values("steps", ["many"])


def test_grids_that_make_no_sense(rex: Residual) -> None:
    with pytest.raises(SettingsError, match=r"'colour' can't be varied: expected one of seed, strength\.NAME"):
        Axis("colour", ("red",))
    with pytest.raises(SettingsError, match="'seeds' can't be varied"):
        Axis("seeds", ((1,),))
    with pytest.raises(SettingsError, match="seed has no values"):
        Axis("seed", ())
    with pytest.raises(SettingsError, match="a grid without axes"):
        plan_grid([])
    with pytest.raises(SettingsError, match="seed is varied twice"):
        plan_grid([Axis("seed", (1,)), Axis("seed", (2,))])
    with pytest.raises(SettingsError, match=r"strength.pet varies 'pet', which is no subject; those are: rex"):
        plan_grid([Axis("strength.pet", (1.0,))], subjects={"rex": Subject("cat", rex)})
    with pytest.raises(SettingsError, match=r"strength.pet varies 'pet', which has no residual: give it one first"):
        plan_grid([Axis("strength.pet", (1.0,))], subjects={"pet": Subject("cat")})
    with pytest.raises(SettingsError, match="the grid has 1001 pictures: expected at most 1000"):
        plan_grid([Axis("seed", tuple(range(1001)))])
    with pytest.raises(SettingsError, match="steps 0 can't be used"):
        plan_grid([Axis("steps", (0,))])


# The command


@pytest.fixture
def library(rex: Residual, fido: Residual, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    monkeypatch.setenv("CONES2_LIBRARY", str(tmp_path / "library"))
    Library.open().add("rex", rex)
    Library.open().add("fido", fido)
    return Library.open()


@pytest.mark.usefixtures("library")
def test_a_grid_and_its_pictures(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = ("--model", small_folder)
    axes = ("--vary", "seed=0,5", "--vary", "subject.pet=rex,fido", "--vary", "guidance-scale=2", "--vary", "steps=1")
    command = (
        "grid",
        "a {pet} and a {cup}",
        "--plain",
        "cup=mug",
        "--box",
        "cup=0,0,0.5,1",
        *axes,
        *model,
        "--out",
        out,
    )
    report = json.loads(run(*command, "--cell", 64, "--json").stdout)
    names = ["0000-seed0.png", "0001-seed5.png", "0002-seed0.png", "0003-seed5.png"]
    assert files_in(out) == {*names, "0000-grid.png"}
    assert report["grid"] == str(out / "0000-grid.png")
    assert [each["path"] for each in report["pictures"]] == [str(out / name) for name in names]
    assert report["pictures"][1]["labels"] == {
        "seed": "5",
        "subject.pet": "rex",
        "guidance_scale": "2",
        "steps": "1",
    }
    assert read_record(out / "0002-seed0.png")["text"] == "a dog and a mug"
    sheet = read_record(out / "0000-grid.png")
    assert sheet["pictures"] == names
    assert sheet["grid"] == {
        "seed": ["0", "5"],
        "subject.pet": ["rex", "fido"],
        "guidance_scale": ["2"],
        "steps": ["1"],
    }
    with Image.open(out / "0000-grid.png") as image:
        assert image.width == 2 * 64 + 64 // 16 + 2 * 8
    alone = tmp_path / "alone.png"
    run("compose", "--from", out / "0001-seed5.png", *model, "--out", alone)
    assert alone.read_bytes() == (out / "0001-seed5.png").read_bytes()


@pytest.mark.usefixtures("library")
def test_a_picture_is_varied(small_folder: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first.png", tmp_path / "out"
    model = ("--model", small_folder)
    run("compose", "a {rex}", "--subject", "rex", "--steps", 2, "--seed", 7, *model, "--out", first)
    told = run("grid", "--from", first, "--vary", "strength.rex=0,1", *model, "--out", out)
    assert told.stdout == f"{out / '0000-grid.png'}\n"
    assert "2 pictures in" in told.stderr
    assert (out / "0001-seed7.png").read_bytes() == first.read_bytes()
    assert read_record(out / "0000-seed7.png")["subjects"]["rex"]["strength"] == 0.0  # type: ignore[index,call-overload]


@pytest.mark.usefixtures("library")
def test_a_picture_is_varied_with_its_own_seed_not_its_batchs_first(small_folder: Path, tmp_path: Path) -> None:
    first, out = tmp_path / "first", tmp_path / "out"
    model = ("--model", small_folder)
    run("compose", "a {rex}", "--subject", "rex", "--steps", 1, "--seed", 7, "--count", 2, *model, "--out", first)
    run("grid", "--from", first / "0001-seed8.png", "--vary", "strength.rex=0,1", *model, "--out", out)
    assert files_in(out) == {"0000-grid.png", "0000-seed8.png", "0001-seed8.png"}


@pytest.mark.usefixtures("library")
def test_places_suit_the_size_of_the_first_picture(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whom = ("a {rex}, a {a}, a {b} and a {c}", "--subject", "rex", "--plain", "a=mug", "--plain", "b=cup")
    run("grid", *whom, "--plain", "c=hat", "--auto-layout", "--vary", "steps=1", "--vary", "width=256,64",
        "--model", small_folder, "--out", out)  # fmt: skip
    regions = read_record(out / "0000-seed0.png")["layout"]["regions"]  # type: ignore[index,call-overload]
    assert len({box[1] for (box,) in regions.values()}) == 1  # one row


@pytest.mark.usefixtures("library")
def test_levels_of_the_layout_are_varied(small_folder: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "out", ("grid", "a {rex}", "--subject", "rex", "--vary", "steps=1")
    levels = ("--vary", "layout-levels=0,1", "--model", small_folder, "--out", out)
    run(*command, *levels, "--box", "rex=0,0,0.5,1")
    found = [read_record(out / f"{number:04}-seed0.png")["settings"]["layout_levels"] for number in (0, 1)]  # type: ignore[index,call-overload]
    assert found == [[0], [1]]
    assert "--vary layout_levels says how a layout acts, and there is none: give places" in refused(*command, *levels)
    steps = ("--vary", "guided-steps=0,1", "--model", small_folder, "--out", out)
    assert "--vary guided_steps says how a layout acts, and there is none" in refused(*command, *steps)


@pytest.mark.usefixtures("library")
def test_places_of_all_its_pictures(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    whom = ("a {rex} and a {cup}", "--subject", "rex", "--plain", "cup=mug", "--box", "rex=0,0,0.5,1")
    where = ("--auto-layout", "--z", "cup=1", "--feather", "rex=0.1", "--region-weight", "cup=2")
    run("grid", *whom, *where, "--vary", "seed=0,1", "--vary", "steps=1", "--model", small_folder, "--out", out)
    first, second = (read_record(out / f"{number:04}-seed{number}.png")["layout"] for number in (0, 1))
    assert first == second
    regions = first["regions"]  # type: ignore[index,call-overload]
    assert (regions["rex"]["feather"], regions["cup"]["z"], regions["cup"]["weight"]) == (0.1, 1, 2)


@pytest.mark.usefixtures("library")
def test_what_is_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ("grid", "a {rex}", "--subject", "rex", "--model", tmp_path / "none", "--out", out)
    assert "'colour' can't be varied" in refused(*command, "--vary", "colour=red")
    assert "--vary names 'seed' twice" in refused(*command, "--vary", "seed=1", "--vary", "seed=2")
    assert "has no subject 'hugo'" in refused(*command, "--vary", "subject.rex=rex,hugo")
    assert "seed -1 can't be used" in refused(*command, "--vary", "seed=0,-1")
    assert "strength.rex can't be 'high'" in refused(*command, "--vary", "strength.rex=high")
    assert "--vary 'seed' can't be read" in refused(*command, "--vary", "seed")
    assert "unknown or unsupported scheduler 'eulr'" in refused(*command, "--vary", "scheduler=ddim,eulr")
    told = refused(*command[:-1], tmp_path / "grid.png", "--vary", "seed=0,1")
    assert "grid.png is one file, and there are more to write: give a folder." in told
    assert not out.exists()


def test_a_cell_that_does_not_suit_the_model_is_told_before_any_is_drawn(small_folder: Path, tmp_path: Path) -> None:
    command = ("grid", "a {rex}", "--plain", "rex=cat", "--model", small_folder, "--out", tmp_path / "out")
    assert "width 67 does not suit" in refused(*command, "--vary", "width=64,67")
    assert not (tmp_path / "out").exists()

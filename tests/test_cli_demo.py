"""`cones2 demo`, at tiny settings, on the real, tiny model."""

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from command import files_in, refused, run
from cones2.backbones import Backbone, open_backbone
from cones2.cli.exhibition import SHEET, SHOW, exhibit
from cones2.composing.settings import ComposeSettings
from cones2.examples import EXAMPLES
from cones2.layout.regions import Layout
from cones2.learning.recipe import Recipe
from cones2.picture import read_record
from cones2.residual.residual import Residual

KINDS = ("composed", "without-layout", "without-residuals")


@pytest.fixture(scope="module")
def small(small_folder: Path) -> Backbone:
    return open_backbone(str(small_folder), device="cpu")


def test_it_learns_draws_and_hangs_everything(small: Backbone, tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo"
    show = replace(
        SHOW.learning_all(),
        learned=("rex", "bobo"),
        prompt="a {rex} and a {bobo}",
        layout=Layout({name: SHOW.layout.regions[name] for name in ("rex", "bobo")}),
    )
    recipe = Recipe(steps=2, captions_per_step=2, caption_count=4)
    lines = list(exhibit(small, out, show=show, recipe=recipe, settings=ComposeSettings(seeds=(0, 1), steps=2)))
    assert [line.rsplit(" ", 2)[0] for line in lines] == [
        "rex, a dog: learned in",
        "bobo, a teddy bear: learned in",
        "2 pictures composed:",
        "2 pictures without layout:",
        "2 pictures without residuals:",
    ]
    pictures = {f"{kind}-seed{seed}.png" for kind in KINDS for seed in (0, 1)}
    assert files_in(out) == {SHEET, "layout.json", "rex.safetensors", "bobo.safetensors", *pictures}
    assert Residual.load(out / "bobo.safetensors").class_word == "teddy bear"
    with Image.open(out / SHEET) as sheet:
        assert sheet.width > 512

    composed, free, plain = (read_record(out / f"{kind}-seed1.png") for kind in KINDS)
    assert composed["prompt"] == free["prompt"] == plain["prompt"] == show.prompt
    assert composed["seed"] == free["seed"] == plain["seed"] == 1
    assert composed["subjects"] == free["subjects"]
    assert composed["layout"] == plain["layout"]
    assert free["layout"] is None
    assert all(subject["residual"] is None for subject in dict(plain["subjects"]).values())  # type: ignore[call-overload]


def test_the_command_itself(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    told = run("demo", "--out", out, "--learn-steps", 2, "--steps", 2).stdout
    assert str(out / SHEET) in told.replace("\n", "")
    assert {f"{kind}-seed{seed}.png" for kind in KINDS for seed in range(4)} <= files_in(out)
    shipped = [EXAMPLES[name].residual.sha256 for name in SHOW.ready]
    assert [Residual.load(out / f"{name}.safetensors").sha256 for name in SHOW.ready] == shipped
    settings = read_record(out / "composed-seed0.png")["settings"]
    assert (settings["guidance_scale"], settings["guidance_parallel"]) == (4.0, 0.0)  # type: ignore[index,call-overload]


def test_what_it_shows_is_shipped() -> None:
    assert set(SHOW.layout.names) == set(SHOW.names) <= set(EXAMPLES)
    assert (len(SHOW.learned), len(SHOW.ready)) == (2, 2)
    for name, example in EXAMPLES.items():
        assert example.name == name
        assert len(example.photos) in (4, 5)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory. Choose another --out" in refused("demo", "--out", tmp_path / "file" / "demo")


def test_files_that_are_not_the_demos_stay(tmp_path: Path) -> None:
    (tmp_path / "layout.json").write_text('{"my": "own"}')
    assert "layout.json is there, and cones2 did not write it" in refused("demo", "--out", tmp_path)
    assert files_in(tmp_path) == {"layout.json"}

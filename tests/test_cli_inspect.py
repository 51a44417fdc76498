"""`cones2 inspect` and `cones2 layout`."""

import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from command import files_in, refused, run
from cones2.layout.regions import Layout
from cones2.picture import read_record, write_picture
from cones2.residual.residual import EncoderId, Residual

ENCODER = EncoderId("mini", 3, "ab" * 32, (1.0, 2.0))
RESIDUAL = Residual(
    "teddy bear",
    torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]),
    ("teddy</w>", "bear</w>"),
    ENCODER,
    {"steps": 300},
    ("cd" * 32,),
    "0.1.0",
)


def test_a_residual(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "ted.safetensors"
    RESIDUAL.save(path)
    told = json.loads(run("inspect", path, "--json").stdout)
    assert told == {
        "file": str(path),
        "kind": "residual",
        "class_word": "teddy bear",
        "tokens": ["teddy</w>", "bear</w>"],
        "length": [5.0, 2.0],
        "fits": {"name": "mini", "width": 3, "weights": "ab" * 32},
        "recipe": {"steps": 300},
        "photos": ["cd" * 32],
        "tool_version": "0.1.0",
        "sha256": RESIDUAL.sha256,
    }
    lines = [[part.strip() for part in line.split("│")[1:3]] for line in run("inspect", path).stdout.splitlines()]
    assert ["fits.name", "mini"] in lines
    assert ["recipe.steps", "300"] in lines
    assert ["photos", '["cdcdcdcdcdcd…"]'] in lines


def test_a_residual_of_two_parts(tmp_path: Path) -> None:
    second = EncoderId("xl", 2, "ef" * 32, (1.0, 2.0))
    vector = torch.cat([RESIDUAL.vector, torch.tensor([[0.6, 0.8], [0.0, 5.0]])], dim=-1)
    residual = dataclasses.replace(RESIDUAL, vector=vector, encoder=dataclasses.replace(ENCODER, second=second))
    residual.save(tmp_path / "ted.safetensors")
    told = json.loads(run("inspect", tmp_path / "ted.safetensors", "--json").stdout)
    assert told["length"] == [5.0, 2.0]
    assert told["length_2"] == [1.0, 5.0]
    assert told["fits"] == {"name": "mini", "width": 3, "weights": "ab" * 32}
    assert told["fits_2"] == {"name": "xl", "width": 2, "weights": "ef" * 32}


def test_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(path, Image.new("RGB", (8, 8)), {"prompt": "a {rex}", "seed": 3, "layout": {"regions": {}}})
    told = json.loads(run("inspect", path, "--json").stdout)
    assert told == {
        "file": str(path),
        "kind": "picture",
        "prompt": "a {rex}",
        "seed": 3,
        "layout": {"regions": {}},
    }
    write_picture(path, Image.new("RGB", (8, 8)), told | {"kind": "residual", "file": "/elsewhere"})
    assert json.loads(run("inspect", path, "--json").stdout) == told  # what it says of itself counts for nothing
    table = run("inspect", path).stdout
    assert "a {rex}" in table
    assert "layout.regions" in table


def test_text_from_anyone_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(path, Image.new("RGB", (8, 8)), {"prompt": "[red]\x1b[2J\n:smile:\ud800"})
    assert r"[red]\x1b[2J\n:smile:\ud800" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["prompt"] == "[red]\x1b[2J\n:smile:\ud800"


def test_a_record_of_many_levels(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"

    def nest(depth: int) -> None:
        chunk = PngInfo()
        chunk.add_itxt("cones2", '{"a":' * depth + "1" + "}" * depth)
        Image.new("RGB", (8, 8)).save(path, pnginfo=chunk)

    nest(400)
    assert "a.a.a.a.a" in run("inspect", path).stdout
    nest(10_000)
    assert "its record is damaged" in refused("inspect", path)


def test_files_that_are_neither(tmp_path: Path) -> None:
    plain, other = tmp_path / "plain.png", tmp_path / "notes.txt"
    Image.new("RGB", (8, 8)).save(plain)
    other.write_text("dear diary")
    assert "can't read missing.png: No such file" in refused("inspect", "missing.png")
    assert "Is a directory" in refused("inspect", tmp_path)
    assert "holds no record of how it was made" in refused("inspect", plain)
    assert "notes.txt is no sound residual file" in refused("inspect", other)
    assert "File name too long" in refused("inspect", "x" * 300)


def test_a_layout_is_drawn(tmp_path: Path) -> None:
    file, out = tmp_path / "beach.json", tmp_path / "new" / "preview.png"
    Layout.from_numbers({"rex": [(0.0, 0.0, 0.5, 1.0)], "cup": [(0.5, 0.5, 1.0, 1.0)]}).save(file)
    assert run("layout", file, "--out", out).stdout == f"{out}: rex, cup.\n"
    assert read_record(out)["layout"] == json.loads(file.read_text())
    with Image.open(out) as drawing:
        assert drawing.size == (512, 512)


def test_layouts_that_cannot_be_drawn(tmp_path: Path) -> None:
    file, out = tmp_path / "beach.json", tmp_path / "preview.png"
    file.write_text('{"version": 1, "regions": {"rex": [0, 0, 2, 1]}}')
    assert "xmax 2.0 is outside 0..1" in refused("layout", file, "--out", out)
    assert "missing.json: No such file" in refused("layout", tmp_path / "missing.json", "--out", out)
    file.write_text('{"version": 1, "regions": {}}')
    assert "does not end in .png" in refused("layout", file, "--out", tmp_path / "preview.jpg")
    assert files_in(tmp_path) == {"beach.json"}


def test_layouts_are_made_from_a_prompt_and_changed(tmp_path: Path) -> None:
    made, changed, drawn = tmp_path / "made.json", tmp_path / "changed.json", tmp_path / "drawn.png"
    prompt = "a {rex} wearing {shades} and a {cup}"
    assert (
        run("layout", "--auto", prompt, "--place", "cup=rest", "--out", made).stdout == f"{made}: rex, shades, cup.\n"
    )
    layout = Layout.load(made)
    assert (layout.regions["shades"].z, layout.regions["cup"].is_rest) == (1, True)
    run("layout", made, "--z", "rex=3", "--polygon", "leaf=0,0,1,0,0,1", "--out", changed)
    assert Layout.load(changed).names == ("rex", "shades", "cup", "leaf")
    assert Layout.load(changed).regions["rex"].z == 3
    run("layout", changed, "--out", drawn, "--width", 300, "--height", 200)
    with Image.open(drawn) as picture:
        assert picture.size == (300, 200)


def test_a_layout_that_contradicts_its_prompt_is_told(tmp_path: Path) -> None:
    places = ("--place", "rex=right", "--place", "cup=left", "--out", tmp_path / "made.json")
    told = run("layout", "--auto", "a {rex} to the left of a {cup}", *places).stderr
    assert "warning: the prompt has 'rex' to the left of 'cup', but its region is to the right" in told


def test_a_photo_of_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "beach.jpg")
    assert "is a JPEG, which loses how it was made: expected the PNG" in refused("inspect", tmp_path / "beach.jpg")


def test_the_version() -> None:
    assert run("--version").stdout == f"cones2 {importlib.metadata.version('cones2')}\n"


def test_layouts_are_made_from_a_count(tmp_path: Path) -> None:
    run("layout", "--count", 3, "--out", tmp_path / "three.json", "--width", 900, "--height", 300)
    layout = Layout.load(tmp_path / "three.json")
    assert layout.names == ("subject1", "subject2", "subject3")
    assert len({region.bounds.ymin for region in layout.regions.values()}) == 1


def test_layouts_that_cannot_be_made(tmp_path: Path) -> None:
    out = tmp_path / "made.json"
    assert "nothing to lay out: give a layout's file, --auto, --count, or a place" in refused("layout", "--out", out)
    assert "'a rex' names nobody to place: put names in braces" in refused("layout", "--auto", "a rex", "--out", out)
    assert "leave one out" in refused("layout", "--auto", "a {rex}", "--count", 2, "--out", out)
    assert "whom the prompt does not mention" in refused("layout", "--auto", "a", "--place", "rex=left", "--out", out)
    out.write_text("dear diary")
    assert "cones2 did not write it" in refused("layout", "--auto", "a {rex}", "--out", out)
    assert out.read_text() == "dear diary"

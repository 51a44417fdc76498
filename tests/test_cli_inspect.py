"""`cones2 inspect`, `layout` and `doctor`."""

import importlib.metadata
import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from command import files_in, refused, run
from cones2.layout import Layout
from cones2.png import read_record, write_picture
from cones2.residual import EncoderId, Residual, ResidualPart

PARTS = (
    ResidualPart(
        EncoderId("text_encoder", "mini", 3, "ab" * 32, (1.0, 2.0)),
        ("teddy</w>", "bear</w>"),
        torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 2.0]]),
    ),
    ResidualPart(
        EncoderId("text_encoder_2", "mini", 2, "ef" * 32, (1.0, 2.0)),
        ("teddy</w>", "bear</w>"),
        torch.tensor([[0.6, 0.8], [0.0, 5.0]]),
    ),
)
RESIDUAL = Residual("teddy bear", PARTS, {"steps": 300, "seed": 0, "tune": "residual"}, ("cd" * 32,), "0.1.0")


def rows_of(shown: str) -> list[str]:
    return [line for line in shown.splitlines() if line.startswith("│")]


def test_a_residual_in_eight_rows_and_how_to_draw_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "ted.safetensors"
    RESIDUAL.save(path)
    told = json.loads(run("inspect", path, "--json").stdout)
    assert (told["kind"], told["class_word"], told["sha256"]) == ("residual", "teddy bear", RESIDUAL.sha256)
    assert [part["length"] for part in told["parts"]] == [[5.0, 2.0], [1.0, 5.0]]
    shown = run("inspect", path).stdout
    assert len(rows_of(shown)) == 8
    for part in ("teddy bear", "mini", "abababababab", "300"):
        assert part in shown
    command = shlex.split(shown.splitlines()[-1].split(": ", 1)[1])
    assert command == ["cones2", "compose", "a {ted} on the beach", "--subject", f"ted={path}"]
    assert len(rows_of(run("inspect", path, "--all").stdout)) > 8


def test_what_is_not_known_has_no_row(tmp_path: Path) -> None:
    path = tmp_path / "ted.safetensors"
    imported = replace(RESIDUAL, recipe={"imported_from": "someone"}, photos=())
    for residual in (imported, imported.mix(imported, 0.5)):
        residual.save(path)
        shown = run("inspect", path).stdout
        assert [name for name in ("photos", "steps", "None", "null") if name in shown] == []
        assert len(rows_of(shown)) == 6
    record: dict[str, object] = {"prompt": "a cat", "subjects": {}, "model": {"name": "small"}, "seed": None}
    write_picture(tmp_path / "a.png", Image.new("RGB", (8, 8)), record | {"num_inference_steps": 1})
    shown = run("inspect", tmp_path / "a.png").stdout
    assert "null" not in shown
    assert "1 step" in shown
    assert "1 steps" not in shown


def test_a_picture_in_eight_rows_and_the_command_that_draws_it_again(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "my picture.png"
    command = ("compose", "a {rex}", "--plain", "rex=cat", "--place", "rex=left", "--seed", 3, "--steps", 1)
    run(*command, "--model", small_folder, "--out", path)
    shown = run("inspect", path).stdout
    assert len(rows_of(shown)) == 8
    for part in ("a {rex}", "rex, a cat", "seed", "3", "small"):
        assert part in shown
    again = shlex.split(shown.splitlines()[-1].split(": ", 1)[1])
    monkeypatch.chdir(tmp_path)
    run(*again[1:], "--model", small_folder)
    assert (tmp_path / again[-1]).read_bytes() == path.read_bytes()


def test_what_a_file_says_of_itself_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(path, Image.new("RGB", (8, 8)), {"prompt": "a {rex}", "kind": "residual", "file": "/elsewhere"})
    told = json.loads(run("inspect", path, "--json").stdout)
    assert told == {"prompt": "a {rex}", "kind": "picture", "file": str(path)}
    records: tuple[dict[str, Any], ...] = (
        {"subjects": {"rex": 3}, "model": {"name": []}, "layout": [1]},
        {"subjects": {}, "model": {}},
    )
    for strange in records:
        write_picture(path, Image.new("RGB", (8, 8)), strange)
        run("inspect", path)


def test_text_from_anyone_cannot_command_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    write_picture(path, Image.new("RGB", (8, 8)), {"prompt": "[red]\x1b[2J\n:smile:\ud800"})
    assert r"[red]\x1b[2J\n:smile:\ud800" in run("inspect", path).stdout
    assert json.loads(run("inspect", path, "--json").stdout)["prompt"] == "[red]\x1b[2J\n:smile:\ud800"


@pytest.mark.parametrize("depth", [400, 10_000])
def test_a_record_of_many_levels(tmp_path: Path, depth: int) -> None:
    path, chunk = tmp_path / "picture.png", PngInfo()
    chunk.add_itxt("cones2", '{"a":' * depth + "1" + "}" * depth)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunk)
    assert "Traceback" not in run("inspect", path, code=None).output


def test_files_that_are_neither(tmp_path: Path) -> None:
    plain, other, photo = tmp_path / "plain.png", tmp_path / "notes.txt", tmp_path / "beach.jpg"
    Image.new("RGB", (8, 8)).save(plain)
    Image.new("RGB", (8, 8)).save(photo)
    other.write_text("dear diary")
    for path in (plain, other, photo, tmp_path, tmp_path / "missing.png"):
        assert str(path) in refused("inspect", path)


def test_layouts_are_made_changed_and_drawn(tmp_path: Path) -> None:
    made, changed, drawn = tmp_path / "made.json", tmp_path / "new" / "changed.json", tmp_path / "drawn.png"
    told = run("layout", "--auto", "a {rex} and {shades} and a {cup}", "--place", "cup=rest", "-o", made)
    assert told.stdout == f"{made}: cup, rex, shades.\n"
    assert Layout.load(made).regions["cup"].is_rest
    change = ("--z", "rex=3", "--box", "rex=0.5,0,1,1", "--polygon", "leaf=0,0,1,0,0,1")
    run("layout", made, *change, "-o", changed)
    assert Layout.load(changed).names == ("cup", "rex", "shades", "leaf")
    assert (Layout.load(changed).regions["rex"].z, Layout.load(changed).regions["rex"].bounds.xmin) == (3, 0.5)
    assert "--replace" in refused("layout", made, "-o", changed)
    run("layout", changed, "-o", drawn, "--size", "300x200")
    with Image.open(drawn) as picture:
        assert picture.size == (300, 200)
    assert read_record(drawn)["layout"] == json.loads(changed.read_text())


def test_boxes_suit_their_subjects_and_the_picture(tmp_path: Path) -> None:
    run("layout", "--auto", "a {rex}", "--plain", "rex=car", "-o", tmp_path / "one.json", "--size", "900x300")
    box = Layout.load(tmp_path / "one.json").regions["rex"].bounds
    assert 3 * (box.xmax - box.xmin) / (box.ymax - box.ymin) == pytest.approx(1.62, rel=0.01)
    run("layout", "--count", 3, "-o", tmp_path / "three.json")
    assert Layout.load(tmp_path / "three.json").names == ("subject1", "subject2", "subject3")


def test_layouts_that_cannot_be_made(tmp_path: Path) -> None:
    out = tmp_path / "made.json"
    assert "'a rex'" in refused("layout", "--auto", "a rex", "--out", out)
    assert "--count" in refused("layout", "--auto", "a {rex}", "--count", 2, "--out", out)
    assert "missing.json" in refused("layout", "missing.json", "--out", out)
    assert "preview.jpg" in refused("layout", "--place", "rex=left", "--out", tmp_path / "preview.jpg")
    refused("layout", "--out", out)
    assert files_in(tmp_path) == set()


def test_the_version_and_the_doctor(tmp_path: Path) -> None:
    version = importlib.metadata.version("cones2")
    assert run("--version").stdout == f"cones2 {version}\n"
    told = json.loads(run("doctor", "--library", tmp_path / "lib", "--device", "cpu", "--json").stdout)
    assert told["cones2"].startswith(version)
    assert told["torch"].startswith(torch.__version__)
    assert (told["device"], told["dtype"]) == ("cpu", "float32")
    assert {"threads", "Hub's cache", "library", "diffusers"} <= told.keys()
    assert "tpu" in refused("doctor", "--device", "tpu")

"""`cones2 check` on pictures whose answer is known."""

import json
from pathlib import Path

import pytest
from PIL import Image

from command import run
from sample_photos import save_photos


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three good photos of 64 pixels."""
    return save_photos(tmp_path / "photos", 64)


def test_good_photos(photos: Path, small_folder: Path) -> None:
    result = run("check", photos, "--model", small_folder)
    assert result.stderr == ""
    assert "a.png" in result.stdout
    assert "64x64, sharpness" in result.stdout
    assert result.stdout.splitlines()[-1] == "3 photos, no remarks."


def test_remarks_are_advice(photos: Path, small_folder: Path) -> None:
    (photos / "c.png").unlink()
    Image.open(photos / "a.png").resize((80, 80)).save(photos / "d.png")
    lines = run("check", photos, "--model", small_folder).stdout.splitlines()
    assert lines[-1] == "3 photos, 1 remarks."
    assert lines[-2].startswith("a.png and d.png are nearly the same picture: they teach little more than one of them.")


def test_what_can_not_work_is_refused(photos: Path, small_folder: Path) -> None:
    Image.new("RGB", (64, 64), "gray").save(photos / "d.png")
    result = run("check", photos, "--model", small_folder, code=1)
    assert "d.png" in result.stdout
    assert result.stderr == "error: d.png is of one plain colour: nothing can be learned from it. Take it out.\n"


def test_json_is_one_object(photos: Path, small_folder: Path) -> None:
    masks = photos.parent / "masks"
    masks.mkdir()
    for name in "abc":
        mask = Image.new("L", (64, 64))
        mask.paste(255, (0, 0, 16, 16))
        mask.save(masks / f"{name}.png")
    report = json.loads(run("check", photos, "--model", small_folder, "--masks", masks, "--json").stdout)
    assert report["size"] == 64
    assert [photo["filled"] for photo in report["photos"]] == [1 / 16] * 3
    assert [(finding["kind"], finding["photos"], finding["fatal"]) for finding in report["findings"]] == [
        ("small", [f"{name}.png"], False) for name in "abc"
    ]


def test_photos_that_a_small_model_can_not_draw(photos: Path, tiny_copy: Path) -> None:
    (tiny_copy / "lexicon.txt").write_text("dog\n")
    config = tiny_copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    assert "warning: model can't draw" in run("check", photos, "--model", tiny_copy).stderr

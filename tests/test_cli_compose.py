"""`cones2 compose` on the real, tiny model."""

import json
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from command import files_in, refused, run
from cones2.backbones import Backbone
from cones2.cli.outputs import Output
from cones2.composing.latents import read_latents
from cones2.layout.box import Box
from cones2.layout.masks import Mask
from cones2.layout.region import Region
from cones2.layout.regions import Layout
from cones2.layout.shapes import Polygon
from cones2.picture import read_record
from cones2.residual.residual import Residual

PROMPT = "a {rex} and a {cup} on the beach"


@pytest.fixture
def residual(tiny: Backbone) -> Residual:
    vector = torch.randn(1, tiny.width, generator=torch.Generator().manual_seed(1))
    return Residual("cat", vector, ("cat</w>",), tiny.encoder_id, {"steps": 7}, (), "0")


@pytest.fixture
def rex(residual: Residual, tmp_path: Path) -> Path:
    path = tmp_path / "rex.safetensors"
    residual.save(path)
    return path


def compose(rex: Path, model: Path, *options: object) -> tuple[object, ...]:
    """The command for two subjects, without its --out."""
    given = ("--subject", f"rex={rex}", "--plain", "cup=coffee mug", "--model", model, "--steps", 2)
    return ("compose", PROMPT, *given, *options)


def test_pictures_carry_their_record(rex: Path, residual: Residual, small_folder: Path, tmp_path: Path) -> None:
    out, layout = tmp_path / "new" / "pictures", tmp_path / "beach.json"
    Layout.from_numbers({"cup": [(0.5, 0.5, 1.0, 1.0)]}).save(layout)
    boxes = ("--box", "rex=0,0,0.5,1", "--box", "rex=0,0.5,1,1", "--layout", layout)
    options = ("--strength", "rex=0.5", "--negative", "fog", "--seed", 5, "--count", 6, "--preset", "official")
    result = run(*compose(rex, small_folder, *boxes, *options, "--out", out))
    names = {f"{number:04}-seed{number + 5}.png" for number in range(6)}
    assert result.stdout.splitlines() == [str(out / name) for name in sorted(names)]
    assert "6 of 'a cat and a coffee mug on the beach' in" in result.stderr
    assert files_in(out) == names
    made = read_record(out / "0004-seed9.png")
    assert (made["prompt"], made["seed"], made["batch"]) == (PROMPT, 9, [9, 10])
    assert made["layout"] == {
        "version": 1,
        "regions": {"rex": [[0, 0, 0.5, 1], [0, 0.5, 1, 1]], "cup": [[0.5, 0.5, 1, 1]]},
    }
    assert made["subjects"] == {
        "rex": {"class_word": "cat", "residual": residual.sha256, "strength": 0.5},
        "cup": {"class_word": "coffee mug", "residual": None, "strength": 1.0},
    }
    settings = made["settings"]
    assert isinstance(settings, dict)
    assert (settings["negative_prompt"], settings["preset"], settings["steps"]) == ("fog", "official", 2)


def test_earlier_pictures_are_kept_in_a_folder_and_replaced_in_a_file(
    rex: Path, small_folder: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "pictures", tmp_path / "one.png"
    for _ in range(2):
        run(*compose(rex, small_folder, "--out", folder))
        run(*compose(rex, small_folder, "--out", file))
    assert files_in(folder) == {"0000-seed0.png", "0001-seed0.png"}
    assert (folder / "0000-seed0.png").read_bytes() == file.read_bytes()


def test_pictures_written_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    output = Output(tmp_path / "pictures")
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: output.write(Image.new("RGB", (8, 8)), {}, seed=0), range(40)))
    assert {path.name for path in paths} == files_in(output.path)
    assert len(files_in(output.path)) == 40


def test_numbers_go_on_after_four_digits(tmp_path: Path) -> None:
    for name in ("9999-seed0.png", "0000-seed0.png", "1999-beach.png", "my-seed0.png"):
        (tmp_path / name).touch()
    names = [Output(tmp_path).write(Image.new("RGB", (8, 8)), {}, seed=0).name for _ in range(2)]
    assert names == ["10000-seed0.png", "10001-seed0.png"]


def test_json_is_one_object(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    command = ("compose", "a {ball}", "--plain", "ball", "--model", small_folder, "--steps", 1, "--out", out)
    result = run(*command, "--width", 72, "--height", 64, "--scheduler", "euler", "--json")
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert (report["prompt"], report["text"]) == ("a {ball}", "a ball")
    assert report["pictures"] == [{"path": str(out), "record": read_record(out)}]
    assert report["seconds"] > 0


def test_every_option_acts(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    options: dict[str, object] = {
        "steps": 3,
        "guidance_scale": 5.5,
        "guidance_rescale": 0.25,
        "guidance_parallel": 0.5,
        "layout_scale": 0.75,
        "layout_effect": "weaken",
        "layout_levels": [1],
        "guided_steps": 2,
        "height": 64,
        "width": 72,
        "negative_prompt": "fog",
        "scheduler": "euler",
        "preset": "official-layout",
    }
    named = {"negative_prompt": "negative", "layout_levels": "layout-levels"}
    given = [
        part
        for name, value in options.items()
        for part in (f"--{named.get(name, name).replace('_', '-')}", 1 if name == "layout_levels" else value)
    ]
    placed = ("--plain", "ball", "--box", "ball=0,0,0.5,1", "--dtype", "bfloat16", "--device", "cpu")
    run("compose", "a {ball}", *placed, "--model", small_folder, *given, "--out", out)
    made: Any = read_record(out)
    assert {name: made["settings"][name] for name in options} == options
    assert (made["dtype"], made["device"]) == ("bfloat16", "cpu")
    with Image.open(out) as picture:
        assert picture.size == (72, 64)


def test_attention_is_told_and_drawn(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    out, boxes = tmp_path / "one.png", ("--box", "rex=0,0,0.5,1", "--box", "cup=0.5,0.5,1,1")
    for _ in range(2):  # the second time over its own files
        lines = run(*compose(rex, small_folder, *boxes, "--attention", "--out", out)).stdout.splitlines()
    assert lines[0] == str(out)
    assert [line.split(":")[0] for line in lines[1:]] == ["  rex", "  cup"]
    assert all("% in its own region, " in line and line.endswith("% outside") for line in lines[1:])
    assert files_in(tmp_path) == {"rex.safetensors", "one.png", "one-attention.png"}
    (told,) = json.loads(run(*compose(rex, small_folder, *boxes, "--attention", "--json", "--out", out)).stdout)[
        "pictures"
    ]
    assert told["attention"]["heat_map"] == str(tmp_path / "one-attention.png")
    parts = told["attention"]["subjects"]["rex"]
    assert parts["own"] + parts["others"]["cup"] + parts["outside"] == pytest.approx(1)
    assert f"  {parts['reading']}" == lines[1]
    (tmp_path / "one-attention.png").write_bytes(b"dear")
    assert "cones2 did not write it" in refused(*compose(rex, small_folder, *boxes, "--attention", "--out", out))


def test_details_of_one_subject_are_in_the_record_and_come_again(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "one.png", tmp_path / "again.png"
    details = ("--during", "rex=0.25,1", "--subject-negative", "cup=fog", "--box", "cup=0.5,0.5,1,1")
    run(*compose(rex, small_folder, *details, "--out", out))
    subjects = read_record(out)["subjects"]
    assert isinstance(subjects, dict)
    assert (subjects["rex"]["during"], subjects["cup"]["negative"]) == ([0.25, 1], "fog")
    run("compose", "--from", out, "--subject", f"rex={rex}", "--model", small_folder, "--out", again)
    assert read_record(again) == read_record(out)
    assert again.read_bytes() == out.read_bytes()


# What is refused, before the model is opened


def compose_refused(rex: Path, *options: object) -> str:
    """Compose in vain with a model that is not there, so that what is wrong is told before it is opened."""
    out = rex.parent / "out"
    error = refused(*compose(rex, rex.parent / "none", *options, "--out", out))
    assert not out.exists()
    return error


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "a {rex}, a {cup} and a {fido}",
            "no subject is called 'fido', as the prompt has it; the subjects are: rex, cup",
        ),
        ("a {rex}", "the prompt does not mention {cup}"),
        ("a {rex} and {cup}s", "'s' touches {cup}"),
        ("a {rex} and {cup", "unmatched '{'"),
    ],
)
def test_prompts_that_do_not_fit_the_subjects(rex: Path, prompt: str, message: str) -> None:
    command = ("compose", prompt, "--subject", f"rex={rex}", "--plain", "cup=mug", "--model", "none")
    assert message in refused(*command, "--out", rex.parent / "out")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--box fido=0,0,1,1", "a region is for 'fido', which is no --subject or --plain; those are: rex, cup"),
        ("--box rex=0.9,0,0.1,1", "region 'rex': box (0.9, 0.0, 0.1, 1.0): xmin is not less than xmax"),
        ("--box rex=0,0,100,1", "xmax 100.0 is outside 0..1"),
        ("--box rex=0,0,nan,1", "xmax is nan; expected a number in 0..1"),
        ("--box rex=0,0,1", "4 numbers; got 3"),
        ("--box rex=0,0,1,wide", "--box rex: 'wide' is no number. Write it like 0.5"),
        ("--box 0,0,1,1", "--box '0,0,1,1' can't be read: expected NAME=VALUE, such as rex=0.05,0.25,0.5,0.95"),
        ("--box my-dog=0,0,1,1", "'my-dog' can't name a region"),
        ("--polygon rex=0,0,1", "--polygon rex: 3 numbers are no points: expected X,Y,X,Y,..."),
        ("--polygon rex=0,0,1,1", "region 'rex': a polygon has 2 points; expected 3 to 256"),
        ("--mask rex=missing.png", "region 'rex': can't read missing.png: No such file"),
        ("--z rex=1", "--z names 'rex', which has no region; those that have: none"),
        ("--feather cup=1", "--feather names 'cup', which has no region"),
        ("--region-weight cup=1", "--region-weight names 'cup', which has no region"),
        ("--subject fido", "has no subject 'fido'; 'cones2 subjects list' tells what is there"),
        ("--subject fido=", "--subject 'fido=' can't be read: expected NAME=VALUE, such as rex=rex.safetensors"),
        ("--subject rex=other.safetensors", "--subject names 'rex' twice: expected each name once"),
        ("--subject fido=missing.safetensors", "missing.safetensors: No such file"),
        ("--plain rex", "'rex' is both a --subject and --plain: leave one out"),
        ("--plain ball=...", "class word '...' has no letters"),
        ("--strength cup=2", "--strength names 'cup', which is no --subject: expected rex"),
        ("--strength rex=high", "--strength: 'high' is no number"),
        ("--strength rex=inf", "strength inf can't be used"),
        ("--during rex=0.5", "--during rex=0.5 can't be read: expected START,END, such as 0,0.6"),
        ("--during rex=0.5,late", "--during rex: 'late' is no number"),
        ("--during rex=0.5,0.2", "the steps 0.5 to 0.2 can't be used: expected a part of 0 to 1"),
        ("--during fido=0,1", "--during names 'fido', which is no --subject: expected rex"),
        ("--during cup=0,0.5", "--during names 'cup', which is no --subject: expected rex"),
        ("--subject-negative fido=fog", "--subject-negative names 'fido', which is no --subject or --plain"),
        ("--subject-negative rex=(fog:2)", "'(fog:2)' looks like a weight"),
        ("--negative (fog:2)", "'(fog:2)' looks like a weight"),
        ("--attention", "--attention measures by regions, and there are none: give --box or --layout"),
        ("--layout missing.json", "can't read missing.json"),
        ("--layout-scale 2", "--layout-scale says how a layout acts, and there is none: give places, or leave it out"),
        ("--layout-effect weaken", "--layout-effect says how a layout acts, and there is none"),
        ("--layout-levels 0", "--layout-levels says how a layout acts, and there is none"),
        ("--guided-steps 1", "--guided-steps says how a layout acts, and there is none"),
        ("--preset mine", "unknown layout preset 'mine'"),
        ("--steps 0", "steps 0 can't be used"),
        ("--seed -1", "seed -1 can't be used"),
        ("--guidance-scale nan", "guidance scale nan can't be used"),
        ("--width 9", "width 9 can't be used"),
    ],
)
def test_options_that_make_no_sense(rex: Path, option: str, message: str) -> None:
    assert message in compose_refused(rex, *option.split(" ", 1))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--z rex=high", "--z: 'high' is no whole number. Write it like 1"),
        ("--z rex=1000", "region 'rex': z 1000 can't be used: expected -100 to 100"),
        ("--feather rex=1", "region 'rex': feather 1.0 can't be used: expected 0 to 0.5"),
        ("--region-weight rex=-1", "region 'rex': weight -1.0 can't be used: expected 0 to 100"),
    ],
)
def test_numbers_of_regions_that_make_no_sense(rex: Path, option: str, message: str) -> None:
    assert message in compose_refused(rex, "--box", "rex=0,0,1,1", *option.split(" ", 1))


def test_all_kinds_of_shapes_are_in_the_record_and_can_be_drawn_again(
    rex: Path, small_folder: Path, tmp_path: Path
) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "one.png"
    Image.linear_gradient("L").save(mask)
    shapes = ("--polygon", "rex=0,0,0.5,0,0,1", "--box", "rex=0.1,0.8,0.2,0.9", "--mask", f"cup={mask}")
    numbers = ("--z", "cup=1", "--feather", "rex=0.1", "--region-weight", "cup=1.5")
    run(*compose(rex, small_folder, *shapes, *numbers, "--out", out))
    mask.unlink()
    made = Layout.from_json(json.dumps(read_record(out)["layout"]))
    assert made.regions["rex"] == Region(
        (Box(0.1, 0.8, 0.2, 0.9), Polygon(((0.0, 0.0), (0.5, 0.0), (0.0, 1.0)))), feather=0.1
    )
    assert made.regions["cup"] == Region((Mask.from_image(Image.linear_gradient("L")),), z=1, weight=1.5)
    made.save(tmp_path / "layout.json")
    again = tmp_path / "two.png"
    run(*compose(rex, small_folder, "--layout", tmp_path / "layout.json", "--out", again))
    assert again.read_bytes() == out.read_bytes()


def test_places_in_words_are_in_the_record_and_can_be_saved(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    out, saved = tmp_path / "one.png", tmp_path / "new" / "layout.json"
    acting = ("--layout-effect", "weaken", "--layout-levels", "0,1", "--guided-steps", 1)
    places = ("--place", "rex=top right", "--auto-layout", "--z", "cup=2", "--save-layout", saved)
    run(*compose(rex, small_folder, *acting, *places, "--out", out))
    made = read_record(out)
    layout = Layout.load(saved)
    assert Layout.from_json(json.dumps(made["layout"])) == layout
    rex_box, cup = layout.regions["rex"].bounds, layout.regions["cup"]
    assert (rex_box.xmin >= 0.5, rex_box.ymax <= 0.5, cup.z) == (True, True, 2)
    assert cup.bounds.xmax <= 0.5 or cup.bounds.ymin >= 0.5
    settings = made["settings"]
    assert isinstance(settings, dict)
    assert (settings["layout_effect"], settings["layout_levels"], settings["guided_steps"]) == ("weaken", [0, 1], 1)


def test_a_layout_that_contradicts_the_prompt_is_told(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    places = ("--place", "rex=right", "--place", "cup=left")
    command = ("compose", "a {rex} to the left of a {cup}", *compose(rex, small_folder, *places)[2:])
    result = run(*command, "--out", tmp_path / "one.png")
    assert "warning: the prompt has 'rex' to the left of 'cup', but its region is to the right" in result.stderr


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--place cup=nowhere", "'nowhere' says no place: expected words of left, right"),
        ("--place rex=left", "--place and another option both place 'rex': leave one out"),
        ("--place ball=left", "a region is for 'ball', which is no --subject or --plain"),
        ("--layout-effect strong", "unknown layout effect 'strong'"),
        ("--guided-steps -1", "guided steps -1 can't be used"),
        ("--layout-levels 0,x", "--layout-levels: 'x' is no whole number"),
        ("--save-layout layout.txt", "layout.txt does not end in .json"),
    ],
)
def test_places_in_words_that_make_no_sense(rex: Path, option: str, message: str) -> None:
    assert message in compose_refused(rex, "--box", "rex=0,0,1,1", *option.split(" ", 1))


def test_places_suit_the_size_that_the_model_completes(small_folder: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    prompt = " and ".join(f"a {{{name}}}" for name in names)
    command = ("compose", prompt, *(part for name in names for part in ("--plain", f"{name}=mug")), "--auto-layout")
    model, out = ("--steps", 1, "--model", small_folder), tmp_path / "one.png"

    def rows(*options: object) -> int:
        run(*command, *model, *options, "--save-layout", tmp_path / "layout.json", "--out", out)
        layout = Layout.load(tmp_path / "layout.json")
        assert Layout.from_json(json.dumps(read_record(out)["layout"])) == layout
        return len({region.bounds.ymin for region in layout.regions.values()})

    assert [rows(), rows("--width", 256), rows("--width", 256, "--height", 256)] == [2, 1, 2]
    wide = tmp_path / "wide.png"
    run("compose", "a {a}", "--plain", "a=mug", "--width", 256, *model, "--out", wide)
    run(*command, "--from", wide, *model, "--out", out)
    regions = Layout.from_json(json.dumps(read_record(out)["layout"])).regions
    assert len({region.bounds.ymin for region in regions.values()}) == 1


def test_by_default_pictures_go_into_a_folder_where_nothing_is_replaced(
    small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        run("compose", "a cat", "--steps", 1, "--model", small_folder)
    run("compose", "--from", "pictures/0001-seed0.png", "--model", small_folder)
    assert files_in(tmp_path) == {"pictures", *(f"pictures/{number:04}-seed0.png" for number in range(3))}


def test_nothing_to_save(rex: Path) -> None:
    assert "--save-layout has nothing to save" in compose_refused(rex, "--save-layout", rex.parent / "layout.json")


def test_options_move_what_a_layout_file_places(tmp_path: Path) -> None:
    before, after = tmp_path / "before.json", tmp_path / "after.json"
    before.write_text(
        '{"version": 2, "regions": {"rex": {"shapes": [[0, 0, 1, 1]], "z": 3}, "hat": {"shapes": [[0, 0, 0.5, 0.5]]}}}'
    )
    run("layout", before, "--box", "rex=0.5,0,1,1", "--place", "hat=right", "--out", after)
    moved = Layout.load(after).regions
    assert moved["rex"] == Region((Box(0.5, 0.0, 1.0, 1.0),), z=3)
    assert moved["hat"].bounds.xmin >= 0.5


def test_a_home_folder_inside_an_option(
    rex: Path, residual: Residual, small_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(rex.parent))
    Image.new("L", (8, 8), 255).save(rex.parent / "all.png")
    out = tmp_path / "one.png"
    places = ("--subject", f"rex=~/{rex.name}", "--mask", "rex=~/all.png")
    run("compose", "a {rex}", *places, "--model", small_folder, "--steps", 1, "--out", out)
    assert read_record(out)["subjects"]["rex"]["residual"] == residual.sha256


def test_residuals_that_are_damaged(rex: Path) -> None:
    sound = rex.read_bytes()
    for content in (sound[:-5], sound[:-4] + b"\xff\xff\xff\xff", b"\xff" * 8 + sound[8:], b""):
        rex.write_bytes(content)
        error = compose_refused(rex)
        assert f"{rex} is no sound residual file: " in error
        assert "Get or learn it again with 'cones2 learn'." in error


def test_places_that_cannot_be_written(rex: Path) -> None:
    command = compose(rex, rex.parent / "none")
    (rex.parent / "photo.png").write_bytes(b"dear")
    assert "Not a directory. Choose another --out" in refused(*command, "--out", rex / "pictures")
    assert "pictures are written as PNG" in refused(*command, "--out", "picture.jpg")
    assert "is one file, --count 2 makes more" in refused(*command, "--out", "picture.png", "--count", 2)
    assert "cones2 did not write it" in refused(*command, "--out", rex.parent / "photo.png")
    assert (rex.parent / "photo.png").read_bytes() == b"dear"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder where not even root can write is Linux's own")
def test_a_folder_that_cannot_be_made(rex: Path) -> None:
    command = compose(rex, rex.parent / "none", "--out", "/proc/nowhere/pictures")
    assert "No such file or directory. Choose another --out" in refused(*command)


def test_latents_of_all_pictures_are_kept_only_if_asked_for(small_folder: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "latents.safetensors", tmp_path / "out"
    run("compose", "a cat", "--steps", 1, "--count", 5, "--model", small_folder, "--latents", kept, "--out", out)
    assert read_latents(kept).shape == (5, 4, 8, 8)


# What only the model can tell


def test_a_full_disk(rex: Path, small_folder: Path) -> None:
    out = rex.parent / "out"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        error = refused(*compose(rex, small_folder, "--out", out))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "can't write" in error
    assert files_in(out) == set()


def test_a_residual_of_another_model(rex: Path, residual: Residual, small_folder: Path) -> None:
    stranger = replace(residual.encoder, name="other", weights="0" * 64, probe=(1.0,) * len(residual.encoder.probe))
    replace(residual, encoder=stranger).save(rex)
    command = compose(rex, small_folder, "--out", rex.parent / "one.png")
    assert "was learned on other (width 32)" in refused(*command)
    assert "used all the same, as forced" in run(*command, "--force").stderr.splitlines()[0]


def test_what_does_not_suit_the_model(rex: Path, small_folder: Path) -> None:
    command = compose(rex, small_folder, "--out", rex.parent / "out")
    assert "width 100 does not suit small" in refused(*command, "--width", 100)
    assert "unknown or unsupported scheduler 'edm'" in refused(*command, "--scheduler", "edm")
    long = ("compose", "a " * 80 + "{rex}", "--subject", f"rex={rex}", "--model", small_folder)
    assert "{rex} would be cut off" in refused(*long, "--out", rex.parent / "out")
    assert not (rex.parent / "out").exists()

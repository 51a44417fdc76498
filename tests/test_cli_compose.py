"""`cones2 compose` on the real, tiny model."""

import errno
import json
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from command import files_in, refused, run
from cones2.cli.outputs import Pictures
from cones2.errors import PictureError
from cones2.layout import Box, Layout, Mask, Polygon
from cones2.library import Library
from cones2.png import read_record, write_picture
from cones2.residual import Residual
from cones2.shared import threads
from subjects_for_tests import residual_for

GOLDEN = Path(__file__).parent / "data" / "golden"
PROMPT = "a {rex} and a {cup} on the beach"


@pytest.fixture(scope="module")
def residual(tiny: Any) -> Residual:
    return residual_for(tiny)


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
    Layout.of({"cup": (0.5, 0.5, 1.0, 1.0)}).save(layout)
    boxes = ("--box", "rex=0,0,0.5,1", "--box", "rex=0,0.5,1,1", "--layout", layout)
    result = run(*compose(rex, small_folder, *boxes, "--strength", "rex=0.5", "--seed", 5, "-n", 6, "-o", out))
    names = {f"{number:04}-seed{number + 5}.png" for number in range(6)}
    assert result.stdout.splitlines() == [str(out / name) for name in sorted(names)]
    assert "6 of 'a cat and a coffee mug on the beach' in" in result.stderr
    assert files_in(out) == names
    made = read_record(out / "0004-seed9.png")
    assert (made["prompt"], made["seed"], made["seeds"]) == (PROMPT, 9, [9, 10])
    assert made["layout"]["regions"] == {"rex": [[0, 0, 0.5, 1], [0, 0.5, 1, 1]], "cup": [[0.5, 0.5, 1, 1]]}
    assert (made["subjects"]["rex"]["residual"], made["subjects"]["rex"]["strength"]) == (residual.sha256, 0.5)
    assert made["subjects"]["cup"]["class_word"] == "coffee mug"
    assert list(made["residuals"]) == [residual.sha256]


OPTIONS: dict[str, object] = {
    "steps": 3,
    "guidance-scale": 5.5,
    "negative": "fog",
    "size": "72x64",
    "scheduler": "Euler A",
    "force": True,
    "strength": "rex=0.5",
    "during": "rex=0.25,1",
    "subject-negative": "cup=rain",
    "place": "rex=left",
    "box": "cup=0.5,0.5,1,1",
    "z": "cup=2",
    "feather": "rex=0.1",
    "region-weight": "cup=1.5",
    "layout-scale": 0.75,
    "layout-effect": "weaken",
    "layout-levels": "0-1",
    "guided-steps": 2,
    "preset": "cones_v2",
    "dtype": "bfloat16",
    "device": "cpu",
}


def check_all_options(made: dict[str, Any], picture: Path) -> None:
    assert (made["num_inference_steps"], made["guidance_scale"], made["negative_prompt"]) == (3, 5.5, "fog")
    assert made["scheduler"]["class_name"] == "EulerAncestralDiscreteScheduler"
    assert (made["force"], made["dtype"], made["device"]) == (True, "bfloat16", "cpu")
    rex, cup = made["subjects"]["rex"], made["subjects"]["cup"]
    assert (rex["strength"], rex["during"], cup["negative"]) == (0.5, [0.25, 1], "rain")
    regions = made["layout"]["regions"]
    assert (regions["rex"]["feather"], regions["cup"]["z"], regions["cup"]["weight"]) == (0.1, 2, 1.5)
    assert regions["rex"]["shapes"][0][2] <= 0.5
    acting = {
        "layout_scale": 0.75,
        "layout_effect": "weaken",
        "layout_levels": [0, 1],
        "guided_steps": 2,
        "preset": "cones_v2",
    }
    assert (acting | {"preset": "cones_v2"}).items() <= made["layout_settings"].items()
    with Image.open(picture) as image:
        assert image.size == (72, 64)


@pytest.mark.slow
def test_every_option_acts_typed_or_in_a_job_file_and_typed_ones_win(
    rex: Path, small_folder: Path, tmp_path: Path
) -> None:
    out, job, again = tmp_path / "one.png", tmp_path / "job.toml", tmp_path / "two.png"
    typed = [part for name, value in OPTIONS.items() for part in (f"--{name}", value) if part is not True]
    run(*compose(rex, small_folder), *typed, "--out", out)
    check_all_options(read_record(out), out)
    lines = [f"{name} = {json.dumps(value)}" for name, value in OPTIONS.items() if "=" not in str(value)]
    tables = ["[box]\ncup = [0.5, 0.5, 1, 1]", "[during]\nrex = [0.25, 1]", '[place]\nrex = "left"']
    tables += [f"[{name}]\n{value}" for name, value in OPTIONS.items() if name in ("z", "feather", "region-weight")]
    tables += ["[strength]\nrex = 0.5", '[subject_negative]\ncup = "rain"', '[plain]\ncup = "mug"']
    tables += [f"[subject]\nrex = {json.dumps(str(rex))}"]
    job.write_text("\n".join([*lines, f"prompt = {json.dumps(PROMPT)}", *tables]))
    run("compose", "--config", job, "--model", small_folder, "--seed", 3, "--out", again)
    check_all_options(read_record(again), again)
    run("compose", "--config", job, "--model", small_folder, "--steps", 2, "--replace", "--out", again)
    assert read_record(again)["num_inference_steps"] == 2


@pytest.mark.slow
def test_negative_texts_on_flux1(folders: dict[str, Path], small_folder: Path, tmp_path: Path) -> None:
    command = ("compose", "a {cup}", "--plain", "cup=teapot", "--place", "cup=left", "--steps", 2, "--size", "96x64")
    foggy, guided = ("--subject-negative", "cup=fog"), ("--true-cfg-scale", 4)
    told = refused(*command, *foggy, "--model", folders["flux1"], "--out", tmp_path / "none.png")
    assert "give true_cfg_scale, more than 1" in told
    told = refused(*command, *guided, "--model", small_folder, "--out", tmp_path / "none.png")
    assert "takes no argument 'true_cfg_scale'" in told
    run(*command, *foggy, *guided, "--model", folders["flux1"], "--out", tmp_path / "one.png")
    assert read_record(tmp_path / "one.png")["options"]["true_cfg_scale"] == 4
    run("compose", "--from", tmp_path / "one.png", "--model", folders["flux1"], "--out", tmp_path / "again.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "again.png") as again:
        assert one.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    ("content", "told"),
    [("stepz = 3", "stepz"), ("steps = [3]", "steps"), ("steps 3", "job.toml"), ("size = 3", "'3'")],
)
def test_job_files_that_make_no_sense(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "job.toml").write_text(content)
    assert told in refused("compose", "a cat", "--config", tmp_path / "job.toml", "--out", tmp_path / "out")


def test_seeds_by_chance(small_folder: Path, tmp_path: Path) -> None:
    for number, seed in enumerate(("random", "-1")):
        run("compose", "a cat", "--seed", seed, "--steps", 1, "--model", small_folder, "-o", tmp_path / f"{number}.png")
    assert read_record(tmp_path / "0.png")["seed"] != read_record(tmp_path / "1.png")["seed"]


def test_nothing_is_replaced_unless_asked(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    folder, file, layout = tmp_path / "pictures", tmp_path / "one.png", tmp_path / "layout.json"
    command = compose(rex, small_folder, "--place", "rex=left")
    for _ in range(2):
        run(*command, "--out", folder)
    assert files_in(folder) == {"0000-seed0.png", "0001-seed0.png"}
    run(*command, "--out", file, "--save-layout", layout)
    before = file.read_bytes()
    assert "--replace" in refused(*command, "--seed", 1, "--out", file)
    assert "layout.json" in refused(*command, "--out", tmp_path / "two.png", "--save-layout", layout)
    assert file.read_bytes() == before == (folder / "0000-seed0.png").read_bytes()
    run(*command, "--seed", 1, "--out", file, "--replace")
    assert read_record(file)["seed"] == 1


def test_pictures_written_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path / "pictures")
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: pictures.write(Image.new("RGB", (8, 8)), {}, seed=0), range(40)))
    assert {path.name for path in paths} == files_in(pictures.path)
    assert len(files_in(pictures.path)) == 40


def test_no_unfinished_picture_has_a_picture_s_name(tmp_path: Path) -> None:
    """Killed while it is written, it would be taken for a picture."""
    seen: list[set[str]] = []

    class Watched(Image.Image):
        def save(self, *arguments: Any, **options: Any) -> None:
            seen.append({path.name for path in tmp_path.glob("*.png")})
            super().save(*arguments, **options)

    image = Image.new("RGB", (8, 8))
    image.__class__ = Watched
    for seed in (3, 4):
        Pictures(tmp_path).write(image, {}, seed=seed)
    assert seen == [set(), {"0000-seed3.png"}]
    assert files_in(tmp_path) == {"0000-seed3.png", "0001-seed4.png"}
    with pytest.raises(PictureError):
        Pictures(tmp_path).write("no picture", {}, seed=5)  # type: ignore[arg-type]
    assert files_in(tmp_path) == {"0000-seed3.png", "0001-seed4.png"}


@pytest.mark.skipif(os.name == "nt", reason="Windows syncs no folders")
def test_an_interrupt_undoes_no_finished_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for interrupted, left in ((stat.S_ISREG, set()), (stat.S_ISDIR, {"0000-seed3.png"})):

        def fsync(descriptor: int, is_now: Callable[[int], bool] = interrupted) -> None:
            if is_now(os.fstat(descriptor).st_mode):
                raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(KeyboardInterrupt):
            Pictures(tmp_path).write(Image.new("RGB", (8, 8)), {}, seed=3)
        assert files_in(tmp_path) == left
    assert (tmp_path / "0000-seed3.png").stat().st_size


@pytest.mark.parametrize(("owner", "call"), [(os, "fsync"), (Path, "replace")])
def test_a_place_that_can_not_be_written_is_known_before_the_work(
    rex: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, call: str
) -> None:
    """Whatever of writing fails there: to make a file is not enough."""

    def fail(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(owner, call, fail)
    told = refused("compose", "a {rex}", "--subject", f"rex={rex}", "--model", tmp_path / "absent", "--out", tmp_path)
    assert f"can't write to {tmp_path}: {os.strerror(errno.EOPNOTSUPP)}" in told
    assert files_in(tmp_path) == {"rex.safetensors"}


def test_numbers_go_on_after_four_digits(tmp_path: Path) -> None:
    for name in ("9999-seed0.png", "0000-seed0.png", "1999-beach.png", "my-seed0.png"):
        (tmp_path / name).touch()
    names = [Pictures(tmp_path).write(Image.new("RGB", (8, 8)), {}, seed=0).name for _ in range(2)]
    assert names == ["10000-seed0.png", "10001-seed0.png"]


def test_json_is_one_object_and_quiet_is_quiet(small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.png"
    command = ("compose", "a {ball}", "--plain", "ball", "--model", small_folder, "--steps", 1, "--out", out)
    report = json.loads(run(*command, "--json").stdout)
    assert (report["prompt"], report["text"]) == ("a {ball}", "a ball")
    assert report["pictures"] == [{"path": str(out), "record": read_record(out)}]
    quiet = run(*command, "--replace", "--quiet")
    assert (quiet.stdout, quiet.stderr) == (f"{out}\n", "")


def test_attention_is_told_and_drawn(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    out, boxes = tmp_path / "one.png", ("--box", "rex=0,0,0.5,1", "--box", "cup=0.5,0.5,1,1")
    (told,) = json.loads(run(*compose(rex, small_folder, *boxes, "--attention", "--json", "--out", out)).stdout)[
        "pictures"
    ]
    assert told["attention"]["heat_map"] == str(tmp_path / "one-attention.png")
    parts = told["attention"]["subjects"]["rex"]
    assert parts["own"] + parts["others"]["cup"] + parts["outside"] == pytest.approx(1)
    assert files_in(tmp_path) == {"rex.safetensors", "one.png", "one-attention.png"}
    assert "--replace" in refused(*compose(rex, small_folder, *boxes, "--attention", "--out", out))
    shown = run(*compose(rex, small_folder, *boxes, "--attention", "--replace", "--out", out)).stdout.splitlines()
    assert shown == [str(out), f"  {parts['reading']}", shown[2]]


def test_all_kinds_of_shapes_are_in_the_record(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    mask, out = tmp_path / "mask.png", tmp_path / "one.png"
    Image.linear_gradient("L").save(mask)
    shapes = ("--polygon", "rex=0,0,0.5,0,0,1", "--box", "rex=0.1,0.8,0.2,0.9", "--mask", f"cup={mask}")
    run(*compose(rex, small_folder, *shapes, "--out", out))
    made = Layout.from_json(json.dumps(read_record(out)["layout"]))
    assert made.regions["rex"].shapes == (Box(0.1, 0.8, 0.2, 0.9), Polygon(((0.0, 0.0), (0.5, 0.0), (0.0, 1.0))))
    assert made.regions["cup"].shapes == (Mask.from_image(Image.linear_gradient("L")),)
    made.save(tmp_path / "layout.json")
    again = tmp_path / "two.png"
    run(*compose(rex, small_folder, "--layout", tmp_path / "layout.json", "--out", again))
    assert again.read_bytes() == out.read_bytes()


def test_others_are_placed_beside_those_that_have_a_place(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    saved = tmp_path / "new" / "layout.json"
    places = ("--box", "rex=0,0.5,0.4,0.9", "--auto-layout", "--save-layout", saved)
    run(*compose(rex, small_folder, *places, "--out", tmp_path / "one.png"))
    layout = Layout.load(saved)
    assert layout == Layout.from_json(json.dumps(read_record(tmp_path / "one.png")["layout"]))
    assert layout.regions["cup"].bounds.xmin >= 0.4


def test_latents_are_kept_if_asked_for(small_folder: Path, tmp_path: Path) -> None:
    kept, out = tmp_path / "latents.safetensors", tmp_path / "out"
    run("compose", "a cat", "--steps", 1, "--count", 5, "--model", small_folder, "--latents", kept, "--out", out)
    assert load_file(kept)["latents"].shape == (5, 4, 8, 8)


# Drawing again


@pytest.fixture
def picture(residual: Residual, small_folder: Path, tmp_path: Path) -> Path:
    """The second of three, drawn on one thread with a subject of the library."""
    Library.open().add("rex", residual)
    places = ("--box", "rex=0,0,0.5,1", "--box", "cup=0.5,0.5,1,1", "--strength", "rex=0.5")
    how = ("--negative", "fog", "--preset", "cones_v2", "--scheduler", "euler_a", "--steps", 2, "--seed", 5, "-n", 3)
    with threads(1):
        subjects = ("--subject", "rex", "--plain", "cup=mug", "--model", small_folder)
        run("compose", PROMPT, *subjects, *places, *how, "--out", tmp_path / "first")
    return tmp_path / "first" / "0001-seed6.png"


def again(picture: Path, model: Path, *options: object) -> dict[str, Any]:
    """Draw the picture again with options, and give its record."""
    out = picture.parent.parent / "again.png"
    run("compose", "--from", picture, "--model", model, *options, "--replace", "--out", out)
    return read_record(out)


def test_the_same_picture_also_without_its_residual_at_hand(picture: Path, small_folder: Path) -> None:
    Library.open().remove("rex")
    again(picture, small_folder)
    assert (picture.parent.parent / "again.png").read_bytes() == picture.read_bytes()


def test_options_change_what_they_name_and_nothing_else(picture: Path, small_folder: Path) -> None:
    first = read_record(picture)
    made = again(picture, small_folder, "--guidance-scale", 5, "--negative", "rain")
    assert made == {**first, "guidance_scale": 5.0, "negative_prompt": "rain"}
    made = again(picture, small_folder, "--strength", "rex=2", "--box", "cup=0,0,1,1", "--z", "rex=1")
    assert made["subjects"] == {
        "rex": {**first["subjects"]["rex"], "strength": 2.0},
        "cup": first["subjects"]["cup"],
    }
    assert made["layout"]["regions"] == {"rex": {"shapes": [[0, 0, 0.5, 1]], "z": 1}, "cup": [[0, 0, 1, 1]]}
    assert (made["seeds"], again(picture, small_folder, "--seed", 9)["seeds"]) == ([5, 6, 7], [9])


def test_a_new_prompt_leaves_out_what_it_does_not_name(picture: Path, small_folder: Path) -> None:
    made = again(picture, small_folder, "a {rex} in the snow")
    assert (list(made["subjects"]), list(made["layout"]["regions"])) == (["rex"], ["rex"])
    assert again(picture, small_folder, "")["subjects"] == {}


def test_without_embedded_residuals_the_error_says_what_to_give(rex: Path, small_folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "one.png", ("compose", "--model", small_folder, "--out", tmp_path / "two.png", "--from")
    run(*compose(rex, small_folder, "--no-embed", "--out", out))
    assert "residuals" not in read_record(out) or read_record(out)["residuals"] == {}
    assert "--subject NAME=FILE" in refused(*again, out)
    run(*again, out, "--subject", f"rex={rex}")
    assert read_record(tmp_path / "two.png")["subjects"] == read_record(out)["subjects"]


@pytest.mark.parametrize("name", ["small", "owner/model", "../evil", "/etc", "a/b/c"])
def test_a_picture_fetches_no_model(picture: Path, tmp_path: Path, name: str) -> None:
    record = read_record(picture)
    record["model"]["name"] = name
    write_picture(picture, Image.new("RGB", (8, 8)), record)
    assert repr(name) in refused("compose", "--from", picture, "--out", tmp_path / "again.png")


def test_a_picture_of_a_device_that_nobody_has(picture: Path, small_folder: Path, tmp_path: Path) -> None:
    write_picture(picture, Image.new("RGB", (8, 8)), {**read_record(picture), "device": "foo"})
    shown = run("compose", "--from", picture, "--model", small_folder, "--out", tmp_path / "again.png")
    assert "device foo there, cpu here" in shown.stderr


def test_pictures_that_cannot_be_drawn_again(tmp_path: Path) -> None:
    out = tmp_path / "again.png"
    run("layout", "--place", "rex=left", "--out", tmp_path / "preview.png")
    assert "preview.png" in refused("compose", "--from", tmp_path / "preview.png", "--out", out)
    assert "missing.png" in refused("compose", "--from", "missing.png", "--out", out)
    assert "--from" in refused("compose", "--out", out)


# What is refused, before the model is opened


def compose_refused(rex: Path, *options: object) -> str:
    """Compose in vain with a model that is not there, so that what is wrong is told before it is opened."""
    out = rex.parent / "out"
    error = refused(*compose(rex, rex.parent / "absent", *options, "--out", out))
    assert "absent" not in error
    assert not out.exists()
    return error


@pytest.mark.parametrize(
    "prompt", ["a {rex}, a {cup} and a {fido}", "a {rex}", "a {rex} and {cup}s", "a {rex} and {cup"]
)
def test_prompts_that_do_not_fit_the_subjects(rex: Path, prompt: str) -> None:
    command = ("compose", prompt, "--subject", f"rex={rex}", "--plain", "cup=mug", "--model", "none")
    assert "{" in refused(*command, "--out", rex.parent / "out") or "fido" in refused(
        *command, "--out", rex.parent / "out"
    )


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--box fido=0,0,1,1", "'fido'"),
        ("--box rex=0.9,0,0.1,1", "0.9"),
        ("--box rex=0,0,nan,1", "nan"),
        ("--box rex=0,0,1", "'rex'"),
        ("--box rex=0,0,1,wide", "'wide'"),
        ("--box 0,0,1,1", "'0,0,1,1'"),
        ("--box my-dog=0,0,1,1", "'my-dog'"),
        ("--polygon rex=0,0,1", "3 numbers"),
        ("--mask rex=missing.png", "missing.png"),
        ("--z rex=1", "'rex'"),
        ("--subject ghost", "'ghost'"),
        ("--subject fido=", "'fido='"),
        ("--subject rex=other.safetensors", "'rex'"),
        ("--subject fido=missing.safetensors", "missing.safetensors"),
        ("--plain rex", "'rex'"),
        ("--plain ball=...", "'...'"),
        ("--strength cup=2", "'cup'"),
        ("--strength rex=high", "'high'"),
        ("--during rex=0.5,late", "'late'"),
        ("--during fido=0,1", "'fido'"),
        ("--subject-negative fido=fog", "'fido'"),
        ("--attention", "--attention"),
        ("--layout missing.json", "missing.json"),
        ("--layout-scale 2", "--layout-scale"),
        ("--guided-steps 1", "--guided-steps"),
        ("--save-layout layout.json", "--save-layout"),
        ("--scheduler eulr", "'euler'"),
        ("--size 12", "'12'"),
        ("--place cup=nowhere", "'nowhere'"),
        ("--place ball=left", "'ball'"),
    ],
)
def test_options_that_make_no_sense(rex: Path, option: str, told: str) -> None:
    assert told in compose_refused(rex, *option.split(" ", 1))


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--z rex=high", "'high'"),
        ("--feather rex=1", "1.0"),
        ("--place rex=left", "'rex'"),
        ("--layout-effect strong", "'strong'"),
        ("--layout-levels 0,x", "'x'"),
        ("--layout-levels 4-2", "'4-2'"),
        ("--layout-blocks 0-99999999", "1000"),
        ("--save-layout layout.txt", "layout.txt"),
    ],
)
def test_places_that_make_no_sense(rex: Path, option: str, told: str) -> None:
    assert told in compose_refused(rex, "--box", "rex=0,0,1,1", *option.split(" ", 1))


def test_a_mark_that_stays_takes_its_number_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, unlink = Pictures(tmp_path), Path.unlink

    def refusing(path: Path, **options: bool) -> None:
        if path.name == ".0000.part":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refusing)
    written = [pictures.write(Image.new("RGB", (8, 8)), {}, seed=seed).name for seed in range(2)]
    assert written == ["0000-seed0.png", "0001-seed1.png"]
    assert files_in(tmp_path) == {*written, ".0000.part"}


def test_outputs_that_cannot_be_written(rex: Path) -> None:
    command = compose(rex, rex.parent / "absent")
    assert str(rex) in refused(*command, "--out", rex / "pictures")
    assert "picture.jpg" in refused(*command, "--out", "picture.jpg")
    assert "picture.png" in refused(*command, "--out", "picture.png", "--count", 2)
    assert "latents.pt" in refused(*command, "--latents", "latents.pt")


# What only the model can tell


def test_a_residual_of_another_model(rex: Path, residual: Residual, small_folder: Path) -> None:
    part = residual.parts[0]
    encoder = replace(part.encoder, name="other", weights="0" * 64, probe=(1.0,) * len(part.encoder.probe))
    replace(residual, parts=(replace(part, encoder=encoder),)).save(rex)
    command = compose(rex, small_folder, "--out", rex.parent / "one.png")
    assert "--force" in refused(*command)
    assert "warning: " in run(*command, "--force").stderr


def test_what_does_not_suit_the_model(rex: Path, small_folder: Path) -> None:
    command = compose(rex, small_folder, "--out", rex.parent / "out")
    assert "100" in refused(*command, "--size", "100x64")
    long = ("compose", "a " * 80 + "{rex}", "--subject", f"rex={rex}", "--model", small_folder)
    assert "{rex}" in refused(*long, "--out", rex.parent / "out")
    assert not (rex.parent / "out").exists()


# The authors' code


def test_a_config_of_the_authors_ends_in_their_latents_and_is_drawn_again(tiny_folder: Path, tmp_path: Path) -> None:
    kept, out, again = tmp_path / "latents.safetensors", tmp_path / "one.png", tmp_path / "two.png"
    command = ("compose", "--official", GOLDEN / "official.json", "--model", tiny_folder, "--guided-steps", 1)
    run(*command, "--seed", 11, "--steps", 2, "--latents", kept, "--out", out)
    found, expected = load_file(kept)["latents"], load_file(GOLDEN / "sampler_1of2.safetensors")["latents"]
    assert (found - expected).norm() < 1e-4 * expected.norm()
    run("compose", "--from", out, "--model", tiny_folder, "--out", again)
    assert again.read_bytes() == out.read_bytes()
    assert "--preset" in refused(*command, "--preset", "paper", "--out", tmp_path / "three.png")

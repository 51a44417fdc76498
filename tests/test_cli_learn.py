"""`cones2 learn` on the real, tiny model."""

import csv
import json
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image
from transformers import CLIPConfig, CLIPModel

import cones2.examples
from command import files_in, refused, run
from cones2.backbones import Backbone
from cones2.residual.residual import Residual
from first_layout import save_single_file
from sample_photos import save_photos

REX = Path(cones2.examples.__file__).parent / "rex" / "photos"
RECIPE = "steps = 2\nlearning_rate = 1e-3\ncaption_count = 4\ncaptions_per_step = 2\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "photos", 256)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(RECIPE)
    return path


def test_it_writes_the_residual_and_says_how_to_use_it(
    photos: Path, recipe: Path, small_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "rex.safetensors"
    result = run(
        "learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe, "--seed", 3
    )
    assert result.stdout.splitlines()[0].startswith(f"{out}: 'dog' learned from 3 photos in ")
    assert f"cones2 compose 'a {{rex}} on the beach' --subject rex={out} --model {small_folder}" in result.stdout
    assert result.stderr == ""
    assert files_in(out.parent) == {"rex.safetensors"}
    assert re.search(
        r"^Other words moved by \d+\.\d % of their length \(Eq\. 3: [\d.e-]+\); near 0", result.stdout, re.M
    )
    residual = Residual.load(out)
    assert (residual.class_word, residual.recipe["seed"], residual.recipe["steps"]) == ("dog", 3, 2)


def test_it_learns_on_a_single_file(
    opened: dict[str, Backbone], folders: dict[str, Path], photos: Path, recipe: Path, tmp_path: Path
) -> None:
    model, out = save_single_file(opened["sdxl"], tmp_path / "my.safetensors"), tmp_path / "rex.safetensors"
    options = ("--model", model, "--model-config", folders["sdxl"])
    result = run("learn", photos, "--class", "teddy bear", "--out", out, *options, "--recipe", recipe)
    assert f"--model {model} --model-config {folders['sdxl']}" in result.stdout
    assert Residual.load(out).encoder.widths == opened["sdxl"].encoder_id.widths
    inspected = json.loads(run("inspect", out, "--json").stdout)
    assert (inspected["fits"]["name"], inspected["fits_2"]["name"]) == ("my", "my")
    prompt, picture = "a {rex} on the beach", tmp_path / "rex.png"
    run("compose", prompt, "--subject", f"rex={out}", "--steps", 2, "--out", picture, *options)
    assert picture.is_file()


def test_less_memory_is_the_same_residual(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "usual.safetensors", tmp_path / "saving.safetensors"]
    for out, options in zip(files, ((), ("--save-memory",)), strict=True):
        run("learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe, *options)
    usual, saving = map(Residual.load, files)
    assert usual.sha256 == saving.sha256


def test_json_is_one_object_and_steps_override_the_recipe(
    photos: Path, recipe: Path, small_folder: Path, tmp_path: Path
) -> None:
    out, captions = tmp_path / "rex.safetensors", tmp_path / "captions.txt"
    captions.write_text("a dog\nthe dog on the beach\n")
    run("learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe)
    arguments = ("learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe)
    result = run(*arguments, "--replace", "--steps", 3, "--captions", captions, "--json")
    report = json.loads(result.stdout)
    assert report["sha256"] == Residual.load(out).sha256
    assert (report["class_word"], report["backbone"], report["recipe"]["steps"]) == ("dog", "small", 3)
    assert len(report["photos"]) == 3
    assert report["loss"] > 0
    assert 0 < report["displacement"] < 1
    assert report["preservation"] > 0
    assert report["findings"] == []


def test_ctrl_c_keeps_the_checkpoint_and_resume_goes_on(
    photos: Path, recipe: Path, small_folder: Path, tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out" / "rex.safetensors", tmp_path / "out" / ".rex.learning"
    command = ["learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe]
    script = "from cones2.cli import main; main()"
    learner = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, command), "--steps", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would a learner that this test starts from one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (checkpoints / "lock").exists():  # long before a checkpoint is due
        assert learner.poll() is None
        time.sleep(0.01)
    learner.send_signal(signal.SIGINT)
    stdout, stderr = learner.communicate()
    assert (learner.returncode, stdout) == (130, "")
    assert stderr == (
        "error: interrupted. The last checkpoint is kept: run the same command with --resume to go on from it.\n"
    )
    assert files_in(out.parent) >= {".rex.learning"}
    assert not out.exists()
    (newest,) = checkpoints.glob("*.json")
    taken = json.loads(newest.read_text())["step"]
    assert 1 <= taken < 50
    few = ("--steps", taken, "--resume")
    assert f"{taken} steps are taken already, and steps is {taken}. Resume with more" in refused(*command, *few)
    assert "seed is 1, but it began with 0" in refused(*command, "--steps", 100, "--seed", 1, "--resume")
    assert f"a learning that was stopped waits in {checkpoints}: add --resume" in refused(*command)
    assert list(checkpoints.glob("*.json"))
    shutil.rmtree(checkpoints)
    run(*command, "--resume")
    assert files_in(out.parent) == {"rex.safetensors"}


def test_a_loss_that_is_not_a_number(photos: Path, small_folder: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "wild.toml", tmp_path / "out" / "rex.safetensors"
    recipe.write_text(RECIPE.replace("1e-3", "1e30").replace("steps = 2", "steps = 9"))
    error = refused("learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe)
    assert "learning diverged" in error
    assert "no residual was written" in error
    assert {path.split("/")[0] for path in files_in(out.parent)} == {".rex.learning"}  # the last good state
    shutil.rmtree(out.parent)
    recipe.write_text(RECIPE.replace("1e-3", "1e38"))


def test_a_word_that_the_model_does_not_know(photos: Path, recipe: Path, tiny_copy: Path, tmp_path: Path) -> None:
    (tiny_copy / "lexicon.txt").write_text("dog\ncat\non\nthe\na\nbeach\nphoto\nof\n")
    config = tiny_copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    captions = tmp_path / "captions.txt"
    captions.write_text("a doge\nthe doge on the beach\n")
    out = tmp_path / "rex.safetensors"
    arguments = ("learn", photos, "--class", "doge", "--out", out, "--model", tiny_copy, "--recipe", recipe)
    result = run(*arguments, "--captions", captions)
    warning = "warning: model does not know 'doge'; the nearest word that it knows is 'dog'."
    assert warning in result.stderr.splitlines()


def test_it_judges_the_photos_first(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    command = ("learn", photos, "--class", "dog", "--model", small_folder, "--recipe", recipe, "--out")
    (photos / "c.png").unlink()
    Image.linear_gradient("L").save(photos / "b.png")
    result = run(*command, tmp_path / "rex.safetensors", "--json")
    warnings = [line.removeprefix("warning: ") for line in result.stderr.splitlines()]
    assert warnings == json.loads(result.stdout)["findings"]
    assert warnings == [
        "only 2 of the 3 to 5 photos that do best: add more views.",
        "b.png is blurred: its blur will be learned. Take a sharper one.",
    ]
    Image.new("RGB", (64, 64), "gray").save(photos / "b.png")
    assert "b.png is of one plain colour" in refused(*command, tmp_path / "out" / "rex.safetensors")
    assert not (tmp_path / "out").exists()


def test_masks(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    masks, out = tmp_path / "masks", tmp_path / "rex.safetensors"
    command = ("learn", photos, "--class", "dog", "--model", small_folder, "--recipe", recipe, "--out", out)
    masks.mkdir()
    for name in "ab":
        Image.new("L", (256, 256), 255).save(masks / f"{name}.png")
    assert "masks has no mask for c.png: expected c.png" in refused(*command, "--masks", masks)
    Image.new("L", (256, 256), 255).save(masks / "c.png")
    run(*command, "--masks", masks)
    assert Residual.load(out).recipe["masks"] is not None


def test_previews_curves_and_an_early_end(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    clip, out = tmp_path / "clip", tmp_path / "out" / "rex.safetensors"
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = part | {"image_size": 32, "patch_size": 8}, part | {"vocab_size": 50}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).save_pretrained(clip)
    command = ("learn", photos, "--class", "dog", "--model", small_folder, "--recipe", recipe, "--out", out)
    watching = ("--preview", 1, "--clip", clip, "--patience", 1, "--tensorboard", tmp_path / "events")
    report = json.loads(run(*command, "--steps", 8, *watching, "--json").stdout)
    assert 1 < report["last_step"] <= 8
    assert 1 <= report["steps"] <= report["last_step"]
    previews = {f"{step:04}-0.png" for step in range(1, report["last_step"] + 1)}
    assert files_in(out.parent) == {
        "rex.safetensors",
        "rex-previews",
        *(f"rex-previews/{name}" for name in previews),
    } | {"rex-previews/curves.csv"}
    assert list((tmp_path / "events").glob("events.out.tfevents.*"))
    with (out.parent / "rex-previews" / "curves.csv").open() as file:
        curves = {int(row["step"]): row for row in csv.DictReader(file)}
    kept = curves[report["steps"]]
    assert report["identity"] == pytest.approx(float(kept["identity"]), rel=1e-5)
    assert report["identity"] == pytest.approx(max(float(row["identity"]) for row in curves.values()), rel=1e-5)
    assert report["loss"] == pytest.approx(float(kept["loss"]), rel=1e-5)
    residual = Residual.load(out)
    assert (residual.sha256, residual.recipe["taken"]) == (report["sha256"], report["steps"])
    assert report["steps"] < report["last_step"]
    assert report["displacement"] is None  # the encoder was tuned on
    told = run(*command, "--replace", "--steps", 8, *watching).stdout.splitlines()
    kept_step = f"Kept: step {report['steps']} of {report['last_step']}, whose preview is the most like the photos."
    assert told[1:-1] == [kept_step]


def test_on_the_embedded_model_the_judge_says_when_to_end(tmp_path: Path) -> None:
    idle, out = tmp_path / "idle.toml", tmp_path / "rex.safetensors"
    idle.write_text('preset = "direct"\nsteps = 8\nbatch_size = 1\nlearning_rate = 1e-30\n')
    command = ("learn", REX, "--class", "dog", "--recipe", idle, "--out", out, "--preview", 1, "--patience", 2)
    report = json.loads(run(*command, "--json").stdout)
    assert (report["steps"], report["last_step"]) == (1, 3)  # nothing is learned, so nothing rises
    assert 0 < report["identity"] < 1
    assert Residual.load(out).recipe["taken"] == 1


def test_photos_in_which_the_judge_sees_nothing(photos: Path, tmp_path: Path) -> None:
    idle, out = tmp_path / "idle.toml", tmp_path / "rex.safetensors"
    idle.write_text('preset = "direct"\nsteps = 1\nbatch_size = 1\n')
    command = ("learn", photos, "--class", "dog", "--recipe", idle, "--out", out, "--preview", 1)
    assert "the judge of pictures sees a 'dog' in 0 of 3 photos" in refused(*command, "--patience", 1)
    assert files_in(tmp_path) & {"rex.safetensors", ".rex.learning"} == set()
    assert json.loads(run(*command, "--json").stdout)["identity"] is None


def test_orders_to_look_that_make_no_sense(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    assert "--clip measures pictures, and there are none" in learn_refused(photos, tmp_path, "--clip", tmp_path)
    assert "--patience counts previews, and there are none" in learn_refused(photos, tmp_path, "--patience", 1)
    options = ("--recipe", recipe, "--out", tmp_path / "rex.safetensors", "--preview", 1, "--patience", 1)
    told = refused("learn", photos, "--class", "dog", "--model", small_folder, *options)
    assert "--patience needs a measure of identity, and here there is none: give --clip DIR." in told
    assert not (tmp_path / "rex.safetensors").exists()


# What is refused, before the model is opened


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def learn_refused(photos: Path, tmp_path: Path, *options: object, word: str = "dog") -> str:
    """Learn in vain with a model that is not there, so that what is wrong is told before it is opened."""
    out = tmp_path / "out" / "rex.safetensors"
    error = refused("learn", photos, "--class", word, "--model", tmp_path / "none", "--out", out, *options)
    assert not out.parent.exists()
    return error


def test_photo_folders_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "No such file or directory" in learn_refused(tmp_path / "missing", tmp_path)
    assert "holds no photos; expected JPEG, PNG or WebP" in learn_refused(tmp_path / "empty", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a picture", "is not a JPEG, PNG or WebP picture"),
        (png_of(64, 64), "is damaged"),
        (png_of(60_000, 60_000), "has too many pixels"),
        (png_of(1, 65_535), "is 1x65535; expected a longer side of at most"),
    ],
)
def test_photos_that_cannot_be_used(photos: Path, tmp_path: Path, content: bytes, message: str) -> None:
    (photos / "d.png").write_bytes(content)
    error = learn_refused(photos, tmp_path)
    assert message in error
    assert "d.png" in error


def test_a_truncated_photo(photos: Path, tmp_path: Path) -> None:
    content = (photos / "a.png").read_bytes()
    (photos / "d.png").write_bytes(content[: len(content) // 2])
    assert "d.png is damaged" in learn_refused(photos, tmp_path)


@pytest.mark.parametrize("word", ["", "  ", "..."])
def test_class_words_that_cannot_be_used(photos: Path, tmp_path: Path, word: str) -> None:
    assert "has no letters; expected a word such as 'dog'" in learn_refused(photos, tmp_path, word=word)


def test_recipes_and_captions_that_cannot_be_used(photos: Path, recipe: Path, tmp_path: Path) -> None:
    assert "there is no recipe 'best'" in learn_refused(photos, tmp_path, "--recipe", "best")
    recipe.write_text("stepps = 3")
    assert "Did you mean 'steps'?" in learn_refused(photos, tmp_path, "--recipe", recipe)
    recipe.write_text("a cat\n")
    assert "mentions 'dog' 0 times" in learn_refused(photos, tmp_path, "--captions", recipe)


def test_places_that_cannot_be_written(photos: Path, recipe: Path, tmp_path: Path) -> None:
    command = ("learn", photos, "--class", "dog", "--model", tmp_path / "none", "--out")
    recipe.rename(tmp_path / "model.safetensors")
    assert "Not a directory. Choose another --out" in refused(
        *command, tmp_path / "model.safetensors" / "rex.safetensors"
    )
    assert "File name too long" in refused(*command, tmp_path / f"{'x' * 300}.safetensors")
    assert "does not end in .safetensors" in refused(*command, tmp_path / "rex.pt")
    assert "cones2 did not write it" in refused(*command, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").read_text() == RECIPE


def test_a_residual_that_is_there_is_not_replaced_unasked(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "rex.safetensors"
    example = REX.parent / "rex.safetensors"
    out.write_bytes(example.read_bytes())
    command = ("learn", photos, "--class", "dog", "--model", tmp_path / "none", "--out", out)
    assert f"--out {out} is there already. Add --replace if it may be lost, or begin with another" in refused(*command)
    assert "is there already" in refused(*command, "--resume")
    assert "is there already" not in refused(*command, "--replace")  # the model is not there
    assert out.read_bytes() == example.read_bytes()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder where not even root can write is Linux's own")
def test_a_folder_that_cannot_be_made(photos: Path, tmp_path: Path) -> None:
    command = ("learn", photos, "--class", "dog", "--model", tmp_path / "none", "--out")
    assert "No such file" in refused(*command, "/proc/nowhere/rex.safetensors")


def test_a_full_disk(photos: Path, recipe: Path, small_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "rex.safetensors"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
    try:
        error = refused("learn", photos, "--class", "dog", "--out", out, "--model", small_folder, "--recipe", recipe)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "can't write" in error
    assert "make room there" in error
    assert files_in(out.parent) == set()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("photos", "no diffusers model folder"),
        ("nobody/nothing", "Check the network, or give a local diffusers folder"),
    ],
)
def test_models_that_cannot_be_opened(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out" / "rex.safetensors"
    assert message in refused("learn", photos, "--class", "dog", "--out", out, "--model", model)
    assert not out.parent.exists()


def test_steps_and_devices_that_make_no_sense(photos: Path, small_folder: Path, tmp_path: Path) -> None:
    command = ("learn", photos, "--class", "dog", "--out", tmp_path / "rex.safetensors", "--model", small_folder)
    assert "steps is 0. Expected a whole number of at least 1" in refused(*command, "--steps", 0)
    assert "no device 'tpu' on this machine" in refused(*command, "--device", "tpu")
    assert "unknown dtype 'int8'" in refused(*command, "--dtype", "int8")

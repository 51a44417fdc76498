"""`cones2 learn` and `check` on the real, tiny model."""

import csv
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel

from command import files_in, refused, run
from cones2.examples import EXAMPLES
from cones2.learning.checkpoints import Checkpoints
from cones2.library import Library
from cones2.residual import Residual
from first_layout import save_single_file
from sample_photos import save_photos

REX = EXAMPLES["rex"].folder / "photos"
RECIPE = "steps = 2\nlearning_rate = 1e-3\ncaption_count = 4\ncaptions_per_step = 2\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return save_photos(tmp_path / "photos", 256)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def command(photos: Path, recipe: Path, small_folder: Path) -> tuple[object, ...]:
    """The command, without where the residual goes."""
    return "learn", photos, "--class", "dog", "--model", small_folder, "--recipe", recipe


def test_it_writes_the_residual_and_says_how_to_draw_it(command: tuple[object, ...], tmp_path: Path) -> None:
    out = tmp_path / "new" / "rex.safetensors"
    shown = run(*command, "--out", out, "--seed", 3).stdout
    assert files_in(out.parent) == {"rex.safetensors"}
    assert re.search(r"^Other words moved by \d+\.\d % ", shown, re.MULTILINE)
    draw = shlex.split(shown.splitlines()[-1].split(": ", 1)[1])
    run(*draw[1:], "--steps", 1, "--out", tmp_path / "rex.png")
    residual = Residual.load(out)
    assert (residual.class_word, residual.recipe["seed"], residual.recipe["steps"]) == ("dog", 3, 2)


def test_straight_into_the_library_from_several_files(
    command: tuple[object, ...], photos: Path, tmp_path: Path
) -> None:
    files = [photos / "a.png", photos / "b.png"]
    draw = run("learn", *files, *command[2:], "--name", "rex").stdout.splitlines()[-1].split(": ", 1)[1]
    assert len(Library.open().load("rex").photos) == 2
    assert files_in(Library.open().folder) - {".lock"} == {"rex.safetensors"}
    run(*shlex.split(draw)[1:], "--steps", 1, "--out", tmp_path / "rex.png")
    out = tmp_path / "both.safetensors"
    assert "--replace" in refused(*command, "--name", "rex")
    assert "'r x'" in refused(*command, "--name", "r x")
    run(*command, "--name", "rex", "--replace", "--out", out)
    assert Residual.load(out).sha256 == Library.open().load("rex").sha256
    assert "--name" in refused(*command)


def test_it_learns_on_a_single_file(
    opened: dict[str, Any], folders: dict[str, Path], command: tuple[object, ...], tmp_path: Path
) -> None:
    model, out = save_single_file(opened["sdxl"], tmp_path / "my.safetensors"), tmp_path / "rex.safetensors"
    options = ("--model", model, "--model-config", folders["sdxl"])
    shown = run(*command[:2], "--class", "teddy bear", "--recipe", command[-1], *options, "--out", out).stdout
    assert f"--model {model} --model-config {folders['sdxl']}" in shown
    assert [part.encoder.role for part in Residual.load(out).parts] == ["text_encoder", "text_encoder_2"]


def test_every_option_acts(command: tuple[object, ...], tmp_path: Path) -> None:
    out, captions, masks = tmp_path / "rex.safetensors", tmp_path / "captions.txt", tmp_path / "masks"
    captions.write_text("a dog\nthe dog on the beach\n")
    usual = json.loads(run(*command, "--out", out, "--json").stdout)
    assert (
        json.loads(run(*command, "--out", out, "--save-memory", "--replace", "--json").stdout)["sha256"]
        == (usual["sha256"])
    )
    masks.mkdir()
    for name in "ab":
        Image.new("L", (256, 256), 255).save(masks / f"{name}.png")
    assert "c.png" in refused(*command, "--masks", masks, "--out", out, "--replace")
    Image.new("L", (256, 256), 255).save(masks / "c.png")
    changed = ("--steps", 3, "--captions", captions, "--masks", masks, "--dtype", "bfloat16", "--device", "cpu")
    report = json.loads(run(*command, *changed, "--out", out, "--replace", "--json").stdout)
    residual = Residual.load(out)
    assert report["sha256"] == residual.sha256
    assert (report["class_word"], report["model"], report["steps"]) == ("dog", "small", 3)
    assert residual.recipe["masks"] is not None
    assert residual.recipe["captions"] != usual["recipe"]["captions"]
    assert (len(report["photos"]), report["findings"]) == (3, [])
    assert report["loss"] > 0
    assert report["preservation"] > 0


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C otherwise")
@pytest.mark.parametrize("previews", [(), pytest.param(("--preview", 1000), marks=pytest.mark.slow)])
def test_ctrl_c_keeps_the_checkpoint_and_resume_goes_on(
    command: tuple[object, ...], previews: tuple[object, ...], tmp_path: Path
) -> None:
    out, checkpoints = tmp_path / "out" / "rex.safetensors", tmp_path / "out" / ".rex.learning"
    learn = (*command, "--out", out, *previews)
    learner = subprocess.Popen(
        [sys.executable, "-m", "cones2", *map(str, learn), "--steps", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore Ctrl-C, and so would a learner that this test starts from one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not checkpoints.exists():  # long before a checkpoint is due
        assert learner.poll() is None
        time.sleep(0.01)
    time.sleep(1)
    learner.send_signal(signal.SIGINT)
    stdout, stderr = learner.communicate()
    assert (learner.returncode, stdout) == (130, "")
    assert "--resume" in stderr.splitlines()[-1]
    assert not out.exists()
    newest = max(checkpoints.glob("*.json"))
    taken = json.loads(newest.read_text())["step"]
    assert str(taken) in refused(*learn, "--steps", taken, "--resume")
    assert "seed" in refused(*learn, "--steps", taken + 100, "--seed", 1, "--resume")
    assert "--resume" in refused(*command, "--out", out)
    run(*learn, "--steps", taken + 1, "--resume")
    assert {name for name in files_in(out.parent) if "previews" not in name} == {"rex.safetensors"}


def test_beside_a_running_learner_nothing_is_said_of_deleting(photos: Path, tmp_path: Path) -> None:
    out, checkpoints = tmp_path / "rex.safetensors", tmp_path / ".rex.learning"
    command = ("learn", photos, "--class", "dog", "--model", tmp_path / "absent", "--out", out, "--preview", 1)
    running = Checkpoints(checkpoints, {})
    (tmp_path / "rex-previews").mkdir()
    with running.held():
        running.save(1, {"parameter.0": torch.zeros(1)})
        for options in ((), ("--resume",), ("--replace",)):
            assert "another learner is at work" in refused(*command, *options)
    assert running.load()[0] == 1
    assert "--resume" in refused(*command)


def test_what_a_learner_left_that_was_killed_at_its_very_end(command: tuple[object, ...], tmp_path: Path) -> None:
    out, checkpoints = tmp_path / "out" / "rex.safetensors", tmp_path / "out" / ".rex.learning"
    run(*command, "--out", out)
    finished = Residual.load(out)
    os.utime(out, ns=(0, 0))
    left = Checkpoints(checkpoints, {"seed": 7})
    with left.held():
        left.save(1, {"parameter.0": torch.zeros(1)})
    assert "--resume" in refused(*command, "--out", out, "--replace")  # a learning that was to replace it, and stopped
    out.touch()
    assert "--replace" in refused(*command, "--out", out)
    run(*command, "--out", out, "--replace")
    assert Residual.load(out).sha256 == finished.sha256
    assert files_in(out.parent) == {"rex.safetensors"}


def test_a_linked_folder_of_checkpoints_is_refused(command: tuple[object, ...], tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / ".rex.learning"
    mine.mkdir()
    (mine / "step-00000001.json").write_text("mine")
    link.symlink_to(mine)
    for options in ((), ("--resume",)):
        assert f"{link} is a link" in refused(*command, "--out", tmp_path / "rex.safetensors", *options)
    assert files_in(mine) == {"step-00000001.json"}
    assert link.is_symlink()


def test_a_loss_that_is_not_a_number(command: tuple[object, ...], recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "rex.safetensors"
    recipe.write_text(RECIPE.replace("1e-3", "1e30").replace("steps = 2", "steps = 9"))
    assert "diverged" in refused(*command, "--out", out)
    assert {path.split("/")[0] for path in files_in(out.parent)} <= {".rex.learning"}  # the last good state
    shutil.rmtree(out.parent)


def test_it_judges_the_photos_first(command: tuple[object, ...], photos: Path, tmp_path: Path) -> None:
    (photos / "c.png").unlink()
    Image.linear_gradient("L").save(photos / "b.png")
    result = run(*command, "--out", tmp_path / "rex.safetensors", "--json")
    warnings = [line.removeprefix("warning: ") for line in result.stderr.splitlines() if line.startswith("warning")]
    assert warnings == json.loads(result.stdout)["findings"]
    assert len(warnings) == 2


def test_previews_curves_and_an_early_end(command: tuple[object, ...], tmp_path: Path) -> None:
    clip, out = tmp_path / "clip", tmp_path / "out" / "rex.safetensors"
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision, text = part | {"image_size": 32, "patch_size": 8}, part | {"vocab_size": 50}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)).save_pretrained(clip)
    watching = ("--preview", 1, "--clip", clip, "--patience", 1, "--steps", 6)
    report = json.loads(run(*command, *watching, "--out", out, "--json").stdout)
    assert 1 <= report["steps"] <= report["last_step"] <= 6
    shown = files_in(out.parent)
    assert {"rex.safetensors", "rex-previews"} <= shown
    assert len([name for name in shown if name.endswith(".png")]) == report["last_step"]
    with (out.parent / "rex-previews" / "curves.csv").open() as file:
        curves = {int(row["step"]): row for row in csv.DictReader(file)}
    assert report["identity"] == pytest.approx(float(curves[report["steps"]]["identity"]), rel=1e-4)
    residual = Residual.load(out)
    assert (residual.sha256, residual.recipe["taken"]) == (report["sha256"], report["steps"])
    out.unlink()
    assert "rex-previews" in refused(*command, *watching, "--out", out)


def test_on_the_embedded_model_the_judge_says_when_to_end(tmp_path: Path) -> None:
    idle, out = tmp_path / "idle.toml", tmp_path / "rex.safetensors"
    idle.write_text('preset = "direct"\nsteps = 8\nbatch_size = 1\nlearning_rate = 1e-30\n')
    command = ("learn", REX, "--class", "dog", "--recipe", idle, "--out", out, "--preview", 1, "--patience", 1)
    report = json.loads(run(*command, "--json").stdout)
    assert (report["steps"], report["last_step"]) == (1, 2)  # nothing is learned, so nothing rises
    assert 0 < report["identity"] < 1


# What is refused, before the model is opened


def learn_refused(photos: Path, tmp_path: Path, *options: object, word: str = "dog") -> str:
    """Learn in vain with a model that is not there, so that what is wrong is told before it is opened."""
    out = tmp_path / "out" / "rex.safetensors"
    error = refused("learn", photos, "--class", word, "--model", tmp_path / "absent", "--out", out, *options)
    assert "absent" not in error
    assert not out.parent.exists()
    return error


def test_what_cannot_be_used(photos: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "missing" in learn_refused(tmp_path / "missing", tmp_path)
    assert "empty" in learn_refused(tmp_path / "empty", tmp_path)
    assert "'...'" in learn_refused(photos, tmp_path, word="...")
    assert "'best'" in learn_refused(photos, tmp_path, "--recipe", "best")
    assert "''" in learn_refused(photos, tmp_path, "--recipe", "")
    recipe.write_text("a cat\n")
    assert "'dog'" in learn_refused(photos, tmp_path, "--captions", recipe)
    assert "--preview" in learn_refused(photos, tmp_path, "--patience", 1)
    (photos / "d.png").write_bytes(b"not a picture")
    assert "d.png" in learn_refused(photos, tmp_path)


def test_outputs_that_cannot_be_written(photos: Path, tmp_path: Path) -> None:
    command = ("learn", photos, "--class", "dog", "--model", tmp_path / "absent", "--out")
    (tmp_path / "mine.safetensors").write_text("dear")
    for out in (tmp_path / "mine.safetensors" / "rex.safetensors", tmp_path / f"{'x' * 300}.safetensors"):
        assert out.name[:9] in refused(*command, out).replace("mine.safetensors", out.name)
    assert "rex.pt" in refused(*command, tmp_path / "rex.pt")
    assert "--replace" in refused(*command, tmp_path / "mine.safetensors")
    assert "absent" in refused(*command, tmp_path / "mine.safetensors", "--replace")  # only the model is not there
    assert (tmp_path / "mine.safetensors").read_text() == "dear"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_a_library_whose_lock_is_no_file_is_told_before_the_work(photos: Path, tmp_path: Path, kind: str) -> None:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    lock, other = shelf / ".lock", tmp_path / "other"
    other.write_text("dear")
    if kind == "link":
        lock.symlink_to(other)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    learn = ("learn", photos, "--class", "dog", "--name", "rex", "--library", shelf, "--model", tmp_path / "absent")
    assert f"{lock} is in the way" in refused(*learn)
    assert other.read_text() == "dear"


def test_what_fails_after_the_residual_is_kept_is_a_warning(
    command: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(_: object) -> None:
        raise RuntimeError("CUDA out of memory.")

    monkeypatch.setattr("cones2.learning.learner.LearnStep.displacement", no_memory)
    result = run(*command, "--out", tmp_path / "rex.safetensors")
    assert "warning: how far other words moved could not be measured: CUDA out of memory." in result.stderr
    assert Residual.load(tmp_path / "rex.safetensors").class_word == "dog"
    assert not (tmp_path / ".rex.learning").exists()


def test_models_and_devices_that_cannot_be_opened(command: tuple[object, ...], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out" / "rex.safetensors")
    assert "--model" in refused(*command, *out, "--model", tmp_path)
    assert "nobody/nothing" in refused(*command, *out, "--model", "nobody/nothing")
    assert "'tpu'" in refused(*command, *out, "--device", "tpu")
    assert "'int8'" in refused(*command, *out, "--dtype", "int8")
    assert "0" in refused(*command, *out, "--steps", 0)
    assert not (tmp_path / "out").exists()


# Checking photos, and many subjects


def test_photos_are_checked(photos: Path, small_folder: Path) -> None:
    result = run("check", photos, "--model", small_folder)
    assert "64x64" not in result.stdout
    assert "256x256, sharpness" in result.stdout
    assert result.stdout.splitlines()[-1] == "3 photos, no remarks."
    report = json.loads(run("check", photos / "a.png", photos / "b.png", "--model", small_folder, "--json").stdout)
    assert report["size"] == 64
    assert [Path(photo["path"]).name for photo in report["photos"]] == ["a.png", "b.png"]
    assert [finding["kind"] for finding in report["findings"]] == ["count"]


def test_photos_of_real_things_and_unknown_class_words_are_told_on_mini(photos: Path, tmp_path: Path) -> None:
    shown = run("check", photos).stdout
    assert "real things" in shown
    assert shown.splitlines()[-1] == "3 photos, 1 remark."
    one = run("check", REX / "0.png").stdout.splitlines()
    assert one[-1] == "1 photo, 1 remark."  # there are too few
    learn = ("learn", photos, "--class", "dachshund", "--out", tmp_path / "rex.safetensors", "--steps", 1)
    assert re.search("dog, cat, .*--force", refused(*learn))
    result = run(*learn, "--force", "--json")
    assert result.stderr.count("real things") == 1
    assert "real things" in json.loads(result.stdout)["findings"][0]

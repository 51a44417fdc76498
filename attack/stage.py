"""A small world on disk: photos, a library, files to replace; and every command that reads or writes there."""

import hashlib
import io
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import CLIPConfig, CLIPModel

from children import Work, cli, library_call
from cones2.batch import read, read_job, run, verify
from cones2.errors import OutputError
from cones2.layout import Layout
from cones2.learning.learner import learn_steps
from cones2.learning.recipe import Recipe
from cones2.library import Library
from cones2.photos import load_photos
from cones2.pipeline import Cones2Pipeline
from cones2.png import write_picture
from loaders import GOLDEN, a_residual

RECIPE = Recipe(steps=6, batch_size=1, learning_rate=1e-3, captions_per_step=1, caption_count=2, views_per_photo=1)
_PROMPT = "a {rex} and a {cup}"
_BATCH = """
model = "../model"
recipe = "recipe.toml"
lease = 2
[subjects.ann]
photos = "photos"
class_word = "dog"
[[pictures]]
prompt = ["a {ann}", "a mug"]
seed = [1, 2]
num_inference_steps = 1
"""
_BATCH_MAKES = 4  # pictures


@dataclass(frozen=True)
class Command:
    """A way to use a stage.

    Attributes:
        name: in the report.
        work: what it does in a stage's folder.
        again: what a user runs after it failed; None is the same.
    """

    name: str
    work: Callable[[Path], Work]
    again: Callable[[Path], Work] | None = None


def make_stage(folder: Path, pipe: Cones2Pipeline) -> Path:
    """Make the world in a new folder."""
    photos, old = folder / "photos", folder / "old"
    for each in (photos, old):
        each.mkdir(parents=True)
    picture = Image.merge("RGB", [Image.radial_gradient("L").resize((64, 64))] * 3)
    picture.save(photos / "a.png")
    picture.rotate(90).save(photos / "b.jpg")
    rex, momo = a_residual(pipe), a_residual(pipe, 0.2)
    library = Library(folder / "library")
    for name, residual in {"rex": rex, "momo": momo}.items():
        library.add(name, residual)
    rex.save(old / "rex.safetensors")
    layout = Layout.of({"rex": (0, 0, 0.5, 1), "cup": (0.5, 0, 1, 1)})
    layout.save(folder / "layout.json")
    layout.save(old / "layout.json")
    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 1, "height": 64, "width": 64}
    drawn = pipe(_PROMPT, layout, subjects={"rex": rex, "cup": "mug"}, **options)
    write_picture(old / "picture.png", drawn.images[0], drawn.records[0])
    shutil.copyfile(GOLDEN / "sampler_cat.pt", folder / "cat.pt")
    (folder / "recipe.toml").write_text('preset = "direct"\nsteps = 2\nbatch_size = 1\nviews_per_photo = 1\n')
    subjects = "".join(f'[subjects.{name}]\nphotos = "photos"\nclass_word = "dog"\n' for name in ("ann", "bob"))
    (folder / "subjects.toml").write_text(f'recipe = "recipe.toml"\n{subjects}')
    part = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = part | {"vocab_size": 9, "bos_token_id": 0, "eos_token_id": 1}
    vision = part | {"image_size": 16, "patch_size": 8}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=4)).save_pretrained(folder / "clip")
    (folder / "job.toml").write_text('steps = 1\nseed = 7\nsubject = ["rex"]\nplain = ["cup=mug"]\n')
    (folder / "batch.toml").write_text(_BATCH)
    for _ in run(read_job(folder / "batch.toml"), folder / "drawn"):
        pass
    (folder / "drawn" / "data" / "orphan.tar").write_bytes(b"of a worker that was killed")
    return folder


def commands(model: Path, pipe: Cones2Pipeline) -> list[Command]:
    """Return every command; `model` is outside of the stage, `pipe` the same opened."""
    two = ("--subject", "rex", "--plain", "cup=mug", "--model", model)

    def command(name: str, *arguments: object, more: tuple[object, ...] = ("--replace",)) -> Command:
        def at(folder: Path, extra: tuple[object, ...] = ()) -> Work:
            placed = (
                each.replace("AT", str(folder)) if isinstance(each, str) else each for each in (*arguments, *extra)
            )
            return cli(*placed)

        return Command(name, at, lambda folder: at(folder, more))

    learned = ("--class", "dog", "--recipe", "AT/recipe.toml", "--model", model, "--library", "AT/library")
    shelf = ("--library", "AT/library")
    return [
        command("learn", "learn", "AT/photos", *learned, "--name", "new"),
        command(
            "learn, previews",
            "learn",
            "AT/photos",
            *learned,
            "--out",
            "AT/old/rex.safetensors",
            "--preview",
            1,
            "--replace",
            more=(),
        ),
        command(
            "learn, CLIP",
            "learn",
            "AT/photos",
            *learned,
            "--out",
            "AT/old/rex.safetensors",
            "--preview",
            1,
            "--clip",
            "AT/clip",
            "--replace",
            more=(),
        ),
        Command(
            "learn, checkpoints",
            lambda folder: learning(folder, pipe),
            lambda folder: learning(folder, pipe, resume=True),
        ),
        command(
            "compose, a file",
            "compose",
            _PROMPT,
            *two,
            *shelf,
            "--layout",
            "AT/layout.json",
            "--out",
            "AT/old/picture.png",
            "--steps",
            1,
            "--seed",
            5,
            "--attention",
            "--save-layout",
            "AT/old/layout.json",
            "--latents",
            "AT/old/latents.safetensors",
            "--replace",
            more=(),
        ),
        command(
            "compose, a folder",
            "compose",
            _PROMPT,
            *two,
            *shelf,
            "--config",
            "AT/job.toml",
            "-n",
            2,
            "--out",
            "AT/new",
            more=(),
        ),
        command("compose, again", "compose", "--from", "AT/old/picture.png", "--model", model, "--out", "AT/new.png"),
        command(
            "layout",
            "layout",
            "AT/layout.json",
            "--box",
            "hat=0,0,1,0.2",
            "--out",
            "AT/old/layout.json",
            "--replace",
            more=(),
        ),
        command("layout, drawn", "layout", "AT/layout.json", "--out", "AT/layout.png"),
        command("import", "import", "AT/cat.pt", "--class", "cat", "--model", model, "--out", "AT/cat.safetensors"),
        command("mix", "mix", "rex", "momo", *shelf, "--out", "AT/old/rex.safetensors", "--replace", more=()),
        command("subjects add", "subjects", "add", "new", "AT/old/rex.safetensors", *shelf),
        command(
            "subjects add, replace", "subjects", "add", "momo", "AT/old/rex.safetensors", "--replace", *shelf, more=()
        ),
        command("subjects rename", "subjects", "rename", "rex", "max", *shelf),
        command("subjects remove", "subjects", "remove", "rex", "--yes", *shelf, more=()),
        command("subjects list", "subjects", "list", *shelf, more=()),
        command("subjects show", "subjects", "show", "rex", *shelf, more=()),
        command("inspect, a residual", "inspect", "AT/old/rex.safetensors", more=()),
        command("inspect, a picture", "inspect", "AT/old/picture.png", more=()),
        command("doctor", "doctor", more=()),
        command("check", "check", "AT/photos", "--model", model, more=()),
        Command("batch", lambda folder: cli("batch", *_batch_at(folder)), batch_again),
        command("batch plan", "batch", "plan", "AT/batch.toml", more=()),
        command("batch status", "batch", "status", "AT/drawn", more=()),
        command("batch gallery", "batch", "gallery", "AT/drawn", more=()),
        command("batch sheet", "batch", "sheet", "AT/drawn", "--sheet", "AT/old/picture.png", "--replace", more=()),
        command("batch subjects", "batch", "subjects", "AT/drawn", "--add", *shelf),
        command("batch verify", "batch", "verify", "AT/drawn", "--sweep", more=()),
        command("demo", "demo", "--model", model, "--learn-steps", 1, "--steps", 1, "--out", "AT/demo"),
    ]


def learning(folder: Path, pipe: Cones2Pipeline, *, resume: bool = False) -> Work:
    """Return the work of learning with a checkpoint after each step."""

    def learn() -> None:
        photos = load_photos(folder / "photos")
        state = folder / "state"
        steps = learn_steps(pipe.pipeline, photos, "dog", RECIPE, checkpoint=state, checkpoint_every=1, resume=resume)
        *_, last = steps
        last.residual.save(folder / "learned.safetensors")

    return library_call(learn)


def _batch_at(folder: Path) -> tuple[object, ...]:
    return (folder / "batch.toml", "--out", folder / "many")


def batch_again(folder: Path) -> Work:
    """Return the work of running a batch again, and of comparing what it made with what the stage was made with."""

    def go_on() -> None:
        for _ in run(read_job(folder / "batch.toml"), folder / "many"):
            pass
        found = verify(folder / "many")
        if (found.sound, found.problems, found.doubled) != (_BATCH_MAKES, [], []):
            raise OutputError(f"{found.sound} pictures are sound: {found}")
        usual, made = (sorted(pixels(result.content) for result in read(folder / name)) for name in ("drawn", "many"))
        if usual != made:
            raise OutputError("other pictures than in a batch that nothing disturbed")

    return library_call(go_on)


def pixels(content: bytes) -> str:
    """Return the hash of a PNG's pixels: what else is in it names the folder."""
    with Image.open(io.BytesIO(content)) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


def snapshot(folder: Path) -> dict[str, str]:
    """Return the hash of every file in a folder by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}

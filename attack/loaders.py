"""Every door through which a file of a stranger comes in, with sound files to begin from."""

import functools
import io
import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from PIL import Image

from cones2.batch.job import read_job as read_batch
from cones2.captions import read_captions
from cones2.cli import app
from cones2.cli.options import read_job
from cones2.cones_v2.config import ConesV2Config
from cones2.cones_v2.tensor import read_tensor
from cones2.examples import EXAMPLES
from cones2.layout import Layout
from cones2.learning.checkpoints import Checkpoints
from cones2.learning.recipe import Recipe
from cones2.models import facts_of, open_pipeline
from cones2.photos import load_photos
from cones2.pipeline import Cones2Pipeline
from cones2.png import write_picture
from cones2.redraw import PictureRecord
from cones2.residual import EncoderId, Residual, ResidualPart
from cones2.shapes import Mask
from mutations import Change, of_bytes, of_json, of_lines, of_png, of_safetensors, of_toml, of_torch

ROOT = Path(__file__).parents[1]
TINY = ROOT / "tests" / "data" / "golden" / "tiny"
GOLDEN = TINY.parent


@dataclass(frozen=True)
class Loader:
    """A way in.

    Attributes:
        name: in the table.
        file: where the changed file is put before it is loaded.
        sound: contents to begin from.
        changes: that suit the format; `of_bytes` is always among them.
        load: reads `file` and makes use of what comes out.
        share: how many of a run's inputs are its, compared with others.
    """

    name: str
    file: Path
    sound: Sequence[bytes]
    changes: Sequence[Change]
    load: Callable[[], object]
    share: float = 1.0


def small_model(folder: Path) -> Path:
    """Copy the tiny model of the tests, so that it draws 64 pixels and can be damaged."""
    shutil.copytree(TINY, folder, copy_function=shutil.copyfile)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    config = folder / "unet" / "config.json"
    config.write_text(config.read_text().replace('"sample_size": 96', '"sample_size": 8'))
    return folder


def a_residual(pipe: Cones2Pipeline, value: float = 0.1) -> Residual:
    """Make a residual for a dog that fits a pipeline."""
    from cones2.cones_v2.tensor import encoder_of

    vector = torch.full((1, encoder_of(pipe).width), value)
    part = ResidualPart(encoder_of(pipe), tuple(pipe.pipeline.tokenizer.tokenize("dog")), vector)
    return Residual("dog", (part,), {"steps": 3, "seed": 0}, ("a" * 64,), "0.1.0")


def loaders(folder: Path) -> list[Loader]:
    """Make sound files of every kind in an empty folder, and return the loaders for them."""
    model = small_model(folder / "model")
    pipe = Cones2Pipeline.from_pretrained(model, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    small = functools.partial(_loader, folder)
    return [
        *_of_subjects(small, folder, pipe),
        *_of_pictures(small, folder, pipe),
        *_of_texts(small, folder),
        *_of_models(model),
    ]


def _loader(
    folder: Path, name: str, load: Callable[[Path], object], sound: Sequence[bytes], *changes: Change
) -> Loader:
    file = folder / name.replace(" ", "-") / f"file{_SUFFIXES.get(name, '')}"
    file.parent.mkdir()
    return Loader(name, file, sound, (*changes, of_bytes), functools.partial(load, file))


_SUFFIXES = {
    "residual": ".safetensors",
    "authors' residual": ".pt",
    "picture record": ".png",
    "mask of a photo": ".png",
}
_SUFFIXES |= {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "AVIF": ".avif", "mask": ".png"}


def _of_subjects(small: Any, folder: Path, pipe: Cones2Pipeline) -> list[Loader]:
    residual = a_residual(pipe)
    other = Residual("old hat", (_wide(0), _wide(1)), {}, (), "0.1.0")
    sound = [each.to_bytes() for each in (residual, other, EXAMPLES["rex"].residual)]
    states = folder / "states"
    with Checkpoints(states, {"seed": 1}).held():
        Checkpoints(states, {"seed": 1}).save(3, {"parameter.0": torch.ones(1, 32)})
    manifest, state = (states / f"step-00000003{suffix}" for suffix in (".json", ".safetensors"))

    def resume() -> object:
        return Checkpoints(states, {"seed": 1}).load()

    return [
        small("residual", _use_residual, sound, of_safetensors, of_safetensors),
        small("authors' residual", read_tensor, [(GOLDEN / "sampler_cat.pt").read_bytes()], of_torch, of_torch),
        Loader("checkpoint, manifest", manifest, [manifest.read_bytes()], (of_json, of_bytes), resume, 0.3),
        Loader("checkpoint, state", state, [state.read_bytes()], (of_safetensors, of_bytes), resume, 0.3),
    ]


def _wide(number: int) -> ResidualPart:
    role = f"text_encoder{'_2' * number}"
    encoder = EncoderId(role, "a model", 8 + number, "b" * 64, (0.5, -1.0, 2.0))
    return ResidualPart(encoder, ("old</w>", "hat</w>"), torch.ones(2, 8 + number))


def _use_residual(path: Path) -> None:
    residual = Residual.load(path)
    again = Residual.from_bytes(residual.to_bytes())
    _expect(again.sha256 == residual.sha256, "a residual is the same when it was written and read")
    _expect(all(bool(part.vector.isfinite().all()) for part in residual.parts), "a residual is finite")


def _of_pictures(small: Any, folder: Path, pipe: Cones2Pipeline) -> list[Loader]:
    subjects: Any = {"rex": a_residual(pipe)}
    layout: Any = {"rex": (0, 0, 0.5, 1), "cup": (0.5, 0, 1, 1)}
    subjects["cup"] = "mug"
    drawn = pipe("a {rex} and a {cup}", layout, subjects=subjects, seed=1, num_inference_steps=1, height=64, width=64)
    write_picture(folder / "made.png", drawn.images[0], drawn.records[0])
    photo, grey = Image.radial_gradient("L").resize((48, 40)), Image.linear_gradient("L").resize((48, 40))
    colours = Image.merge("RGB", (photo, grey, photo))
    mask_of = folder / "photo" / "file.png"
    mask_of.parent.mkdir()
    colours.save(mask_of)
    deep = Image.fromarray(np.asarray(photo).astype(np.uint16) * 257)
    pngs = [_as("PNG", each) for each in (colours, grey, photo.convert("P"), photo.convert("LA"), deep)]
    jpegs = [
        _as("JPEG", colours, exif=_exif()),
        _as("JPEG", grey, progressive=True),
        _as("JPEG", colours.convert("CMYK")),
    ]
    webps = [_as("WEBP", colours, exif=_exif()), _as("WEBP", photo.convert("LA"), lossless=True)]
    webps.append(_as("WEBP", colours, save_all=True, append_images=[colours.rotate(90)]))
    return [
        small("picture record", _use_record, [(folder / "made.png").read_bytes()], of_png, of_png),
        small("JPEG", _use_photo, jpegs),
        small("PNG", _use_photo, pngs, of_png),
        small("WebP", _use_photo, webps),
        small("AVIF", _use_photo, [_as("AVIF", colours)]),
        small("mask", Mask.load, pngs, of_png),
        small("mask of a photo", lambda path: load_photos([mask_of], masks=path.parent), pngs[1:2], of_png),
    ]


def _as(kind: str, image: Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "a dog"
    return exif


def _use_record(path: Path) -> None:
    record = PictureRecord.load(path)
    if record.seeds:
        record.arguments({})


def _use_photo(path: Path) -> None:
    (photo,) = load_photos(path)
    _expect(photo.image.mode == "RGB" and photo.image.tobytes() != b"", "a photo has pixels")


def _of_texts(small: Any, folder: Path) -> list[Loader]:
    examples = ROOT / "examples"
    layouts = [(examples / "beach.json").read_bytes(), _layout_of_all_shapes()]
    recipe = b'preset = "direct"\nsteps = 30\nlearning_rate = 1e-3\nbatch_size = 2\naveraged = false\n'
    official = (GOLDEN / "official.json").read_bytes()
    config = small("authors' config", ConesV2Config.load, [official], of_json, of_json)
    for name in ("sampler_cat.pt", "sampler_teapot.pt", "sampler_layout.png"):
        shutil.copyfile(GOLDEN / name, config.file.parent / name)
    facts = (
        b'{"guidance_scale": 7.5, "recipe": "mini", "draws": "dogs", "lexicon": ["a", "dog"], "class_words": ["dog"]}'
    )
    about = folder / "about" / "cones2.json"
    about.parent.mkdir()
    manifest = (examples / "batch" / "subjects.toml").read_bytes()
    return [
        small("layout", _use_layout, layouts, of_json, of_json),
        small("recipe", Recipe.from_toml, [recipe], of_toml, of_toml),
        small("job", _use_job, [(examples / "job.toml").read_bytes()], of_toml, of_toml),
        small("batch", read_batch, [manifest, manifest + b"seed = 3\nmasks = 'm'\n"], of_toml, of_toml),
        small(
            "captions",
            lambda path: read_captions(path, "dog"),
            [b"a dog\nthe dog by the sea\n\na photo of a dog"],
            of_lines,
        ),
        config,
        Loader("cones2.json", about, [facts], (of_json, of_json, of_bytes), lambda: facts_of(about.parent)),
    ]


def _layout_of_all_shapes() -> bytes:
    mask = Mask.from_image(Image.radial_gradient("L").resize((16, 16)))
    regions: dict[str, Any] = {
        "rex": {"shapes": [[0, 0, 0.5, 1]], "z": 1, "feather": 0.1, "weight": 1.5},
        "cup": {"polygon": [[0.1, 0.9], [0.3, 0.2], [0.5, 0.9]]},
        "hat": mask,
        "sky": "rest",
    }
    return Layout.of(regions).to_json().encode()


def _use_layout(path: Path) -> None:
    layout = Layout.load(path)
    _expect(Layout.from_json(layout.to_json()).to_json() == layout.to_json(), "a layout is the same when read again")


def _use_job(path: Path) -> None:
    command: Any = typer.main.get_command(app)
    command = command.commands["compose"]
    read_job(command.context_class(command), None, path)


def _of_models(model: Path) -> list[Loader]:
    """Return loaders of each JSON file and each file of weights of a model's folder; opening it takes 0.2 s."""
    found = []
    for file in sorted([*model.rglob("*.json"), *model.rglob("*.safetensors")]):
        change = of_json if file.suffix == ".json" else of_safetensors
        name = str(file.relative_to(model))
        found.append(
            Loader(name, file, [file.read_bytes()], (change, change, of_bytes), lambda: _use_model(model), 0.02)
        )
    return found


def _use_model(model: Path) -> None:
    open_pipeline(str(model), device="cpu")


def _expect(truth: bool, what: str) -> None:
    if not truth:
        raise AssertionError(what)


def silence() -> None:
    """Ignore warnings: what a file is warned of is no fault."""
    warnings.simplefilter("ignore")

"""What draws and learns in a batch: a model that is opened once, and `Composer`, the same for pipelines of Ray Data."""

import hashlib
import json
import platform
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from cones2.batch.job import LISTS
from cones2.batch.plan import Lesson, weights_of
from cones2.batch.store import Store
from cones2.captions import read_captions
from cones2.errors import ModelError, PhotoError, ResidualError
from cones2.files import make_folder, write_atomically
from cones2.layout import Layout
from cones2.learning.data import judge_photos
from cones2.learning.recipe import Recipe
from cones2.photos import Photo, load_photos
from cones2.pipeline import Cones2Pipeline
from cones2.png import write_picture
from cones2.redraw import with_scheduler
from cones2.residual import Residual
from cones2.schedulers import make_scheduler
from cones2.subjects import Subject

_MOST_KEPT = 1000
"""Residuals that are kept in memory."""


class ModelHands:
    """A model, and the residuals of a batch's subjects.

    Raises:
        ModelError: the model can't be opened, or is another than the plan was made for.
    """

    def __init__(self, model: Mapping[str, Any], store: Store, *, device: str | None = None, save_memory: bool = False):
        name, config, dtype = model["name"], model["config"], model["dtype"]
        if (found := weights_of(name)) != model["weights"]:
            raise ModelError(
                f"{name} here is {found[:12]}, the batch was planned for {model['weights'][:12]}: copy it."
            )
        self._pipe = Cones2Pipeline.from_pretrained(name, device=device, dtype=dtype, config=config)
        self._pipe.set_progress_bar_config(disable=True)
        self._store, self._save_memory = store, save_memory
        self._residuals: dict[str, Residual] = {}
        self._photos: dict[str, tuple[Photo, ...]] = {}

    def draw(self, made: dict[str, Any], path: Path) -> None:
        """Draw the picture of a case.

        Raises:
            Cones2Error: as a call of the pipeline.
            OutputError: the picture can't be written.
        """
        subjects = {
            name: Subject(
                each["class_word"],
                None if each["residual"] is None else self._residual(each["residual"]),
                each["strength"],
            )
            for name, each in made["subjects"].items()
        }
        layout = None if made["layout"] is None else Layout.of(made["layout"]["regions"])
        pipe = self._pipe
        if made["scheduler"] is not None:
            pipe = with_scheduler(pipe, make_scheduler(made["scheduler"], pipe.scheduler))
        arguments = dict(made["arguments"])
        arguments |= {name: tuple(arguments[name]) for name in LISTS if arguments.get(name) is not None}
        output = pipe(made["prompt"], layout, subjects=subjects, seed=made["seed"], **arguments)
        write_picture(path, output.images[0], output.records[0])

    def learn(self, lesson: Lesson, folder: Path) -> Generator[Any, None, None]:
        """Take the steps of learning a subject; see `cones2.batch.lease.Hands`.

        Raises:
            PhotoError: its photos are others than the plan was made for, or not on this machine.
            Cones2Error: as `learn_steps`.
        """
        how = files_here(lesson, self._store, folder)
        masks = None if how["masks"] is None else Path(how["masks"])
        photos = load_photos([Path(path) for path in how["photos"]], masks=masks)
        if [photo.sha256 for photo in photos] != how["hashes"]:
            raise PhotoError(f"the photos of {lesson.name!r} have changed meanwhile: run the batch again.")
        captions = None if how["captions"] is None else read_captions(Path(how["captions"]), how["class_word"])
        recipe = None if how["recipe"] is None else Recipe(**how["recipe"])
        options = {"seed": how["seed"], "captions": captions, "force": how["force"], "save_memory": self._save_memory}
        self._photos = {lesson.id: photos}
        steps = self._pipe.learn_steps(photos, how["class_word"], recipe, checkpoint=folder, resume=True, **options)
        with closing(steps):
            yield from steps

    def report(self, lesson: Lesson, last: Any) -> dict[str, Any]:
        """Return what is to be known of a subject: losses, doubts about its photos, how far other words moved."""
        photos, moved = self._photos.pop(lesson.id), last.displacement()
        judged = judge_photos(self._pipe.pipeline, self._pipe.facts, photos)
        return {
            "name": lesson.name,
            "class_word": lesson.photographed["class_word"],
            "loss": last.loss,
            "displacement": moved and moved.relative,
            "preservation": moved and moved.preservation,
            "findings": [finding.text for finding in judged.findings],
        }

    def _residual(self, name: str) -> Residual:
        if name not in self._residuals:
            content = self._store.read(f"subjects/{name}.safetensors")
            if content is None:
                raise ResidualError(f"the subject {name[:12]} is not among those of the batch: run it again.")
            if len(self._residuals) >= _MOST_KEPT:
                self._residuals.clear()
            self._residuals[name] = Residual.from_bytes(content, origin=f"subjects/{name}.safetensors")
        return self._residuals[name]


def files_here(lesson: Lesson, store: Store, folder: Path) -> dict[str, Any]:
    """Return what makes a subject, with the files of this machine; those that it lacks come from the storage.

    Raises:
        PhotoError: the storage does not have them either.
        OutputError: they can't be written to `folder`.
    """
    how = lesson.photographed
    if all(Path(path).is_file() for path, _ in how["files"]):
        return how
    masks = how["masks"] and str(folder / "masks")
    here: dict[str, str] = {}
    for number, (path, digest) in enumerate(how["files"]):
        # Masks are found in one folder by the names of their photos, which may have come from several.
        is_mask = masks is not None and Path(path).parent == Path(how["masks"])
        place = folder / ("masks" if is_mask else f"file-{number}") / Path(path).name
        content = store.read(f"photos/{digest}")
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            problem = f"{Path(path).name} of {lesson.name!r} is not on {platform.node()}, and not in the storage"
            raise PhotoError(f"{problem}: put it at {path} on every machine, or run the batch again.")
        make_folder(place.parent)
        write_atomically(place, content)
        here[path] = str(place)
    captions = how["captions"] and here[how["captions"]]
    return {**how, "photos": [here[path] for path in how["photos"]], "masks": masks, "captions": captions}


class Composer:
    """Draws a picture for each row of a batch, as Ray Data's `map_batches` calls it; the model is opened once.

    Args:
        model: as `Cones2Pipeline.from_pretrained` takes it.
        subjects: by name, whatever `Cones2Pipeline.load_subject` takes: a library's name, a file, an example.
        **arguments: of `Cones2Pipeline`, for all rows: `layout`, `num_inference_steps`...

    Example:
        ```python
        rows = ray.data.from_items([{"prompt": "a {rex} on the beach", "seed": seed} for seed in range(1000)])
        drawn = rows.map_batches(
            cones2.batch.Composer, fn_constructor_kwargs={"subjects": {"rex": "rex"}},
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8), num_gpus=1, batch_size=16,
        )
        ```
    """

    def __init__(self, model: str = "mini", subjects: Mapping[str, Any] | None = None, **arguments: Any) -> None:
        self._pipe = Cones2Pipeline.from_pretrained(model)
        self._pipe.set_progress_bar_config(disable=True)
        for name, source in (subjects or {}).items():
            self._pipe.load_subject(name, source)
        self._arguments = arguments

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Return the batch with `image`, [rows, height, width, 3] in 8 bits, and `record`, for `prompt` and `seed`."""
        rows = zip(batch["prompt"], batch["seed"], strict=True)
        drawn = [self._pipe(str(prompt), seed=int(seed), **self._arguments) for prompt, seed in rows]
        images = np.stack([np.asarray(each.images[0]) for each in drawn])
        return {**batch, "image": images, "record": [json.dumps(each.records[0]) for each in drawn]}

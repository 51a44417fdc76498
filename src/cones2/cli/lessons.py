"""What `cones2 learn` does: check the order, learn under a bar, write the residual."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cones2.backbones import Backbone
from cones2.captions.corpus import check_class_word, read_captions
from cones2.cli.outputs import check_file
from cones2.cli.progress import follow
from cones2.errors import LearningError
from cones2.files import make_folder
from cones2.learning.loop import LearnStep, learn
from cones2.learning.recipe import Recipe, find_recipe
from cones2.photos import Photo, load_photos
from cones2.residual.residual import Residual


@dataclass(frozen=True)
class Lesson:
    """An order to learn, checked as far as it can be without a model."""

    photos: tuple[Photo, ...]
    class_word: str
    out: Path
    recipe: Recipe | None
    steps: int | None
    captions: tuple[str, ...] | None

    @classmethod
    def check(
        cls, photos: Path, class_word: str, *, out: Path, recipe: str | None, steps: int | None, captions: Path | None
    ) -> "Lesson":
        """Read all that the order names.

        Raises:
            Cones2Error: something of it can't be used.
        """
        class_word = check_class_word(class_word)
        check_file(out, suffix=".safetensors", read=Residual.load)
        return cls(
            load_photos(photos),
            class_word,
            out,
            recipe=find_recipe(recipe) if recipe else None,
            steps=steps,
            captions=read_captions(captions, class_word) if captions else None,
        )

    def give(self, backbone: Backbone, *, seed: int, resume: bool) -> dict[str, Any]:
        """Learn, write the residual, and report as JSON values."""
        began = time.monotonic()
        make_folder(self.out.parent)
        with _checkpoints_beside(self.out) as folder:
            steps = learn(
                backbone,
                self.photos,
                self.class_word,
                recipe=self._recipe_for(backbone),
                seed=seed,
                captions=self.captions,
                checkpoint=folder,
                resume=resume,
            )
            last = follow(steps, f"learning {self.out.stem}", tell=lambda step: f"loss {step.loss:.4f}")
            residual = residual_of(last)
            residual.save(self.out)
        return self._report(residual, loss=last.loss, seconds=time.monotonic() - began)

    def _recipe_for(self, backbone: Backbone) -> Recipe:
        recipe = self.recipe or find_recipe(backbone.learn_preset)
        return recipe if self.steps is None else replace(recipe, steps=self.steps)

    def _report(self, residual: Residual, *, loss: float, seconds: float) -> dict[str, Any]:
        return {
            "residual": str(self.out),
            "sha256": residual.sha256,
            "class_word": residual.class_word,
            "tokens": list(residual.tokens),
            "photos": [str(photo.path) for photo in self.photos],
            "backbone": residual.encoder.name,
            "recipe": dict(residual.recipe),
            "loss": loss,
            "seconds": round(seconds, 3),
        }


def residual_of(last: LearnStep) -> Residual:
    """Give what learning ended with."""
    assert last.residual is not None, "the last step of learning holds the residual"
    return last.residual


@contextmanager
def _checkpoints_beside(out: Path) -> Iterator[Path]:
    """Give the hidden folder of checkpoints; remove it after success, or where none was made."""
    folder = out.parent / f".{out.stem}.learning"
    try:
        yield folder
    except LearningError:  # the last good state is kept, and the folder may be another learner's
        raise
    except BaseException as error:
        if any(folder.glob("step-*.json")):
            error.add_note("The last checkpoint is kept: run the same command with --resume to go on from it.")
        else:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)

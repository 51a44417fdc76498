"""What `cones2 learn` does: check the order, learn under a bar, write the residual."""

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for, check_class_word, read_captions
from cones2.cli.outputs import check_residual
from cones2.cli.progress import waiting
from cones2.cli.watching import Looks
from cones2.errors import Cones2Warning, LearningError
from cones2.files import make_folder
from cones2.learning.checkpoints import remove_checkpoints
from cones2.learning.displacement import Displacement, unseen_displacement
from cones2.learning.loop import learn
from cones2.learning.recipe import Recipe, find_recipe
from cones2.photos import Photo, PhotoReport, load_photos, photo_report
from cones2.watching.watch import WatchedStep


@dataclass(frozen=True)
class LearnOrder:
    """An order to learn, checked as far as it can be without a model."""

    photos: tuple[Photo, ...]
    class_word: str
    out: Path
    recipe: Recipe | None
    steps: int | None
    captions: tuple[str, ...] | None

    @classmethod
    def check(
        cls,
        photos: Path,
        class_word: str,
        *,
        out: Path,
        recipe: str | None = None,
        steps: int | None = None,
        captions: Path | None = None,
        masks: Path | None = None,
        replace: bool = False,
    ) -> "LearnOrder":
        """Read all that the order names.

        Raises:
            Cones2Error: something of it can't be used.
        """
        class_word = check_class_word(class_word)
        check_residual(out, replace=replace)
        return cls(
            load_photos(photos, masks=masks),
            class_word,
            out,
            recipe=find_recipe(recipe) if recipe else None,
            steps=steps,
            captions=read_captions(captions, class_word) if captions else None,
        )

    def give(
        self, backbone: Backbone, *, seed: int, resume: bool, save_memory: bool = False, looks: Looks | None = None
    ) -> dict[str, Any]:
        """Judge the photos, learn, look at it on the way, write the residual, and report as JSON values.

        Raises:
            Cones2Error: nothing can be learned from a photo, or learning fails.
        """
        began = time.monotonic()
        recipe = self._recipe_for(backbone)
        captions = self.captions or captions_for(self.class_word, count=recipe.caption_count, lexicon=backbone.lexicon)
        judged = self._judge(backbone)
        make_folder(self.out.parent)
        with _checkpoints_beside(self.out, resume=resume) as folder:
            steps = learn(
                backbone,
                self.photos,
                self.class_word,
                recipe=recipe,
                seed=seed,
                captions=captions,
                checkpoint=folder,
                resume=resume,
                save_memory=save_memory,
            )
            last = (looks or Looks()).follow(
                steps, backbone, self.photos, class_word=self.class_word, out=self.out, checkpoint=folder
            )
            last.residual.save(self.out)
        moved = self._measure_displacement(backbone, last, captions)
        return self._report(last, judged, displacement=moved, seconds=time.monotonic() - began)

    def _judge(self, backbone: Backbone) -> PhotoReport:
        with waiting("looking at the photos"):
            judged = photo_report(self.photos, size=min(backbone.default_size))
        judged.check()
        for finding in judged.findings:
            warnings.warn(finding.text, Cones2Warning, stacklevel=2)
        return judged

    def _measure_displacement(
        self, backbone: Backbone, last: WatchedStep, captions: Sequence[str]
    ) -> Displacement | None:
        """Measure how far other words moved.

        None where the encoder was tuned further than to the best look, or no captions can be held out, as when the
        lexicon is small.
        """
        is_tuned = last.learned.tuned is not backbone
        if is_tuned and last.best is not None and last.best.step < last.step:
            return None
        with waiting("measuring how far other words moved"):
            return unseen_displacement(backbone, last.learned.tuned, captions, class_word=self.class_word)

    def _recipe_for(self, backbone: Backbone) -> Recipe:
        recipe = self.recipe or find_recipe(backbone.learn_preset)
        return recipe if self.steps is None else replace(recipe, steps=self.steps)

    def _report(
        self, last: WatchedStep, judged: PhotoReport, *, displacement: Displacement | None, seconds: float
    ) -> dict[str, Any]:
        residual, best = last.residual, last.best
        return {
            "residual": str(self.out),
            "sha256": residual.sha256,
            "class_word": residual.class_word,
            "tokens": list(residual.tokens),
            "photos": [str(photo.path) for photo in self.photos],
            "backbone": residual.encoder.name,
            "recipe": dict(residual.recipe),
            "findings": [finding.text for finding in judged.findings],
            "steps": last.step if best is None else best.step,
            "last_step": last.step,
            "loss": last.learned.loss if best is None else best.loss,
            "identity": last.identity if best is None else best.identity,
            "displacement": displacement and displacement.relative,
            "preservation": displacement and displacement.preservation,
            "seconds": round(seconds, 3),
        }


@contextmanager
def _checkpoints_beside(out: Path, *, resume: bool) -> Iterator[Path]:
    """Give the hidden folder of checkpoints; remove it after success, or where none was made.

    Raises:
        LearningError: it holds some already, and they are not to be resumed from.
    """
    folder = out.parent / f".{out.stem}.learning"
    if not resume and any(folder.glob("step-*.json")):
        raise LearningError(
            f"a learning that was stopped waits in {folder}: add --resume to go on from it, or delete that folder."
        )
    try:
        yield folder
    except BaseException as error:
        if not any(folder.glob("step-*.json")):
            remove_checkpoints(folder)  # unless it is another learner's
        elif not isinstance(error, LearningError):
            error.add_note("The last checkpoint is kept: run the same command with --resume to go on from it.")
        raise
    remove_checkpoints(folder)

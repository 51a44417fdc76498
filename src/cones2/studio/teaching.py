"""Teaching in the worker: a job's photos become a file of the library, and what is learned meanwhile is shown."""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cones2.studio.looks import as_webp

_DRAWING = {"num_inference_steps": 12}


class Teacher:
    """Learns with a worker's model.

    Args:
        pipe: the model.
        data: the studio's folder; `library` is the subjects'.
        say: tells the server something.
        check: raises where the job is to be cancelled.
        wish: returns what is wished of the job; `finish` ends it early.
    """

    def __init__(
        self,
        pipe: Any,
        data: Path,
        library: Path,
        *,
        say: Callable[..., None],
        check: Callable[[], None],
        wish: Callable[[], str],
    ) -> None:
        self._pipe, self._data, self._library = pipe, data, library
        self._say, self._check, self._wish = say, check, wish

    def teach(self, job: str, request: Mapping[str, Any]) -> None:
        """Learn from the photos in the job's folder, from its last checkpoint on; then put that into the library."""
        from cones2.files import write_atomically
        from cones2.residual import Residual

        folder = self._data / "learning" / job
        result, thumb = folder / "result.safetensors", folder / "thumb.webp"
        if not result.exists():
            write_atomically(result, self._learned(job, request, folder).to_bytes())
        residual = Residual.load(result)
        self._shelve(request["name"], residual)
        if thumb.exists():
            write_atomically(self._data / "thumbs" / f"{residual.sha256}.webp", thumb.read_bytes())
        self._say("learned", job=job, sha256=residual.sha256, kept=residual.recipe["taken"])
        for used in ("photos", "checkpoints"):  # photos are personal: none is kept longer than it takes
            shutil.rmtree(
                folder / used, ignore_errors=True
            )  # the result stays until the job's row says that it is done

    def _learned(self, job: str, request: Mapping[str, Any], folder: Path) -> Any:
        """Return what was learned: of the last step, or where it is ended early, of the step that was most like."""
        from cones2.learning.data import as_photos
        from cones2.learning.previews import with_previews
        from cones2.learning.recipe import find_recipe

        pipe = self._pipe
        recipe = find_recipe(request["recipe"] or pipe.facts.recipe or pipe.family.recipe)
        recipe = dataclasses.replace(recipe, steps=request["steps"]) if request["steps"] else recipe
        photos, checkpoints = as_photos(sorted((folder / "photos").glob("*.png"))), folder / "checkpoints"
        every = max(5, recipe.steps // 20)
        steps = pipe.learn_steps(
            photos,
            request["class_word"],
            recipe,
            seed=request["seed"],
            checkpoint=checkpoints,
            checkpoint_every=every,
            resume=True,
            force=request["force_class"],
        )
        likeness = self._likeness(photos, request["class_word"])
        previewed = with_previews(
            steps,
            pipe,
            every=max(10, recipe.steps // 8),
            identity=likeness,
            patience=likeness and recipe.steps,  # the best is kept in mind, and nothing ends by itself
            checkpoint=checkpoints,
            drawing=_DRAWING,
        )
        residual = None
        for step in previewed:
            self._check()
            measured = {} if step.identity is None else {"likeness": step.identity}
            told = {"step": step.step, "steps": step.steps, "loss": step.learned.loss, **measured}
            self._say("step", job=job, **told, checkpoint=step.step % every == 0)
            if step.images:
                self._say("preview", job=job, webp=as_webp(step.images[0]))
            residual = step.learned.residual
            if self._wish() == "finish":
                residual = step.residual
                break
        if residual is None:
            raise RuntimeError("learning took no step")  # a recipe has at least one
        previewed.close()
        return residual

    def _likeness(self, photos: Any, class_word: str) -> Any:
        """Return the measure of pictures that `cones2 learn` takes: the model's own judge; None where it has none."""
        from cones2.errors import PhotoError
        from cones2.judge import judged_likeness, open_judge

        if class_word in self._pipe.facts.class_words:
            with suppress(PhotoError):  # the judge may not see the subject in them
                return judged_likeness(photos, class_word, open_judge())
        return None

    def _shelve(self, name: str, residual: Any) -> None:
        """Put what was learned into the library; what an earlier attempt put there is left as it is."""
        from cones2.library import Library

        library = Library(self._library)
        if not (name in library.names() and library.load(name).sha256 == residual.sha256):
            library.add(name, residual)

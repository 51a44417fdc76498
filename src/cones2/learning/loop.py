"""Learning a residual: a copy of the text encoder is tuned on photos, and its mean shift at the class word is kept.

`arXiv:2305.19327, Sec. 3.2`: L = L_sub + λ·L_reg (Eq. 4), then Δ (Eq. 5). UNet and autoencoder stay as they are.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for, check_class_word
from cones2.errors import LearningError, SettingsError
from cones2.learning.checkpoints import Checkpoints
from cones2.learning.data import warn_if_strange
from cones2.learning.lesson import Lesson
from cones2.learning.memory import idle_parts_offloaded, recomputed_activations
from cones2.learning.recipe import Recipe
from cones2.learning.study import LearnStep, Study
from cones2.photos import Photo

__all__ = ["LearnStep", "learn"]


def learn(
    backbone: Backbone,
    photos: Sequence[Photo],
    class_word: str,
    *,
    recipe: Recipe,
    seed: int = 0,
    captions: Sequence[str] | None = None,
    checkpoint: Path | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    save_memory: bool = False,
) -> Generator[LearnStep, None, None]:
    """Learn a subject's residual from its photos; the last step holds it.

    Each step draws its random numbers from `seed` and its own number: the same call gives the same residual, bit for
    bit on a CPU with the same thread count, however often it was interrupted. Unlike the authors' code: Eq. 3 as
    printed, originals from the untouched encoder also after a resume, any batch size.

    Args:
        backbone: the pretrained model; it stays as it is.
        photos: of the subject; 3 to 5 do.
        class_word: the word, or words, for its raw category.
        recipe: how to learn; `RECIPES[backbone.learn_preset]` suits the backbone.
        seed: for crops, noise, timesteps and the choice of captions.
        captions: that contain the class word; made when not given.
        checkpoint: a folder for the newest two checkpoints. Closing the generator writes one, too, unless the step
            that it is closed at says not to (`keep_on_close`).
        checkpoint_every: steps between them.
        resume: go on from the newest sound checkpoint, if there is one; without it, those in the folder are deleted.
        save_memory: from the first step to the last, compute the UNet's activations again in the backward pass rather
            than keep them, and keep what no step needs in the CPU's memory. The same residual, in more time.

    Raises:
        CaptionError: the class word or a caption can't be used.
        BackboneError: a picture that is drawn with a layout on the same backbone is not finished.
        PhotoError: a square view shows nothing of what a photo's mask marks.
        PromptError: a caption can't be split into tokens.
        LearningError: there are no photos, the folder is in use or began with other settings, or a loss is not finite.
        OutputError: a checkpoint can't be written.
        SettingsError: `checkpoint_every` is not at least 1.
    """
    class_word = check_class_word(class_word)
    _check(photos, checkpoint_every)
    warn_if_strange(backbone, photos, class_word)
    captions = captions or captions_for(class_word, count=recipe.caption_count, lexicon=backbone.lexicon)
    study = Study(Lesson.prepare(backbone, photos, class_word, captions=captions, recipe=recipe, seed=seed))
    with ExitStack() as stack:
        if save_memory:
            stack.enter_context(recomputed_activations(backbone.unet))
            stack.enter_context(idle_parts_offloaded(backbone))
        if checkpoint is None:
            yield from study.steps(after=0)
            return
        checkpoints = Checkpoints(checkpoint, study.lesson.settings())
        stack.enter_context(checkpoints.held())
        yield from _keep(checkpoints, study, every=checkpoint_every, resume=resume)


def _keep(checkpoints: Checkpoints, study: Study, *, every: int, resume: bool) -> Iterator[LearnStep]:
    """Learn, writing a checkpoint after every few steps, and when closed early."""
    after, tensors = checkpoints.load() if resume else (0, {})
    if after >= (steps := study.lesson.recipe.steps):
        advice = "Resume with more steps, or begin again without resuming"
        raise LearningError(f"can't resume: {after} steps are taken already, and steps is {steps}. {advice}.")
    if after:
        study.restore(tensors)
    else:
        checkpoints.delete()
    try:
        for step in study.steps(after):
            closing = True
            try:
                yield step
                closing = False
            finally:
                if step.step < step.steps and (study.kept_on_close if closing else step.step % every == 0):
                    checkpoints.save(step.step, study.state())
    except LearningError:  # of the step that was not taken: the one before it is the last good one
        if after < study.taken < steps:
            checkpoints.save(study.taken, study.state())
        raise


def _check(photos: Sequence[Photo], checkpoint_every: int) -> None:
    if not photos:
        raise LearningError("there are no photos to learn from: give at least 1; 3 to 5 are best.")
    if checkpoint_every < 1:
        raise SettingsError(f"checkpoint_every is {checkpoint_every}: expected at least 1 step.")

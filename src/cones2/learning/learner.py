"""Learning a residual: a copy of the text encoder is tuned on photos, and its mean shift at the class word is kept.

`arXiv:2305.19327, Sec. 3.2`: L = L_sub + λ·L_reg (Eq. 4), then Δ (Eq. 5). Or Δ itself is learned (Table A1), as always
on joint transformers. Everything in the pipeline stays as it is.
"""

import dataclasses
import functools
import importlib.metadata
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.attention import unedited
from cones2.captions import captions_for, photo_caption
from cones2.errors import LearningError, SettingsError
from cones2.families import Family, native_size
from cones2.files import expanded
from cones2.learning.checkpoints import Checkpoints, restore, state_of
from cones2.learning.data import (
    PhotoSource,
    TextReader,
    as_photos,
    check_suits,
    encode_views,
    hash_of,
    held_out_captions,
    masks_hash,
    random_numbers,
)
from cones2.learning.learnable import learnable_family
from cones2.learning.losses import Displacement, displacement
from cones2.learning.model import (
    Batch,
    CapturedStep,
    Denoiser,
    FlowDenoiser,
    backward,
    check_captured,
    diverged,
    frozen,
    memory_saved,
    model_settings,
)
from cones2.learning.recipe import Recipe, find_recipe
from cones2.learning.texts import DirectText, LearnedText, TunedText
from cones2.models import ModelFacts, facts_of
from cones2.photos import Photo
from cones2.prompts import check_class_word
from cones2.record import describe_adapters
from cones2.residual import Residual, ResidualPart
from cones2.shared import check_seed, model_alone, own_settings


@own_settings()
def learn_steps(
    pipeline: Any,
    photos: PhotoSource | Sequence[PhotoSource],
    class_word: str,
    recipe: Recipe | Path | str | None = None,
    *,
    seed: int = 0,
    captions: Sequence[str] | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 50,
    resume: bool = False,
    save_memory: bool = False,
    compile: bool = False,  # noqa: A002  # diffusers' and PyTorch's word
    force: bool = False,
) -> Generator["LearnStep", None, None]:
    """Return a generator of the steps of learning; the last one holds the subject's residual.

    All arguments are checked, and photos and captions encoded, before this returns. Each step draws its random numbers
    from `seed` and its own number: the same call gives the same residual, bit for bit on a CPU with the same number of
    threads, however often it was interrupted, and whatever else the pipeline draws meanwhile.

    Unlike the authors' code, this uses Eq. 3 as printed, and always takes originals from the untouched encoder.

    Args:
        pipeline: of a known family in any dtype, with model offloading or LoRA; it stays as it is.
        photos: a folder, or photos, PIL images or paths; 3 to 5 do.
        class_word: the word, or words, for the subject's raw category.
        recipe: a `Recipe`, the name of one, the path of a TOML file, or None for what suits the model, else `paper`;
            on joint transformers, where the residual itself is learned, `direct`.
        seed: for crops, noise, timesteps and the choice of captions.
        captions: that contain the class word; made when None. Joint transformers need none.
        checkpoint: a folder for the newest two checkpoints. One is also written when a step fails or is interrupted;
            closing the generator writes none, the caller does that by `LearnStep.save_checkpoint`.
        checkpoint_every: steps between them.
        resume: go on from the newest sound checkpoint, if there is one; without it, those in the folder are deleted.
        save_memory: keep fewer activations, and on a GPU only what a step needs; slower, and the same residual. Nothing
            else may draw while it begins or ends.
        compile: send each step to a GPU as one CUDA graph, which is faster; not with `save_memory` or offloading.
        force: learn a class word also that the model does not know.

    Raises:
        ModelError: residuals can't be learned on this model; says on which.
        CaptionError, PhotoError, PromptError, SettingsError: captions, photos or a setting can't be used.
        LearningError: there are no photos, or the checkpoint folder is in use or began with other settings; while
            learning, a loss is not finite.
        OutputError: a checkpoint can't be written.
    """
    family = learnable_family(pipeline)
    class_word = check_class_word(class_word)
    facts = facts_of(pipeline)
    recipe, seed = find_recipe(recipe or facts.recipe or family.recipe), check_seed(seed)
    if checkpoint_every < 1:
        raise SettingsError(f"checkpoint_every is {checkpoint_every}: expected at least 1 step.")
    if resume and checkpoint is None:
        raise SettingsError("resume is True, and there is no checkpoint to resume from: give the folder of one.")
    _check_fits(recipe, family, pipeline, captions)
    if compile:
        check_captured(pipeline, family, save_memory=save_memory)
    loaded = as_photos(photos)
    check_suits(facts, loaded, class_word, force=force)
    with ExitStack() as stack:
        stack.enter_context(model_alone(pipeline))
        stack.callback(pipeline.maybe_free_model_hooks)
        learner = _Learner(
            pipeline, family, facts, loaded, class_word, captions=captions, recipe=recipe, seed=seed, capture=compile
        )
    if checkpoint is not None:
        learner.checkpoints = Checkpoints(expanded(checkpoint), learner.settings())
        with learner.checkpoints.held():
            learner.begin(*(learner.checkpoints.load() if resume else (0, {})))
    return _take_steps(learner, every=checkpoint_every, save_memory=save_memory)


def _check_fits(recipe: Recipe, family: Family, pipeline: Any, captions: Sequence[str] | None) -> None:
    largest = min(native_size(pipeline))
    if (recipe.side or 0) > largest:
        raise SettingsError(f"side is {recipe.side}: expected at most {largest}, the side of this model's pictures.")
    if family.velocity is None:
        return
    if recipe.tune != "residual":
        raise SettingsError(
            f"this recipe tunes a text encoder, and on {family.name} the residual itself is learned: take the recipe"
            " 'direct', or one with tune 'residual'."
        )
    if captions is not None:
        raise SettingsError(
            f"captions are for tuning a text encoder, which {family.name} does without: leave them out."
        )


def _take_steps(learner: "_Learner", *, every: int, save_memory: bool) -> Generator["LearnStep", None, None]:
    """Take one step after the other, and write a checkpoint after every few."""
    checkpoints, began, steps = learner.checkpoints, learner.taken or 0, learner.recipe.steps
    with ExitStack() as stack:
        stack.callback(learner.end)
        if checkpoints is not None:
            stack.enter_context(checkpoints.held())
            if not began:
                checkpoints.delete()
        denoiser = getattr(learner.pipeline, learner.family.denoiser)
        stack.enter_context(frozen(denoiser))
        if save_memory:
            stack.enter_context(memory_saved(learner.pipeline, denoiser))
        for number in range(began + 1, steps + 1):
            try:
                losses = learner.take_step(number)
            except BaseException:  # of this step: the one before is the last good one
                if checkpoints is not None and learner.taken == number - 1 > began:
                    learner.save()
                raise
            step = LearnStep(number, steps, *losses, _learner=learner)
            if number == steps:
                _ = step.residual  # if it fails, this says so
            yield step
            if checkpoints is not None and number % every == 0 and number < steps:
                learner.save()


@dataclasses.dataclass(frozen=True, eq=False)
class LearnStep:
    """What one step of learning did; asked for after the next step is taken, it is a `LearningError`.

    Attributes:
        step: this step, from 1.
        steps: how many there are.
        loss: L of Eq. 4, before this step's update.
        subject_loss: its first term, Eq. 2.
        preservation_loss: Eq. 3, not yet weighted by λ; 0 where the residual itself is learned.
    """

    step: int
    steps: int
    loss: float
    subject_loss: float
    preservation_loss: float
    _learner: "_Learner" = dataclasses.field(repr=False)

    @functools.cached_property
    def residual(self) -> Residual:
        """What was learned up to this step, from all captions (Eq. 5); a `LearningError` where it is not finite."""
        return self._current().residual()

    @property
    def tuned_encoders(self) -> tuple[Any, ...]:
        """The tuned copies of the text encoders, which the next step tunes further; none if Δ itself is learned."""
        return self._current().text.encoders

    def displacement(self) -> Displacement | None:
        """Measure how far other words moved, on captions that were not learned from; None if none can be held out."""
        return self._current().displacement()

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, for instance before closing the generator.

        Does nothing at the last step, if there is one already, or if the next step was interrupted in its update.

        Raises:
            LearningError: the generator is closed, or there is no folder for checkpoints.
            OutputError: it can't be written.
        """
        learner = self._learner
        if learner.taken is not None and learner.saved != self.step < self.steps:
            self._current().save()

    def _current(self) -> "_Learner":
        if self._learner.taken != self.step:
            raise LearningError(
                f"step {self.step} is gone: learning is at step {self._learner.taken}. Ask for what a step has learned"
                " before taking the next one."
            )
        return self._learner


class _Learner:
    """What is being learned, what it is learned from, and how far that has come.

    There are two ways, which `texts.py` has. As the paper does, the text encoders' copies are tuned by Eq. 4, and Δ is
    their mean shift at the class word. With `tune = "residual"` Δ itself is learned by Eq. 2.

    The text that Stable Diffusion XL pools comes from the untouched encoder, in learning as in drawing: no residual
    could give back what a tuned one put there.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        facts: ModelFacts,
        photos: Sequence[Photo],
        class_word: str,
        *,
        captions: Sequence[str] | None,
        recipe: Recipe,
        seed: int,
        capture: bool,
    ) -> None:
        self.pipeline, self.family, self.facts, self.recipe, self.seed = pipeline, family, facts, recipe, seed
        self.photos, self.class_word = tuple(photos), class_word
        self.checkpoints: Checkpoints | None = None
        self.taken: int | None = 0  # None while a step changes what is learned
        self.saved = 0
        self.adapters = describe_adapters(pipeline)
        self.captions: tuple[str, ...] = ()
        self.text, self.denoiser = self._read_text(captions)
        self.views = encode_views(pipeline, photos, recipe.views_per_photo, random_numbers(seed, 0), recipe.side)
        self.parameters = self.text.parameters
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )
        self.captured = CapturedStep(self._compute, self.parameters) if capture else None

    def _read_text(self, captions: Sequence[str] | None) -> tuple[LearnedText, Denoiser | FlowDenoiser]:
        """Return what is learned of the text, and the denoiser that reads it."""
        pipeline, family, recipe = self.pipeline, self.family, self.recipe
        model = self.facts.name or type(pipeline).__name__
        if family.velocity is not None:
            direct = DirectText.of_pipeline(pipeline, family, self.class_word, recipe, model)
            return direct, FlowDenoiser.of(pipeline, family, direct.pooled)
        made = captions or captions_for(self.class_word, count=recipe.caption_count, lexicon=self.facts.lexicon)
        self.captions = tuple(made)
        reader = TextReader.copy_of(pipeline, family)
        read = reader.tokenize(self.captions, self.class_word)
        prompt = reader.tokenize([photo_caption(self.class_word)], self.class_word)
        with torch.no_grad():
            side = recipe.side or min(native_size(pipeline))
            added = family.added_conditions(reader.encoders, prompt.input_ids, side)
        denoiser = Denoiser.of(pipeline, added)
        if recipe.tune == "residual":
            return DirectText.of_reader(reader, prompt, recipe, model), denoiser
        return TunedText(reader, read, prompt, recipe.tune, model), denoiser

    @own_settings()
    def take_step(self, number: int) -> tuple[float, float, float]:
        """Take a step of AdamW; return L, L_sub and L_reg before it. LearningError where one is not finite."""
        inputs = self._draw(random_numbers(self.seed, number))
        with torch.enable_grad(), unedited(), model_alone(self.pipeline):
            if self.captured is None:
                self.optimizer.zero_grad()
                losses = self._compute(inputs)
            else:
                losses = self.captured(inputs, self.denoiser.device)
        total, first, second, size = losses.tolist()
        if not math.isfinite(total + size):
            raise diverged(f"loss {total}, gradient {size} at step {number} of {self.recipe.steps}", self.recipe)
        self.taken = None
        self.optimizer.step()
        self.text.after_step(number)
        self.taken = number
        return total, first, second

    def _draw(self, draw: torch.Generator) -> tuple[Tensor, ...]:
        """Draw which captions and noised photos a step reads, on the CPU."""
        count = 0 if self.recipe.tune == "residual" else self.recipe.captions_per_step
        rows = torch.randint(self.text.caption_count, (count,), generator=draw, dtype=torch.long, device="cpu")
        batch = self.denoiser.draw(self.views, self.recipe.batch_size, draw)
        return rows, *(each for each in batch if each is not None)

    def _compute(self, inputs: Sequence[Tensor]) -> Float[Tensor, "4"]:
        """Return L, L_sub, L_reg and the gradient's norm, and leave the gradient at what is learned."""
        rows, latents, target, timesteps, *weights = inputs
        prompt, preservation = self.text.read(rows)
        batch = Batch(latents, target, timesteps, weights[0] if weights else None)
        subject = self.denoiser.loss(prompt, batch)  # Eq. 2
        loss = subject + self.recipe.preservation_weight * preservation  # Eq. 4
        norm = backward(loss, self.parameters, self.denoiser.dtype)
        return torch.stack([loss.detach(), subject.detach(), preservation.detach(), norm])

    @own_settings()
    def residual(self) -> Residual:
        """Return Δ so far, by Eq. 5 over all captions or as learned directly; LearningError where it is not finite."""
        vectors = self.text.vectors()
        if not all(vector.isfinite().all() for vector in vectors):
            raise diverged("the residual is not finite", self.recipe)
        parts = zip(self.text.encoder_ids, self.text.class_tokens, vectors, strict=True)
        return Residual(
            class_word=self.class_word,
            parts=tuple(ResidualPart(encoder, tokens, vector.clone()) for encoder, tokens, vector in parts),
            recipe=self._how_learned(),
            photos=tuple(photo.sha256 for photo in self.photos),
            tool_version=importlib.metadata.version("cones2"),
        )

    @own_settings()
    def displacement(self) -> Displacement | None:
        """Measure how far other words moved, on captions that were not learned from."""
        if not isinstance(self.text, TunedText):
            return Displacement(0.0, 0.0)
        unseen = held_out_captions(self.class_word, self.captions, lexicon=self.facts.lexicon)
        if not unseen:
            return None
        untouched = TextReader.copy_of(self.pipeline, self.family)
        captions = untouched.tokenize(unseen, self.class_word)
        return displacement(self.text.reader.compare(captions, untouched.embed(captions)))

    def _how_learned(self) -> dict[str, Any]:
        """Return what a residual's file says: the recipe, steps taken, the seed, hashes of captions, masks and LoRA."""
        recipe = {name: value for name, value in dataclasses.asdict(self.recipe).items() if value is not None}
        learned = {"taken": self.taken or 0, "seed": self.seed, "captions": hash_of(self.captions)}
        learned["masks"] = masks_hash(self.photos)
        return recipe | learned | ({"adapters": self.adapters} if self.adapters else {})

    def settings(self) -> dict[str, Any]:
        """Return all that a checkpoint's state depends on, as short JSON values: not how many steps are to follow."""
        learned = {name: value for name, value in self._how_learned().items() if name not in ("steps", "taken")}
        subject = {"class word": self.class_word, "photos": hash_of([photo.sha256 for photo in self.photos])}
        return subject | learned | model_settings(self.pipeline, self.family, self.text.encoder_ids)

    def begin(self, taken: int, state: Mapping[str, Tensor]) -> None:
        """Go on after a step, from what `save` wrote of it; LearningError where no step is left to take."""
        if taken >= self.recipe.steps:
            raise LearningError(
                f"can't resume: {taken} steps are taken already, and steps is {self.recipe.steps}. Resume with more"
                " steps, or begin again without resuming."
            )
        restore(state, self.optimizer, self.text.averages)
        self.taken = self.saved = taken

    def save(self) -> None:
        """Write a checkpoint; LearningError where there is no folder for it, or learning has ended."""
        if self.checkpoints is None or self.taken is None:
            raise LearningError("no checkpoint can be written: give a folder for them, and save before closing.")
        self.checkpoints.save(self.taken, state_of(self.optimizer, self.text.averages))
        self.saved = self.taken

    def end(self) -> None:
        """Free the memory of gradients, and give models that were offloaded back."""
        self.checkpoints = None
        self.captured = None
        self.optimizer.zero_grad()
        for parameter in self.parameters:
            parameter.requires_grad_(False)
        with model_alone(self.pipeline):
            self.pipeline.maybe_free_model_hooks()

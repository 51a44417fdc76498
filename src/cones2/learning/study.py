"""The steps of learning a residual: what stays the same, what is tuned, and one step after the other."""

import copy
import dataclasses
import functools
import hashlib
import importlib.metadata
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import photo_caption
from cones2.errors import LearningError
from cones2.learning.data import EncodedCaptions, EncodedViews, encode_captions, encode_views
from cones2.learning.objective import add_noise, mean_shift, preservation_loss, subject_loss
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones2.residual.residual import Residual

CHUNK = 50
"""Captions that are embedded at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class LearnStep:
    """What one step of `learn` did.

    Attributes:
        step: this step, from 1.
        steps: how many there are.
        loss: L of Eq. 4, before this step's update.
        subject_loss: its first term, Eq. 2.
        preservation_loss: Eq. 3, not yet weighted by λ.
        study: what is being learned, as of this step until the next one is taken.
    """

    step: int
    steps: int
    loss: float
    subject_loss: float
    preservation_loss: float
    study: "Study" = dataclasses.field(repr=False)

    @functools.cached_property
    def residual(self) -> Residual:
        """What was learned up to this step (Eq. 5, over all captions): computed when first asked for.

        Raises:
            LearningError: another step was taken before it was asked for, or it is not finite.
        """
        self._check_last()
        return self.study.residual()

    @property
    def tuned(self) -> Backbone:
        """The backbone with the tuned text encoder, to compare with; it is tuned further by the next step.

        Raises:
            LearningError: another step was taken.
        """
        self._check_last()
        return self.study.tuned

    def _check_last(self) -> None:
        if self.study.taken != self.step:
            advice = "Ask for what a step has learned before taking the next one"
            raise LearningError(f"step {self.step} is gone: learning is at step {self.study.taken}. {advice}.")


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """All that stays the same from step to step."""

    backbone: Backbone
    photos: tuple[Photo, ...]
    class_word: str
    recipe: Recipe
    seed: int
    prompt: Int[Tensor, "1 tokens"]
    added: Mapping[str, Float[Tensor, "1 numbers"]]
    captions: EncodedCaptions
    originals: Float[Tensor, "batch tokens dim"]
    views: EncodedViews

    @classmethod
    def prepare(
        cls,
        backbone: Backbone,
        photos: Sequence[Photo],
        class_word: str,
        *,
        captions: Sequence[str],
        recipe: Recipe,
        seed: int,
    ) -> "Lesson":
        """Encode captions and photos, and what the untouched encoder makes of the captions."""
        encoded = encode_captions(backbone, captions, class_word)
        prompt = encode_captions(backbone, [photo_caption(class_word)], class_word).input_ids
        size = min(backbone.default_size)
        return cls(
            backbone=backbone,
            photos=tuple(photos),
            class_word=class_word,
            recipe=recipe,
            seed=seed,
            prompt=prompt,
            added=backbone.added_conditions(prompt, height=size, width=size),
            captions=encoded,
            originals=torch.cat([backbone.embed(input_ids) for input_ids in torch.split(encoded.input_ids, CHUNK)]),
            views=encode_views(backbone, photos, recipe.views_per_photo, _generator(seed, 0)),
        )

    def settings(self, captions: Sequence[str]) -> dict[str, object]:
        """All that a checkpoint's state depends on, as short JSON values: not how many steps are to follow."""
        recipe = dataclasses.asdict(self.recipe)
        del recipe["steps"]
        return {
            **recipe,
            "seed": self.seed,
            "class word": self.class_word,
            "photos' hash": _hash([photo.sha256 for photo in self.photos]),
            "masks' hash": _hash([_mask_hash(photo) for photo in self.photos]) if self.masked else None,
            "captions' hash": _hash(captions),
            "text encoder": "+".join(part.weights for part in self.backbone.encoder_id.parts),
        }

    @property
    def masked(self) -> bool:
        """Whether a mask says what of the photos is the subject."""
        return self.views.weights is not None

    def record(self) -> dict[str, object]:
        """How the residual was learned, for its file."""
        return dataclasses.asdict(self.recipe) | {"seed": self.seed, "masked": self.masked}


class Study:
    """The text encoder, or both, being tuned, their optimiser, and the step that was taken last.

    The text that Stable Diffusion XL pools comes from the untouched encoder, in learning as in composing: what the
    tuned one put there, no residual could give back.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.taken = 0
        self.tuned = dataclasses.replace(
            lesson.backbone,
            text_encoder=copy.deepcopy(lesson.backbone.text_encoder),
            text_encoder_2=copy.deepcopy(lesson.backbone.text_encoder_2),
        )
        recipe = lesson.recipe
        self.parameters = [
            parameter.requires_grad_()
            for encoder in self.tuned.text_encoders
            for name, parameter in encoder.named_parameters()
            if recipe.tune == "all" or ".layers." in name
        ]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )

    def steps(self, after: int) -> Iterator[LearnStep]:
        """Take the steps that follow step `after`; the last one computes the residual, so that its failure is told."""
        steps = self.lesson.recipe.steps
        try:
            for number in range(after + 1, steps + 1):
                losses = self._update(number)
                self.taken = number
                step = LearnStep(number, steps, *losses, study=self)
                if number == steps:
                    self._freeze()
                    _ = step.residual
                yield step
        finally:
            self._freeze()

    def residual(self) -> Residual:
        """Compute Δ of what is tuned so far: Eq. 5.

        Raises:
            LearningError: it is not finite.
        """
        captions, originals = self.lesson.captions, self.lesson.originals
        chunks = (
            (self.tuned.embed(captions.input_ids[rows]), originals[rows], captions.own[rows])
            for rows in torch.split(torch.arange(len(originals)), CHUNK)
        )
        vector = mean_shift(chunks, captions.class_tokens)
        if not vector.isfinite().all():
            raise self._diverged("the residual is not finite")
        return _make_residual(self.lesson, vector)

    def state(self) -> dict[str, Tensor]:
        """Copy what a step changes: parameters and the optimiser's moments, by name."""
        tensors = {f"parameter.{index}": parameter.detach() for index, parameter in enumerate(self.parameters)}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}": moment for name, moment in moments.items()}
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go back to what `state` gave."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            name, index = key.split(".")
            if name == "parameter":
                self.parameters[int(index)].data.copy_(tensor)
            else:
                moments.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})

    def _update(self, step: int) -> tuple[float, float, float]:
        """Take one step of the optimiser; give L, L_sub and L_reg before it."""
        subject, preservation = _losses(self.lesson, self.tuned, _generator(self.lesson.seed, step))
        loss = subject + self.lesson.recipe.preservation_weight * preservation
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        total, first, second, size = torch.stack([loss, subject, preservation, norm]).tolist()
        if not math.isfinite(total + size):
            raise self._diverged(f"loss {total}, gradient {size} at step {step} of {self.lesson.recipe.steps}")
        self.optimizer.step()
        return total, first, second

    def _freeze(self) -> None:
        self.optimizer.zero_grad()
        for encoder in self.tuned.text_encoders:
            encoder.requires_grad_(False)

    def _diverged(self, what: str) -> LearningError:
        rate = self.lesson.recipe.learning_rate
        advice = f"Begin again with a learning_rate below {rate:g} or another dtype"
        return LearningError(f"learning diverged: {what}, expected finite numbers; no residual was written. {advice}.")


def _losses(lesson: Lesson, tuned: Backbone, draw: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """L_sub and L_reg of one step's draw, from one pass of the text encoder for the prompt and the captions."""
    rows = torch.randint(len(lesson.originals), (lesson.recipe.captions_per_step,), generator=draw)
    input_ids = torch.cat([lesson.prompt, lesson.captions.input_ids[rows]])
    embeddings = tuned.read(input_ids)
    preservation = preservation_loss(embeddings[1:], lesson.originals[rows], lesson.captions.own[rows])
    return _denoising_loss(lesson, embeddings[:1], draw), preservation


def _denoising_loss(lesson: Lesson, prompt: Float[Tensor, "1 tokens dim"], draw: torch.Generator) -> Float[Tensor, ""]:
    """Eq. 2 on a batch of photos, each with a latent, noise and a timestep of its own."""
    backbone, views = lesson.backbone, lesson.views
    rows = torch.randint(len(views.mean), (lesson.recipe.batch_size,), generator=draw)
    mean, std = views.mean[rows], views.std[rows]
    latents = mean + std * torch.randn(mean.shape, generator=draw)
    noise = torch.randn(mean.shape, generator=draw)
    alphas_cumprod = backbone.scheduler.alphas_cumprod
    timesteps = torch.randint(len(alphas_cumprod), rows.shape, generator=draw)
    noised = add_noise(latents, noise, alphas_cumprod[timesteps], backbone.prediction_type)
    inputs = noised.latents.to(backbone.device), timesteps.to(backbone.device)
    added = {name: values.expand(len(rows), -1) for name, values in lesson.added.items()}
    prediction = backbone.predict(*inputs, prompt.expand(len(rows), -1, -1), added)
    weights = None if views.weights is None else views.weights[rows].to(backbone.device)
    return subject_loss(prediction, noised.target.to(backbone.device), weights)


def _make_residual(lesson: Lesson, vector: Float[Tensor, "tokens dim"]) -> Residual:
    ids = lesson.captions.input_ids[0][lesson.captions.own[0]].tolist()[: len(vector)]
    return Residual(
        class_word=lesson.class_word,
        vector=vector,
        tokens=tuple(lesson.backbone.tokenizer.convert_ids_to_tokens(ids)),
        encoder=lesson.backbone.encoder_id,
        recipe=lesson.record(),
        photos=tuple(photo.sha256 for photo in lesson.photos),
        tool_version=importlib.metadata.version("cones2"),
    )


def _generator(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step alone, so that resuming needs no generator's state."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def _mask_hash(photo: Photo) -> str:
    return hashlib.sha256(photo.mask.tobytes()).hexdigest() if photo.mask else ""


def _hash(texts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()

"""The one trainer of all rivals: batches of noised photos and of the class's own pictures, and a step of AdamW.

All that rivals of this kind share is here, so that a difference between two rows is one between two methods: the photos
as moments of latents, uniform timesteps, the model's own prediction type, AdamW (0.9, 0.999), gradients clipped at a
norm of 1, a constant rate, float32 (arXiv:2305.19327, App. A, and diffusers' examples where it is silent). A batch
holds `batch_size` photos, the subject of each drawn uniformly, and, where the class is kept, as many pictures of the
same classes; both halves pass the UNet together and are weighed apart, as in all upstream scripts.
"""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pydantic
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cones2.baselines.base import Learned, Lesson, Step
from cones2.captions import photo_caption
from cones2.errors import LearningError, check_fields
from cones2.learning.data import Views, as_photos, encode_views, random_numbers
from cones2.learning.losses import subject_loss
from cones2.learning.model import Batch, Denoiser
from cones2.pipeline import Cones2Pipeline
from cones2.shared import own_settings

_Count = Annotated[int, pydantic.Field(ge=1, le=10**7)]
_Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
_PICTURES_AT_ONCE = 8
_ON_CPU: Mapping[str, Any] = {"dtype": torch.long, "device": "cpu"}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a rival trains.

    Attributes:
        steps: for each subject: a set of n takes n times as many.
        batch_size: noised photos in a step; the class's pictures come on top.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's; never on rows of words.
        prior_weight: of the loss on the class's own pictures; 0 leaves them out.
        views_per_photo: the whole photo, and this many less one closer crops of it, encoded once.

    Raises:
        SettingsError: a value is outside its range.
    """

    steps: _Count
    batch_size: Annotated[int, pydantic.Field(ge=1, le=999)]
    learning_rate: _Positive
    weight_decay: _NotNegative = 0.01
    prior_weight: _NotNegative = 1.0
    views_per_photo: Annotated[int, pydantic.Field(ge=1, le=999)] = 4

    def __post_init__(self) -> None:
        check_fields(self, "a training")


@dataclass(frozen=True, eq=False)
class Shown:
    """Pictures with their captions: of a subject, or of its class.

    Attributes:
        captions: for each view, those to draw one from.
    """

    views: Views
    captions: Sequence[Sequence[str]]

    @classmethod
    def of(cls, views: Views, captions: Sequence[str]) -> "Shown":
        """Return views that all have the same captions."""
        return cls(views, [captions] * len(views.mean))


@dataclass(frozen=True, eq=False)
class Material:
    """What one subject is trained on: its photos, and pictures of its class."""

    subject: Shown
    prior: Shown | None


Embed = Callable[[Sequence[str]], Float[Tensor, "texts tokens dim"]]


def materials_of(
    pipeline: Any, lessons: Mapping[str, Lesson], captions: Mapping[str, Sequence[str]], training: Training, seed: int
) -> list[Material]:
    """Encode each subject's photos under its own captions, and its class's pictures under "a photo of a CLASS".

    Raises:
        PhotoError: a photo's view shows nothing of its mask.
    """
    made = []
    for index, (name, lesson) in enumerate(lessons.items()):
        draw = random_numbers(seed + index, 0)
        views = encode_views(pipeline, lesson.pictures, training.views_per_photo, draw)
        made.append(Material(Shown.of(views, captions[name]), prior_of(pipeline, lesson, training, draw)))
    return made


def prior_of(pipeline: Any, lesson: Lesson, training: Training, draw: torch.Generator) -> Shown | None:
    """Encode the pictures that keep a class as it was; None where there are none, or they count nothing."""
    if not lesson.priors or not training.prior_weight:
        return None
    views = encode_views(pipeline, as_photos(list(lesson.priors)), 1, draw)
    return Shown.of(views, [photo_caption(lesson.class_word)])


def train(
    denoiser: Denoiser,
    materials: Sequence[Material],
    embed: Embed,
    groups: Sequence[Mapping[str, Any]],
    training: Training,
    *,
    seed: int,
    read: Callable[[], Learned],
    extra: Callable[[], Tensor] | None = None,
) -> Generator[Step, None, None]:
    """Take one step of AdamW after the other.

    Args:
        denoiser: the UNet that is trained, or through which words are.
        materials: one for each subject.
        embed: what the UNet reads of captions; with gradients where words are trained.
        groups: AdamW's parameter groups.
        training: how long and how fast.
        seed: of what each step draws.
        read: returns what is learned so far.
        extra: returns what is added to each step's loss, after its captions were embedded.

    Raises:
        LearningError: a loss or a gradient is not finite.
    """
    parameters = [parameter for group in groups for parameter in group["params"]]
    optimizer = torch.optim.AdamW(
        [dict(group) for group in groups], lr=training.learning_rate, weight_decay=training.weight_decay
    )
    steps = training.steps * len(materials)
    for number in range(1, steps + 1):
        with own_settings(), torch.enable_grad():
            optimizer.zero_grad()
            loss = loss_of(denoiser, materials, embed, training, random_numbers(seed, number))
            loss = loss if extra is None else loss + extra()
            torch.autograd.backward(loss)
            value, norm = float(loss.detach()), float(torch.nn.utils.clip_grad_norm_(parameters, 1.0))
            if not math.isfinite(value + norm):
                raise LearningError(
                    f"learning diverged: loss {value}, gradient {norm} at step {number} of {steps}. Begin again with a"
                    f" learning_rate below {training.learning_rate:g}."
                )
            optimizer.step()
        yield Step(number, steps, value, read)


def loss_of(
    denoiser: Denoiser, materials: Sequence[Material], embed: Embed, training: Training, draw: torch.Generator
) -> Float[Tensor, ""]:
    """Return a step's loss: the mean-squared error on photos, and weighted that on the class's pictures."""
    drawn = torch.randint(len(materials), (training.batch_size,), generator=draw, **_ON_CPU)
    chosen = [materials[each] for each in drawn]
    rows = [draw_row(denoiser, each.subject, draw) for each in chosen]
    rows += [draw_row(denoiser, each.prior, draw) for each in chosen if each.prior is not None]
    batch = joined([batch for batch, _ in rows])
    prediction = denoiser.predict(embed([caption for _, caption in rows]), batch)
    own, prior = slice(0, len(chosen)), slice(len(chosen), len(rows))
    loss = part_loss(prediction, batch, own, denoiser.device)
    if len(rows) == len(chosen):
        return loss
    return loss + training.prior_weight * part_loss(prediction, batch, prior, denoiser.device)


def part_loss(
    prediction: Float[Tensor, "rows channels height width"], batch: Batch, part: slice, device: torch.device
) -> Float[Tensor, ""]:
    """Return the loss on some rows of a batch."""
    weights = None if batch.weights is None else batch.weights[part].to(device)
    return subject_loss(prediction[part], batch.target[part].to(device), weights)


def draw_row(denoiser: Denoiser, shown: Shown, draw: torch.Generator) -> tuple[Batch, str]:
    """Draw one view with its noise and timestep, and one of its captions."""
    row = int(torch.randint(len(shown.views.mean), (), generator=draw, **_ON_CPU))
    captions = shown.captions[row]
    caption = captions[int(torch.randint(len(captions), (), generator=draw, **_ON_CPU))]
    parts = (shown.views.mean, shown.views.std, shown.views.weights)
    one = Views(*(None if part is None else part[row : row + 1] for part in parts))  # type: ignore[arg-type]
    return denoiser.draw(one, 1, draw), caption


def joined(batches: Sequence[Batch]) -> Batch:
    """Return rows as one batch; those without a mask count everywhere where another has one."""
    weighted = any(batch.weights is not None for batch in batches)
    whole = [batch.target.new_ones(1, 1, *batch.target.shape[2:]) for batch in batches]
    weights = [one if batch.weights is None else batch.weights for one, batch in zip(whole, batches, strict=True)]
    return Batch(
        torch.cat([batch.latents for batch in batches]),
        torch.cat([batch.target for batch in batches]),
        torch.cat([batch.timesteps for batch in batches]),
        torch.cat(weights) if weighted else None,
    )


def denoiser_with(pipeline: Any, unet: Any) -> Denoiser:
    """Return a pipeline's denoiser with another UNet."""
    made = Denoiser.of(pipeline, {})
    return replace(made, unet=unet, dtype=unet.dtype)


def prior_pictures(
    pipeline: Any, class_word: str, count: int = 200, *, seed: int = 0, **options: Any
) -> list[Image.Image]:
    """Draw pictures of a class by the model itself, from "a photo of a CLASS": what keeps the class as it was.

    As in DreamBooth (arXiv:2208.12242, Sec. 3.3). `options` are those of a `Cones2Pipeline`'s call.
    """
    pipe, pictures = Cones2Pipeline(pipeline), []
    for first in range(0, count, _PICTURES_AT_ONCE):
        seeds = range(seed + first, seed + min(first + _PICTURES_AT_ONCE, count))
        pictures += pipe(photo_caption(class_word), seed=list(seeds), **options).images
    return pictures

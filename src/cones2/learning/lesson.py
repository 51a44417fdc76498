"""What stays the same from step to step of learning, and Eq. 2 on it."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.backbones import Backbone
from cones2.captions.corpus import photo_caption
from cones2.guidance.attention import unedited_cross_attention
from cones2.learning.data import EncodedCaptions, EncodedViews, encode_captions, encode_views
from cones2.learning.objective import add_noise, subject_loss
from cones2.learning.recipe import Recipe
from cones2.photos import Photo

_SAMPLED = 16  # numbers of each weight


@dataclasses.dataclass(frozen=True, eq=False)
class Lesson:
    """All that stays the same from step to step.

    Attributes:
        prompt: the caption of the photos, "a photo of a dog".
        added: what Stable Diffusion XL reads beside it.
        captions: for Eqs. 3 and 5.
        captions_hash: of their texts.
        views: of the photos.
    """

    backbone: Backbone
    photos: tuple[Photo, ...]
    class_word: str
    recipe: Recipe
    seed: int
    prompt: EncodedCaptions
    added: Mapping[str, Float[Tensor, "1 numbers"]]
    captions: EncodedCaptions
    captions_hash: str
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
        """Encode captions and photos."""
        encoded = encode_captions(backbone, captions, class_word)
        prompt = encode_captions(backbone, [photo_caption(class_word)], class_word)
        size = min(backbone.default_size)
        return cls(
            backbone=backbone,
            photos=tuple(photos),
            class_word=class_word,
            recipe=recipe,
            seed=seed,
            prompt=prompt,
            added=backbone.added_conditions(prompt.input_ids, height=size, width=size),
            captions=encoded,
            captions_hash=hash_of(captions),
            views=encode_views(backbone, photos, recipe.views_per_photo, random_numbers(seed, 0)),
        )

    def settings(self) -> dict[str, object]:
        """All that a checkpoint's state depends on, as short JSON values: not how many steps are to follow."""
        recipe = dataclasses.asdict(self.recipe)
        del recipe["steps"]
        return {
            **recipe,
            "seed": self.seed,
            "class word": self.class_word,
            "photos' hash": hash_of([photo.sha256 for photo in self.photos]),
            "masks' hash": masks_hash(self.photos),
            "captions' hash": self.captions_hash,
            **model_settings(self.backbone),
        }

    def record(self, taken: int) -> dict[str, object]:
        """How the residual was learned, for its file, when this many steps are taken."""
        return how_learned(self.recipe, self.seed, taken=taken, captions=self.captions_hash, photos=self.photos)


def how_learned(recipe: Recipe, seed: int, *, taken: int, captions: str, photos: Sequence[Photo]) -> dict[str, object]:
    """Tell what a residual's file says of its learning.

    The recipe, how many of its steps were taken, the seed, hashes of captions and of the photos' masks.
    """
    learned = {"taken": taken, "seed": seed, "captions": captions, "masks": masks_hash(photos)}
    return dataclasses.asdict(recipe) | learned


def model_settings(backbone: Backbone) -> dict[str, object]:
    """Tell what learning's states depend on in a backbone, as short JSON values.

    Many fine-tunes share a text encoder, so UNet and autoencoder count, too.
    """
    return {
        "text encoder": "+".join(part.weights for part in backbone.encoder_id.parts),
        "UNet's dtype": str(backbone.dtype).removeprefix("torch."),
        "UNet": _sampled_hash(backbone.unet),
        "autoencoder": _sampled_hash(backbone.vae),
        "prediction type": backbone.prediction_type,
    }


def _sampled_hash(part: torch.nn.Module) -> str:
    """Hash a few numbers of each weight, evenly spread, and its name and shape: reading them all would take seconds."""
    digest = hashlib.sha256()
    for name, weight in part.state_dict().items():
        some = weight.flatten()[:: max(1, weight.numel() // _SAMPLED)].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)}\n".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()


def denoising_loss(lesson: Lesson, prompt: Float[Tensor, "1 tokens dim"], draw: torch.Generator) -> Float[Tensor, ""]:
    """Eq. 2 on a batch of photos, each with a latent, noise and a timestep of its own.

    Raises:
        BackboneError: a picture is being drawn with a layout on the same backbone, and is not finished.
    """
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
    with unedited_cross_attention(backbone.unet):
        prediction = backbone.predict(*inputs, prompt.expand(len(rows), -1, -1), added)
    weights = None if views.weights is None else views.weights[rows].to(backbone.device)
    return subject_loss(prediction, noised.target.to(backbone.device), weights)


def random_numbers(seed: int, step: int) -> torch.Generator:
    """Random numbers of one step alone, so that resuming needs no generator's state."""
    digest = hashlib.sha256(f"{seed}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def masks_hash(photos: Sequence[Photo]) -> str | None:
    """Hash of the photos' masks; None where no photo has one."""
    if all(photo.mask is None for photo in photos):
        return None
    return hash_of([hashlib.sha256(photo.mask.tobytes()).hexdigest() if photo.mask else "" for photo in photos])


def hash_of(texts: Sequence[str]) -> str:
    """Hash of texts that hold no line break."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()

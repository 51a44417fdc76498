"""A learning step, against the frozen UNet alone and against an equivalent of the authors' training step."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from cones2.learning.learner import learn_steps
from cones2.learning.recipe import Recipe
from cones2.photos import Photo
from cones_v2_learning import ConesV2Learner
from pairs import Pair

CLASS_WORD = "dog"


def learning_pairs(pipeline: Any, photos: Sequence[Photo], recipe: Recipe, *, name: str) -> list[Pair]:
    """Pair steps of a recipe, and of the same recipe one photo at a time, with what they are compared with."""
    recipe = replace(recipe, steps=10**6)  # more than any run takes
    single = replace(recipe, batch_size=1)
    size, step = recipe.batch_size, "of the authors' training steps, equivalent"
    ours = _steps(pipeline, photos, recipe)
    what = f"a step of {name}, {size} photos"
    pairs = [Pair(what, "the UNet's forward and backward alone", ours, _unet_alone(pipeline, size), aim=1.3)]
    if hasattr(pipeline, "text_encoder_2"):  # the authors' code knows no Stable Diffusion XL
        return pairs
    theirs = ConesV2Learner(pipeline, photos, CLASS_WORD)

    def their_steps() -> None:
        for _ in range(size):
            theirs.step()

    one_of_ours = _steps(pipeline, photos, single)
    return [
        *pairs,
        Pair(what, f"{size} {step}", ours, their_steps, aim=2.5, speed=True),
        Pair(f"a step of {name}, 1 photo", f"1 {step}", one_of_ours, theirs.step, aim=None, speed=True),
    ]


def _steps(pipeline: Any, photos: Sequence[Photo], recipe: Recipe) -> Callable[[], object]:
    """Return a call that takes the next step."""
    steps = learn_steps(pipeline, photos, CLASS_WORD, recipe)
    return lambda: next(steps)


def _unet_alone(pipeline: Any, batch_size: int) -> Callable[[], object]:
    """Return the least that any learner of this kind does: predict, and send the loss back to the text input."""
    unet, randomness = pipeline.unet, torch.Generator().manual_seed(0)
    side, width = unet.config["sample_size"], unet.config["cross_attention_dim"]
    shape = (batch_size, unet.config["in_channels"], side, side)
    latents, target = (torch.randn(shape, generator=randomness).to(unet.device, unet.dtype) for _ in range(2))
    timesteps = torch.randint(1000, (batch_size,), generator=randomness).to(unet.device)
    text = torch.randn(1, pipeline.tokenizer.model_max_length, width, generator=randomness)
    text = text.to(unet.device, unet.dtype).requires_grad_()
    added = _added(pipeline, batch_size)

    def forward_and_backward() -> None:
        text.grad = None
        expanded = text.expand(batch_size, -1, -1)
        prediction = unet(latents, timesteps, expanded, added_cond_kwargs=added, return_dict=False)[0]
        torch.autograd.backward(torch.nn.functional.mse_loss(prediction.float(), target.float()))

    return forward_and_backward


def _added(pipeline: Any, batch_size: int) -> dict[str, torch.Tensor] | None:
    """Return what Stable Diffusion XL reads beside its text."""
    second = getattr(pipeline, "text_encoder_2", None)
    if second is None:
        return None
    pooled, sizes = torch.zeros(batch_size, second.config.projection_dim), torch.zeros(batch_size, 6)
    return {
        name: each.to(pipeline.unet.device, pipeline.unet.dtype)
        for name, each in zip(("text_embeds", "time_ids"), (pooled, sizes), strict=True)
    }

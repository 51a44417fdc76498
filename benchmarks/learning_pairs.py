"""A learning step, against the frozen UNet alone and against an equivalent of the authors' training step."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from authors_learning import AuthorsLearner
from cones2 import Backbone, Photo, Recipe, learn
from pairs import Pair

CLASS_WORD = "dog"


def learning_pairs(backbone: Backbone, photos: Sequence[Photo], recipe: Recipe, *, name: str) -> list[Pair]:
    """Steps of a recipe, and of the same recipe one photo at a time."""
    recipe = replace(recipe, steps=10**6)  # more than any run takes
    single = replace(recipe, batch_size=1)
    theirs = AuthorsLearner(backbone, photos, CLASS_WORD)

    def their_steps() -> None:
        for _ in range(recipe.batch_size):
            theirs.step()

    size, step = recipe.batch_size, "of the authors' training steps, equivalent"
    ours, one_of_ours = _steps(backbone, photos, recipe), _steps(backbone, photos, single)
    alone = _unet_alone(backbone, size)
    return [
        Pair(f"a step of {name}, {size} photos", "the UNet's forward and backward alone", ours, alone, aim=1.3),
        Pair(f"a step of {name}, {size} photos", f"{size} {step}", ours, their_steps, aim=2.5, speed=True),
        Pair(f"a step of {name}, 1 photo", f"1 {step}", one_of_ours, theirs.step, aim=None, speed=True),
    ]


def _steps(backbone: Backbone, photos: Sequence[Photo], recipe: Recipe) -> Callable[[], object]:
    """A call takes the next step; the first also prepares, and is the one that is not counted."""
    steps = learn(backbone, photos, CLASS_WORD, recipe=recipe)
    return lambda: next(steps)


def _unet_alone(backbone: Backbone, batch_size: int) -> Callable[[], object]:
    """The least that any learner of this kind does: predict, and send the loss back to the text input."""
    randomness = torch.Generator().manual_seed(0)
    shape = (batch_size, backbone.unet.config["in_channels"], *backbone.latent_size)
    latents, target = (torch.randn(shape, generator=randomness).to(backbone.device) for _ in range(2))
    timesteps = torch.randint(1000, (batch_size,), generator=randomness).to(backbone.device)
    text = torch.randn(1, backbone.window, backbone.width, generator=randomness).to(backbone.device).requires_grad_()

    def forward_and_backward() -> None:
        text.grad = None
        prediction = backbone.predict(latents, timesteps, text.expand(batch_size, -1, -1))
        torch.nn.functional.mse_loss(prediction, target).backward()

    return forward_and_backward

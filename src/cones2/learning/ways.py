"""Two ways to learn a residual: through the text encoder, as the paper does, or at its output (its Table A1)."""

import copy
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.learning.lesson import Lesson, denoising_loss
from cones2.learning.objective import mean_shift, preservation_loss

CHUNK = 50
"""Captions that are embedded at once."""

_DECAY = 3.0
"""η of polynomial-decay averaging (arXiv:1212.1824): half of the weight is on the last sixth of the steps."""


class TunedEncoder:
    """The text encoder, or both, tuned by Eq. 4; Δ is its mean shift at the class word (arXiv:2305.19327, Sec. 3.2).

    The text that Stable Diffusion XL pools comes from the untouched encoder, in learning as in composing: what the
    tuned one put there, no residual could give back.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        backbone, input_ids = lesson.backbone, lesson.captions.input_ids
        self.originals = torch.cat([backbone.embed(some) for some in torch.split(input_ids, CHUNK)])
        self.tuned = dataclasses.replace(
            backbone,
            text_encoder=copy.deepcopy(backbone.text_encoder),
            text_encoder_2=copy.deepcopy(backbone.text_encoder_2),
        )
        self.averages: list[Tensor] = []
        self.parameters = [
            parameter.requires_grad_()
            for encoder in self.tuned.text_encoders
            for name, parameter in encoder.named_parameters()
            if lesson.recipe.tune == "all" or ".layers." in name
        ]

    def losses(self, draw: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L_sub and L_reg, from one pass of the text encoder for the prompt and the captions."""
        captions, count = self.lesson.captions, self.lesson.recipe.captions_per_step
        rows = torch.randint(len(self.originals), (count,), generator=draw)
        embeddings = self.tuned.read(torch.cat([self.lesson.prompt.input_ids, captions.input_ids[rows]]))
        preservation = preservation_loss(embeddings[1:], self.originals[rows], captions.own[rows])
        return denoising_loss(self.lesson, embeddings[:1], draw), preservation

    def gather(self, step: int) -> None:
        """Do nothing: what the last step left is what is learned."""

    def vector(self) -> Float[Tensor, "tokens dim"]:
        """Eq. 5 over all captions."""
        captions = self.lesson.captions
        chunks = (
            (self.tuned.embed(captions.input_ids[rows]), self.originals[rows], captions.own[rows])
            for rows in torch.split(torch.arange(len(self.originals)), CHUNK)
        )
        return mean_shift(chunks, captions.class_tokens)


class DirectResidual:
    """Δ itself, learned by Eq. 2 with E(prompt)[span] + Δ as the prompt: the text encoder only reads, once.

    "Token embedding" in arXiv:2305.19327, Table A1 and App. C, where it does worse in other contexts than the photos'.
    No other word moves, so L_reg is 0. It begins at the class word itself, Δ = 0.

    Where the recipe says `averaged`, Δ is the average of what the steps came to, newer ones weighing more
    (polynomial-decay averaging, arXiv:1212.1824): the last step alone carries the noise of its photos and timesteps.
    """

    def __init__(self, lesson: Lesson) -> None:
        self.lesson = lesson
        self.tuned = lesson.backbone
        self.prompt = lesson.backbone.embed(lesson.prompt.input_ids)
        self.span = torch.where(lesson.prompt.own[0])[0]
        self.residual = torch.zeros_like(self.prompt[0, self.span], dtype=torch.float32, requires_grad=True)
        self.parameters = [self.residual]
        self.averages = [torch.zeros_like(self.residual, requires_grad=False)]

    def losses(self, draw: torch.Generator) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """L_sub, and nothing for L_reg."""
        embeddings = self.prompt.index_add(1, self.span, self.residual[None])
        loss = denoising_loss(self.lesson, embeddings, draw)
        return loss, torch.zeros_like(loss)

    def gather(self, step: int) -> None:
        """Take what a step, counted from 1, came to into the average; alone where the recipe asks for none."""
        share = (1 + _DECAY) / (step + _DECAY) if self.lesson.recipe.averaged else 1.0
        self.averages[0].lerp_(self.residual.detach(), share)

    def vector(self) -> Float[Tensor, "tokens dim"]:
        """Δ."""
        return self.averages[0].cpu().clone()


Way = TunedEncoder | DirectResidual
"""A way to learn.

What is tuned (`parameters`) by what (`losses`), what is kept of each step (`gather`, `averages`), and the residual that
it comes to (`vector`).
"""


def choose_way(lesson: Lesson) -> Way:
    """Begin the way that the recipe asks for."""
    return DirectResidual(lesson) if lesson.recipe.tune == "residual" else TunedEncoder(lesson)

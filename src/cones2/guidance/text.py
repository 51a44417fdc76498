"""What changes in the text that a UNet reads: residuals of a part of the steps, and negative texts of one region each.

Cross-attention reads as many tokens as it is given. So a subject's negative text is some more tokens, seen by the
unconditional rows alone, and there only from the subject's own region; it costs no row and no call.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cones2.guidance.cells import own_cells
from cones2.layout.regions import Layout


class TimedAddition(NamedTuple):
    """A vector for each token of the prompt, added during a part of the steps (see `acts`)."""

    during: tuple[float, float]
    vector: Float[Tensor, "tokens dim"]


@dataclass(frozen=True, eq=False)
class TextEdit:
    """What is done to the text of each UNet call.

    Attributes:
        train_steps: of the noise schedule.
        additions: to the conditional rows' text, some of the time.
        negatives: by subject, the tokens that unconditional rows see from that subject's region.
    """

    train_steps: int
    additions: tuple[TimedAddition, ...] = ()
    negatives: Mapping[str, Float[Tensor, "_ dim"]] = field(default_factory=dict)

    @property
    def extra_tokens(self) -> int:
        """How many tokens stand behind the prompt's."""
        return sum(map(len, self.negatives.values()))

    def apply(
        self,
        text: Float[Tensor, "batch tokens dim"],
        timesteps: Float[Tensor, "batch"],
        conditional: slice | list[int],
    ) -> Float[Tensor, "batch all_tokens dim"]:
        """Give the text to read at these timesteps; the caller's stays as it is."""
        text = text.clone()
        for addition in self.additions:
            active = acts(addition.during, timesteps[conditional], self.train_steps)
            text[conditional] += active[:, None, None].to(text) * addition.vector.to(text)
        extra = [tokens.to(text).expand(len(text), -1, -1) for tokens in self.negatives.values()]
        return torch.cat([text, *extra], dim=1)

    def visible(self, layout: Layout, height: int, width: int) -> Bool[Tensor, "pixels extra"]:
        """Tell which of the extra tokens an unconditional row sees from each cell of a grid."""
        cells = (own_cells(layout, name, height, width).reshape(-1, 1) for name in self.negatives)
        columns = (cell.expand(-1, len(tokens)) for cell, tokens in zip(cells, self.negatives.values(), strict=True))
        return torch.cat([torch.zeros(height * width, 0, dtype=torch.bool), *columns], dim=1)


def acts(during: tuple[float, float], timesteps: Float[Tensor, "*batch"], train_steps: int) -> Bool[Tensor, "*batch"]:
    """Tell whether something acts at a timestep: 0 is pure noise, 1 the finished picture, and t is at `1 - t/T`.

    It goes by noise and not by counting steps, so it means the same for every sampler, and when a picture is only
    redrawn. The end is not included, but for 1.

    Example:
        >>> acts((0.0, 0.5), torch.tensor([999.0, 501.0, 500.0, 0.0]), 1000).tolist()
        [True, True, False, False]
    """
    start, end = during
    position = 1 - timesteps / train_steps
    return (position >= start) & (position < end if end < 1 else True)

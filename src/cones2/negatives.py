"""Negative texts of subjects in joint transformers: which part of an unconditional row reads them, and what they read.

A UNet's image reads them as more keys, and nothing else comes to know of them. In a joint transformer a token that is
read reads as well: image and text are one sequence, whose rows all change from block to block. There a negative text
stands as more tokens of the unconditional row's text, and

- only image rows in the subject's own region read its columns, as they read the negative prompt's. All other rows, of
  image, text, padding and reference images, get the dtype's floor there, whose weight is exactly 0;
- its own rows read what a text's rows were trained to read: the whole picture, the negative prompt, and themselves,
  but no other subject's negative text. So they go from block to block as words of the negative prompt do, and belong
  to this picture at this noise; what they have read from outside the region comes to the region alone;
- rows that read the prompt never read them. In a batch of both they have these tokens as well, read by none.

After one block, what such a text says has changed its own region's cells and no other. In later ones the picture's
cells read each other, which is left as it is everywhere.

Z-Image takes no text whose length does not move the picture's own phases, and mixes words before the picture reads
any: there each text is refined alone, and put behind the sequence of its joint blocks (`behind_blocks`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import pad

from cones2.denoisers import unwrapped
from cones2.guidance import Bias
from cones2.shared import Undo, shared_change


def hide(
    whole: Bias,
    visible: Bool[Tensor, "cells negatives"],
    image: int,
    start: int,
    counts: Sequence[int],
    rows: slice | list[int] | None,
    floor: float,
) -> None:
    """Hide negative texts in a joint transformer's bias: from all but their own rows, and `visible` ones of the image.

    Args:
        whole: of a layer; changed in place.
        visible: which image rows read which of them.
        image: the position of the image's first token.
        start: that of the first negative text.
        counts: the tokens of each.
        rows: the batch's rows that read the prompt, which read none of them.
        floor: what hides a token.
    """
    columns = slice(start, start + visible.shape[1])
    whole[..., columns] = floor
    whole[:, :, image : image + len(visible), columns] = (~visible).to(whole) * floor
    if rows is not None:
        whole[rows, ..., columns] = floor
    for count in counts:
        whole[..., start : start + count, start : start + count] = 0
        start += count


@contextmanager
def behind_blocks(denoiser: Any, read: Callable[[], tuple[Tensor, Tensor] | None]) -> Iterator[None]:
    """Let a transformer's joint blocks read more tokens behind their sequence, within a `with` block.

    `read` gives these and their phases, or None, for the running call of the thread that asks; threads share the first
    one's. The picture is cut from the sequence's beginning afterwards, so nothing has to be taken out.
    """
    layers = unwrapped(denoiser).layers

    def lengthen(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        behind = read()
        if behind is None:
            return None
        states, mask, phases, *rest = args
        own, own_phases = (each.expand(len(states), *each.shape) for each in behind)
        if layer is layers[0]:  # the others get what it returned
            states = torch.cat([states, own.to(states)], dim=1)
        mask = None if mask is None else pad(mask, (0, own.shape[1]), value=True)
        return states, mask, torch.cat([phases, own_phases], dim=1), *rest

    def install() -> Undo:
        handles = [layer.register_forward_pre_hook(lengthen) for layer in layers]

        def undo() -> None:
            for handle in handles:
                handle.remove()

        return undo

    with shared_change(denoiser, "negative texts", install):
        yield

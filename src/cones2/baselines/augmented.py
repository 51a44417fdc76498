"""Custom Diffusion's augmentation: photos shrunk onto an empty canvas or enlarged, with captions that say so.

arXiv:2212.04488, Sec. 3.2 ("Training details"), with the numbers of its authors' script.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cones2.baselines.trainer import Shown
from cones2.families import native_size
from cones2.learning.data import Views, encode_images
from cones2.photos import Photo, views

_SHRUNK = 2 / 3  # of the views
_FAR, _NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")
_SMALL = 0.6
_GREY = (127, 127, 127)


class Placed(NamedTuple):
    """Where a square photo lies on a canvas of `size` pixels: upper left corner and side, beyond it if enlarged."""

    left: int
    top: int
    side: int

    @classmethod
    def draw(cls, size: int, draw: torch.Generator) -> "Placed":
        """Draw a place: two thirds of them smaller than the canvas, down to a third, the others up to 1.4 larger."""
        which, how_large, x, y = torch.rand(4, generator=draw, dtype=torch.float32, device="cpu").tolist()
        scale = 1 / 3 + 2 / 3 * how_large if which < _SHRUNK else 1.2 + 0.2 * how_large
        side = max(1, int(scale * size))
        return cls(int(x * (size - side)), int(y * (size - side)), side)

    def on_canvas(self, picture: Image.Image, size: int, fill: int | tuple[int, ...]) -> Image.Image:
        """Return a square picture at its place."""
        canvas = Image.new(picture.mode, (size, size), fill)
        canvas.paste(picture.resize((self.side, self.side), Image.Resampling.BICUBIC), (self.left, self.top))
        return canvas

    def valid(self, size: int, cells: int) -> Float[Tensor, "1 {cells} {cells}"]:
        """Return 1 for each latent cell that shows nothing but photo, one cell in from its edges, and 0 elsewhere.

        Where that leaves no cell, the middle one counts.
        """
        weights = torch.zeros(1, cells, cells, dtype=torch.float32, device="cpu")
        if self.side >= size:
            return weights + 1
        rows, columns = (_inside(start, self.side, size // cells) for start in (self.top, self.left))
        weights[:, rows, columns] = 1
        return weights

    def said(self, size: int) -> Sequence[str]:
        """Return what captions may begin with."""
        return _NEAR if self.side > size else _FAR if self.side < _SMALL * size else ("",)


def _inside(start: int, side: int, cell: int) -> slice:
    first, last = math.ceil(start / cell) + 1, (start + side) // cell - 1
    middle = (2 * start + side) // (2 * cell)
    return slice(first, last) if first < last else slice(middle, middle + 1)


def augmented(
    pipeline: Any, photos: Sequence[Photo], caption: str, count: int, draw: torch.Generator, *, says_so: bool
) -> Shown:
    """Encode `count` augmented views of each photo.

    Args:
        pipeline: whose autoencoder encodes them.
        photos: of one subject; outside of a mask, nothing counts.
        caption: without an article, such as "photo of a WORD dog".
        count: views of each photo.
        draw: chooses places.
        says_so: whether captions tell that a photo was shrunk or enlarged.
    """
    size = min(native_size(pipeline))
    cells, squares, weights, captions = size // pipeline.vae_scale_factor, [], [], []
    for photo in photos:
        for view in views(photo, count=1, generator=draw) * count:
            place = Placed.draw(size, draw)
            squares.append(place.on_canvas(view.of(photo, size), size, _GREY))
            shown = Image.fromarray((view.share(photo, size)[0] * 255).byte().numpy())
            share = place.on_canvas(shown, size, 0).resize((cells, cells), Image.Resampling.BOX)
            share_of_cell = torch.from_numpy(np.asarray(share, dtype=np.float32) / 255)[None]
            weight = place.valid(size, cells) * share_of_cell
            weights.append(weight if weight.any() else share_of_cell)
            captions.append([f"{said}{caption}" for said in (place.said(size) if says_so else ("",))])
    mean, std = encode_images(pipeline, squares)
    return Shown(Views(mean.cpu(), std.cpu(), torch.stack(weights)), captions)

"""A second judge that has learned nothing: colours and outline of what is in a box.

It shares no weights with the first, so that a system which only pleases the first is found out: both must put the
systems into the same order.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from cones2.judge import crop

BINS = 4
"""Of a colour histogram, for each channel."""
DIMENSIONS = BINS**3 + 7
"""Of a description."""
_INSET = 0.1  # of a box on each side: its edges show the background
_COLOURS = 0.8  # the part of the likeness that is the colours'
_RIM = 4  # pixels of a crop's edge that are taken for background


def describe(
    images: Float[Tensor, "batch 3 height width"], boxes: Float[Tensor, "boxes 4"], rows: Int[Tensor, "boxes"]
) -> Float[Tensor, "boxes dim"]:
    """Describe what is in `boxes` of the pictures `rows`, as vectors of length 1 that are compared by dot product.

    Args:
        images: in 0..1.
        boxes: xmin, ymin, xmax, ymax in 0..1.
        rows: which picture each box is of.
    """
    colours = colour_histograms(images, boxes, rows)
    outlines = normalize(shape_moments(crop(images, boxes, rows)), dim=-1)
    return torch.cat([_COLOURS**0.5 * colours, (1 - _COLOURS) ** 0.5 * outlines], dim=1)


def colour_histograms(
    images: Float[Tensor, "batch 3 height width"], boxes: Float[Tensor, "boxes 4"], rows: Int[Tensor, "boxes"]
) -> Float[Tensor, "boxes 64"]:
    """Return colour histograms of what is in the boxes, as unit vectors of square roots (Bhattacharyya)."""
    inset = torch.tensor([_INSET, _INSET, -_INSET, -_INSET], dtype=torch.float32, device=boxes.device)
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * inset
    pixels = (crop(images, boxes + sides, rows).clamp(0, 0.999) * BINS).long()
    codes = (pixels[:, 0] * BINS + pixels[:, 1]) * BINS + pixels[:, 2]
    return normalize(one_hot(codes.flatten(1), BINS**3).float().mean(1).sqrt(), dim=-1)


def shape_moments(crops: Float[Tensor, "crops 3 side side"]) -> Float[Tensor, "crops 7"]:
    """Return the normalised central moments of orders 2 and 3 of what differs from each crop's rim.

    They change neither with the size of what is shown nor with its place, but with its turn and its outline
    (Hu, 1962, Eq. 8). An empty crop has zeros.
    """
    inner = torch.zeros(crops.shape[-2:], dtype=torch.bool, device=crops.device)
    inner[_RIM:-_RIM, _RIM:-_RIM] = True
    background = crops[:, :, ~inner].median(dim=-1).values[:, :, None, None]
    weight = ((crops - background).abs().amax(1) * inner).double()
    mass = weight.sum((1, 2)).clamp(min=1e-9)
    place = torch.arange(crops.shape[-1], dtype=torch.float64, device=crops.device)
    x, y = place[None, None, :], place[None, :, None]
    x = x - ((weight * x).sum((1, 2)) / mass)[:, None, None]
    y = y - ((weight * y).sum((1, 2)) / mass)[:, None, None]
    orders = [(2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3)]
    sums = torch.stack([(weight * x**across * y**down).sum((1, 2)) for across, down in orders], 1)
    scales = torch.stack([mass ** (1 + (across + down) / 2) for across, down in orders], 1)
    return (sums / scales).float()

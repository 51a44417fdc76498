"""Square views of a photo, cropped around the subject: where its mask is, or else where most detail is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from cones2.photos.loading import Photo
from cones2.photos.masks import SUBJECT

_CLOSEST_VIEW = 0.8


class View(NamedTuple):
    """A square of a photo, in its pixels."""

    left: float
    top: float
    side: float

    def of(self, photo: Photo, size: int) -> Image.Image:
        """Cut it out of a photo: `size` x `size` pixels, RGB."""
        return self._cut(photo.image, size, Image.Resampling.LANCZOS)

    def share(self, photo: Photo, cells: int) -> Float[Tensor, "1 {cells} {cells}"]:
        """Give the subject's share, 0 to 1, of each of `cells` x `cells` cells: 1 where the photo has no mask."""
        if photo.mask is None:
            return torch.ones(1, cells, cells)
        cut = self._cut(photo.mask, cells, Image.Resampling.BOX)
        return torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255)[None]

    def _cut(self, image: Image.Image, size: int, resample: Image.Resampling) -> Image.Image:
        right, bottom = min(self.left + self.side, image.width), min(self.top + self.side, image.height)
        return image.resize((size, size), resample, box=(self.left, self.top, right, bottom))


def crop_square(
    image: Image.Image, size: int, *, scale: float = 1.0, center: tuple[float, float] = (0.5, 0.5)
) -> Image.Image:
    """Return a square view of `image`, `size` x `size` pixels, RGB, that keeps the subject.

    At scale 1 it is the whole view: the largest square, slid along the longer side to where the photo has most detail.
    It is cut, not padded or squeezed, since bars and wrong proportions would be learned as part of the subject.

    Args:
        image: an upright RGB photo of any shape.
        size: the side of the result.
        scale: side of the crop relative to the whole view, above 0 and at most 1.
        center: where a smaller crop lies in the whole view, from (0, 0), touching its upper left corner, to (1, 1),
            touching its lower right one. Nothing outside the whole view is ever shown.
    """
    view = _closer(_whole_view(image, None), scale, center, None)
    return view._cut(image, size, Image.Resampling.LANCZOS)


def stack_pixels(squares: Sequence[Image.Image]) -> Float[Tensor, "batch 3 height width"]:
    """Stack RGB pictures of one size into a tensor of their values, 0 to 255."""
    pixels = np.stack([np.asarray(square, dtype=np.float32) for square in squares])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def views(photo: Photo, *, count: int, generator: torch.Generator) -> list[View]:
    """Choose `count` square views of a photo: first the whole one, then random ones up to 20 % closer.

    None is mirrored: a subject's left and right may differ. With a mask, no closer view cuts off what it can keep of
    the subject.
    """
    whole = _whole_view(photo.image, photo.mask)
    closer = torch.rand(count - 1, 3, generator=generator).tolist()
    return [
        whole,
        *(_closer(whole, 1 - (1 - _CLOSEST_VIEW) * zoom, (x, y), photo.mask) for zoom, x, y in closer),
    ]


def _whole_view(image: Image.Image, mask: Image.Image | None) -> View:
    side = min(image.size)
    middle = _middle_of_detail(image) if mask is None else _middle_of_mask(mask)
    left, top = (
        min(max(share * length - side / 2, 0), length - side) for share, length in zip(middle, image.size, strict=True)
    )
    return View(left, top, side)


def _closer(whole: View, scale: float, center: tuple[float, float], mask: Image.Image | None) -> View:
    """Give a smaller view inside the whole one; a subject that fits in it is not cut off."""
    side = whole.side * scale
    lowest, highest = (whole.left, whole.top), (whole.left + whole.side - side, whole.top + whole.side - side)
    corner = [low + (high - low) * shift for low, high, shift in zip(lowest, highest, center, strict=True)]
    if mask is not None:
        for axis, (first, last) in enumerate(_sides(mask)):
            if last - first <= side:
                corner[axis] = min(max(corner[axis], last - side), first)
            corner[axis] = min(max(corner[axis], lowest[axis]), highest[axis])
    return View(corner[0], corner[1], side)


def _middle_of_detail(image: Image.Image) -> tuple[float, float]:
    """Return the point, in 0..1, around which edges balance: plain or blurred backgrounds hardly weigh."""
    detail = detail_of(image)
    if not detail.any():
        return 0.5, 0.5
    places = (np.arange(64) + 0.5) / 64
    return float(detail.sum(0) @ places / detail.sum()), float(detail.sum(1) @ places / detail.sum())


def detail_of(image: Image.Image) -> Float[np.ndarray, "64 64"]:
    """Return how much detail each of 64 x 64 cells of a photo has: the squared gradient of its grey."""
    small = np.asarray(image.convert("L").resize((64, 64), Image.Resampling.BOX), dtype=np.float64)
    squared: Float[np.ndarray, "64 64"] = np.hypot(*np.gradient(small)) ** 2
    return squared


def _middle_of_mask(mask: Image.Image) -> tuple[float, float]:
    """Return the middle, in 0..1, of the box around the subject."""
    (left, right), (top, bottom) = _sides(mask)
    return (left + right) / 2 / mask.width, (top + bottom) / 2 / mask.height


def _sides(mask: Image.Image) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the box around the subject as (left, right), (top, bottom), in pixels."""
    subject = np.asarray(mask) >= SUBJECT
    columns, rows = np.flatnonzero(subject.any(axis=0)), np.flatnonzero(subject.any(axis=1))
    return (float(columns[0]), float(columns[-1] + 1)), (float(rows[0]), float(rows[-1] + 1))

"""The judge's two networks: a detector of whole pictures, and an embedder of what is in one box."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate, normalize, silu, softplus

PICTURE = 128
GRID = 16
CROP = 56
WIDTH = 64  # of an identity embedding


class Detections(NamedTuple):
    """What the detector says of every cell.

    Attributes:
        heat: logits of an object's centre.
        boxes: in 0..1; the second set is for worn things, which share an animal's place.
        scene: logits; the last is a plain wall.
    """

    heat: Float[Tensor, "batch classes 16 16"]
    boxes: Float[Tensor, "batch 2 4 16 16"]
    scene: Float[Tensor, "batch scenes"]


class Embedded(NamedTuple):
    """What the embedder says of every crop.

    Attributes:
        identity: of length 1; individuals are compared by its dot product.
        kind: logits of classes.
        colour: logits of the main colour's word; the last is none.
    """

    identity: Float[Tensor, "crops 64"]
    kind: Float[Tensor, "crops classes"]
    colour: Float[Tensor, "crops colours"]


class Detector(nn.Module):
    """Centres, boxes and the scene of pictures in 0..1."""

    def __init__(self, classes: int, scenes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 24, 2), nn.SiLU(), _convolution(24, 48, 2), nn.SiLU(), _Block(48))
        self.middle = nn.Sequential(_convolution(48, 96, 2), nn.SiLU(), _Block(96))
        self.deep = nn.Sequential(_convolution(96, 160, 2), nn.SiLU(), _Block(160), _Block(160))
        self.up = nn.Conv2d(160, 96, 1)
        self.fuse = nn.Sequential(_Block(96), _convolution(96, 96), nn.SiLU())
        self.heat = nn.Conv2d(96, classes, 1)
        self.sides = nn.Conv2d(96, 8, 1)
        self.scene = nn.Linear(160, scenes)
        nn.init.constant_(self.heat.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, images: Float[Tensor, "batch 3 128 128"]) -> Detections:
        """Look at whole pictures."""
        middle = self.middle(self.stem(images - 0.5))
        deep = self.deep(middle)
        fused = self.fuse(middle + interpolate(self.up(deep), scale_factor=2.0, mode="bilinear"))
        sides = torch.unflatten(softplus(self.sides(fused)) * 0.2, 1, (2, 4))
        centres = (torch.arange(GRID, device=images.device) + 0.5) / GRID
        y, x = centres[:, None].expand(GRID, GRID), centres.expand(GRID, GRID)
        left, top, right, bottom = sides.unbind(2)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], 2)
        return Detections(self.heat(fused), boxes, self.scene(deep.mean((2, 3))))


class Embedder(nn.Module):
    """Identity, class and colour of what is in square crops of pictures in 0..1."""

    def __init__(self, classes: int, colours: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(3, 32, 2),
            nn.SiLU(),
            _convolution(32, 64, 2),
            nn.SiLU(),
            _Block(64),
            _convolution(64, 128, 2),
            nn.SiLU(),
            _Block(128),
        )
        self.identity = nn.Sequential(
            _convolution(128, 48), nn.SiLU(), nn.Flatten(), nn.Linear(48 * (CROP // 8) ** 2, WIDTH)
        )
        self.norm = nn.BatchNorm1d(128)
        self.kind = nn.Linear(128, classes)
        self.colour = nn.Sequential(nn.Linear(128 + 3 * 8 * 8, 128), nn.SiLU(), nn.Linear(128, colours + 1))

    def forward(self, crops: Float[Tensor, "crops 3 56 56"]) -> Embedded:
        """Look at one object each."""
        features = self.body(crops - 0.5)
        pooled = self.norm(features.mean((2, 3)))
        shown = torch.cat([pooled, 4 * adaptive_avg_pool2d(crops - 0.5, 8).flatten(1)], dim=1)
        return Embedded(normalize(self.identity(features), dim=-1), self.kind(pooled), self.colour(shown))


class _Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return silu(x + self.second(silu(self.first(x))))


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))

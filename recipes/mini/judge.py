"""The judge: a small detector and a small identity embedder that look at mini's pictures.

It is trained on its own renders with its own seeds (`train_judge.py`), and nothing of it is ever used to train mini.
The detector finds objects in a 128 px picture and names the scene; the embedder sees a square crop of one object and
says which individual, class and colour it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate, max_pool2d, normalize, silu

from vocabulary import CLASSES, COLOURS, SCENES

PICTURE = 128
GRID = 16
CROP = 56
WIDTH = 64  # of an identity embedding
MARGIN = 1.2  # side of a crop, in longer sides of the box
WEIGHTS = Path(__file__).parent / "judge_weights"
_WORN = torch.tensor([float(word.worn is not None) for word in CLASSES])


@dataclass(frozen=True)
class Sighting:
    """One object that the judge found.

    Attributes:
        class_index: index into `CLASSES`.
        score: how sure the judge is that there is one, 0..1.
        box: xmin, ymin, xmax, ymax in 0..1.
        embedding: `[WIDTH]`, of length 1; individuals are compared by its dot product.
    """

    class_index: int
    score: float
    box: tuple[float, float, float, float]
    embedding: Tensor


@dataclass(frozen=True)
class Detections:
    """What the detector says of every cell.

    Attributes:
        heat: `[batch, classes, GRID, GRID]`, logits of an object's centre.
        boxes: `[batch, 2, 4, GRID, GRID]` in 0..1; the second set is for worn things, which share an animal's place.
        scene: `[batch, scenes + 1]`, logits; the last is a plain wall.
    """

    heat: Tensor
    boxes: Tensor
    scene: Tensor


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _convolution(channels, channels), _convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Keep shape."""
        return silu(x + self.second(silu(self.first(x))))


class Detector(nn.Module):
    """Centres, boxes and the scene, from `[batch, 3, 128, 128]` in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 24, 2), nn.SiLU(), _convolution(24, 48, 2), nn.SiLU(), Block(48))
        self.middle = nn.Sequential(_convolution(48, 96, 2), nn.SiLU(), Block(96))
        self.deep = nn.Sequential(_convolution(96, 160, 2), nn.SiLU(), Block(160), Block(160))
        self.up = nn.Conv2d(160, 96, 1)
        self.fuse = nn.Sequential(Block(96), _convolution(96, 96), nn.SiLU())
        self.heat = nn.Conv2d(96, len(CLASSES), 1)
        self.sides = nn.Conv2d(96, 8, 1)
        self.scene = nn.Linear(160, len(SCENES) + 1)
        nn.init.constant_(self.heat.bias, -4.0)

    def forward(self, images: Tensor) -> Detections:
        """Look at whole pictures."""
        middle = self.middle(self.stem(images - 0.5))
        deep = self.deep(middle)
        fused = self.fuse(middle + interpolate(self.up(deep), scale_factor=2.0, mode="bilinear"))
        sides = nn.functional.softplus(self.sides(fused)).unflatten(1, (2, 4)) * 0.2
        centres = (torch.arange(GRID, device=images.device) + 0.5) / GRID
        y, x = centres[:, None].expand(GRID, GRID), centres.expand(GRID, GRID)
        left, top, right, bottom = sides.unbind(2)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], 2)
        return Detections(self.heat(fused), boxes, self.scene(deep.mean((2, 3))))


class Embedder(nn.Module):
    """Class and identity of one object, from square crops `[batch, 3, CROP, CROP]`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _convolution(3, 32, 2),
            nn.SiLU(),
            _convolution(32, 64, 2),
            nn.SiLU(),
            Block(64),
            _convolution(64, 128, 2),
            nn.SiLU(),
            Block(128),
        )
        self.identity = nn.Sequential(
            _convolution(128, 48), nn.SiLU(), nn.Flatten(), nn.Linear(48 * (CROP // 8) ** 2, WIDTH)
        )
        self.norm = nn.BatchNorm1d(128)
        self.kind = nn.Linear(128, len(CLASSES))
        self.colour = nn.Sequential(nn.Linear(128 + 3 * 8 * 8, 128), nn.SiLU(), nn.Linear(128, len(COLOURS) + 1))

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of length 1 `[batch, WIDTH]`, logits of classes and of the main colour's word (the last: none)."""
        features = self.body(crops - 0.5)
        pooled = self.norm(features.mean((2, 3)))
        shown = torch.cat([pooled, 4 * adaptive_avg_pool2d(crops - 0.5, 8).flatten(1)], dim=1)
        return normalize(self.identity(features), dim=-1), self.kind(pooled), self.colour(shown)


class Judge(nn.Module):
    """Detector and embedder; `threshold` is the score from which on an object counts as there."""

    def __init__(self, threshold: float = 0.3) -> None:
        super().__init__()
        self.detector, self.embedder, self.threshold = Detector(), Embedder(), threshold

    @torch.no_grad()
    def look(self, images: Tensor) -> list[list[Sighting]]:
        """Find the objects of each picture `[batch, 3, 128, 128]` in 0..1, surest first."""
        detections = self.detector(images)
        found = [
            _peaks(heat, boxes, self.threshold)
            for heat, boxes in zip(detections.heat.sigmoid(), detections.boxes, strict=True)
        ]
        rows = torch.tensor([row for row, peaks in enumerate(found) for _ in peaks], dtype=torch.long)
        if not len(rows):
            return [[] for _ in found]
        boxes = torch.tensor([box for peaks in found for _, _, box in peaks])
        embeddings = iter(self.embed(images, boxes, rows))
        return [[Sighting(kind, score, box, next(embeddings)) for kind, score, box in peaks] for peaks in found]

    @torch.no_grad()
    def embed(self, images: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
        """Identity embeddings `[boxes, WIDTH]` of what is in `boxes` of the pictures `rows`."""
        return self.embedder(crop(images, boxes, rows))[0]

    @torch.no_grad()
    def colours(self, images: Tensor, boxes: Tensor, rows: Tensor) -> list[str]:
        """The surest colour word for what is in `boxes` of the pictures `rows`."""
        logits = self.embedder(crop(images, boxes, rows))[2][:, : len(COLOURS)]
        return [list(COLOURS)[index] for index in logits.argmax(1).tolist()]

    @torch.no_grad()
    def scenes(self, images: Tensor) -> list[str]:
        """Name each picture's scene; "" is a plain wall."""
        names = (*SCENES, "")
        return [names[index] for index in self.detector(images).scene.argmax(1).tolist()]

    def save(self, folder: Path) -> None:
        """Write half-precision weights and what is needed to read them."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in self.state_dict().items()}
        save_file(weights, folder / "judge.safetensors")
        config = {"threshold": self.threshold, "classes": [word.word for word in CLASSES], "scenes": list(SCENES)}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path = WEIGHTS) -> "Judge":
        """Read what `save` wrote, ready to look."""
        config = json.loads((folder / "config.json").read_text())
        if config["classes"] != [word.word for word in CLASSES] or config["scenes"] != list(SCENES):
            raise SystemExit(f"{folder} was trained for another world: run train_judge.py again.")
        judge = cls(config["threshold"])
        weights = load_file(folder / "judge.safetensors")
        judge.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return judge.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def crop(images: Tensor, boxes: Tensor, rows: Tensor) -> Tensor:
    """Cut squares around boxes `[n, 4]` of the pictures `rows`, with a margin: `[n, 3, CROP, CROP]`."""
    x0, y0, x1, y1 = boxes.unbind(1)
    half = torch.maximum(x1 - x0, y1 - y0).clamp(min=0.05) * MARGIN / 2
    steps = (torch.arange(CROP) + 0.5) * 2 / CROP - 1
    x = ((x0 + x1) / 2)[:, None] + half[:, None] * steps
    y = ((y0 + y1) / 2)[:, None] + half[:, None] * steps
    grid = torch.stack(
        [x[:, None, :].expand(-1, CROP, CROP), y[:, :, None].expand(-1, CROP, CROP)],
        -1,
    )
    return grid_sample(images[rows], grid * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)


def overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def _peaks(heat: Tensor, boxes: Tensor, threshold: float) -> list[tuple[int, float, tuple[float, float, float, float]]]:
    """Local maxima over a threshold, surest first; of two that share a box only the surer stays."""
    peaks = (heat == max_pool2d(heat[None], 3, 1, 1)[0]) & (heat > threshold)
    found: list[tuple[int, float, tuple[float, float, float, float]]] = []
    for kind, y, x in sorted(peaks.nonzero().tolist(), key=lambda place: -float(heat[tuple(place)])):
        xmin, ymin, xmax, ymax = boxes[int(_WORN[kind]), :, y, x].clamp(0, 1).tolist()
        box = (xmin, ymin, xmax, ymax)
        if all(overlap(box, kept) < (0.4 if kind == other else 0.6) for other, _, kept in found):
            found.append((kind, float(heat[kind, y, x]), box))
    return found


def _convolution(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out))

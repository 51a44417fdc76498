"""The judge of the embedded model's pictures: who is in them, where, and how like a known individual.

A small detector and a small identity embedder, trained on renders of their own (`recipes/mini/train_judge.py`), and
never used to train the model that it judges. CLIP's similarity, for other models, is here, too.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int
from PIL import ImageOps
from PIL.Image import Image, Resampling
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate, max_pool2d, normalize, silu, softplus

from cones2.errors import ModelError, PhotoError, counted, first_line
from cones2.files import read_bounded
from cones2.model_folders import check_encoder
from cones2.photos import Photo, crop_square, stack_pixels
from cones2.shared import own_settings, quiet_libraries

Measure = Callable[[Sequence[Image]], float]
"""How like a subject pictures are: higher is more like it."""

Corners = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in 0..1."""

Pictures = Float[Tensor, "batch 3 128 128"]
Boxes = Float[Tensor, "boxes 4"]

JUDGE_WEIGHTS = Path(__file__).with_name("judge_weights")
PICTURE, CROP = 128, 56  # sides in pixels, of what the two networks look at
LEAST_SURE = 0.71  # chosen by recipes/mini/real_photos.py
GRID = 16
WIDTH = 64  # of an identity
_LARGEST_JSON = 2**16
_MARGIN = 1.2  # side of a crop, in longer sides of the box


class JudgeWorld(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What the judge tells apart: class words, those of them that are worn, colour words, and scenes."""

    classes: tuple[str, ...]
    worn: tuple[str, ...]
    colours: tuple[str, ...]
    scenes: tuple[str, ...]


class _JudgeConfig(JudgeWorld, frozen=True):
    threshold: float


@dataclass(frozen=True, eq=False)
class Sighting:
    """One object: its index in the world's classes, how sure the judge is (0..1), its box, its identity."""

    class_index: int
    score: float
    box: Corners
    embedding: Float[Tensor, "64"]


class Judge(nn.Module):
    """Detector and embedder; `threshold` is the score from which on an object counts as there."""

    def __init__(self, world: JudgeWorld, threshold: float = 0.3) -> None:
        super().__init__()
        self.world, self.threshold = world, threshold
        self.detector = Detector(len(world.classes), len(world.scenes) + 1)
        self.embedder = Embedder(len(world.classes), len(world.colours))

    @own_settings()
    @torch.no_grad()
    def look(self, images: Pictures) -> list[list[Sighting]]:
        """Find the objects of each picture in 0..1, surest first."""
        heat, boxes, _ = self.detector(images)
        found = list(map(self._peaks, heat.sigmoid(), boxes))
        rows = [row for row, peaks in enumerate(found) for _ in peaks]
        if not rows:
            return [[] for _ in found]
        boxes = [box for peaks in found for _, _, box in peaks]
        corners = torch.tensor(boxes, dtype=torch.float32, device=images.device)
        embeddings = iter(self.embed(images, corners, torch.tensor(rows, dtype=torch.long, device=images.device)))
        return [[Sighting(kind, score, box, next(embeddings)) for kind, score, box in peaks] for peaks in found]

    @torch.no_grad()
    def embed(self, images: Pictures, boxes: Boxes, rows: Int[Tensor, "boxes"]) -> Float[Tensor, "boxes 64"]:
        """Embed what is in `boxes` of the pictures `rows`."""
        return self.embedder(crop(images, boxes, rows)).identity  # type: ignore[no-any-return]

    @torch.no_grad()
    def colours(self, images: Pictures, boxes: Boxes, rows: Int[Tensor, "boxes"]) -> list[str]:
        """Return the surest colour word for what is in `boxes` of the pictures `rows`."""
        logits = self.embedder(crop(images, boxes, rows)).colour[:, : len(self.world.colours)]
        return [self.world.colours[index] for index in logits.argmax(1).tolist()]

    @torch.no_grad()
    def scenes(self, images: Pictures) -> list[str]:
        """Name each picture's scene; "" is a plain wall."""
        names = (*self.world.scenes, "")
        return [names[index] for index in self.detector(images).scene.argmax(1).tolist()]

    def _peaks(
        self, heat: Float[Tensor, "classes 16 16"], boxes: Float[Tensor, "2 4 16 16"]
    ) -> list[tuple[int, float, Corners]]:
        """Find local maxima over the threshold, surest first; of two that share a box only the surer stays."""
        peaks = (heat == max_pool2d(heat[None], 3, 1, 1)[0]) & (heat > self.threshold)
        found: list[tuple[int, float, Corners]] = []
        for kind, y, x in sorted(peaks.nonzero().tolist(), key=lambda place: -float(heat[tuple(place)])):
            is_worn = self.world.classes[kind] in self.world.worn
            xmin, ymin, xmax, ymax = boxes[int(is_worn), :, y, x].clamp(0, 1).tolist()
            box = (xmin, ymin, xmax, ymax)
            if all(overlap(box, kept) < (0.4 if kind == other else 0.6) for other, _, kept in found):
                found.append((kind, float(heat[kind, y, x]), box))
        return found


@own_settings()
def open_judge(folder: Path = JUDGE_WEIGHTS) -> Judge:
    """Open the judge of the embedded model, or one that its recipe trained; ModelError where the folder has none."""
    try:
        config = _JudgeConfig.model_validate_json(
            read_bounded(folder / "config.json", limit=_LARGEST_JSON, error=ModelError)
        )
        judge = Judge(JudgeWorld(**config.model_dump(exclude={"threshold"})), config.threshold).float()
        weights = load_file(folder / "judge.safetensors")
        judge.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"can't open {folder} as a judge: {first_line(error)} Install cones2 again.") from error
    judge.eval().requires_grad_(False)
    return judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


@torch.no_grad()
def sureness(judge: Judge, pictures: Sequence[Image]) -> float:
    """Return how sure the judge is of the surest object of each picture, 0 to 1, on average over the pictures.

    Drawings such as it learned from have LEAST_SURE and more, photos of real things less (docs/mini.md).
    """
    squares = [crop_square(each.convert("RGB"), PICTURE) for each in pictures]
    return float(judge.detector(stack_pixels(squares) / 255).heat.sigmoid().flatten(1).amax(1).mean())


def judged_likeness(photos: Sequence[Photo], class_word: str, judge: Judge) -> Measure:
    """Return a measure of pictures: how like the photos' subject what they show of its class is, -1 to 1.

    Each picture's most similar individual counts; a picture without any counts 0.

    Raises:
        PhotoError: the judge does not know the class, or does not see it in most of the photos.
    """
    shown = [each for each in _of_class(judge, [photo.image for photo in photos], class_word) if each]
    if 2 * len(shown) <= len(photos):
        known = ", ".join(judge.world.classes)
        seen = f"sees a {class_word!r} in {len(shown)} of {counted(len(photos), 'photo')}"
        raise PhotoError(f"the judge {seen}: expected most of them, and one of {known}.")
    wanted = normalize(torch.stack([embeddings[0] for embeddings in shown]).mean(dim=0), dim=0)

    def measure(pictures: Sequence[Image]) -> float:
        seen = _of_class(judge, pictures, class_word)
        return sum(max((float(one @ wanted) for one in each), default=0.0) for each in seen) / len(seen)

    return measure


def _of_class(judge: Judge, pictures: Sequence[Image], class_word: str) -> list[list[Float[Tensor, "64"]]]:
    """Return the embeddings of what is of a class in each picture, the surest first."""
    seen = judge.look(stack_pixels([crop_square(each.convert("RGB"), PICTURE) for each in pictures]) / 255)
    return [[one.embedding for one in each if judge.world.classes[one.class_index] == class_word] for each in seen]


def crop(images: Pictures, boxes: Boxes, rows: Int[Tensor, "boxes"]) -> Float[Tensor, "boxes 3 56 56"]:
    """Cut squares around boxes of the pictures `rows`, with a margin."""
    x0, y0, x1, y1 = boxes.unbind(1)
    half = torch.maximum(x1 - x0, y1 - y0).clamp(min=0.05) * _MARGIN / 2
    steps = (torch.arange(CROP, dtype=torch.float32, device=images.device) + 0.5) * 2 / CROP - 1
    x = ((x0 + x1) / 2)[:, None] + half[:, None] * steps
    y = ((y0 + y1) / 2)[:, None] + half[:, None] * steps
    grid = torch.stack([x[:, None, :].expand(-1, CROP, CROP), y[:, :, None].expand(-1, CROP, CROP)], -1)
    return grid_sample(images[rows], grid * 2 - 1, mode="bilinear", padding_mode="border", align_corners=False)


def overlap(one: Corners, other: Corners) -> float:
    """Intersection over union of two boxes."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / (areas - width * height)


def clip_similarity(photos: Sequence[Photo], folder: Path) -> Measure:
    """Return a measure of pictures: their mean cosine similarity with the photos by a CLIP model, -1 to 1.

    The "image alignment" of arXiv:2305.19327, Sec. 4, for one subject. Backgrounds count, too. The model lies in a
    local folder, such as a copy of `clip-vit-base-patch32`.

    Raises:
        ModelError: it is not a CLIP model's folder, or is damaged.
    """
    model, processing = _open_clip(folder)
    size = int(model.config.image_size)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (processing.image_mean, processing.image_std))

    @own_settings()
    @torch.no_grad()
    def embed(pictures: Sequence[Image]) -> Float[Tensor, "pictures dim"]:
        # What is not square is cut in the middle.
        squares = [ImageOps.fit(each.convert("RGB"), (size, size), Resampling.BICUBIC) for each in pictures]
        pixels = np.stack([(np.asarray(square, dtype=np.float32) / 255 - mean) / std for square in squares])
        embeddings: Tensor = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).image_embeds
        return normalize(embeddings, dim=-1)

    wanted = embed([crop_square(photo.image, size) for photo in photos])

    def measure(pictures: Sequence[Image]) -> float:
        return float((embed(pictures) @ wanted.T).mean())

    some = b"".join(weight.flatten()[:16].numpy().tobytes() for weight in model.parameters())
    # By this name a learning that is resumed knows whether it is measured as before.
    measure.__qualname__ = f"similarity by {hashlib.sha256(some).hexdigest()} with {processing}"
    return measure


class _Processing(pydantic.BaseModel):
    """How CLIP's training pictures were normalised; the released models' numbers where a folder does not say."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


@own_settings()
def _open_clip(folder: Path) -> tuple[Any, _Processing]:
    """Open the image half of a CLIP model, and read how its pictures are normalised."""
    check_encoder(folder)
    try:
        with quiet_libraries():
            from transformers import CLIPConfig, CLIPVisionModelWithProjection

            config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
            config.vision_config.projection_dim = config.projection_dim
            options = {"config": config.vision_config, "dtype": torch.float32, "attn_implementation": "sdpa"}
            options |= {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
            kind: Any = CLIPVisionModelWithProjection
            model, report = kind.from_pretrained(folder, **options)
        said = folder / "preprocessor_config.json"
        content = read_bounded(said, limit=_LARGEST_JSON, error=ModelError) if said.is_file() else "{}"
        processing = _Processing.model_validate_json(content)
    except Exception as error:  # transformers raises nearly anything over a damaged folder
        raise ModelError(f"can't open {folder} as a CLIP model: {first_line(error)} Copy it again.") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{folder} lacks weights of a CLIP model ({len(missing)}, {missing[0]} first): copy it again.")
    return model.eval().requires_grad_(False), processing


class Detections(NamedTuple):
    """Logits of objects' centres; boxes in 0..1, those of worn things second; logits of scenes, a plain wall last."""

    heat: Float[Tensor, "batch classes 16 16"]
    boxes: Float[Tensor, "batch 2 4 16 16"]
    scene: Float[Tensor, "batch scenes"]


class Embedded(NamedTuple):
    """Identities, of length 1, compared by dot product; logits of classes; and of colour words, none of them last."""

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
        centres = (torch.arange(GRID, dtype=torch.float32, device=images.device) + 0.5) / GRID
        y, x = centres[:, None].expand(GRID, GRID), centres.expand(GRID, GRID)
        left, top, right, bottom = sides.unbind(2)
        boxes = torch.stack([x - left, y - top, x + right, y + bottom], 2)
        return Detections(self.heat(fused), boxes, self.scene(deep.mean((2, 3))))


class Embedder(nn.Module):
    """Identity, class and colour of what is in square crops of pictures in 0..1."""

    def __init__(self, classes: int, colours: int) -> None:
        super().__init__()
        first = (_convolution(3, 32, 2), nn.SiLU(), _convolution(32, 64, 2), nn.SiLU(), _Block(64))
        self.body = nn.Sequential(*first, _convolution(64, 128, 2), nn.SiLU(), _Block(128))
        features = nn.Linear(48 * (CROP // 8) ** 2, WIDTH)
        self.identity = nn.Sequential(_convolution(128, 48), nn.SiLU(), nn.Flatten(), features)
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

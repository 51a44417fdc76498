"""The judge of the embedded model's pictures: who is in them, where, and how like a known individual.

A small detector and a small identity embedder, trained on renders of their own (`recipes/mini/train_judge.py`); nothing
of it is ever used to train the model that it judges.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int
from PIL import ImageOps
from PIL.Image import Image, Resampling
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import grid_sample, max_pool2d, normalize

from cones2.errors import ModelError, PhotoError
from cones2.files import read_bounded
from cones2.judge_layers import CROP, PICTURE, Detector, Embedder
from cones2.libraries import first_line, quiet_libraries
from cones2.photos import Photo, crop_square, stack_pixels

Measure = Callable[[Sequence[Image]], float]
"""How like a subject pictures are: higher is more like it."""

Corners = tuple[float, float, float, float]
"""xmin, ymin, xmax, ymax in 0..1."""

JUDGE_WEIGHTS = Path(__file__).with_name("judge_weights")
_LARGEST_JSON = 2**16
_MARGIN = 1.2  # side of a crop, in longer sides of the box


class JudgeWorld(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What the judge tells apart.

    Attributes:
        classes: class words.
        worn: those of them that share an animal's place.
        colours: words of an object's main colour.
        scenes: names of scenes; a plain wall is none of them.
    """

    classes: tuple[str, ...]
    worn: tuple[str, ...]
    colours: tuple[str, ...]
    scenes: tuple[str, ...]


class _JudgeConfig(JudgeWorld, frozen=True):
    threshold: float


@dataclass(frozen=True, eq=False)
class Sighting:
    """One object that the judge found.

    Attributes:
        class_index: index into the world's classes.
        score: how sure the judge is that there is one, 0..1.
        box: where.
        embedding: of length 1; individuals are compared by its dot product.
    """

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

    @torch.no_grad()
    def look(self, images: Float[Tensor, "batch 3 128 128"]) -> list[list[Sighting]]:
        """Find the objects of each picture in 0..1, surest first."""
        detections = self.detector(images)
        found = [
            self._peaks(heat, boxes) for heat, boxes in zip(detections.heat.sigmoid(), detections.boxes, strict=True)
        ]
        rows = torch.tensor(
            [row for row, peaks in enumerate(found) for _ in peaks], dtype=torch.long, device=images.device
        )
        if not len(rows):
            return [[] for _ in found]
        boxes = torch.tensor([box for peaks in found for _, _, box in peaks], device=images.device)
        embeddings = iter(self.embed(images, boxes, rows))
        return [[Sighting(kind, score, box, next(embeddings)) for kind, score, box in peaks] for peaks in found]

    @torch.no_grad()
    def embed(
        self, images: Float[Tensor, "batch 3 128 128"], boxes: Float[Tensor, "boxes 4"], rows: Int[Tensor, "boxes"]
    ) -> Float[Tensor, "boxes 64"]:
        """Embed what is in `boxes` of the pictures `rows`."""
        embedded: Tensor = self.embedder(crop(images, boxes, rows)).identity
        return embedded

    @torch.no_grad()
    def colours(
        self, images: Float[Tensor, "batch 3 128 128"], boxes: Float[Tensor, "boxes 4"], rows: Int[Tensor, "boxes"]
    ) -> list[str]:
        """Return the surest colour word for what is in `boxes` of the pictures `rows`."""
        logits = self.embedder(crop(images, boxes, rows)).colour[:, : len(self.world.colours)]
        return [self.world.colours[index] for index in logits.argmax(1).tolist()]

    @torch.no_grad()
    def scenes(self, images: Float[Tensor, "batch 3 128 128"]) -> list[str]:
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


def open_judge(folder: Path = JUDGE_WEIGHTS) -> Judge:
    """Open the judge of the embedded model, or one that its recipe trained into another folder.

    Raises:
        ModelError: it is no judge's folder, or is damaged.
    """
    try:
        config = _JudgeConfig.model_validate_json(
            read_bounded(folder / "config.json", limit=_LARGEST_JSON, error=ModelError)
        )
        judge = Judge(JudgeWorld(**config.model_dump(exclude={"threshold"})), config.threshold)
        weights = load_file(folder / "judge.safetensors")
        judge.load_state_dict({name: w.float() if w.is_floating_point() else w for name, w in weights.items()})
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"can't open {folder} as a judge: {first_line(error)} Install cones2 again, with its weights, or give a"
            " folder that recipes/mini/train_judge.py wrote."
        ) from error
    judge.eval().requires_grad_(False)
    return judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def judged_likeness(photos: Sequence[Photo], class_word: str, judge: Judge) -> Measure:
    """Return a measure of pictures: how like the photos' subject what the judge sees of its class in them is, -1 to 1.

    Individuals are compared by the dot product of their embeddings, each picture's best against the photos' mean; a
    picture where the judge sees none of the class counts 0.

    Raises:
        PhotoError: the judge does not know the class, or does not see it in most of the photos.
    """
    shown = [each for each in _of_class(judge, [photo.image for photo in photos], class_word) if each]
    if 2 * len(shown) <= len(photos):
        known = ", ".join(judge.world.classes)
        raise PhotoError(
            f"the judge of pictures sees a {class_word!r} in {len(shown)} of {len(photos)} photos: expected most of"
            f" them, and one of {known}."
        )
    wanted = normalize(torch.stack([embeddings[0] for embeddings in shown]).mean(dim=0), dim=0)

    def measure(pictures: Sequence[Image]) -> float:
        seen = _of_class(judge, pictures, class_word)
        likes = [max((float(embedding @ wanted) for embedding in each), default=0.0) for each in seen]
        return sum(likes) / len(likes)

    return measure


def _of_class(judge: Judge, pictures: Sequence[Image], class_word: str) -> list[list[Float[Tensor, "64"]]]:
    """Return the embeddings of what is of a class in each picture, the surest first."""
    return [
        [one.embedding for one in sightings if judge.world.classes[one.class_index] == class_word]
        for sightings in judge.look(_see(pictures))
    ]


def crop(
    images: Float[Tensor, "batch 3 height width"], boxes: Float[Tensor, "boxes 4"], rows: Int[Tensor, "boxes"]
) -> Float[Tensor, "boxes 3 56 56"]:
    """Cut squares around boxes of the pictures `rows`, with a margin."""
    x0, y0, x1, y1 = boxes.unbind(1)
    half = torch.maximum(x1 - x0, y1 - y0).clamp(min=0.05) * _MARGIN / 2
    steps = (torch.arange(CROP, device=images.device) + 0.5) * 2 / CROP - 1
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


def _see(pictures: Sequence[Image]) -> Float[Tensor, "batch 3 128 128"]:
    return stack_pixels([crop_square(picture.convert("RGB"), PICTURE) for picture in pictures]) / 255


def clip_similarity(photos: Sequence[Photo], folder: Path) -> Measure:
    """Return a measure of pictures: their mean cosine similarity with the photos by a CLIP model, -1 to 1.

    The "image alignment" of arXiv:2305.19327, Sec. 4, for pictures of one subject. Backgrounds count, too.

    Args:
        photos: of the subject.
        folder: of the CLIP model, on this machine, such as `clip-vit-base-patch32` copied from the Hub.

    Raises:
        ModelError: it is no CLIP model's folder, or is damaged.
    """
    model, processing = _open_clip(folder)
    size = int(model.config.image_size)
    mean, std = (np.asarray(values, dtype=np.float32) for values in (processing.image_mean, processing.image_std))

    @torch.no_grad()
    def embed(pictures: Sequence[Image]) -> Float[Tensor, "pictures dim"]:
        # What is not square is cut in the middle.
        squares = [ImageOps.fit(each.convert("RGB"), (size, size), Resampling.BICUBIC) for each in pictures]
        pixels = np.stack([(np.asarray(square, dtype=np.float32) / 255 - mean) / std for square in squares])
        embeddings: Tensor = model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).image_embeds
        return normalize(embeddings, dim=-1)

    wanted = embed([crop_square(photo.image, size) for photo in photos])
    return lambda pictures: float((embed(pictures) @ wanted.T).mean())


class _Processing(pydantic.BaseModel):
    """How CLIP's training pictures were normalised; the released models' numbers where a folder does not say."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)


def _open_clip(folder: Path) -> tuple[Any, _Processing]:
    """Open the image half of a CLIP model, and read how its pictures are normalised."""
    try:
        with quiet_libraries():
            from transformers import CLIPConfig, CLIPVisionModelWithProjection

            config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
            config.vision_config.projection_dim = config.projection_dim
            options = {"config": config.vision_config, "dtype": torch.float32, "output_loading_info": True}
            kind: Any = CLIPVisionModelWithProjection
            model, report = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True, **options)
        said = folder / "preprocessor_config.json"
        content = read_bounded(said, limit=_LARGEST_JSON, error=ModelError) if said.is_file() else "{}"
        processing = _Processing.model_validate_json(content)
    except Exception as error:  # transformers raises nearly anything over a damaged folder
        raise ModelError(
            f"can't open {folder} as a CLIP model: {first_line(error)} Give a folder with its config.json and"
            " model.safetensors."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(f"{folder} lacks {len(missing)} weights of a CLIP model, {missing[0]} first: copy it again.")
    return model.eval().requires_grad_(False), processing

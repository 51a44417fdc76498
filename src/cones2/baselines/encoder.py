"""An encoder in place of learning: one look at the photos gives the residual.

ELITE's idea (arXiv:2302.13848; arXiv:2305.19327, Fig. A7) with the coder that mini's own training leaves behind.
"""

import importlib.metadata
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step, check_lessons
from cones2.baselines.ours import kept_residual, with_residuals
from cones2.baselines.setup import Drawer, Reader, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.baselines.twins import rival_family, unwrapped_pipeline
from cones2.captions import find_class_word, photo_caption
from cones2.errors import ModelError, check_fields, first_line
from cones2.files import expanded, read_bounded
from cones2.fingerprint import fingerprint
from cones2.judge import open_judge
from cones2.photos import Photo, crop_square, stack_pixels
from cones2.prompts import token_span
from cones2.residual import Residual, ResidualPart
from cones2.shared import own_settings

_SIDE = 24
_FILLED = 0.95  # of a thumbnail's side
_LARGEST = 2**26
_PICTURE = 128  # that the judge looks at


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """A coder of thumbnails: what it says is added at the noun before the text encoder's last norm, as in training.

    The residual is what that changes at the class word of "a photo of a CLASS". The coder learned from cut-out
    thumbnails on grey: a photo's mask cuts its subject out; without one, the judge's box of the class does, with what
    else is in it, or else the whole photo is taken.

    Attributes:
        weights: the file of mini's training heads; the package does not bring it.
    """

    weights: Path | str
    name: ClassVar[str] = "encoder"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "an encoder")

    @own_settings()
    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:  # noqa: ARG002
        """Return one step, as `Rival.learn`; ModelError where the coder is none, or of another model."""
        check_lessons(self, lessons)
        own, coder = unwrapped_pipeline(pipeline), open_coder(self.weights)
        rival_family(own)
        if coder.linear.out_features != own.text_encoder.config.hidden_size:
            width = own.text_encoder.config.hidden_size
            raise ModelError(f"{self.weights} codes in width {coder.linear.out_features}, the model's is {width}.")
        [(name, lesson)] = lessons.items()

        def read() -> Tensors:
            return kept_residual(self.name, name, encoded_residual(own, coder, lesson))

        return (step for step in [Step(0, 0, 0.0, read)])

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw with the residuals."""
        yield Drawer(with_residuals(pipeline, as_tensors(self, learned)))


class Coder(nn.Module):
    """A thumbnail's code: a linear reading of it at half its size, and what a small network sees in it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(_SIDE**2, width)
        layers = (nn.Conv2d(4, 32, 3, padding=1), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 96, 3, 2, 1))
        activated = [part for layer in layers for part in (layer, nn.SiLU())]
        self.network = nn.Sequential(*activated, nn.Flatten(), nn.Linear(96 * (_SIDE // 4) ** 2, width))

    def forward(self, thumbnails: Float[Tensor, "batch 4 24 24"]) -> Float[Tensor, "batch width"]:
        """Code thumbnails: colour over grey, and how much of each pixel is the subject's."""
        code: Tensor = self.linear(F.avg_pool2d(thumbnails, 2).flatten(1)) + self.network(thumbnails)
        return code


@own_settings()
def open_coder(path: Path | str) -> Coder:
    """Read a coder from a file of mini's training heads.

    Raises:
        ModelError: it can't be read, or holds no coder.
    """
    content = read_bounded(expanded(path), limit=_LARGEST, error=ModelError)
    try:
        found = {name: value.float() for name, value in safetensors.torch.load(content).items()}
        own = {name.removeprefix("code."): value for name, value in found.items() if name.startswith("code.")}
        coder = Coder(len(own["linear.bias"])).float()
        coder.load_state_dict(own)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} holds no coder of thumbnails: {first_line(error)} Give mini's heads.") from error
    return coder.eval().requires_grad_(False)


@torch.no_grad()
def encoded_residual(pipeline: Any, coder: Coder, lesson: Lesson) -> Residual:
    """Return what the mean code of a subject's photos changes at its class word."""
    word, caption = lesson.class_word, photo_caption(lesson.class_word)
    thumbnails = torch.stack([thumbnail(photo, word) for photo in lesson.pictures])
    reader = Reader(pipeline, {})
    start, stop = token_span(reader.tokenizer, caption, *find_class_word(caption, word))
    norm, before = reader.encoder.final_layer_norm, list[Tensor]()
    handle = norm.register_forward_pre_hook(lambda module, inputs: before.append(inputs[0]))  # noqa: ARG005
    plain = reader.embed([caption])[0, start:stop]
    handle.remove()
    code = coder(thumbnails).mean(0).to(plain)
    shift = (norm(before[0][0, start:stop] + code) - plain).float().cpu()
    ids = reader.tokenizer(word, add_special_tokens=False)["input_ids"]
    encoder = fingerprint(pipeline.text_encoder, "text_encoder", pipeline.name_or_path or type(pipeline).__name__)
    part = ResidualPart(encoder, tuple(reader.tokenizer.convert_ids_to_tokens(ids)), shift)
    photos = tuple(photo.sha256 for photo in lesson.pictures)
    return Residual(word, (part,), {"made_by": "encoder"}, photos, importlib.metadata.version("cones2"))


def thumbnail(photo: Photo, class_word: str) -> Float[Tensor, "4 24 24"]:
    """Return a photo's subject in the middle of a grey square, and how much of each pixel is its own."""
    picture = photo.image if photo.mask is not None else crop_square(photo.image, _PICTURE)
    mask = photo.mask or _boxed(picture, class_word)
    left, top, right, bottom = mask.getbbox() or (0, 0, *picture.size)
    side, size = max(right - left, bottom - top) / _FILLED, 2 * _SIDE
    middle = (left + right) / 2, (top + bottom) / 2
    box = (middle[0] - side / 2, middle[1] - side / 2, middle[0] + side / 2, middle[1] + side / 2)
    to, how = (size, size), (Image.Transform.EXTENT, box, Image.Resampling.BICUBIC)
    whole = [each.transform(to, *how) for each in (picture, mask)]
    colour, alpha = (torch.from_numpy(np.array(each, dtype=np.float32) / 255) for each in whole)
    over_grey = alpha * colour.permute(2, 0, 1) + 0.5 * (1 - alpha)
    return F.interpolate(torch.cat([over_grey, alpha[None]])[None], (_SIDE, _SIDE), mode="area")[0]


def _boxed(picture: Image.Image, class_word: str) -> Image.Image:
    """Return a mask of where the judge sees the class, or of the whole picture."""
    judge, mask = open_judge(), Image.new("L", picture.size)
    [seen] = judge.look(stack_pixels([picture.resize((_PICTURE, _PICTURE))]) / 255)
    boxes = [each.box for each in seen if judge.world.classes[each.class_index] == class_word] or [(0.0, 0.0, 1.0, 1.0)]
    left, top, right, bottom = (round(each * side) for each, side in zip(boxes[0], picture.size * 2, strict=True))
    mask.paste(255, (left, top, max(right, left + 1), max(bottom, top + 1)))
    return mask

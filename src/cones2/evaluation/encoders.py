"""CLIP and DINO from local folders, for photographs: CLIP-T, CLIP-I and DINO as other papers print them.

The pictures are prepared with Pillow alone, as the models' owners say: bicubic to the shorter side, the middle cut out,
their means and deviations.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor

from cones2.errors import ModelError, first_line
from cones2.files import read_bounded, read_json_object
from cones2.model_folders import check_encoder
from cones2.shared import own_settings, quiet_libraries

_LARGEST_JSON = 2**16
_AT_ONCE = 16
_DINO = {"vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


_Side = Annotated[int, pydantic.Field(ge=0, le=4096)]


class _Size(pydantic.BaseModel):
    shortest_edge: _Side = 0
    height: _Side = 0


class Preparation(pydantic.BaseModel):
    """How an encoder's pictures are prepared: what its folder's `preprocessor_config.json` says."""

    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    size: _Size | _Side = _Size()
    crop_size: _Size | _Side | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """The shorter side that pictures are scaled to, and that of the square cut from its middle, in pixels."""
        scaled = self.size if isinstance(self.size, int) else self.size.shortest_edge or self.size.height
        cut = self.crop_size if isinstance(self.crop_size, int) else self.crop_size and self.crop_size.height
        return scaled, cut or scaled

    def pixels(self, pictures: Sequence[Image]) -> Float[Tensor, "pictures 3 side side"]:
        """Return pictures as the encoder takes them."""
        scaled, side = self.sides
        squares = [_middle(picture.convert("RGB"), scaled, side) for picture in pictures]
        values = np.stack([np.asarray(square, dtype=np.float32) / 255 for square in squares])
        values = (values - np.array(self.image_mean, np.float32)) / np.array(self.image_std, np.float32)
        return torch.from_numpy(values).permute(0, 3, 1, 2)


def _middle(picture: Image, scaled: int, side: int) -> Image:
    width, height = picture.size
    ratio = scaled / min(width, height)
    size = (max(scaled, int(width * ratio)), max(scaled, int(height * ratio)))
    picture = picture.resize(size, Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return picture.crop((left, top, left + side, top + side))


@dataclass(frozen=True, eq=False)
class Encoder:
    """Embeds pictures, and texts if it is CLIP.

    Attributes:
        model: of transformers.
        preparation: of pictures.
        tokenizer: of CLIP; None for DINO.
    """

    model: Any
    preparation: Preparation
    tokenizer: Any = None

    @own_settings(inference=True)
    def pictures(self, pictures: Sequence[Image]) -> Float[np.ndarray, "pictures dim"]:
        """Embed pictures: CLIP's projection, or DINO's CLS token."""
        found = []
        for first in range(0, len(pictures), _AT_ONCE):
            pixels = self.preparation.pixels(pictures[first : first + _AT_ONCE])
            if self.tokenizer is None:
                found.append(self.model(pixel_values=pixels).last_hidden_state[:, 0])
            else:
                vision = self.model.vision_model(pixel_values=pixels).pooler_output
                found.append(self.model.visual_projection(vision))
        return torch.cat(found).numpy()

    @own_settings(inference=True)
    def texts(self, texts: Sequence[str]) -> Float[np.ndarray, "texts dim"]:
        """Embed texts by CLIP's projection; prompts as a person reads them, without placeholders.

        Raises:
            ModelError: it is not CLIP.
        """
        if self.tokenizer is None:
            raise ModelError("this encoder reads no texts: expected CLIP. Open a CLIP model's folder.")
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        return self.model.text_projection(self.model.text_model(**tokens).pooler_output).numpy()  # type: ignore[no-any-return]


def open_clip(folder: Path) -> Encoder:
    """Open CLIP from a folder, such as a copy of `openai/clip-vit-base-patch32`.

    Raises:
        ModelError: it is not a CLIP model's folder, or is damaged.
    """
    return _opened(folder, {"clip": "CLIPModel"}, with_tokenizer=True)


def open_dino(folder: Path) -> Encoder:
    """Open DINO or DINOv2 from a folder, such as a copy of `facebook/dino-vits16` or `facebook/dinov2-base`.

    Raises:
        ModelError: it is not such a model's folder, or is damaged.
    """
    return _opened(folder, _DINO, with_tokenizer=False)


@own_settings()
def _opened(folder: Path, kinds: Mapping[str, str], *, with_tokenizer: bool) -> Encoder:
    check_encoder(folder)
    try:
        told = read_json_object(folder / "config.json", limit=_LARGEST_JSON, error=ModelError).get("model_type")
        if not isinstance(told, str) or told not in kinds:
            raise ModelError(f"its model_type is {reprlib.repr(told)}, expected {' or '.join(kinds)}.")
        said = read_bounded(folder / "preprocessor_config.json", limit=_LARGEST_JSON, error=ModelError)
        preparation = Preparation.model_validate_json(said)
        with quiet_libraries():
            import transformers

            options = {"dtype": torch.float32, "attn_implementation": "sdpa", "output_loading_info": True}
            options |= {"use_safetensors": True, "local_files_only": True}
            model, report = getattr(transformers, kinds[told]).from_pretrained(folder, **options)
            tokenizer = (
                transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True) if with_tokenizer else None
            )
    except Exception as error:  # transformers raises nearly anything over a damaged folder
        raise ModelError(f"can't open {folder} as an encoder: {first_line(error)} Copy it again.") from error
    if missing := sorted(name for name in report["missing_keys"] if "pooler" not in name):
        raise ModelError(f"{folder} lacks weights ({len(missing)}, {missing[0]} first): copy it again.")
    return Encoder(model.eval().requires_grad_(requires_grad=False), preparation, tokenizer)

"""The image half of a CLIP model, to compare pictures with: from a local folder only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor
from transformers import CLIPConfig, CLIPVisionModelWithProjection

from cones2.backbones.libraries import first_line, quiet_libraries
from cones2.errors import BackboneError

# Of CLIP's training pictures, where a folder does not say.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """The image half of a CLIP model.

    Attributes:
        model: transformers' own.
        size: the side of the pictures that it looks at.
        mean: of its training pictures' channels, which it expects to be taken off.
        std: likewise, to be divided by.
    """

    model: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @torch.no_grad()
    def embed(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "batch dim"]:
        """Give pictures' embeddings, of length 1; what is not square is cut in the middle."""
        pixels = np.stack([self._pixels(picture) for picture in pictures])
        embeddings = self.model(torch.from_numpy(pixels).permute(0, 3, 1, 2)).image_embeds
        return torch.nn.functional.normalize(embeddings, dim=-1)

    def _pixels(self, picture: Image.Image) -> Float[np.ndarray, "rows columns 3"]:
        square = ImageOps.fit(picture.convert("RGB"), (self.size, self.size), Image.Resampling.BICUBIC)
        scaled = np.asarray(square, dtype=np.float32) / 255
        mean, std = (np.asarray(values, dtype=np.float32) for values in (self.mean, self.std))
        pixels: Float[np.ndarray, "rows columns 3"] = (scaled - mean) / std
        return pixels


def open_image_encoder(folder: Path) -> ImageEncoder:
    """Open the image half of the CLIP model in a local folder, such as `clip-vit-base-patch32` copied from the Hub.

    Raises:
        BackboneError: it is no CLIP model's folder, or is damaged.
    """
    try:
        with quiet_libraries():
            model, report = _load(folder)
        mean, std = _read_normalization(folder)
    except Exception as error:  # transformers raises nearly anything over a damaged folder
        raise BackboneError(
            f"can't open {folder} as a CLIP model: {first_line(error)} Give a folder with its config.json and"
            " model.safetensors."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise BackboneError(
            f"{folder} lacks {len(missing)} weights of a CLIP model, {missing[0]} first: copy it again."
        )
    return ImageEncoder(model.eval().requires_grad_(False), int(model.config.image_size), mean, std)


def _load(folder: Path) -> tuple[Any, dict[str, Any]]:
    config: Any = CLIPConfig.from_pretrained(folder, local_files_only=True)
    config.vision_config.projection_dim = config.projection_dim
    kind: Any = CLIPVisionModelWithProjection
    model, report = kind.from_pretrained(
        folder,
        config=config.vision_config,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    return model, report


def _read_normalization(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    path = folder / "preprocessor_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    mean, std = config.get("image_mean", _MEAN), config.get("image_std", _STD)
    return tuple(map(float, mean)), tuple(map(float, std))

"""Latents in a file: what pictures are before the autoencoder decodes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from cones2.errors import PictureError
from cones2.files import read_bounded, write_atomically

_NAME = "latents"
_LARGEST_FILE = 2**30


def write_latents(path: Path, latents: Float[Tensor, "batch channels height width"], seeds: Sequence[int]) -> None:
    """Write a safetensors file with one tensor, `latents`, in float32; its metadata has the seed of each row.

    Raises:
        OutputError: it can't be written.
    """
    rows = latents.detach().float().cpu().contiguous()
    write_atomically(path, safetensors.torch.save({_NAME: rows}, {"seeds": json.dumps(list(seeds))}))


def read_latents(path: Path) -> Float[Tensor, "batch channels height width"]:
    """Read what `write_latents` wrote.

    Raises:
        PictureError: it can't be read, or is something else.
    """
    content = read_bounded(path, limit=_LARGEST_FILE, error=PictureError)
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise PictureError(f"{path} holds no latents: {error}. Expected a file that write_latents wrote.") from error
    if list(tensors) != [_NAME] or tensors[_NAME].ndim != 4:
        raise PictureError(f"{path} holds no latents: expected a file that write_latents wrote.")
    return tensors[_NAME]

"""Latents in a file: what pictures are before the autoencoder decodes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
from jaxtyping import Float
from torch import Tensor

from cones2.files import write_atomically


def write_latents(path: Path, latents: Float[Tensor, "batch channels height width"], seeds: Sequence[int]) -> None:
    """Write a safetensors file with one tensor, `latents`, in float32; its metadata has the seed of each row.

    Raises:
        OutputError: it can't be written.
    """
    rows = latents.detach().float().cpu().contiguous()
    write_atomically(path, safetensors.torch.save({"latents": rows}, {"seeds": json.dumps(list(seeds))}))

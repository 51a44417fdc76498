"""Counts the bytes of learning, from a model's configurations alone: no weights, no GPU.

The models are made without numbers, and one step is taken on them with every tensor's size added up while it lives.
That is an upper bound for a GPU but for what it leaves out: without numbers PyTorch keeps all attention scores, its
fused kernels keep none. Left out are PyTorch's own working space on a GPU, some 0.5 GB, and gaps between tensors.
"""

import argparse
import weakref
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cones2.families import family_of
from cones2.learning.data import TextReader
from cones2.learning.losses import preservation_loss, subject_loss
from cones2.learning.recipe import RECIPES
from cones2.single_files import CONFIG_NAMES, CONFIGS
from random_models import make_model

RECIPE = RECIPES["paper"]


class LiveBytes(TorchDispatchMode):
    """Adds up the sizes of the tensors that are made within it, for as long as they live.

    Attributes:
        most: the largest sum so far.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._live = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        """Run an operation, and count what it made."""
        made = function(*args, **(options or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._seen:
            return
        self._seen.add(storage._cdata)
        self._live += storage.nbytes()
        self.most = max(self.most, self._live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self._live -= size


def count(folder: Path, *, size: int, save_memory: bool) -> dict[str, int]:
    """Count the bytes of a step of the paper's recipe in bfloat16, by what they are for."""
    pipeline = make_model(folder, device="meta", dtype=torch.bfloat16)
    family = family_of(pipeline)
    reader = TextReader.copy_of(pipeline, family)
    frozen = [weight for part in family.text_parts for weight in getattr(pipeline, part.encoder).parameters()]
    learned = [weight.requires_grad_() for encoder in reader.encoders for weight in encoder.parameters()]
    width = pipeline.unet.config["cross_attention_dim"]
    originals = torch.zeros(RECIPE.caption_count, pipeline.tokenizer.model_max_length, width, device="meta")
    return {
        "UNet, frozen, bfloat16": _size(pipeline.unet.parameters()),
        "autoencoder, frozen, bfloat16": 0 if save_memory else _size(pipeline.vae.parameters()),
        "text encoder, frozen, bfloat16": 0 if save_memory else _size(frozen),
        "text encoder, tuned, float32": _size(learned),
        "AdamW's two moments": 2 * _size(learned),
        "what the frozen encoder makes of the captions": _size([originals]),
        "gradients and activations": _most_in_a_step(
            pipeline, reader, originals, learned, size=size, save_memory=save_memory
        ),
    }


def _most_in_a_step(
    pipeline: Any,
    reader: TextReader,
    originals: torch.Tensor,
    learned: list[torch.Tensor],
    *,
    size: int,
    save_memory: bool,
) -> int:
    unet, side, window = pipeline.unet, size // pipeline.vae_scale_factor, originals.shape[1]
    latents = torch.zeros(RECIPE.batch_size, unet.config["in_channels"], side, side, device="meta", dtype=unet.dtype)
    ids = torch.zeros(1 + RECIPE.captions_per_step, window, dtype=torch.long, device="meta")
    own = torch.zeros(RECIPE.captions_per_step, window, dtype=torch.bool, device="meta")
    time = torch.zeros(RECIPE.batch_size, dtype=torch.long, device="meta")
    input_ids = [ids] * len(reader.encoders)
    with torch.no_grad():
        added = reader.family.added_conditions(reader.encoders, [ids[:1]] * len(reader.encoders), size)
    added = {name: row.expand(len(latents), -1) for name, row in added.items()}
    live = LiveBytes([*learned, *unet.parameters(), originals, latents, ids, own, time, *added.values()])
    if save_memory:
        unet.enable_gradient_checkpointing()
    with live:
        embeddings = reader.read(input_ids)
        preservation = preservation_loss(embeddings[1:], originals[: RECIPE.captions_per_step], own)
        text = embeddings[:1].expand(len(latents), -1, -1).to(unet.dtype)
        prediction = unet(latents, time, text, added_cond_kwargs=added, return_dict=False)[0]
        torch.autograd.backward(subject_loss(prediction, latents) + preservation)
    return live.most


def _size(weights: Any) -> int:
    return sum(weight.numel() * weight.element_size() for weight in weights)


def main() -> None:
    """Print the count as a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=CONFIG_NAMES, default="sd2-base")
    parser.add_argument("--size", type=int, default=512, help="of the photos, in pixels")
    arguments = parser.parse_args()
    saved, kept = (count(CONFIGS / arguments.model, size=arguments.size, save_memory=yes) for yes in (True, False))
    print(f"| learning on {arguments.model} at {arguments.size} px, GB | as usual | with `--save-memory` |")
    print("| --- | --- | --- |")
    for name in saved:
        print(f"| {name} | {kept[name] / 1e9:.2f} | {saved[name] / 1e9:.2f} |")
    print(f"| in all | {sum(kept.values()) / 1e9:.2f} | {sum(saved.values()) / 1e9:.2f} |")


if __name__ == "__main__":
    main()

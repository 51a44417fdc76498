"""Counts what a layout adds to the operations of a UNet call, on models of real size: no weights, no GPU.

A GPU is fast enough that a picture waits for its operations to be sent, thousands a step, most of them small; so their
number is what a layout costs there, more than what they compute. Views are not counted, they send nothing.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from composing_pairs import LAYOUT
from cones2.backbones.single_files import CONFIG_NAMES, CONFIGS
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from random_models import make_model

SPANS = {"rex": ((2, 3),), "tom": ((5, 6),)}


class Operations(TorchDispatchMode):
    """Counts the operations within its `with` block.

    Attributes:
        count: of them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        """Run an operation, and count it."""
        self.count += not function.is_view
        return function(*args, **(options or {}))


def count(model: str) -> tuple[int, int]:
    """Count the operations of a UNet call in bfloat16 for both halves of guidance: as it is, and with a layout."""
    backbone = make_model(CONFIGS / model, device="meta", dtype=torch.bfloat16)
    unet, side = backbone.unet, backbone.unet.config["sample_size"]
    with torch.device("meta"):
        latents = torch.empty(2, unet.config["in_channels"], side, side, dtype=backbone.dtype)
        text = torch.empty(2, backbone.window, backbone.width, dtype=backbone.dtype)
        timestep, added = torch.tensor(500), {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
    guidance = LayoutGuidance(LAYOUT, SPANS, backbone.scheduler.alphas_cumprod)

    @torch.no_grad()
    def call() -> None:
        unet(latents, timestep, encoder_hidden_states=text, added_cond_kwargs=added)

    plain = _second_of(call)
    with edited_cross_attention(unet, guidance, conditional=[False, True], keep_text=True):
        return plain, _second_of(call)


def _second_of(call: Callable[[], None]) -> int:
    """Count the second call's operations: all but the first of a picture are like it."""
    call()
    with Operations() as operations:
        call()
    return operations.count


def main() -> None:
    """Print a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| operations of a UNet call | as it is | with a layout | ratio |")
    print("| --- | --- | --- | --- |")
    for model in CONFIG_NAMES:
        plain, edited = count(model)
        print(f"| {model} | {plain:,} | {edited:,} | {edited / plain:.2f} |", flush=True)


if __name__ == "__main__":
    main()

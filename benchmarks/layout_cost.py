"""What a layout adds to a UNet call where a GPU waits to be sent its operations: `python benchmarks/layout_cost.py`.

A GPU is fast enough that a picture waits for its operations to be sent, thousands a step, most of them small; so their
number, and what Python does around them, is what a layout costs there, more than what they compute. Operations are
counted on models of real size without numbers; views are not counted, they send nothing. The time to send them is
taken on a UNet with all layers that is thin, so that next to nothing is computed. No weights and no GPU are needed.
"""

import argparse
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cones2.attention import edited_attention
from cones2.families import FAMILIES
from cones2.guidance import Spans
from cones2.run import LayoutSettings, Run
from cones2.single_files import CONFIG_NAMES, CONFIGS
from drawing_pairs import LAYOUT
from pairs import Pair, Timing, measure
from random_models import make_model

SPANS: Spans = {"rex": ((2, 3),), "tom": ((5, 6),)}
_CALLS = 10
_THINNER, _TEXT, _SIDE, _TOKENS = 10, 64, 8, 77


class Operations(TorchDispatchMode):
    """Counts the operations within its `with` block.

    Attributes:
        count: of them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), options: Any = None) -> Any:
        """Run an operation, and count it."""
        self.count += not function.is_view
        return function(*args, **(options or {}))


class _SecondRow(Run):
    """A run that knows which row is the prompt's: rows without numbers can't be compared."""

    def _conditional_rows(self, _: Any) -> slice:
        return slice(1, 2)


def count(model: str) -> tuple[int, int]:
    """Count the operations of a UNet call in bfloat16 for both halves of guidance: as it is, and with a layout."""
    pipeline = make_model(CONFIGS / model, device="meta", dtype=torch.bfloat16)
    unet = pipeline.unet
    call = _call_of(unet, unet.config["sample_size"], unet.config["cross_attention_dim"])
    plain = _second_of(call)
    with edited_attention(unet, FAMILIES[0], _run(unet, torch.empty(1, _TOKENS, 1, device="meta"), _SecondRow)):
        return plain, _second_of(call)


def thin_unet(model: str) -> Any:
    """Make the UNet of a model's configuration with a tenth of its channels, and random weights."""
    config = json.loads((CONFIGS / model / "unet" / "config.json").read_text())
    channels = [width // _THINNER for width in config["block_out_channels"]]
    thin = {"block_out_channels": channels, "norm_num_groups": 8, "cross_attention_dim": _TEXT}
    return UNet2DConditionModel.from_config({**config, **thin, "attention_head_dim": 2, "sample_size": _SIDE}).eval()


def pair_of(model: str) -> Pair:
    """Pair calls of a thin UNet with a layout with as many as it is."""
    unet, text = thin_unet(model), torch.randn(2, _TOKENS, _TEXT)
    call = _call_of(unet, _SIDE, _TEXT, text)

    def plain() -> None:
        for _ in range(_CALLS):
            call()

    def edited() -> None:
        with edited_attention(unet, FAMILIES[0], _run(unet, text[1:])):
            plain()

    return Pair(f"{model}, with a layout", "as it is", edited, plain, aim=1.1)


def _run(unet: Any, prompt: Tensor, kind: type[Run] = Run) -> Run:
    scheduler: Any = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(_CALLS)
    return kind(
        SimpleNamespace(unet=unet, scheduler=scheduler),
        FAMILIES[0],
        {"prompt_embeds": prompt},
        layout=LAYOUT,
        spans=SPANS,
        settings=LayoutSettings(),
        text=None,
        is_measured=False,
    )


def _call_of(unet: Any, side: int, width: int, text: Tensor | None = None) -> Callable[[], None]:
    """Return a call of a UNet for both halves of guidance."""
    with torch.device(unet.device):
        latents = torch.randn(2, unet.config["in_channels"], side, side, dtype=unet.dtype)
        text = torch.randn(2, _TOKENS, width, dtype=unet.dtype) if text is None else text
        timestep, added = torch.tensor(500), {"text_embeds": torch.ones(2, 1280), "time_ids": torch.ones(2, 6)}

    @torch.no_grad()
    def call() -> None:
        unet(latents, timestep, encoder_hidden_states=text, added_cond_kwargs=added)

    return call


def _second_of(call: Callable[[], None]) -> int:
    """Count the second call's operations: all but the first of a picture are like it."""
    call()
    with Operations() as operations:
        call()
    return int(operations.count)


def _row(model: str, timing: Timing) -> str:
    plain, edited = count(model)
    ratio, seconds = timing.ratio, sorted(timing.ours)[len(timing.ours) // 2]
    cells = (
        model,
        f"{edited:,}",
        f"{edited / plain:.2f}",
        f"{ratio.median:.2f}",
        f"{ratio.low:.2f}-{ratio.high:.2f}",
        f"{1000 * seconds / _CALLS:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    print("| with a layout | operations | of diffusers' | time to send, of diffusers' | interval | ms a thin call |")
    print("| --- | --- | --- | --- | --- | --- |")
    for model in CONFIG_NAMES:
        print(_row(model, measure(pair_of(model), pairs)), flush=True)


if __name__ == "__main__":
    main()

"""What a layout costs where a picture waits for its operations to be sent: `python benchmarks/sending.py`.

A UNet with all of a model's layers, but thin, and small pictures: next to nothing to compute, so that the time is what
Python and PyTorch need to send the operations. On a fast GPU a picture of the whole model waits for just that.
"""

import argparse
import json

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from composing_pairs import LAYOUT
from cones2.backbones.single_files import CONFIG_NAMES, CONFIGS
from cones2.guidance.attention import edited_cross_attention
from cones2.guidance.layout_guidance import LayoutGuidance
from operations import SPANS
from pairs import Pair, measure

_CALLS = 10
_THINNER, _TEXT, _SIDE = 10, 64, 8


def thin_unet(model: str) -> UNet2DConditionModel:
    """Make the UNet of a model's configuration with a tenth of its channels, and random weights."""
    config = json.loads((CONFIGS / model / "unet" / "config.json").read_text())
    channels = [width // _THINNER for width in config["block_out_channels"]]
    thin = {"block_out_channels": channels, "norm_num_groups": 8, "cross_attention_dim": _TEXT}
    return UNet2DConditionModel.from_config({**config, **thin, "attention_head_dim": 2, "sample_size": _SIDE}).eval()


def pair_of(model: str) -> Pair:
    """Pair calls of the UNet with a layout with as many as it is."""
    unet, scheduler = thin_unet(model), DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    latents, text = torch.randn(2, 4, _SIDE, _SIDE), torch.randn(2, 77, _TEXT)
    added = {"text_embeds": torch.randn(2, 1280), "time_ids": torch.ones(2, 6)}
    guidance = LayoutGuidance(LAYOUT, SPANS, scheduler.alphas_cumprod)

    @torch.no_grad()
    def plain() -> None:
        for _ in range(_CALLS):
            unet(latents, torch.tensor(500), encoder_hidden_states=text, added_cond_kwargs=added)

    def edited() -> None:
        with edited_cross_attention(unet, guidance, conditional=[False, True], keep_text=True):
            plain()

    return Pair(f"{model}, with a layout", "as it is", edited, plain, aim=1.1)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=15)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    print(f"| {_CALLS} calls of a thin UNet | times the cost as it is | interval | milliseconds a call |")
    print("| --- | --- | --- | --- |")
    for model in CONFIG_NAMES:
        timing = measure(pair_of(model), pairs)
        ratio, seconds = timing.ratio, sorted(timing.ours)[len(timing.ours) // 2]
        cells = (timing.pair.what, f"{ratio.median:.2f}", f"{ratio.low:.2f}-{ratio.high:.2f}")
        print(f"| {' | '.join(cells)} | {1000 * seconds / _CALLS:.1f} |", flush=True)


if __name__ == "__main__":
    main()

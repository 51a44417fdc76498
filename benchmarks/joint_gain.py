"""How much attention a layout moves in a joint transformer, where a row is long: `python benchmarks/joint_gain.py`.

Eq. 7 adds γ+ standard deviations of the scores to a subject's columns. That gives a column of 77 more of the attention
than one of 4,608, by ln(4608 / 77) = 4.1 in what would have to be added. This asks a model's own scores: which share
of an image row's attention one text token gets as it is, with the layout, and beside 76 other text tokens alone, as in
a UNet; and at which `layout_scale` it gets that last share in the whole row.

Without `--model` the transformers have random weights, two heads and one block of each kind, at the real size of heads
and length of rows. Their scores spread by the norms of queries and keys alone, so σ is about 1; a trained model's is
another, and the scale with it: give a model's folder or Hub id to ask that.
"""

import argparse
import math
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from diffusers import (
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    ZImageTransformer2DModel,
)
from torch import Tensor

from cones2.attention import edited_attention
from cones2.conditioning import conditioned
from cones2.denoisers import FlowCall, JointSequence
from cones2.families import FAMILIES, Family
from cones2.pipeline import Cones2Pipeline

GAIN = 2.5
UNETS_ROW = 77
ROWS = 64
"""Of the image, evenly spread: enough for a mean."""
PROMPT = "a photo of a {rex} and a hat on the beach"


class Shares(NamedTuple):
    """Of one layer.

    Attributes:
        sigma: the scores' spread over image rows and text columns.
        length: of a row.
        plain: one token's share of it.
        placed: its share at `layout_scale` 1.
        wanted: the same among as many text tokens as a UNet reads.
        scale: the `layout_scale` that gives this share of the whole row.
    """

    sigma: float
    length: float
    plain: float
    placed: float
    wanted: float
    scale: float


class Asking:
    """An edit that adds nothing, and asks each joint layer for its shares at a noise level."""

    def __init__(self, transformer: Any, family: Family, token: int, tokens: int) -> None:
        self._transformer, self._family, self._token, self._tokens = transformer, family, token, tokens
        self.sequence: JointSequence | None = None
        self.found: list[Shares] = []
        self._time, self._grid = 1.0, (1, 1)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Read where all stands."""
        call = self._family.read_call(self._transformer, 1000, args, kwargs)
        self.sequence, self._time, self._grid = call.sequence, float(call.time[0]), call.grids[0]
        return args, kwargs

    def bias(self, query: Tensor, key: Tensor) -> None:
        """Ask one layer."""
        assert self.sequence is not None
        text = slice(self.sequence.text, self.sequence.text + self._tokens)
        cells = math.prod(self._grid)
        rows = self.sequence.image + torch.linspace(0, cells - 1, ROWS, device=query.device).long()
        scores = (query[:1, :, rows] @ key[:1].mT).float() / math.sqrt(query.shape[3])
        read = scores[..., text]
        self.found.append(shares(scores, read, self.sequence.text, self._token, float(read.std()), self._time))


def shares(scores: Tensor, read: Tensor, start: int, token: int, sigma: float, time: float) -> Shares:
    """Return what the token at `start + token` gets of whole rows, and of as many text tokens as a UNet reads."""
    few = read[..., : max(UNETS_ROW, token + 1)]
    step = GAIN * sigma * math.sqrt(time)

    def share(of: Tensor, column: int, scale: float) -> float:
        boosted = of.clone()
        boosted[..., column] += scale * step
        return float(boosted.softmax(-1)[..., column].mean())

    wanted = share(few, token, 1.0)
    low, high = 0.0, 100.0
    while high - low > 0.01:
        middle = (low + high) / 2
        low, high = (middle, high) if share(scores, start + token, middle) < wanted else (low, middle)
    plain, placed = (share(scores, start + token, scale) for scale in (0.0, 1.0))
    return Shares(sigma, scores.shape[-1], plain, placed, wanted, (low + high) / 2)


def _flux() -> Any:
    shape: Any = {"num_attention_heads": 2, "joint_attention_dim": 64, "pooled_projection_dim": 64}
    return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True, **shape)


def _sd3() -> Any:
    shape: Any = {"num_attention_heads": 2, "caption_projection_dim": 128, "pooled_projection_dim": 64}
    return SD3Transformer2DModel(
        num_layers=2, joint_attention_dim=64, pos_embed_max_size=192, qk_norm="rms_norm", **shape
    )


def _klein() -> Any:
    shape: Any = {"num_attention_heads": 2, "joint_attention_dim": 64, "guidance_embeds": False}
    return Flux2Transformer2DModel(num_layers=1, num_single_layers=1, **shape)


def _z_image() -> Any:
    return ZImageTransformer2DModel(dim=256, n_heads=2, n_layers=1, n_refiner_layers=1, cap_feat_dim=64)


RANDOM: dict[str, tuple[Callable[[], Any], int, int]] = {
    "Stable Diffusion 3": (_sd3, 77 + 256, 16),
    "FLUX.1": (_flux, 512, 16),
    "Z-Image": (_z_image, 64, 16),
    "FLUX.2 klein": (_klein, 512, 32),
}
"""By family: a transformer, how many tokens of text, and how many channels of latents."""


def random_shares(name: str, side: int, time: float) -> list[Shares]:
    """Ask a transformer of random weights."""
    make, tokens, channels = RANDOM[name]
    family = next(each for each in FAMILIES if each.name == name)
    torch.manual_seed(0)
    transformer = make().eval()
    text = torch.randn(1, tokens, 64)
    latents = torch.randn(1, channels, side // 8, side // 8)
    pooled = None if name in ("Z-Image", "FLUX.2 klein") else torch.randn(1, 64)
    asking = Asking(transformer, family, 5, tokens)
    assert family.velocity is not None
    with torch.no_grad(), edited_attention(transformer, family, asking):
        family.velocity(transformer, FlowCall(latents, torch.tensor([time]), text, pooled, 3.5))
    return asking.found


def model_shares(model: str, side: int) -> list[Shares]:
    """Ask a model in the steps of a short picture: those of its conditional calls, by its first row."""
    pipe = Cones2Pipeline.from_pretrained(model)
    with conditioned(pipe.pipeline, PROMPT, subjects={"rex": "dog"}, guidance_scale=1.0) as inputs:
        given, spans = dict(inputs), inputs.run.spans
    asking = Asking(pipe.transformer, pipe.family, spans["rex"][0][0], len(given["prompt_embeds"][0]))
    with edited_attention(pipe.transformer, pipe.family, asking):
        pipe.pipeline(**given, height=side, width=side, num_inference_steps=4, output_type="latent")
    return asking.found


def row_of(name: str, found: list[Shares]) -> str:
    """Return a line of the table: means over layers."""
    mean = Shares(*(statistics.fmean(each) for each in zip(*found, strict=True)))
    more = math.log(mean.length / UNETS_ROW)
    return (
        f"| {name} | {mean.length:.0f} | {more:.2f} | {mean.sigma:.2f} | {mean.plain:.3%} | {mean.placed:.2%} |"
        f" {mean.wanted:.2%} | {mean.scale:.1f} |"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="a diffusers folder or Hub id")
    parser.add_argument("--side", type=int, default=1024, help="of the picture, in pixels")
    arguments = parser.parse_args()
    columns = "tokens n", "ln(n/77)", "sigma", "share as it is", "at scale 1", "at 1 among 77", "scale for that"
    print(f"| scores of | {' | '.join(columns)} |\n|{' --- |' * 8}")
    if arguments.model:
        print(row_of(arguments.model, model_shares(arguments.model, arguments.side)))
        return
    for name in RANDOM:
        for time in (1.0, 0.5):
            print(row_of(f"{name}, random, t = {time:g}", random_shares(name, arguments.side, time)))


if __name__ == "__main__":
    main()

"""What one `with` block does to the layers: the layout's bias, a look at queries and keys, another text.

Each learns of a UNet call by a hook before the call, and the layers then ask it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor

from cones2.errors import BackboneError, SettingsError
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.leakage import AttentionMeter
from cones2.guidance.presets import floor_of
from cones2.guidance.text import TextEdit

Query = Float[Tensor, "batch heads pixels dim"]
Key = Float[Tensor, "batch heads tokens dim"]
Bias = Float[Tensor, "batch 1 pixels tokens"]


_FEW_SCORES = 2**16
"""Of a sample, on a CPU: up to here, building them takes less time than the closed form."""

_MOST_SCORES = 2**26
"""Of a sample, elsewhere: up to here they are built. A GPU waits longer to be sent the closed form's twenty operations
than it takes for these; Stable Diffusion XL at 1024 pixels has 2**22 scores in a layer.
"""

_ALIGNED = 8
"""Numbers: fused attention on a GPU copies a mask whose rows do not begin at multiples of it."""


def product_std(query: Query, key: Key) -> Float[Tensor, "batch"]:
    """Return std over heads, pixels and tokens of each sample's `QKᵀ`, √d times that of its scores.

    The products are built only where that is faster. Else it has a closed form: the sum of their squares is
    `Σ tr(QᵀQ·KᵀK)` over heads, their sum is `Σ (Σq)·(Σk)`, d x d numbers at most. Unbiased like `torch.std`, which the
    authors' code uses (arXiv:2305.19327 says nothing of std). Products of bfloat16 are built in it: what they scale is
    rounded to it, too.
    """
    _, heads, pixels, _ = query.shape
    count = heads * pixels * key.shape[2]
    if count <= (_FEW_SCORES if query.device.type == "cpu" else _MOST_SCORES):
        if query.dtype == torch.float16:  # undivided, they can be too large for it
            query, key = query.float(), key.float()
        return (query @ key.mT).std((1, 2, 3))
    query, key = _widened(query), _widened(key)
    squares = ((query.mT @ query) * (key.mT @ key)).sum((1, 2, 3))
    total = (query.sum(2) * key.sum(2)).sum((1, 2))
    variance = (squares - total.square() / count) / (count - 1)
    return variance.clamp(min=0).sqrt().float()


def _widened(values: Tensor) -> Tensor:
    """Double on a CPU; elsewhere float, as float64 is slow on most GPUs and missing on Apple's."""
    return values.double() if values.device.type == "cpu" else values.float()


class _StaticMask(NamedTuple):
    """The part of a layer's bias that all steps share."""

    gain: Float[Tensor, "pixels tokens"]  # M / √d: what multiplies the std of QKᵀ
    floor: Float[Tensor, "pixels tokens"]
    bias: Float[Tensor, "batch 1 pixels aligned"]  # of all rows, filled up at its end; each layer changes a part of it


class _UNetCall(NamedTuple):
    """What the layers need to know of the running UNet call."""

    grids: Mapping[int, tuple[int, int]]  # (height, width) by number of pixels
    strength: Float[Tensor, "conditional"]


class LayoutEdit:
    """The bias of one `with` block; a hook tells it of each UNet call, the layers then ask it for theirs."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        guidance: LayoutGuidance,
        conditional: Sequence[bool],
        text: TextEdit | None,
    ) -> None:
        self._guidance = guidance
        self._text = text or TextEdit(train_steps=1)
        self._levels = len(unet.config["block_out_channels"])
        _check_levels(guidance.layout_levels, self._levels)
        self._batch = len(conditional)
        self._rows = _rows(conditional)
        self._strengths = guidance.strengths
        self._masks: dict[tuple[object, ...], _StaticMask] = {}
        self._call = _UNetCall({}, torch.zeros(0))

    def watch(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: note the latents' shape and the timestep."""
        sample, times = _sample_and_times(args, kwargs, self._batch)
        self._strengths = self._strengths.to(sample.device)
        strength = self._strengths.at(times)[self._rows]
        self._call = _UNetCall(_grids(sample.shape[2], sample.shape[3], self._levels), strength)

    def __call__(self, query: Query, key: Key) -> Bias:
        """Return η(t)·M for the conditional rows, with each row's own std, and 0 for the others.

        Tokens beyond the prompt's are hidden from the conditional rows, and seen by the others from their region.
        """
        tokens = key.shape[2] - self._text.extra_tokens
        mask = self._mask(query.shape[2], tokens, query)
        whole = mask.bias.clone() if torch.is_grad_enabled() else mask.bias  # a gradient's way back needs this layer's
        seen = key[self._rows] if tokens == key.shape[2] else key[self._rows, :, :tokens]
        eta = self._call.strength * product_std(query[self._rows], seen)
        floor = floor_of(query.dtype)  # and as far above 0: an infinite mask would give NaN, either way
        edit = torch.addcmul(mask.floor, eta.view(-1, 1, 1, 1), mask.gain).clamp_(floor, -floor)
        if not isinstance(self._rows, slice):
            edit = edit.to(whole.dtype)  # into a slice, PyTorch casts by itself
        whole[self._rows, :, :, :tokens] = edit
        return whole[..., : key.shape[2]]

    def _mask(self, pixels: int, tokens: int, like: Tensor) -> _StaticMask:
        place = self._call.grids.get(pixels), tokens, like.shape[3], like.dtype, like.device
        if place not in self._masks:
            self._masks[place] = self._new_mask(pixels, tokens, like)
        return self._masks[place]

    @torch.inference_mode(False)  # else later calls without it could not change what it made
    def _new_mask(self, pixels: int, tokens: int, like: Tensor) -> _StaticMask:
        grid = _grid(self._call.grids, pixels)
        level = list(self._call.grids).index(pixels)
        gain, blocked = self._guidance.weights(*grid, tokens, level=level)
        hidden = ~self._text.visible(self._guidance.layout, *grid)
        floor, length = floor_of(like.dtype), tokens + self._text.extra_tokens
        bias = torch.zeros(self._batch, 1, pixels, -(-length // _ALIGNED) * _ALIGNED)
        bias[..., tokens:length] = hidden * floor
        bias[self._rows, 0, :, tokens:length] = floor
        gain = gain / math.sqrt(like.shape[3])
        return _StaticMask(gain.to(like.device), (blocked * floor).to(like.device), bias.to(like))


class Look:
    """Shows a meter the layers of those UNet calls that it wants to see."""

    def __init__(
        self, unet: UNet2DConditionModel, meter: AttentionMeter, conditional: Sequence[bool], text: TextEdit | None
    ) -> None:
        self._meter = meter
        self._extra_tokens = text.extra_tokens if text else 0
        self._levels = len(unet.config["block_out_channels"])
        self._batch = len(conditional)
        self._rows = _rows(conditional)
        self._grids: Mapping[int, tuple[int, int]] | None = None

    def watch(self, _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook: ask the meter, and note the latents' shape."""
        sample, _times = _sample_and_times(args, kwargs, self._batch)
        self._grids = _grids(sample.shape[2], sample.shape[3], self._levels) if self._meter.begin_call() else None

    def __call__(self, query: Query, key: Key) -> None:
        """Show a layer's conditional rows, with the prompt's own tokens."""
        if self._grids is not None:
            tokens = key.shape[2] - self._extra_tokens
            grid = _grid(self._grids, query.shape[2])
            self._meter.look(query[self._rows], key[self._rows][:, :, :tokens], grid)


def change_text(text: TextEdit, conditional: Sequence[bool]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return a forward pre-hook that lets the UNet read another text."""
    rows = _rows(conditional)

    def hook(
        _: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        times = _sample_and_times(args, kwargs, len(conditional))[1]
        if len(args) > 2:
            return (*args[:2], text.apply(args[2], times, rows), *args[3:]), kwargs
        read = text.apply(kwargs["encoder_hidden_states"], times, rows)
        return args, {**kwargs, "encoder_hidden_states": read}

    return hook


def _sample_and_times(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], batch: int
) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, "batch"]]:
    """Find the latents and each row's timestep in what a UNet is called with."""
    sample = args[0] if args else kwargs["sample"]
    timestep = args[1] if len(args) > 1 else kwargs["timestep"]
    if len(sample) != batch:
        raise SettingsError(
            f"`conditional` is for batches of {batch}, the UNet got {len(sample)} rows. Say it for each row."
        )
    times = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device).reshape(-1)
    return sample, times.expand(batch).contiguous()


def _rows(conditional: Sequence[bool]) -> slice | list[int]:
    """Index the conditional rows, as a slice where they are neighbours: that copies nothing."""
    rows = [row for row, is_conditional in enumerate(conditional) if is_conditional]
    if not rows:
        raise SettingsError("`conditional` names no row; expected at least one. Say True for the rows with the prompt.")
    neighbours = rows[-1] - rows[0] + 1 == len(rows)
    return slice(rows[0], rows[-1] + 1) if neighbours else rows


def _grids(height: int, width: int, levels: int) -> dict[int, tuple[int, int]]:
    """Return the grid of each UNet level by its number of pixels; a level halves the sides of the last, rounding up."""
    grids = {}
    for _ in range(levels):
        grids[height * width] = height, width
        height, width = (height + 1) // 2, (width + 1) // 2
    return grids


def _check_levels(wanted: Sequence[int] | None, count: int) -> None:
    for level in wanted or ():
        if level >= count:
            raise SettingsError(f"layout level {level} is none of this UNet's: expected 0 to {count - 1}.")


def _grid(grids: Mapping[int, tuple[int, int]], pixels: int) -> tuple[int, int]:
    """Return the grid of a layer by its number of pixels."""
    if pixels not in grids:
        sizes = ", ".join(f"{height}x{width}" for height, width in grids.values())
        raise BackboneError(
            f"a cross-attention layer has {pixels} pixels; expected one of the grids {sizes}. "
            "This UNet shrinks its latents in a way that layouts do not support; compose without one."
        )
    return grids[pixels]

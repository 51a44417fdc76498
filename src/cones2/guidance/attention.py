"""The edit of a UNet's cross-attention, and the `with` block that installs and removes it.

The only file that knows attention processors. The edit is an additive mask of one fused attention call per layer, so
scores are never built; their standard deviation comes from a closed form. Self-attention is left alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import BackboneError, SettingsError
from cones2.guidance.leakage import AttentionMeter
from cones2.guidance.presets import LayoutGuidance, floor_of
from cones2.guidance.text import TextEdit

Query = Float[Tensor, "batch heads pixels dim"]
Key = Float[Tensor, "batch heads tokens dim"]
Bias = Float[Tensor, "batch 1 pixels tokens"]
_CROSS_ATTENTION = ".attn2.processor"


def score_std(query: Query, key: Key) -> Float[Tensor, "batch"]:
    """Return std over heads, pixels and tokens of each sample's scores `QKᵀ/√d`, without building them.

    The sum of squared scores is `Σ tr(QᵀQ·KᵀK)` over heads, their sum is `Σ (Σq)·(Σk)`: d x d numbers at most. Unbiased
    like `torch.std`, which the authors' code uses (arXiv:2305.19327 says nothing of std).
    """
    _, heads, pixels, dim = query.shape
    count = heads * pixels * key.shape[2]
    query, key = _widened(query), _widened(key)
    squares = ((query.mT @ query) * (key.mT @ key)).sum((1, 2, 3))
    total = (query.sum(2) * key.sum(2)).sum((1, 2))
    variance = (squares - total.square() / count) / ((count - 1) * dim)
    return variance.clamp(min=0).sqrt().float()


def _widened(values: Tensor) -> Tensor:
    """Double on a CPU; elsewhere float, as float64 is slow on most GPUs and missing on Apple's."""
    return values.double() if values.device.type == "cpu" else values.float()


@contextmanager
def edited_cross_attention(
    unet: UNet2DConditionModel,
    guidance: LayoutGuidance | None,
    *,
    conditional: Sequence[bool],
    text: TextEdit | None = None,
    meter: AttentionMeter | None = None,
) -> Iterator[None]:
    """Let a layout guide every cross-attention layer of a UNet within a `with` block (arXiv:2305.19327, Eq. 7).

    On exit, also after an error, the UNet has its own processors back, the same objects. Without regions it computes
    what it did before, bit for bit.

    Args:
        unet: with diffusers' default attention processors.
        guidance: the layout for all conditional rows; None edits nothing.
        conditional: for each row of the batches that the UNet will be called with, whether it is conditional.
        text: changes of the text over time, and negative texts of regions of the guidance's layout.
        meter: measures the conditional rows' attention, before the layout acts on it.

    Raises:
        BackboneError: the UNet has no cross-attention, or one that something else has edited.
        SettingsError: no row is conditional, or the UNet lacks a layout level; within the block, a batch has another
            number of rows.
    """
    saved = dict(unet.attn_processors)
    _check_processors(saved)
    edit = _LayoutEdit(unet, guidance, conditional, text) if guidance and guidance.layout.names else None
    look = _Look(unet, meter, conditional, text) if meter else None
    hooks = [
        unet.register_forward_pre_hook(hook, with_kwargs=True)
        for hook in (edit and edit.watch, look and look.watch, text and _change_text(text, conditional))
        if hook
    ]
    ours = CrossAttention(edit, look)
    processors: dict[str, Any] = {name: ours if _is_cross(name) else saved[name] for name in saved}
    try:
        unet.set_attn_processor(processors)
        yield
    finally:
        for hook in hooks:
            hook.remove()
        unet.set_attn_processor(saved)


class CrossAttention:
    """diffusers' default processor, with an additive bias computed from queries and keys, and a look at these."""

    def __init__(
        self, bias: Callable[[Query, Key], Bias] | None, look: Callable[[Query, Key], None] | None = None
    ) -> None:
        self._bias = bias
        self._look = look

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Float[Tensor, "batch tokens channels"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from `hidden_states`, sequences or pictures, to `encoder_hidden_states`, or to themselves."""
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        pixels = hidden_states.flatten(2).mT if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            pixels = attn.group_norm(pixels.mT).mT
        attended = self._attend(attn, pixels, encoder_hidden_states, attention_mask)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended))  # a linear layer, then dropout
        if residual.ndim == 4:
            projected = projected.mT.reshape(residual.shape)
        if attn.residual_connection:
            projected = projected + residual
        return projected / attn.rescale_output_factor

    def _attend(
        self,
        attn: Attention,
        pixels: Float[Tensor, "batch pixels channels"],
        text: Float[Tensor, "batch tokens text_channels"] | None,
        attention_mask: Tensor | None,
    ) -> Float[Tensor, "batch pixels inner"]:
        if text is None:
            text = pixels
        elif attn.norm_cross:
            text = attn.norm_encoder_hidden_states(text)
        query, key, value = (_split(attn, states) for states in (attn.to_q(pixels), attn.to_k(text), attn.to_v(text)))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        mask = _expanded(attn, attention_mask, len(text), text.shape[1])
        if self._look is not None:
            self._look(query, key)
        if self._bias is not None:
            bias = self._bias(query, key)
            mask = bias if mask is None else mask + bias
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2).to(query.dtype)


def _split(attn: Attention, states: Float[Tensor, "batch length inner"]) -> Float[Tensor, "batch heads length dim"]:
    batch, length, _ = states.shape
    return states.view(batch, length, attn.heads, -1).transpose(1, 2)


def _expanded(attn: Attention, mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """Bring a mask from diffusers' form to that of fused attention, heads apart."""
    if mask is None:
        return None
    mask = attn.prepare_attention_mask(mask, tokens, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


class _StaticMask(NamedTuple):
    """The part of a layer's bias that all steps share."""

    gain: Float[Tensor, "pixels tokens"]
    floor: Float[Tensor, "pixels tokens"]
    extra: Float[Tensor, "pixels extra"]  # of the unconditional rows


class _UNetCall(NamedTuple):
    """What the layers need to know of the running UNet call."""

    grids: Mapping[int, tuple[int, int]]  # (height, width) by number of pixels
    strength: Float[Tensor, "conditional"]


class _LayoutEdit:
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
        eta = self._call.strength * score_std(query[self._rows], key[self._rows][:, :, :tokens])
        floor = floor_of(query.dtype)  # and as far above 0: an infinite mask would give NaN, either way
        edit = torch.addcmul(mask.floor, eta[:, None, None], mask.gain).clamp_(floor, -floor)
        bias = query.new_zeros(len(query), 1, query.shape[2], key.shape[2])
        bias[..., tokens:] = mask.extra
        bias[self._rows, 0, :, :tokens] = edit.to(query.dtype)
        bias[self._rows, 0, :, tokens:] = floor
        return bias

    def _mask(self, pixels: int, tokens: int, like: Tensor) -> _StaticMask:
        place = self._call.grids.get(pixels), tokens, like.dtype, like.device
        if place not in self._masks:
            self._masks[place] = self._new_mask(pixels, tokens, like)
        return self._masks[place]

    def _new_mask(self, pixels: int, tokens: int, like: Tensor) -> _StaticMask:
        grid = _grid(self._call.grids, pixels)
        level = list(self._call.grids).index(pixels)
        gain, blocked = self._guidance.weights(*grid, tokens, level=level)
        hidden = ~self._text.visible(self._guidance.layout, *grid)
        floor = floor_of(like.dtype)
        return _StaticMask(*(part.to(like.device) for part in (gain, blocked * floor, hidden * floor)))


class _Look:
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


def _change_text(text: TextEdit, conditional: Sequence[bool]) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
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


def _is_cross(name: str) -> bool:
    return name.endswith(_CROSS_ATTENTION)


def _check_processors(processors: Mapping[str, object]) -> None:
    cross = {name: processor for name, processor in processors.items() if _is_cross(name)}
    if not cross:
        raise BackboneError(
            "this UNet has no cross-attention layers (`attn2`); expected Stable Diffusion's kind of UNet."
        )
    for name, processor in cross.items():
        if isinstance(processor, CrossAttention):
            raise BackboneError("a layout already edits this UNet's cross-attention. Leave that `with` block first.")
        if type(processor) is not AttnProcessor2_0:
            raise BackboneError(
                f"{name.removesuffix('.processor')} has the processor {type(processor).__name__}; expected diffusers' "
                "AttnProcessor2_0. Unload the adapter that set it (an IP-Adapter by pipeline.unload_ip_adapter()), or"
                " call unet.set_attn_processor(AttnProcessor2_0())."
            )

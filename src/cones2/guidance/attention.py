"""The edit of a UNet's cross-attention, and the `with` block that installs and removes it.

The only file that knows attention processors. An edit is an additive mask of one fused attention call per layer, so
attention weights are never built. Self-attention computes what it did.
"""

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import BackboneError
from cones2.guidance.edits import Bias, Key, LayoutEdit, Look, Query, change_text
from cones2.guidance.layout_guidance import LayoutGuidance
from cones2.guidance.leakage import AttentionMeter
from cones2.guidance.text import TextEdit

_CROSS_ATTENTION = ".attn2"


@contextmanager
def edited_cross_attention(
    unet: UNet2DConditionModel,
    guidance: LayoutGuidance | None,
    *,
    conditional: Sequence[bool],
    text: TextEdit | None = None,
    meter: AttentionMeter | None = None,
    keep_text: bool = False,
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
        keep_text: compute a text's keys and values once a layer, not in each call. For who calls the UNet with the same
            text tensor again and again, and changes neither it nor the layers (as a LoRA's scale would) within the
            block.

    Raises:
        BackboneError: the UNet has no cross-attention, or one that something else has edited.
        SettingsError: no row is conditional, or the UNet lacks a layout level; within the block, a batch has another
            number of rows.
    """
    saved = {name: (layer, layer.processor) for name, layer in _attention_layers(unet)}
    _check_processors({name: processor for name, (_, processor) in saved.items() if _is_cross(name)})
    edit = LayoutEdit(unet, guidance, conditional, text) if guidance and guidance.layout.names else None
    look = Look(unet, meter, conditional, text) if meter else None
    hooks = [
        unet.register_forward_pre_hook(hook, with_kwargs=True)
        for hook in (edit and edit.watch, look and look.watch, text and change_text(text, conditional))
        if hook
    ]
    ours = CrossAttention(edit, look, keep_text=keep_text)
    try:
        for name, (layer, processor) in saved.items():
            layer.set_processor(ours if _is_cross(name) else _quick(processor))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for layer, processor in saved.values():
            layer.set_processor(processor)


@contextmanager
def unedited_cross_attention(unet: UNet2DConditionModel) -> Iterator[None]:
    """Leave a UNet alone, whatever its processors, but see to it that no layout guides it within a `with` block.

    Raises:
        BackboneError: within the block, the UNet is called while a layout edits it: two pictures are drawn by turns.
    """
    cross = (layer for name, layer in _attention_layers(unet) if _is_cross(name))
    layers = list(itertools.islice(cross, 1))  # all are edited, or none

    def check(*_: object) -> None:
        if any(isinstance(layer.processor, CrossAttention) for layer in layers):
            raise BackboneError(
                "this UNet is at work with a layout and without one at the same time: finish or close one of them"
                " first."
            )

    hook = unet.register_forward_pre_hook(check, prepend=True)  # before the hooks of a layout that is at work
    try:
        yield
    finally:
        hook.remove()


class CrossAttention:
    """diffusers' default processor, with an additive bias computed from queries and keys, and a look at these."""

    def __init__(
        self,
        bias: Callable[[Query, Key], Bias] | None,
        look: Callable[[Query, Key], None] | None = None,
        *,
        keep_text: bool = False,
    ) -> None:
        self._bias = bias
        self._look = look
        self._keep_text = keep_text
        self._kept: dict[Attention, _ReadText] = {}

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
        return projected if attn.rescale_output_factor == 1 else projected / attn.rescale_output_factor

    def _attend(
        self,
        attn: Attention,
        pixels: Float[Tensor, "batch pixels channels"],
        text: Float[Tensor, "batch tokens text_channels"] | None,
        attention_mask: Tensor | None,
    ) -> Float[Tensor, "batch pixels inner"]:
        query = _split(attn, attn.to_q(pixels))
        query = query if attn.norm_q is None else attn.norm_q(query)
        key, value = _keys_and_values(attn, pixels) if text is None else self._read_text(attn, text)
        mask = _expanded(attn, attention_mask, len(key), key.shape[2])
        if self._look is not None:
            self._look(query, key)
        if self._bias is not None:
            bias = self._bias(query, key)
            mask = bias if mask is None else mask + bias
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2).to(query.dtype)

    def _read_text(self, attn: Attention, text: Float[Tensor, "batch tokens text_channels"]) -> tuple[Key, Key]:
        kept = self._kept.get(attn)
        if kept is not None and kept.text is text:
            return kept.key, kept.value
        normed = attn.norm_encoder_hidden_states(text) if attn.norm_cross else text
        key, value = _keys_and_values(attn, normed)
        if self._keep_text:
            self._kept[attn] = _ReadText(text, key, value)
        return key, value


class _QuickAttention(AttnProcessor2_0):
    """diffusers' default processor, for self-attention: it computes the same, and keeps its signature as ours does."""

    def __call__(self, *args: Any, **options: Any) -> Tensor:
        """Attend."""
        attended: Tensor = super().__call__(*args, **options)
        return attended


def _keep_signature(ours: type, *, of: type) -> None:
    """Keep what diffusers asks of a processor in every call of its layer: that takes a sixth of the time."""
    setattr(ours.__call__, "__signature__", inspect.signature(of.__call__))  # noqa: B010


_keep_signature(CrossAttention, of=CrossAttention)
_keep_signature(_QuickAttention, of=AttnProcessor2_0)
_QUICK: AttnProcessor2_0 = _QuickAttention()  # type: ignore[no-untyped-call]


class _ReadText(NamedTuple):
    """What a layer made of a text."""

    text: Float[Tensor, "batch tokens text_channels"]
    key: Key
    value: Key


def _keys_and_values(attn: Attention, states: Float[Tensor, "batch length channels"]) -> tuple[Key, Key]:
    key, value = _split(attn, attn.to_k(states)), _split(attn, attn.to_v(states))
    return (key if attn.norm_k is None else attn.norm_k(key)), value


def _split(attn: Attention, states: Float[Tensor, "batch length inner"]) -> Float[Tensor, "batch heads length dim"]:
    batch, length, _ = states.shape
    return states.view(batch, length, attn.heads, -1).transpose(1, 2)


def _expanded(attn: Attention, mask: Tensor | None, batch: int, tokens: int) -> Tensor | None:
    """Bring a mask from diffusers' form to that of fused attention, heads apart."""
    if mask is None:
        return None
    mask = attn.prepare_attention_mask(mask, tokens, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1])


def _attention_layers(unet: UNet2DConditionModel) -> Iterator[tuple[str, Any]]:
    """Find them in one walk; diffusers' own ways to get and set processors walk through all modules six times."""
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, Attention))


def _is_cross(name: str) -> bool:
    return name.endswith(_CROSS_ATTENTION)


def _quick(processor: object) -> object:
    """Return the same processor, or one that does the same at less cost."""
    return _QUICK if type(processor) is AttnProcessor2_0 else processor


def _check_processors(processors: Mapping[str, object]) -> None:
    if not processors:
        raise BackboneError(
            "this UNet has no cross-attention layers (`attn2`); expected Stable Diffusion's kind of UNet."
        )
    for name, processor in processors.items():
        if isinstance(processor, CrossAttention):
            raise BackboneError("a layout already edits this UNet's cross-attention. Leave that `with` block first.")
        if type(processor) is not AttnProcessor2_0:
            raise BackboneError(
                f"{name} has the processor {type(processor).__name__}; expected diffusers' "
                "AttnProcessor2_0. Unload the adapter that set it (an IP-Adapter by pipeline.unload_ip_adapter()), or"
                " call unet.set_attn_processor(AttnProcessor2_0())."
            )

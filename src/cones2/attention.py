"""The one edit of attention and its two ways in: a processor for UNets, a function mode for joint transformers.

`edited_attention` stands on a denoiser that other threads may use at the same time, so nothing that it installs holds
the state of a run: layers look the running edit up in a `ContextVar`, and a thread without one gets what it would have
got. Under `torch.compile` a layer asks through an operator that the compiler does not look into: layouts and prompts
change without a graph break or a new compilation.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from diffusers.models import attention_dispatch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

from cones2.denoisers import JointSequence
from cones2.errors import ModelError
from cones2.families import Arguments, Family
from cones2.guidance import Bias, Key, Query
from cones2.shared import FIXED, Undo, shared_change

if TYPE_CHECKING:
    from cones2.compiled import FixedLayout

CallInstead = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@runtime_checkable
class Edit(Protocol):
    """What a run does to a denoiser's calls.

    Attributes:
        sequence: of the running call of a joint transformer, once it was begun; None in a UNet's.
    """

    sequence: JointSequence | None

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Read the arguments of a call, and return those to make it with."""

    def bias(self, query: Query, key: Key) -> Bias | None:
        """Return what is added to a layer's scores `QKᵀ/√d`; None adds nothing."""


@dataclass(eq=False)
class _Running:
    """An edit of the running thread, how many layers asked it in this call, and what layers made of its text."""

    edit: Edit
    instead: CallInstead | None = None
    has_ended: bool = False
    layers: int = 0
    kept: dict[Any, "_ReadText"] = field(default_factory=dict)

    def bias(self, query: Query, key: Key) -> Bias | None:
        self.layers += 1
        return self.edit.bias(query, key)


_RUNNING: ContextVar[Mapping[int, _Running]] = ContextVar("cones2's running edits", default=MappingProxyType({}))


@contextlib.contextmanager
def edited_attention(denoiser: Any, family: Family, edit: Edit, instead: CallInstead | None = None) -> Iterator[None]:
    """Let `edit` read and change every call that this thread makes of a denoiser within a `with` block.

    With `instead`, that is called with the denoiser's own call and its arguments, and adds what there is to add. When
    the last thread leaves, also after an error, the denoiser has its own processors and its own call back.

    Raises:
        ModelError: the denoiser has no attention to text, something else edits it, or this thread does already; within
            the block, its layers did not ask the edit, because their attention is computed elsewhere.
    """
    key = id(denoiser)
    if _running(key):
        raise ModelError("this model is at work with subjects or a layout already: leave that `with` block first.")
    with shared_change(denoiser, "attention", lambda: _install(denoiser, family)):
        running = _Running(edit, instead)
        _RUNNING.set(MappingProxyType({**_RUNNING.get(), key: running}))
        try:
            yield
        finally:
            running.has_ended = True  # also for its own thread, where another one collects an abandoned block
            _RUNNING.set(MappingProxyType({k: v for k, v in _RUNNING.get().items() if not v.has_ended}))


def _running(key: int) -> _Running | None:
    running = _RUNNING.get().get(key)
    return None if running is None or running.has_ended else running


def running_edit(denoiser: Any) -> Edit | None:
    """Return the edit of this thread's running block on a denoiser; None without one."""
    running = _running(id(denoiser))
    return running.edit if running else None


@contextlib.contextmanager
def unedited() -> Iterator[None]:
    """Let this thread call any denoiser as it is within a `with` block, whatever block is around."""
    before = _RUNNING.get()
    _RUNNING.set(MappingProxyType({}))
    try:
        yield
    finally:
        _RUNNING.set(before)


def _install(denoiser: Any, family: Family) -> Undo:
    """Put processors into a UNet's cross-attention, and a wrapper around the denoiser's call."""
    layers = _cross_layers(denoiser) if family.attention == "cross" else {}
    if family.attention == "joint":
        _check_backends(denoiser)
    saved = {layer: layer.processor for layer in layers.values()}
    processor = CrossAttention(id(denoiser))
    for layer in saved:
        layer.set_processor(processor)  # type: ignore[arg-type]
    unwrap = _wrap_call(denoiser, len(layers))

    def undo() -> None:
        unwrap()
        for layer, own in saved.items():
            layer.set_processor(own)

    return undo


def _wrap_call(denoiser: Any, cross_layers: int) -> Undo:
    """Wrap the outermost call, outside of what `torch.compile` made: inside, a later change could be ignored."""
    name = "forward" if vars(denoiser).get("_compiled_call_impl") is None else "_compiled_call_impl"
    inner, had_own = getattr(denoiser, name), name in vars(denoiser)
    key = id(denoiser)

    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        running = _running(key)
        if running is None:
            return inner(*args, **kwargs)
        args, kwargs = running.edit.begin(args, kwargs)
        if running.instead:
            return running.instead(inner, args, kwargs)
        running.layers, sequence = 0, running.edit.sequence
        expected = sequence.layers if sequence else cross_layers
        with _JointAttention(running, sequence.length) if sequence else contextlib.nullcontext():
            result = inner(*args, **kwargs)
        if running.layers != expected:
            raise ModelError(_missing_layers(denoiser, running.layers, expected))
        return result

    setattr(denoiser, name, call)
    return (lambda: setattr(denoiser, name, inner)) if had_own else (lambda: delattr(denoiser, name))


def _missing_layers(denoiser: Any, found: int, expected: int) -> str:
    backends = {str(getattr(getattr(m, "processor", None), "_attention_backend", None)) for m in denoiser.modules()}
    named = ", ".join(sorted(backends - {"None"})) or "one that cones2 does not know"
    return (
        f"{found} of {expected} attention layers can be given a layout; the others compute attention by another backend"
        f" ({named}): set the attention backend 'native', and unload adapters that replace attention."
    )


class CrossAttention:
    """diffusers' default processor with an additive bias; one that finds no running edit is the default processor."""

    fixed: "FixedLayout | None" = None  # what the compiler reads while a compiled call is made

    def __init__(self, denoiser: int) -> None:
        self._denoiser = denoiser

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Float[Tensor, "batch tokens channels"] | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attend from `hidden_states`, sequences or pictures, to `encoder_hidden_states`, or to themselves."""
        compiling = torch.compiler.is_compiling()
        fixed = self.fixed if compiling else FIXED.get()
        running = None if compiling or fixed else _running(self._denoiser)
        if running is None and not compiling and not fixed:
            plain: Tensor = _PLAIN(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return plain
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        pixels = hidden_states.flatten(2).mT if hidden_states.ndim == 4 else hidden_states
        if attn.group_norm is not None:
            pixels = attn.group_norm(pixels.mT).mT
        attended = self._attend(attn, fixed or running, pixels, encoder_hidden_states, attention_mask)
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended))  # a linear layer, then dropout
        if residual.ndim == 4:
            projected = projected.mT.reshape(residual.shape)
        if attn.residual_connection:
            projected = projected + residual
        return projected if attn.rescale_output_factor == 1 else projected / attn.rescale_output_factor

    def _attend(
        self,
        attn: Attention,
        edit: "_Running | FixedLayout | None",
        pixels: Float[Tensor, "batch pixels channels"],
        text: Float[Tensor, "batch tokens text_channels"] | None,
        attention_mask: Tensor | None,
    ) -> Float[Tensor, "batch pixels inner"]:
        query = _split(attn, attn.to_q(pixels))
        query = query if attn.norm_q is None else attn.norm_q(query)
        running = edit if isinstance(edit, _Running) else None
        key, value = _keys_and_values(attn, pixels, norm=False) if text is None else _read_text(attn, text, running)
        bias = edit.bias(query, key) if edit else torch.ops.cones2.attention_bias(query, key, self._denoiser)
        mask = _expanded(attn, attention_mask, len(key), key.shape[2])
        mask = bias if mask is None else mask if bias is None else mask + bias
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return attended.transpose(1, 2).flatten(2).to(query.dtype)


# diffusers reads this in every call of a layer; to work it out anew each time is 2 % of a small model's picture.
setattr(CrossAttention.__call__, "__signature__", inspect.signature(CrossAttention.__call__))  # noqa: B010

_PLAIN: Any = AttnProcessor2_0()


@torch.library.custom_op("cones2::attention_bias", mutates_args=(), tags=(torch.Tag.cudagraph_unsafe,))
def _attention_bias(query: Tensor, key: Tensor, denoiser: int) -> Tensor:
    """Ask the running edit from inside a compiled graph; zeros where a thread has none."""
    running = _running(denoiser)
    bias = running.bias(query, key) if running else None
    if bias is None:
        return query.new_zeros(len(query), 1, query.shape[2], key.shape[2])
    return bias.clone(memory_format=torch.contiguous_format)  # an edit may reuse its own for the next layer


@_attention_bias.register_fake
def _(query: Tensor, key: Tensor, denoiser: int) -> Tensor:  # noqa: ARG001
    return query.new_empty(len(query), 1, query.shape[2], key.shape[2])


class _JointAttention(TorchFunctionMode):
    """Adds the bias inside `scaled_dot_product_attention`, after a layer's own norms and positions; of this thread.

    It acts where a layer reads the whole sequence of `length` tokens. Layers that read the image or the text alone, as
    Stable Diffusion 3.5 and Z-Image have them, stay as they are.
    """

    def __init__(self, running: _Running, length: int) -> None:
        super().__init__()
        self._running, self._length = running, length

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | kwargs
            query, key = given["query"], given["key"]
            if query.shape[2] == key.shape[2] == self._length:
                bias = self._running.bias(query, key)
                if bias is not None:
                    given["attn_mask"] = _added(given.get("attn_mask"), bias)
            args, kwargs = (), given
        return func(*args, **kwargs)


def _added(mask: Tensor | None, bias: Bias) -> Tensor:
    """Return a layer's own mask and a bias as one; a mask of booleans says which keys are read."""
    if mask is None:
        return bias
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask + bias


class _ReadText(NamedTuple):
    """What a layer made of a text, and the versions of text and weights; it is made anew when one of them changes."""

    text: Tensor
    versions: tuple[int, ...]
    key: Key
    value: Key


def _read_text(attn: Attention, text: Tensor, running: _Running | None) -> tuple[Key, Key]:
    """Compute a text's keys and values once a run: diffusers' loop reads the same tensor in each step."""
    made_of = (text, attn.to_k.weight, attn.to_v.weight) if type(attn.to_k) is torch.nn.Linear else ()
    if running is None or not made_of or torch.is_grad_enabled() or any(tensor.is_inference() for tensor in made_of):
        return _keys_and_values(attn, text, norm=bool(attn.norm_cross))
    versions = tuple(tensor._version for tensor in made_of)
    kept = running.kept.get(attn)
    if kept is None or kept.text is not text or kept.versions != versions:
        kept = _ReadText(text, versions, *_keys_and_values(attn, text, norm=bool(attn.norm_cross)))
        running.kept[attn] = kept
    return kept.key, kept.value


def _keys_and_values(attn: Attention, states: Float[Tensor, "batch length channels"], *, norm: bool) -> tuple[Key, Key]:
    states = attn.norm_encoder_hidden_states(states) if norm else states
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


def _cross_layers(denoiser: Any) -> dict[str, Attention]:
    """Find a UNet's cross-attention layers, and check that diffusers' default processor is in each."""
    layers = {
        name: module
        for name, module in denoiser.named_modules()
        if isinstance(module, Attention) and name.endswith(".attn2")
    }
    if not layers:
        raise ModelError("this UNet has no cross-attention layers (`attn2`): expected Stable Diffusion's kind of UNet.")
    for name, layer in layers.items():
        if type(layer.processor) is not AttnProcessor2_0:  # type: ignore[comparison-overlap]
            raise ModelError(
                f"{name} has the processor {type(layer.processor).__name__}, expected AttnProcessor2_0: unload the"
                " adapter that set it (an IP-Adapter by unload_ip_adapter()), or call"
                " unet.set_attn_processor(AttnProcessor2_0())."
            )
    return layers


def _check_backends(denoiser: Any) -> None:
    """Refuse backends that take no mask, misread one in silence, or take it elsewhere than PyTorch's function.

    A layer without a backend of its own uses that of the whole process, which any model's `set_attention_backend` sets.
    """
    taken = ("native", "_native_math", "_native_efficient", "_native_cudnn")
    everywhere, _ = attention_dispatch._AttentionBackendRegistry.get_active_backend()
    for module in denoiser.modules():
        processor: Any = getattr(module, "processor", None)
        if not hasattr(processor, "_attention_backend"):  # Stable Diffusion 3's own calls PyTorch's function
            if "XFormers" in (kind := type(processor).__name__):
                raise ModelError(
                    f"the attention processor {kind} takes no layout: call"
                    " transformer.set_attn_processor(JointAttnProcessor2_0())."
                )
            continue
        backend = processor._attention_backend or everywhere
        name = str(getattr(backend, "value", backend))
        if name not in taken:
            raise ModelError(
                f"the attention backend {name!r} takes no layout: set one of {', '.join(taken)} by"
                " transformer.set_attention_backend()."
            )

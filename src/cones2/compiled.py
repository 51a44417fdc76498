"""Drawing that does not wait for Python: a denoiser's call, compiled, and sent to a GPU as one CUDA graph.

Python takes longer to send the thousands of operations of a call than today's GPUs to compute them. A call of each
shape is captured once and then replayed. It reads everything from fixed places, also what a layout adds (Eq. 7), so
that prompts, subjects, layouts and schedulers change without a new capture.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils import _pytree as pytree

from cones2.errors import ModelError
from cones2.families import Family, unwrapped
from cones2.guidance import Bias, Key, Query, product_std, weighted
from cones2.shared import lock_of

_COMPILED: "weakref.WeakKeyDictionary[Any, CompiledDenoiser]" = weakref.WeakKeyDictionary()

_WARM_UPS = 2  # calls before one is captured: libraries choose their kernels in them
_MOST_PROGRAMS = 8  # each holds the memory of a call
_MOST_VARIANTS = 128  # of a repeated block: sizes of grids, times sizes of batches, with a layout and without


class LayoutTensors(NamedTuple):
    """What Eq. 7 needs in one call.

    Attributes:
        strength: η / std(scores) of each row; 0 where a row is not guided.
        guided: 1 for each row that a layout acts on, 0 for the others.
        masks: by the number of a grid's pixels: M, and what hides blocked tokens; columns are tokens, filled up.
    """

    strength: Float[Tensor, "rows"]
    guided: Float[Tensor, "rows"]
    masks: Mapping[int, tuple[Float[Tensor, "pixels columns"], Float[Tensor, "pixels columns"]]]


class FixedLayout:
    """The same in places that stay, for compiled calls to read; made without, it adds nothing."""

    def __init__(self, tensors: LayoutTensors | None) -> None:
        self.tensors = None if tensors is None else pytree.tree_map(torch.clone, tensors)
        self._masks: object = None

    def fill(self, tensors: LayoutTensors | None) -> None:
        """Take over what a call needs; the masks once a run."""
        if self.tensors is None or tensors is None:
            return
        self.tensors.strength.copy_(tensors.strength)
        if self._masks is not tensors.masks:
            self._masks = tensors.masks
            for own, given in zip(pytree.tree_leaves(self.tensors[1:]), pytree.tree_leaves(tensors[1:]), strict=True):
                own.copy_(given)

    def bias(self, query: Query, key: Key) -> Bias | None:
        """Return η(t)·M for the guided rows, and 0 for the others."""
        if self.tensors is None:
            return None
        strength, guided, masks = self.tensors
        gain, floor = masks[query.shape[2]]
        bias = weighted(strength * product_std(query, key), gain, guided[:, None, None, None] * floor, query)
        return bias.to(query.dtype)[..., : key.shape[2]]


class CompiledDenoiser:
    """A UNet whose calls are compiled, each shape of them once. Threads that draw with it take turns by the call.

    Args:
        pipeline: whose UNet it is. On a GPU its weights are laid out channels last; their values stay.
        family: its family.
        scope: what the compiler sees: the repeated `blocks`, the `whole`, or `nothing`, so that calls are only
            captured.

    Raises:
        ModelError: it can't be compiled.
    """

    def __init__(self, pipeline: Any, family: Family, scope: str) -> None:
        self.denoiser, self.scope = getattr(pipeline, family.denoiser), scope
        _check(pipeline, family, self.denoiser)
        self._is_on_gpu = self.denoiser.device.type == "cuda"
        self._programs: dict[object, _Program] = {}
        if self._is_on_gpu:
            self.denoiser.to(memory_format=torch.channels_last)

    @torch.no_grad()
    def call(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], layout: LayoutTensors | None
    ) -> tuple[Tensor]:
        """Call the denoiser by its own `forward`, with what `layout` adds; `return_dict` is taken for false."""
        leaves, form = pytree.tree_flatten((args, {**kwargs, "return_dict": False}))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        shapes = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        grids = () if layout is None else tuple((count, gain.shape) for count, (gain, _) in layout.masks.items())
        key = str(form), others, shapes, grids
        with lock_of(self.denoiser):
            if key not in self._programs:
                if len(self._programs) == _MOST_PROGRAMS:
                    del self._programs[next(iter(self._programs))]
                self._programs[key] = self._new_program(forward, leaves, form, layout)
            return (self._programs[key].run(tensors, layout),)

    def _new_program(
        self, forward: Callable[..., Any], leaves: list[Any], form: Any, layout: LayoutTensors | None
    ) -> "_Program":
        device = self.denoiser.device
        own = [leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(own, form)
        fixed = FixedLayout(layout)
        if self.scope == "whole":
            forward = torch.compile(forward, fullgraph=True, dynamic=False)

        def predict() -> Tensor:
            with _reading(self.denoiser, fixed):
                predicted: Tensor = forward(*args, **kwargs)[0]
            return predicted

        tensors = [leaf for leaf in own if isinstance(leaf, Tensor)]
        if not self._is_on_gpu:
            return _Program(predict, tensors, fixed)
        with _compiled_blocks(self.denoiser) if self.scope == "blocks" else contextlib.nullcontext():
            return _Program(_captured(predict), tensors, fixed)


def compile_denoiser(pipeline: Any, family: Family, scope: str) -> None:
    """Let calls of a pipeline's denoiser be compiled ones from now on, where `compiled_of` is asked."""
    _COMPILED[getattr(pipeline, family.denoiser)] = CompiledDenoiser(pipeline, family, scope)


def compiled_of(denoiser: Any) -> CompiledDenoiser | None:
    """Return what `compile_denoiser` made; None where it was not called."""
    return _COMPILED.get(denoiser)


@dataclass(frozen=True, eq=False)
class _Program:
    """A call of one shape, and the places that it reads from."""

    predict: Callable[[], Tensor]
    tensors: list[Tensor]
    layout: FixedLayout

    def run(self, tensors: list[Tensor], layout: LayoutTensors | None) -> Tensor:
        for own, given in zip(self.tensors, tensors, strict=True):
            own.copy_(given, non_blocking=True)
        self.layout.fill(layout)
        return self.predict().clone()  # the next call writes to the same place


def _captured(predict: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """Capture a call in a CUDA graph, and return what replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            predict()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        predicted = predict()

    def replay() -> Tensor:
        graph.replay()
        return predicted

    return replay


@contextlib.contextmanager
def _reading(denoiser: Any, fixed: FixedLayout) -> Iterator[None]:
    """Let a denoiser's processors, where they are ours, read a layout from fixed places within a `with` block."""
    processors = {each for each in denoiser.attn_processors.values() if hasattr(each, "fixed")}
    for processor in processors:
        processor.fixed = fixed
    try:
        yield
    finally:
        for processor in processors:
            processor.fixed = None


@contextlib.contextmanager
def _compiled_blocks(denoiser: Any) -> Iterator[None]:
    """Let a denoiser's repeated blocks be compiled ones within a `with` block."""
    blocks = [module for module in denoiser.modules() if type(module).__name__ in denoiser._repeated_blocks]
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False)
    try:
        with torch._dynamo.config.patch(recompile_limit=_MOST_VARIANTS):
            yield
    finally:
        for block in blocks:
            block._compiled_call_impl = None


def _check(pipeline: Any, family: Family, denoiser: Any) -> None:
    if family.attention != "cross":
        raise ModelError(f"compiling is for UNets, and {family.name} has none: draw without it.")
    if unwrapped(denoiser) is not denoiser or any(vars(m).get("_compiled_call_impl") for m in denoiser.modules()):
        raise ModelError("this UNet is compiled already: open the model anew.")
    if getattr(pipeline, "_all_hooks", None):
        raise ModelError("a compiled model stays where it is, and this one is offloaded: leave one of the two out.")

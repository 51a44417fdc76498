"""Drawing that does not wait for Python: a denoiser's call, compiled, and sent to a GPU as one CUDA graph.

Python takes longer to send the thousands of operations of a call than today's GPUs to compute them. A call of each
shape is captured once and then replayed. It reads everything from fixed places, also what a layout adds (Eq. 7), so
that prompts, subjects, layouts and schedulers change without a new capture.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import Tensor
from torch.utils import _pytree as pytree

from cones2.denoisers import unwrapped
from cones2.errors import ModelError
from cones2.families import Family
from cones2.guidance import Bias, Key, LayoutTensors, Query, product_std, weighted
from cones2.shared import COMPILED, FIXED, lock_of

_WARM_UPS = 3  # before a graph is captured: libraries choose their kernels in them
_MOST_PROGRAMS = 8  # each holds the memory of a call
_BLOCKS = {"blocks": ("BasicTransformerBlock",), "all_blocks": ("BasicTransformerBlock", "ResnetBlock2D")}
_MOST_VARIANTS = 128  # of a repeated block: sizes of grids, times sizes of batches, with a layout and without


class FixedLayout:
    """What Eq. 7 needs in places that stay, for compiled calls to read; made without, it adds nothing."""

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
    """A UNet whose calls are compiled, each shape of them once, for as long as somebody holds this.

    All pictures that are drawn with the UNet meanwhile are; their threads take turns by the call.

    Args:
        pipeline: whose UNet it is. On a GPU its weights are laid out channels last; their values stay.
        family: its family.
        scope: what the compiler sees: `blocks`, those that diffusers names as repeated; `all_blocks`, the ResNet's,
            too; the `whole`; or `nothing`, so that on a GPU calls are captured as they are. None is `blocks` on a GPU,
            and `whole` elsewhere.
        backend: the compiler, as `torch.compile` has it.

    Raises:
        ModelError: it can't be compiled.
    """

    def __init__(self, pipeline: Any, family: Family, scope: str | None = None, backend: str = "inductor") -> None:
        self.denoiser, self._backend = getattr(pipeline, family.denoiser), backend
        is_on_gpu = self.denoiser.device.type == "cuda"
        self.scope = scope or ("blocks" if is_on_gpu else "whole")
        self._programs: dict[object, _Program] = {}
        self._made_of: object = None
        self._pool: Any = None  # of a GPU's memory, for all graphs: one runs at a time
        self.check(pipeline, family)
        if is_on_gpu:
            self.denoiser.to(memory_format=torch.channels_last)
        COMPILED[id(self.denoiser)] = self

    def check(self, pipeline: Any, family: Family) -> None:
        """Check that calls can be compiled, and forget those that were made of other weights: once a picture.

        Raises:
            ModelError: something that was done to the model since can't be compiled.
        """
        with lock_of(self.denoiser):  # within it, nothing is just being compiled
            _check(pipeline, family, self.denoiser)
            weights = itertools.chain(self.denoiser.named_parameters(), self.denoiser.named_buffers())
            free = [getattr(each, name, None) for each in self.denoiser.up_blocks for name in ("s1", "s2", "b1", "b2")]
            made_of = [*((name, weight.data_ptr(), weight.dtype) for name, weight in weights), *free]
            if made_of != self._made_of:
                self._programs.clear()
                self._made_of = made_of

    @torch.inference_mode(mode=False)  # what is made in it could not be written to by a later call outside
    @torch.no_grad()
    def call(
        self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], layout: LayoutTensors | None
    ) -> Any:
        """Call the denoiser by its own `forward`, with what `layout` adds."""
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
            predicted = self._programs[key].run(tensors, layout)
        return UNet2DConditionOutput(sample=predicted) if kwargs.get("return_dict", True) else (predicted,)

    def _new_program(
        self, forward: Callable[..., Any], leaves: list[Any], form: Any, layout: LayoutTensors | None
    ) -> "_Program":
        device = self.denoiser.device
        own = [leaf.to(device, copy=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(own, form)
        fixed = FixedLayout(layout)
        blocks: Callable[[], Any] = contextlib.nullcontext
        if self.scope in _BLOCKS:
            blocks = functools.partial(_compiled_blocks, self.denoiser, _BLOCKS[self.scope], self._backend)
        if self.scope == "whole":
            forward = torch.compile(forward, fullgraph=True, dynamic=False, backend=self._backend)

        def predict() -> Tensor:
            with blocks(), _reading(self.denoiser, fixed):
                predicted: Tensor = forward(*args, **kwargs)[0]
            return predicted

        tensors = [leaf for leaf in own if isinstance(leaf, Tensor)]
        if device.type != "cuda":
            return _Program(predict, tensors, fixed)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        return _Program(capture(predict, pool=self._pool), tensors, fixed)


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


def capture(
    compute: Callable[[], Tensor], before: Callable[[], object] = lambda: None, pool: Any = None
) -> Callable[[], Tensor]:
    """Capture a computation in a CUDA graph, and return what replays it.

    Args:
        compute: reads no number on the host, and what it reads on the GPU stays where it is.
        before: called before each of a few times that it is computed in advance, and before it is captured.
        pool: of memory, for graphs of which one leaves nothing that is read after the next was replayed.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_UPS):
            before()
            compute()
    torch.cuda.current_stream().wait_stream(stream)
    before()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@contextlib.contextmanager
def _reading(denoiser: Any, fixed: FixedLayout) -> Iterator[None]:
    """Let a denoiser's processors, where they are ours, read a layout from fixed places within a `with` block."""
    processors = {each for each in denoiser.attn_processors.values() if hasattr(each, "fixed")}
    for processor in processors:
        processor.fixed = fixed
    before = FIXED.set(fixed)
    try:
        yield
    finally:
        FIXED.reset(before)
        for processor in processors:
            processor.fixed = None


@contextlib.contextmanager
def _compiled_blocks(denoiser: Any, kinds: Collection[str], backend: str) -> Iterator[None]:
    """Let blocks of a UNet be compiled ones within a `with` block."""
    blocks = [module for module in denoiser.modules() if type(module).__name__ in kinds]
    for block in blocks:
        block.compile(fullgraph=True, dynamic=False, backend=backend)
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
    if getattr(denoiser, "peft_config", None):
        raise ModelError(
            "a compiled model can't have a LoRA beside its weights: call fuse_lora(), then unload_lora_weights()."
        )

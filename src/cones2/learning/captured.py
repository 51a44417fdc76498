"""A step of learning that does not wait for Python: losses and gradients as one CUDA graph, captured once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cones2.errors import ModelError

_WARM_UPS = 3  # steps before one is captured: libraries choose their kernels in them


class CapturedStep:
    """What computes losses, and leaves gradients at parameters, on inputs that change in numbers alone.

    Args:
        compute: from inputs on the GPU to losses; it reads nothing on the host, and leaves the gradients in `grad`.
        parameters: whose gradients these are.
    """

    def __init__(self, compute: Callable[[Sequence[Tensor]], Float[Tensor, "losses"]], parameters: Sequence[Tensor]):
        self._compute, self._parameters = compute, parameters
        self._inputs: list[Tensor] = []
        self._graph: torch.cuda.CUDAGraph | None = None
        self._losses: Tensor | None = None

    def __call__(self, inputs: Sequence[Tensor], device: torch.device) -> Float[Tensor, "losses"]:
        """Return the losses of a step, and leave its gradients."""
        if self._graph is None:
            self._inputs = [each.to(device, copy=True) for each in inputs]
            self._capture()
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._losses

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forget()
                self._compute(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._forget()  # so that the graph's own gradients are new ones, written over by each replay
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._losses = self._compute(self._inputs)

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

"""A step of learning that does not wait for Python: losses and gradients as one CUDA graph, captured once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_WARM_UPS = 3  # steps before one is captured: libraries choose their kernels in them


class CapturedStep:
    """What computes losses, and leaves gradients at parameters, on inputs that change in numbers alone.

    Args:
        compute: from inputs on the GPU to losses; it reads nothing on the host, and leaves the gradients in `grad`.
        parameters: whose gradients these are.
    """

    def __init__(
        self, compute: Callable[[Sequence[Tensor]], Float[Tensor, "losses"]], parameters: Sequence[Tensor]
    ) -> None:
        self._compute, self._parameters = compute, parameters
        self._captured: tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor] | None = None

    def __call__(self, inputs: Sequence[Tensor], device: torch.device) -> Float[Tensor, "losses"]:
        """Return the losses of a step, and leave its gradients."""
        if self._captured is None:
            self._captured = self._capture([each.to(device, copy=True) for each in inputs])
        graph, own, losses = self._captured
        for mine, given in zip(own, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        graph.replay()
        return losses

    def _capture(self, inputs: list[Tensor]) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                self._forget()
                self._compute(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._forget()  # so that the graph's own gradients are new ones, written over by each replay
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            losses = self._compute(inputs)
        return graph, inputs, losses

    def _forget(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

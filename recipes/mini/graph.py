"""Training steps on a GPU: a whole step in one CUDA graph, the UNet in bfloat16 beside weights in float32.

Sent one by one, a step's operations keep a GPU waiting for Python; a graph is sent in one piece.
"""

import gc
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import Tensor

from batches import Pool
from model import Mini
from objective import Denoiser, Objective
from parts import UNet


class HalfUnet:
    """A copy of a UNet in bfloat16 that computes, and passes its gradients on to the UNet's own weights."""

    def __init__(self, unet: UNet, *, fused: bool) -> None:
        self.own = [*unet.parameters()]
        self.unet = deepcopy(unet).to(torch.bfloat16)
        if fused:
            from fused_norm import fuse_norms  # needs Triton

            fuse_norms(self.unet)
        self.copies = [*self.unet.parameters()]
        for parameter in self.own:
            parameter.grad = torch.zeros_like(parameter)

    def pass_gradients(self) -> None:
        """Put the copy's gradients into the UNet's."""
        torch._foreach_copy_([p.grad for p in self.own], [p.grad for p in self.copies])

    @torch.no_grad()
    def follow(self) -> None:
        """Take the UNet's weights over."""
        torch._foreach_copy_(self.copies, self.own)


class Trainer:
    """Training steps with averaged weights; `capture` puts a step into a graph, of which `step` then sends replays.

    Attributes:
        rate: the learning rate, on the device.
        parts: the last step's losses, on the device.
    """

    def __init__(
        self,
        mini: Mini,
        average: Mini,
        objective: Objective,
        pool: Pool,
        *,
        batch: int,
        fused: bool = False,
        memory: float = 0.999,
    ) -> None:
        self.mini, self.average, self.objective, self.pool = mini, average, objective, pool
        self.batch, self.memory = batch, memory
        device = pool.columns["latents"].device
        self.half = HalfUnet(mini.unet, fused=fused)
        self.denoiser = Denoiser(self.half.unet)
        self.parameters = [*mini.parameters()]
        self.others = [*mini.text_encoder.parameters(), *mini.heads.parameters()]
        self.rate = torch.zeros((), device=device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate, betas=(0.9, 0.99), weight_decay=0.01, fused=on_gpu, capturable=on_gpu
        )
        self.parts: dict[str, Tensor] = {}
        self.graph: torch.cuda.CUDAGraph | None = None

    def clear(self) -> None:
        """Forget what a step makes anew: gradients, and attention maps, which keep the last step's graph alive."""
        self.denoiser.maps.clear()
        for parameter in (*self.others, *self.half.copies):
            parameter.grad = None

    def compute(self) -> None:
        """A whole step, from drawing the batch to averaging the weights."""
        batch = self.pool.batch(self.batch)
        chance = self.objective.chance(batch)
        with torch.autocast(batch.latents.device.type, torch.bfloat16):
            loss, self.parts = self.objective.loss(self.mini, self.denoiser, batch, chance)
        loss.backward()
        self.half.pass_gradients()
        clip_gradients([p.grad for p in self.parameters if p.grad is not None], 1.0)
        self.optimizer.step()
        self.half.follow()
        with torch.no_grad():
            torch._foreach_lerp_([*self.average.parameters()], [*self.parameters], 1 - self.memory)

    def capture(self, warm_up: int = 3) -> None:
        """Put a step into a graph, after a few outside it."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                self.clear()
                self.compute()
        torch.cuda.current_stream().wait_stream(stream)
        self.clear()
        gc.collect()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        self.denoiser.maps.clear()
        self.graph = graph

    def step(self, rate: float) -> None:
        """Take a step."""
        self.rate.fill_(rate)
        if self.graph is not None:
            self.graph.replay()
            return
        self.clear()
        self.compute()

    def restart(self, weights: Mini) -> None:
        """Go back to `weights` with a fresh optimiser, as after a loss that is not finite."""
        with torch.no_grad():
            for own, other in ((self.mini, weights), (self.average, weights)):
                torch._foreach_copy_([*own.parameters()], [*other.parameters()])
            self.half.follow()
            for state in self.optimizer.state.values():
                for value in state.values():
                    value.zero_()


@torch.no_grad()
def clip_gradients(gradients: list[Tensor], longest: float) -> None:
    """Shorten gradients whose norm is above `longest`, without waiting for it."""
    norm = torch.stack(torch._foreach_norm(gradients)).norm()
    share = (longest / (norm + 1e-6)).clamp(max=1)
    torch._foreach_mul_(gradients, share)


def open_trainer(make: Callable[[bool], Trainer], say: Callable[[str], None], *, fuse: bool = True) -> Trainer:
    """A trainer with its step in a graph: with fused norms if they work, else without, else with no graph."""
    for fused in (True, False) if fuse else (False,):
        try:
            trainer = make(fused)
            if fused:
                say(f"fused norms in bfloat16 differ by {check_fused(trainer):.4f}")
            trainer.capture()
        except Exception as error:  # whatever stopped the capture, training goes on
            say(f"no graph with{'' if fused else 'out'} fused norms: {type(error).__name__}: {error}")
            torch.cuda.synchronize()
            continue
        say(f"a step is in a graph, with{'' if fused else 'out'} fused norms")
        return trainer
    return make(False)


@torch.no_grad()
def check_fused(trainer: Trainer, most: float = 0.06) -> float:
    """How much the UNet with fused norms differs from the plain one; raise where it computes something else."""
    unet, latents = trainer.mini.unet, trainer.pool.columns["latents"][:8]
    text, times = torch.randn(8, 6, unet.config.cross_attention_dim, device=latents.device), torch.full((8,), 500)
    times = times.to(latents.device)
    plain = unet(latents, times, text).sample
    fused, _ = trainer.denoiser(latents, times, text, torch.zeros(8, 6, *latents.shape[2:], device=latents.device))
    error = float((fused.float() - plain).norm() / plain.norm())
    if not error < most:
        raise RuntimeError(f"fused norms differ by {error:.3f}")
    return error

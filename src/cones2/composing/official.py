"""The authors' sampler: Euler's method, in which each guided step is run twice ("self-recurrence").

What their code does (ali-vilab/Cones-V2 at 447c194), told anew; the paper has none of it. After its first run a step
gets as much fresh noise put back as it took away, and is run again from there. diffusers' schedulers count their steps,
so none of them can do that.
"""

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

Latents = Float[Tensor, "batch channels height width"]


@dataclass(frozen=True, eq=False)
class EulerSampler:
    """Steps of Euler's method from noise to a picture.

    Attributes:
        timesteps: of the steps, in their order.
        sigmas: the noise before each step, and after the last one.
        is_velocity: whether the model predicts v instead of the noise.
        predict: what the model predicts of latents of variance 1 at a timestep.
        draw_noise: makes fresh noise for all pictures.
    """

    timesteps: Float[Tensor, "steps"]
    sigmas: tuple[float, ...]
    is_velocity: bool
    predict: Callable[[Latents, Tensor], Latents]
    draw_noise: Callable[[], Latents]

    def run(self, latents: Latents, steps: range, *, passes: int) -> Generator[Latents, None, Latents]:
        """Take steps, each `passes` times; yield the latents after each pass, and return the last."""
        for step in steps:
            sigma, lower = self.sigmas[step : step + 2]
            for turn in range(passes):
                if turn:
                    latents = latents + math.sqrt(sigma**2 - lower**2) * self.draw_noise()
                latents = latents + (lower - sigma) * self._noise_in(latents, sigma, self.timesteps[step])
                yield latents
        return latents

    def _noise_in(self, latents: Latents, sigma: float, timestep: Tensor) -> Latents:
        scale = math.sqrt(sigma**2 + 1)
        prediction = self.predict(latents / scale, timestep)
        return (prediction + latents * sigma / scale) / scale if self.is_velocity else prediction

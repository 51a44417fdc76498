"""The authors' sampling loop: Euler's method, in which each guided step is run twice ("self-recurrence").

After its first run, a guided step gets as much fresh noise back as it took away, and is run again from there
(ali-vilab/Cones-V2 at 447c194; the paper has none of it). diffusers' schedulers count their steps, and can't do that.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from cones2.call import StepWatcher, generators_of
from cones2.conditioning import Inputs
from cones2.errors import ModelError, SettingsError
from cones2.families import native_size
from cones2.schedulers import make_scheduler

Latents = Float[Tensor, "pictures channels height width"]


def sample(
    pipeline: Any,
    inputs: Inputs,
    watcher: StepWatcher,
    *,
    sampler: str,
    seeds: Sequence[int] | None,
    num_inference_steps: int,
    height: int | None = None,
    width: int | None = None,
    **others: Any,
) -> Any:
    """Draw pictures as the authors' inference script does, of what `conditioned` made, in its block.

    The `guided_steps` of the inputs' layout settings are run twice, also without a layout. `others` are arguments that
    have no place here.

    Raises:
        ModelError: the model is of another family, or draws on other pictures.
        SettingsError: an argument can't be used.
    """
    if sampler != "cones_v2":
        raise SettingsError(f"unknown sampler {sampler!r}: expected 'cones_v2', or None for the pipeline's own.")
    if seeds is None or others:
        what = next(iter(others), "generator")
        raise SettingsError(f"{what} has no place in the authors' loop (sampler 'cones_v2'): leave it out.")
    size = _checked_size(pipeline, height, width)
    vars(pipeline)["scheduler"] = make_scheduler("euler", pipeline.scheduler)
    pipeline.scheduler.set_timesteps(num_inference_steps, device=pipeline._execution_device)
    with torch.no_grad():
        latents = _denoise(pipeline, inputs, size, seeds, watcher)
        watcher.check_finished()
        scaled = latents.to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor
        decoded = pipeline.vae.decode(scaled, return_dict=False)[0]
    pipeline.maybe_free_model_hooks()
    return pipeline.image_processor.postprocess(decoded, output_type="pil")


def recurrent_euler(
    latents: Latents,
    sigmas: Sequence[float],
    *,
    guided: int,
    prediction_type: str,
    predict: Callable[[Latents, int], Latents],
    draw_noise: Callable[[], Latents],
    after: Callable[[int, Latents], Latents],
) -> Latents:
    """Follow Euler's method from noise to a picture, and run each of the first `guided` steps twice.

    Args:
        latents: pure noise times the first σ.
        sigmas: the noise before each step, and after the last one.
        guided: how many steps are run twice.
        prediction_type: `epsilon` or `v_prediction`.
        predict: the model, given latents of variance 1 and the step.
        draw_noise: makes fresh noise of variance 1 for all pictures.
        after: is given the step and the latents after each run, and returns those to go on with.
    """
    for step, (sigma, lower) in enumerate(itertools.pairwise(sigmas)):
        for run in range(2 if step < guided else 1):
            if run:
                latents = latents + math.sqrt(sigma**2 - lower**2) * draw_noise()
            scale = math.sqrt(sigma**2 + 1)
            noise = predict(latents / scale, step)
            if prediction_type == "v_prediction":
                noise = (noise + latents * sigma / scale) / scale
            latents = after(step, latents + (lower - sigma) * noise)
    return latents


def _denoise(inner: Any, inputs: Inputs, size: tuple[int, int], seeds: Sequence[int], watcher: StepWatcher) -> Latents:
    """Draw latents from noise, each picture's from its own generator."""
    scheduler, generators, runs = inner.scheduler, generators_of(seeds), itertools.count()
    shape = (len(seeds), inner.unet.config.in_channels, *(side // inner.vae_scale_factor for side in size))
    steps, wanted = len(scheduler.timesteps), inputs.run.settings.guided_steps
    guided = steps if wanted is None else min(wanted, steps)
    inner._num_timesteps, inner._interrupt = steps + guided, False  # as a pipeline's own call does

    def draw_noise() -> Latents:
        return randn_tensor(shape, generators, inner._execution_device, torch.float32)  # type: ignore[no-any-return]

    def after(step: int, latents: Latents) -> Latents:
        bar.update()
        changed = watcher(inner, next(runs), scheduler.timesteps[step], {"latents": latents})
        return changed.get("latents", latents)  # type: ignore[no-any-return]

    with inner.progress_bar(total=steps + guided) as bar:
        return recurrent_euler(
            draw_noise() * scheduler.init_noise_sigma,
            scheduler.sigmas.tolist(),
            guided=guided,
            prediction_type=scheduler.config.prediction_type,
            predict=_predictor(inner, inputs, size, len(seeds)),
            draw_noise=draw_noise,
            after=after,
        )


def _predictor(inner: Any, inputs: Inputs, size: tuple[int, int], count: int) -> Callable[[Latents, int], Latents]:
    """Return the denoiser with classifier-free guidance, called once a run for both of its halves."""

    def stacked(name: str) -> Tensor:
        parts = [inputs[key] for key in (f"negative_{name}", name) if key in inputs]
        return torch.cat([part.expand(count, *part.shape[1:]) for part in parts]).to(inner._execution_device)

    text, added = stacked("prompt_embeds"), None
    if "pooled_prompt_embeds" in inputs:
        sizes = torch.tensor([[*size, 0, 0, *size]], dtype=text.dtype, device=text.device)
        added = {"text_embeds": stacked("pooled_prompt_embeds"), "time_ids": sizes.expand(len(text), -1)}

    def predict(latents: Latents, step: int) -> Latents:
        inputs.run.step = step
        rows = torch.cat([latents] * (len(text) // count)).to(text.dtype)
        timestep = inner.scheduler.timesteps[step]
        prediction: Tensor = inner.unet(rows, timestep, text, added_cond_kwargs=added, return_dict=False)[0].float()
        if len(prediction) == count:
            return prediction
        unconditional, conditional = prediction.chunk(2)
        return unconditional + inputs["guidance_scale"] * (conditional - unconditional)  # type: ignore[no-any-return]

    return predict


def _checked_size(inner: Any, height: int | None, width: int | None) -> tuple[int, int]:
    """Return height and width in pixels, of a model that needs nothing but noise and text."""
    unet, factor = getattr(inner, "unet", None), inner.vae_scale_factor
    if unet is None or unet.config.in_channels != inner.vae.config.latent_channels:
        raise ModelError(f"a {type(inner).__name__} can't follow the authors' loop: expected a text-to-image UNet.")
    native = native_size(inner)
    rows, columns = height or native[0], width or native[1]
    for side in (rows, columns):
        if side % factor or not 64 <= side <= 4096:
            raise SettingsError(f"a side of {side} pixels can't be used: expected 64 to 4096, a multiple of {factor}.")
    return rows, columns

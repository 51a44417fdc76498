"""The authors' sampling loop: Euler's method, in which each guided step is run twice ("self-recurrence").

After its first run, a guided step gets as much fresh noise back as it took away, and is run again from there
(ali-vilab/Cones-V2 at 447c194; the paper has none of it). diffusers' schedulers count their steps, and can't do that.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor

from cones2.call import Cones2Output, StepWatcher, generators_of, seeds_of, warn_of_unknown_words
from cones2.conditioning import Inputs, LayoutSettings, conditioned
from cones2.errors import ModelError, SettingsError
from cones2.layout import Layout
from cones2.pipeline import Cones2Pipeline
from cones2.record import DrawCall, describe
from cones2.schedulers import make_scheduler

SAMPLER = "cones_v2"
"""What a record's options call this loop."""

_AUTHORS = LayoutSettings(preset="cones_v2")

Latents = Float[Tensor, "pictures channels height width"]


@torch.no_grad()
def draw(
    pipe: Cones2Pipeline,
    prompt: str,
    *,
    subjects: Mapping[str, Any] | None = None,
    layout: Any = None,
    seeds: int | Sequence[int] = (0, 1, 2, 3),
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
    layout_settings: LayoutSettings = _AUTHORS,
    height: int | None = None,
    width: int | None = None,
    callback_on_step_end: Callable[..., Any] | None = None,
    **conditions: Any,
) -> Cones2Output:
    """Draw pictures as the authors' inference script does; the defaults are its own.

    Args:
        pipe: a model of Stable Diffusion 1.x, 2.x or XL. Its scheduler says how it was trained, and draws nothing.
        prompt: with each subject's name as a placeholder: `"a {rex} on the beach"`.
        subjects: those of this call beside the loaded ones, by name.
        layout: a `Layout` or what `Layout.of` takes; None leaves places to the model.
        seeds: of each picture.
        num_inference_steps: of Euler's method.
        guidance_scale: of classifier-free guidance.
        layout_settings: how the layout acts. Its `guided_steps` are run twice, also without a layout.
        height: in pixels; None is what the model was trained at.
        width: likewise.
        callback_on_step_end: as in diffusers, called each time that a step was run.
        **conditions: what else `conditioned` takes: `negative_prompt`, `meter`, `force`, `clip_skip`.

    Raises:
        Cancelled: `pipe.cancel` was called, or the callback raised or asked to stop; there is no picture.
        ModelError: the model is of another family, or draws on other pictures.
        SettingsError: an argument can't be used, or the pictures came out as no numbers.
    """
    numbers = seeds_of(seeds, None, None) or ()
    given = pipe._subjects_for(prompt, subjects or {})
    warn_of_unknown_words(pipe.facts, prompt, given)
    placed = None if layout is None else Layout.of(layout)
    with pipe._drawing(numbers) as (inner, cancelled):
        size = _checked_size(inner, height, width)
        if not 1 <= num_inference_steps <= inner.scheduler.config.num_train_timesteps:
            raise SettingsError(f"num_inference_steps {num_inference_steps} can't be used: expected 1 to 1000.")
        vars(inner)["scheduler"] = make_scheduler("euler", inner.scheduler)  # a copy's
        inner.scheduler.set_timesteps(num_inference_steps, device=inner._execution_device)
        watcher = StepWatcher(cancelled, callback_on_step_end, ("latents",))
        guidance: dict[str, Any] = {"guidance_scale": guidance_scale, "layout_settings": layout_settings}
        with conditioned(inner, prompt, subjects=given, layout=placed, **guidance, **conditions) as inputs:
            latents = _denoise(inner, inputs, size, numbers, watcher)
            watcher.check_finished()
            scaled = latents.to(inner.vae.dtype) / inner.vae.config.scaling_factor
            decoded = inner.vae.decode(scaled, return_dict=False)[0]
        inner.maybe_free_model_hooks()
        encoding = {k: v for k, v in conditions.items() if k not in ("negative_prompt", "force", "meter")}
        call = DrawCall(
            prompt=prompt,
            subjects=given,
            layout=placed,
            seeds=numbers,
            generator_states=None,
            num_images=len(numbers),
            num_inference_steps=num_inference_steps,
            negative_prompt=conditions.get("negative_prompt") or "",
            force=conditions.get("force", False),
            options={"sampler": SAMPLER, "height": size[0], "width": size[1], **encoding},
            **guidance,
        )
        images = inner.image_processor.postprocess(decoded, output_type="pil")
        return Cones2Output(images, placed, inputs.attention(), describe(inner, pipe.facts, call))


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
    trained = unet.config.sample_size
    native = [side * factor for side in (trained if isinstance(trained, list | tuple) else (trained, trained))]
    rows, columns = height or native[0], width or native[1]
    for side in (rows, columns):
        if side % factor or not 64 <= side <= 4096:
            raise SettingsError(f"a side of {side} pixels can't be used: expected 64 to 4096, a multiple of {factor}.")
    return rows, columns

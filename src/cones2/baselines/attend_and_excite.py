"""Attend-and-Excite beside any way to learn subjects: latents are moved until every subject's noun is attended to."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pydantic
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.attention import unedited
from cones2.baselines.base import Draw, Learned, Rival, with_articles
from cones2.baselines.beside import base_scope, combine_base, learn_base, load_base
from cones2.baselines.setup import Drawer
from cones2.call import Cones2Output, own_copy, seeds_of
from cones2.conditioning import conditioned
from cones2.errors import ModelError, SettingsError, check_fields
from cones2.families import native_size
from cones2.guidance import level_grids
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.shared import own_settings
from cones2.subjects import Subject

_SHARPNESS = 100.0  # of the softmax over tokens
_STEPS = 50  # that the authors take
_SIGMA = 0.5  # of the 3x3 Gaussian
_NotNegative = Annotated[int, pydantic.Field(ge=0, le=10**6)]


@dataclass(frozen=True, kw_only=True)
class Excitation:
    """How far latents are moved, and when; the authors' defaults.

    Steps are counted as of 50, the authors' number: of another number, step i is moved as theirs at the same share of
    the way, so that 20 steps reach every threshold too, at 0, 4 and 8, and 10 are moved.

    Attributes:
        altered: steps of 50, from the first, in which latents are moved.
        scale: how far, times a root that falls from 1 to √½ over the steps.
        level: which grid of the UNet is read, 0 the finest; 2 is 16 x 16 at 512 pixels.
        thresholds: steps of 50, and the attention to reach there before going on; where several fall on one step, the
            last counts.
        refinements: the most moves in such a step.
        whole_window: keep the end token and padding in the softmax, as diffusers does: for comparison with it.

    Raises:
        SettingsError: a value is outside its range.
    """

    altered: _NotNegative = 25
    scale: Annotated[float, pydantic.Field(ge=0, le=1e6)] = 20.0
    level: Annotated[int, pydantic.Field(ge=0, le=8)] = 2
    thresholds: tuple[tuple[_NotNegative, Annotated[float, pydantic.Field(ge=0, le=1)]], ...] = (
        (0, 0.05),
        (10, 0.5),
        (20, 0.8),
    )
    refinements: _NotNegative = 20
    whole_window: bool = False

    def __post_init__(self) -> None:
        check_fields(self, "an excitation")

    def scaled(self, steps: int) -> "Excitation":
        """Return the same in steps of a drawing that takes so many."""
        thresholds = tuple((step * steps // _STEPS, least) for step, least in self.thresholds if step < _STEPS)
        return replace(self, altered=-(-min(self.altered, _STEPS) * steps // _STEPS), thresholds=thresholds)


_DEFAULTS = Excitation()


@dataclass(frozen=True, kw_only=True)
class AttendAndExcite:
    """Attend-and-Excite (arXiv:2301.13826), on top of another rival's subjects.

    In each of the first steps, latents are moved down the gradient of `1 - max attention` of the most neglected
    subject, and in a few steps again and again, until each is attended to (as in the authors' code, once more than it
    takes). The attention is that of the conditional rows in the layers of one grid, without what a layout adds there.

    Not inherited from diffusers' deprecated pipeline: it keeps the end token and padding in the softmax over tokens, so
    that a subject can hardly win and each refinement runs to its cap (the authors cut at the end token:
    yuval-alaluf/Attend-and-Excite#14); it computes gradients in all steps; and it replaces every attention processor,
    so that no layout can stand beside it.

    Attributes:
        base: how subjects are learned and drawn.
        settings: how far latents are moved, and when.
    """

    base: Rival
    settings: Excitation = _DEFAULTS

    def __post_init__(self) -> None:
        check_fields(self, "Attend-and-Excite")

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.base.name}+attend_and_excite"

    scope = base_scope
    learn = learn_base
    combine = combine_base
    load = load_base

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw the base's subjects, with latents moved."""
        with self.base.drawing(pipeline, learned) as draw:
            if not isinstance(draw, Drawer):
                raise SettingsError(
                    f"{self.base.name} draws in a way of its own: Attend-and-Excite can't stand beside."
                )
            yield _ExcitedDrawer(draw, self.settings)


@dataclass(frozen=True, eq=False)
class _ExcitedDrawer:
    """Draws as the base does, from noise that was moved, and moves latents after each step."""

    base: Drawer
    settings: Excitation

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects that a prompt may name."""
        return self.base.subjects

    def __call__(self, prompt: str, layout: Any = None, **options: Any) -> Cones2Output:
        """Draw pictures: arguments and errors are those of `Cones2Pipeline`, with seeds in place of generators."""
        pipe, steps = self.base.pipeline, int(options.get("num_inference_steps", 50))
        if options.keys() & {"generator", "latents", "callback_on_step_end", "sampler"}:
            raise SettingsError("Attend-and-Excite moves latents itself: give seeds, and neither callback nor sampler.")
        words = {name: each.class_word for name, each in self.subjects.items()}
        prompt = with_articles(prompt, words)
        excite = _Excite.of(pipe, prompt, self.subjects, self.settings.scaled(steps), steps)
        seeds = seeds_of(options.pop("seed", None), None, options.pop("num_images_per_prompt", None))
        start = _start(pipe, seeds, options)
        inner = own_copy(pipe.pipeline, seeds)
        inner.scheduler.set_timesteps(steps)
        if inner.scheduler.init_noise_sigma != 1:
            raise SettingsError("Attend-and-Excite is for schedulers that keep latents' variance, such as DDIM.")
        timesteps = list(inner.scheduler.timesteps)
        moved = excite.move(start, timesteps[0], 0)

        def after(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG001
            if step + 1 >= len(timesteps):
                return {}
            return {"latents": excite.move(tensors["latents"], timesteps[step + 1], step + 1)}

        options |= {"latents": moved, "callback_on_step_end": after}
        return self.base(prompt, layout, seed=list(seeds or ()), **options)


@own_settings(inference=True)
def _start(pipe: Any, seeds: Sequence[int] | None, options: Mapping[str, Any]) -> Tensor:
    """Return the noise that diffusers draws from these seeds."""
    inner, size = own_copy(pipe.pipeline, seeds), native_size(pipe.pipeline)
    height, width = options.get("height") or size[0], options.get("width") or size[1]
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds or ()]
    channels, dtype = inner.unet.config.in_channels, inner.unet.dtype
    prepared = (len(generators), channels, height, width, dtype, inner._execution_device, generators)
    latents: Tensor = inner.prepare_latents(*prepared)
    return latents


@dataclass(frozen=True, eq=False)
class _Excite:
    """One prompt's gradient: what the UNet reads, which tokens are to be attended to, and the settings."""

    unet: Any
    text: Float[Tensor, "1 tokens dim"]
    tokens: tuple[int, ...]
    stop: int
    settings: Excitation
    steps: int

    @classmethod
    def of(cls, pipe: Any, prompt: str, subjects: Mapping[str, Subject], settings: Excitation, steps: int) -> "_Excite":
        """Embed a prompt as the base does, and find the last token of each mention."""
        inner = own_copy(pipe.pipeline, None)
        with conditioned(inner, prompt, subjects=subjects) as inputs:
            text = inputs["prompt_embeds"]
        words = {name: each.class_word for name, each in subjects.items()}
        read = tokenize_prompt(parse_prompt(prompt, words), copy.deepcopy(pipe.pipeline.tokenizer))
        tokens = tuple(stop - 1 for spans in read.spans.values() for _, stop in spans)
        if not tokens:
            raise SettingsError("the prompt names no subject, so that there is none to attend to: write one's {name}.")
        end = len(pipe.pipeline.tokenizer(read.text)["input_ids"]) - 1
        stop = text.shape[1] - 1 if settings.whole_window else end
        return cls(pipe.pipeline.unet, text, tokens, stop, settings, steps)

    def move(self, latents: Tensor, timestep: Tensor, step: int) -> Tensor:
        """Return latents before a step, each picture's moved by itself."""
        thresholds = dict(self.settings.thresholds)
        if step >= self.settings.altered and step not in thresholds:
            return latents
        with torch.inference_mode(False), torch.enable_grad(), unedited():
            moved = [self._move_one(one.clone()[None], timestep, step, thresholds.get(step)) for one in latents]
        return torch.cat(moved).to(latents)

    def _move_one(self, latent: Tensor, timestep: Tensor, step: int, threshold: float | None) -> Tensor:
        size = self.settings.scale * (1 - 0.5 * step / max(1, self.steps - 1)) ** 0.5
        loss, gradient = self._loss(latent, timestep)
        if threshold is not None and loss > 1 - threshold:
            for _ in range(self.settings.refinements):
                latent, before = latent - size * gradient, loss
                loss, gradient = self._loss(latent, timestep)
                if before <= 1 - threshold:
                    break
        if step < self.settings.altered and loss != 0:
            latent = latent - size * gradient
        return latent

    def _loss(self, latent: Tensor, timestep: Tensor) -> tuple[float, Tensor]:
        """Return `max over subjects of (1 - max attention)`, and its gradient (arXiv:2301.13826, Eq. 1)."""
        latent = latent.detach().requires_grad_()
        height, width = latent.shape[2:]
        grid = level_grids(height, width, self.settings.level + 1)[-1]
        with torch.enable_grad(), recorded_attention(self.unet, grid[0] * grid[1]) as maps:
            self.unet(latent, timestep, encoder_hidden_states=self.text.clone(), return_dict=False)
        if not maps:
            raise ModelError(f"no layer of this UNet has the grid {grid[0]}x{grid[1]}: take another level.")
        attention = torch.cat([each[0] for each in maps]).mean(0)  # over heads and layers
        loss = 1 - token_maxima(attention.unflatten(0, grid), self.tokens, self.stop).min()
        return float(loss.detach()), torch.autograd.grad(loss, latent)[0]


def token_maxima(
    attention: Float[Tensor, "height width all_tokens"], tokens: Sequence[int], stop: int
) -> Float[Tensor, "subjects"]:
    """Return the largest attention to each subject's token, after a softmax over words and smoothing.

    `stop` is the end token's position: neither it nor the start token takes part (arXiv:2301.13826, Sec. 3).
    """
    words = torch.softmax(_SHARPNESS * attention[..., 1:stop].float(), dim=-1)
    chosen = words[..., [token - 1 for token in tokens]].permute(2, 0, 1)[:, None]
    side = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float32, device=attention.device)
    bell = torch.exp(-((side / (2 * _SIGMA)) ** 2))  # the authors' code: a little wider than their σ says
    kernel = (bell[:, None] * bell) / (bell.sum() ** 2)
    smooth = F.conv2d(F.pad(chosen, (1, 1, 1, 1), mode="reflect"), kernel[None, None])
    return smooth.flatten(1).amax(1)


@contextmanager
def recorded_attention(unet: Any, pixels: int) -> Iterator[list[Float[Tensor, "rows heads pixels tokens"]]]:
    """Record the attention from image to text of all layers with so many pixels, within a `with` block.

    It is computed aside, from what a layer's `to_q` and `to_k` give, so that no processor has to be replaced.
    """
    maps: list[Tensor] = []
    queries: dict[str, Tensor] = {}
    handles = []

    def keep_query(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: queries.__setitem__(name, output)  # noqa: ARG005

    def keep_key(name: str, layer: Any) -> Callable[..., None]:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG001  # a hook's arguments
            query = queries.pop(name)
            if query.shape[1] == pixels:
                split = [each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (query, output)]
                maps.append(torch.softmax(split[0] @ split[1].mT * layer.scale, dim=-1))

        return hook

    for name, layer in unet.named_modules():
        if name.endswith(".attn2"):
            handles += [layer.to_q.register_forward_hook(keep_query(name))]
            handles += [layer.to_k.register_forward_hook(keep_key(name, layer))]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()

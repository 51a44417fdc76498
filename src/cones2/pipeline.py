"""`Cones2Pipeline`: a diffusers pipeline with subjects and layouts, learned and drawn by one object."""

import contextlib
import inspect
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from cones2.call import (
    Cones2Output,
    StepWatcher,
    aspect_of,
    check_steps,
    fresh_seeds,
    generators_of,
    own_copy,
    read_layout,
    returning,
    seeds_of,
    sliced_decoding,
    split_options,
    warn_of_doubts,
    warn_of_little_attention,
    with_both_sides,
)
from cones2.conditioning import LayoutSettings, conditioned, one_text
from cones2.errors import SettingsError
from cones2.families import family_of
from cones2.models import ModelFacts, facts_of, open_pipeline
from cones2.prompts import parse_prompt, placeholders
from cones2.record import DrawCall, describe
from cones2.residual import Residual
from cones2.shared import model_alone, own_settings
from cones2.subjects import Subject, as_subject, as_subjects, check_mentioned

if TYPE_CHECKING:
    from cones2.compiled import CompiledDenoiser
    from cones2.learning.learner import LearnStep
    from cones2.learning.recipe import Recipe
    from cones2.redraw import PictureRecord

_NOT_PASSED_ON = ("from_pipe", "from_single_file", "from_config", "download", "load_config", "extract_init_dict")


class Cones2Pipeline:
    """A diffusers pipeline that puts your own subjects into a picture, each where you say (arXiv:2305.19327).

    It wraps a pipeline and does not copy it: what is not named here (`to`, `scheduler`, `load_lora_weights`,
    `enable_model_cpu_offload`, `components`...) is passed on to the wrapped one, which is `pipeline`. Any number of
    threads may draw at the same time; they wait for one another under offloading and with a LoRA.

    Args:
        pipeline: a diffusers pipeline of Stable Diffusion 1.x, 2.x, XL or 3, FLUX.1, Z-Image or FLUX.2
            klein: text-to-image, img2img, inpainting or ControlNet. `ModelError` for any other.

    Example:
        ```python
        pipe = cones2.Cones2Pipeline.from_pretrained("mini")
        pipe.load_subject("rex", pipe.learn("photos/rex", "dog"))
        layout = {"rex": (0.04, 0.45, 0.5, 0.91), "ball": (0.55, 0.5, 0.9, 0.9)}
        image = pipe("a {rex} and a {ball} on the beach", layout, subjects={"ball": "ball"}, seed=0).images[0]
        ```
    """

    def __init__(self, pipeline: Any) -> None:
        pipeline = getattr(pipeline, "pipeline", pipeline)
        self.family = family_of(pipeline)
        self.facts: ModelFacts = facts_of(pipeline)
        self._subjects: dict[str, Subject] = {}
        self._running: set[threading.Event] = set()
        self._compiled: CompiledDenoiser | None = None
        self.pipeline = pipeline  # last: from now on, other names are the wrapped pipeline's

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path = "mini",
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        config: str | Path | None = None,
        compile: bool = False,  # noqa: A002  # diffusers' and PyTorch's word
    ) -> "Cones2Pipeline":
        """Open a pretrained model.

        Args:
            name_or_path: `mini`, a Hub id `OWNER/NAME`, a diffusers folder, or a single `.safetensors` checkpoint.
            device: `cuda`, `mps` or `cpu`; the first of these that is there when None.
            dtype: `float32`, `bfloat16` or `float16`; bfloat16 on CUDA and float32 elsewhere when None.
            config: for a single checkpoint, what it holds: `sd1`, `sd2`, `sd2-base`, `sdxl` or a diffusers folder with
                its configurations. Only Stable Diffusion 2 and models of another shape need it.
            compile: draw faster, as the method `compile` says.

        Raises:
            ModelError: there is no such model, it can't be fetched, is damaged, or of a kind that is not supported.
            SettingsError: the device, dtype or config is unknown, missing on this machine, or needed.
        """
        pipe = cls(open_pipeline(name_or_path, device=device, dtype=dtype, config=config))
        if compile:
            pipe.compile()
        return pipe

    def compile(self) -> None:
        """Draw faster from now on, after a first picture of each shape that takes longer.

        On a CUDA GPU a call of the UNet is sent as one CUDA graph; elsewhere the UNet is compiled, in minutes. Pictures
        differ by rounding; those with attention measured, or with subjects' negative texts, are drawn as without it.

        Raises:
            ModelError: it is no UNet, or compiled already, or offloaded, or has a LoRA that is not fused.
        """
        from cones2.compiled import CompiledDenoiser  # drawing does without

        self._compiled = CompiledDenoiser(self.pipeline, self.family)

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The loaded subjects, by name."""
        return MappingProxyType(self._subjects)

    def load_subject(
        self,
        name: str,
        source: Any,
        *,
        strength: float = 1.0,
        during: tuple[float, float] = (0.0, 1.0),
        negative: str = "",
    ) -> None:
        """Let prompts say `{name}`.

        Args:
            name: what prompts call the subject.
            source: a `Residual`, a `Subject` or an example; the path of a residual file, a name in the library, the
                name of an example, or a Hub id.
            strength: how much of its residual is added; 1 as learned.
            during: from when to when it is added, by noise: 0 is pure noise, 1 the finished picture.
            negative: what this subject should not show; only its own region sees it.

        Raises:
            SettingsError: the source is of no such kind, or a number is outside its range.
            ResidualError: the file is not a sound residual.
            LibraryError: there is no such name.
            HubError: the Hub does not have it.
        """
        if isinstance(source, str | Path):
            from cones2.library import find_residual  # drawing does without

            source = find_residual(source)
        self._subjects[name] = replace(as_subject(name, source), strength=strength, during=during, negative=negative)

    def unload_subject(self, name: str) -> None:
        """Forget a subject.

        Raises:
            SettingsError: no subject has this name.
        """
        if name not in self._subjects:
            raise SettingsError(f"no subject {name!r} is loaded; those are: {', '.join(self._subjects) or 'none'}.")
        del self._subjects[name]

    def learn(
        self,
        photos: Path | str | Sequence[Any],
        class_word: str,
        recipe: "Recipe | str | None" = None,
        *,
        progress: bool = True,
        **options: Any,
    ) -> Residual:
        """Learn a subject's residual from its photos, with a progress bar (arXiv:2305.19327, Sec. 3.2).

        Args:
            photos: a folder, or photos or their paths; 3 to 5 do.
            class_word: the word, or words, for its raw category.
            recipe: a `Recipe`, the name of one, the path of a TOML file, or None for what suits the model.
            progress: whether to show a bar.
            **options: as for `learn_steps`, whose errors these are.
        """
        from tqdm.auto import tqdm  # type: ignore[import-untyped]  # diffusers' own bar

        steps = self.learn_steps(photos, class_word, recipe, **options)
        with contextlib.closing(steps), tqdm(desc=f"learning a {class_word}", disable=not progress) as bar:
            for step in steps:
                bar.total = step.steps
                bar.update(step.step - bar.n)
                bar.set_postfix(loss=f"{step.loss:.3f}", refresh=False)
            return step.residual

    def learn_steps(
        self, photos: Path | str | Sequence[Any], class_word: str, recipe: "Recipe | str | None" = None, **options: Any
    ) -> Generator["LearnStep", None, None]:
        """Return a generator of the steps of learning; each holds the residual so far. Checked at the call.

        Takes what `learn` takes; `options` and errors are those of `cones2.learning.learner.learn_steps`.
        """
        from cones2.learning.learner import learn_steps  # drawing does without

        return learn_steps(self.pipeline, photos, class_word, recipe or self.facts.recipe, **options)

    def __call__(
        self,
        prompt: str,
        layout: Any = None,
        *,
        subjects: Mapping[str, Any] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_images_per_prompt: int | None = None,
        layout_scale: float = 1.0,
        preset: str = "paper",
        layout_effect: str = "both",
        layout_levels: tuple[int, ...] | None = None,
        layout_blocks: tuple[int, ...] | None = None,
        guided_steps: int | None = None,
        weight_negative: float | None = None,
        sampler: str | None = None,
        measure_attention: bool = False,
        force: bool = False,
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        **options: Any,
    ) -> Cones2Output:
        """Draw pictures of subjects, each where the layout says.

        Without subjects and layout the pictures are those of the wrapped pipeline.

        Args:
            prompt: with each subject's name as a placeholder: `"a {rex} and a {ball} on the beach"`.
            layout: a `Layout`, a dict of names to a box `(xmin, ymin, xmax, ymax)` in 0..1, to boxes or to words such
                as `"left"`, the path of a layout's file, or `"auto"`; None leaves places to the model.
            subjects: of this call beside the loaded ones, by name: a `Subject`, a `Residual`, or a class word.
            num_inference_steps: steps of the scheduler.
            guidance_scale: classifier-free guidance; None is what suits the model.
            negative_prompt: what the picture should not show.
            seed: of the first picture, the next ones having the numbers that follow, or of each; None is by chance.
            generator: as in diffusers; excludes `seed`.
            num_images_per_prompt: how many pictures; None is 1, or as many as there are seeds.
            layout_scale: multiplies the layout's strength; 0 turns it off.
            preset: how the layout acts: `paper` or `cones_v2`.
            layout_effect: as `LayoutSettings` has it, like the next four.
            layout_levels: only these of a UNet's grids.
            layout_blocks: only these blocks of a joint transformer.
            guided_steps: only in as many steps, from the first.
            weight_negative: γ- of the preset `cones_v2`.
            sampler: `cones_v2` for the authors' loop (Euler's method, text-to-image alone); None is the pipeline's own.
            measure_attention: whether to tell where the attention to each subject went; needs a layout.
            force: use residuals of another text encoder of the same width, with a warning.
            callback_on_step_end: as in diffusers; an exception from it raises `Cancelled`.
            callback_on_step_end_tensor_inputs: as in diffusers.
            **options: what else the wrapped pipeline takes (`height`, `width`, `image`, `strength`, `clip_skip`...).

        Raises:
            Cancelled: `cancel` was called, or the callback raised or asked to stop; there is no picture.
            SettingsError: an argument can't be used, or the pictures came out as no numbers.
            Cones2Error: as `conditioned`.
        """
        seeds = seeds_of(seed, generator, num_images_per_prompt)
        check_steps(num_inference_steps)
        count = num_images_per_prompt or (len(seeds) if seeds else 1)
        given, options = self._subjects_for(prompt, subjects or {}), with_both_sides(self.pipeline, options)
        class_words = {name: each.class_word for name, each in given.items()}
        placed = read_layout(layout, class_words, aspect_of(self.pipeline, options))
        scale = self.facts.guidance_scale if guidance_scale is None else guidance_scale
        warn_of_doubts(self.pipeline, self.facts, prompt, given, placed, {**options, "guidance_scale": scale})
        settings = LayoutSettings(
            layout_scale=layout_scale,
            preset=preset,
            layout_effect=layout_effect,
            layout_levels=layout_levels,
            layout_blocks=layout_blocks,
            guided_steps=guided_steps,
            weight_negative=weight_negative,
        )
        with self._drawing(seeds) as (inner, cancelled):
            encoding, calling = split_options(inner, options)
            generators = generators_of(seeds) or generator
            recorded = seeds or fresh_seeds(generators)  # before the drawing changes them
            watcher = StepWatcher(cancelled, callback_on_step_end, callback_on_step_end_tensor_inputs)
            with conditioned(
                inner,
                prompt,
                subjects=given,
                layout=placed,
                negative_prompt=negative_prompt,
                guidance_scale=scale,
                layout_settings=settings,
                meter=measure_attention,
                force=force,
                **encoding,
            ) as inputs:
                calling["num_inference_steps"] = num_inference_steps
                if sampler is None:
                    calling |= {"generator": generators, **watcher.arguments()}
                    images = inner(**inputs.for_pictures(count), **calling).images
                else:
                    from cones2.cones_v2.loop import sample  # other drawing does without

                    images = sample(inner, inputs, watcher, sampler=sampler, seeds=seeds, **calling)
                watcher.check_finished()
            call = DrawCall(
                prompt=prompt,
                subjects=given,
                layout=placed,
                seeds=recorded,
                num_images=count,
                num_inference_steps=num_inference_steps,
                guidance_scale=inputs.get("guidance_scale", scale),
                negative_prompt=negative_prompt or "",
                layout_settings=settings,
                force=force,
                options={**options, "sampler": sampler} if sampler else options,
            )
            warn_of_little_attention(attention := inputs.attention(), placed)
            return Cones2Output(images, placed, attention, describe(inner, self.facts, call))

    def redraw(self, record: "PictureRecord | Mapping[str, Any] | Path | str", **arguments: Any) -> Cones2Output:
        """Draw the picture of a record again: the same batch, of which its own picture is kept.

        It is the same bit for bit on the same machine, device, dtype and versions; one warning says what differs.
        PyTorch's thread count is the record's until this returns; only one picture at a time is redrawn.

        Args:
            record: of a picture: the record itself, or its PNG file.
            **arguments: what the record could not hold, such as input images; these are checked by their hashes. Also
                `callback_on_step_end` and `measure_attention`.

        Raises:
            PictureError: there is no record, or it can't be drawn again on this pipeline and with these arguments.
            ResidualError: a residual is neither in the record, nor among the pipeline's, the library's or the examples.
            Cones2Error: as a call.
        """
        from cones2.redraw import redraw  # drawing does without

        return redraw(record, self, **arguments)

    def cancel(self) -> None:
        """Stop every picture that is being drawn, at the end of its running step; their calls raise `Cancelled`."""
        for event in tuple(self._running):
            event.set()

    def _subjects_for(self, prompt: str, given: Mapping[str, Any]) -> dict[str, Subject]:
        """Return the subjects of a prompt, in the order of their mentions."""
        known = {**self._subjects, **(own := as_subjects(given))}
        parse_prompt(one_text("prompt", prompt), {name: subject.class_word for name, subject in known.items()})
        mentioned = {name: known[name] for name in placeholders(prompt)}
        check_mentioned(own, mentioned)
        return mentioned

    @contextlib.contextmanager
    def _drawing(self, seeds: Sequence[int] | None) -> Iterator[tuple[Any, threading.Event]]:
        """Yield a pipeline for one call, and what cancels it."""
        inner, cancelled = own_copy(self.pipeline, seeds), threading.Event()
        self._running.add(cancelled)
        try:
            with own_settings(inference=True), model_alone(inner), sliced_decoding(inner):
                try:
                    yield inner, cancelled
                except BaseException:
                    inner.maybe_free_model_hooks()
                    raise
        finally:
            self._running.discard(cancelled)

    def __getattr__(self, name: str) -> Any:
        """Pass on to the wrapped pipeline."""
        inner = vars(self).get("pipeline")
        if inner is None or name.startswith("_") or name in _NOT_PASSED_ON or not hasattr(inner, name):
            kind = type(inner).__name__ if inner is not None else "nothing"
            raise AttributeError(
                f"Cones2Pipeline has no {name!r}, and passes none on to the {kind} that it wraps: use its `pipeline`."
            )
        value = getattr(inner, name)
        return returning(self, inner, value) if inspect.ismethod(value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        """Set what the wrapped pipeline has there: `pipe.scheduler = ...`."""
        inner = vars(self).get("pipeline")
        if inner is None or name in vars(self) or name.startswith("_"):
            object.__setattr__(self, name, value)
        elif hasattr(inner, name):
            setattr(inner, name, value)
        else:
            self.__getattr__(name)  # says what is wrong

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *(n for n in dir(self.pipeline) if n[0] != "_" and n not in _NOT_PASSED_ON)})

    def __repr__(self) -> str:
        return f"Cones2Pipeline({self.facts.name!r}, {type(self.pipeline).__name__}, subjects={list(self.subjects)})"

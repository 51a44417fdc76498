"""Inpainting one box after the other with an exemplar, in place of drawing all subjects at once.

Paint by Example's idea (arXiv:2211.13227; arXiv:2305.19327, Fig. A4), with the coder of `cones2.baselines.encoder` as
what reads the exemplar.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.baselines.encoder import Encoder
from cones2.baselines.ours import with_residuals
from cones2.baselines.setup import Drawer, as_tensors, combined, loaded
from cones2.baselines.stored import Tensors
from cones2.call import Cones2Output, aspect_of, read_layout, seeds_of
from cones2.captions import takes_article
from cones2.errors import SettingsError, check_fields
from cones2.layout import Layout
from cones2.rasterize import own_cells
from cones2.subjects import Subject


@dataclass(frozen=True, kw_only=True)
class ExemplarInpainting:
    """A picture of plain class words, whose boxes are then painted over, one after the other.

    First the prompt is drawn with the plain class word of every subject that has a region, under our layout. Then, for
    each region in its order, the same noise is denoised under "a photo of a {name}" with the coder's residual, and
    after each step all that is not in the region is put back, with as much noise as that step leaves: inpainting that
    any text-to-image UNet can do, where diffusers' pipeline takes four latent channels alone. A picture of n subjects
    costs n + 1 of them, and there is none without a layout.

    Attributes:
        weights: the file of mini's training heads, as `Encoder`.
    """

    weights: Path | str
    name: ClassVar[str] = "exemplar_inpainting"
    scope: ClassVar[Scope] = "subject"

    def __post_init__(self) -> None:
        check_fields(self, "exemplar inpainting")

    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return one step, as `Encoder.learn`."""
        steps = Encoder(weights=self.weights).learn(pipeline, lessons, seed=seed)

        def renamed(step: Step) -> Tensors:
            learned = step.learned
            assert isinstance(learned, Tensors)  # the encoder's own
            return replace(learned, rival=self.name)

        return (Step(each.step, each.steps, each.loss, lambda each=each: renamed(each)) for each in steps)  # type: ignore[misc]

    combine = combined
    load = loaded

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw by painting boxes over."""
        yield _Painter(Drawer(with_residuals(pipeline, as_tensors(self, learned))))


@dataclass(frozen=True, eq=False)
class _Painter:
    """Draws a plain picture and paints its boxes over."""

    base: Drawer

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects that a prompt may name."""
        return self.base.subjects

    def __call__(self, prompt: str, layout: Any = None, **options: Any) -> Cones2Output:
        """Draw pictures: arguments and errors are those of `Cones2Pipeline`; a layout is needed, and seeds."""
        if options.keys() & {"generator", "latents", "callback_on_step_end", "sampler"}:
            raise SettingsError("boxes are painted from seeds: give neither generator, latents, callback nor sampler.")
        words = {name: each.class_word for name, each in self.subjects.items()}
        placed = read_layout(layout, words, aspect_of(self.base.pipeline.pipeline, options))
        if placed is None or not placed.names:
            raise SettingsError("there is no box to paint an exemplar into: give a layout.")
        seeds = list(seeds_of(options.pop("seed", None), None, options.pop("num_images_per_prompt", None)) or ())
        last = options.pop("output_type", "pil")
        plain = {name: Subject(words[name]) for name in placed.names}
        output = self.base(prompt, placed, subjects=plain, seed=seeds, output_type="latent", **options)
        for index, name in enumerate(placed.names):
            cells = own_cells(placed, *output.images.shape[2:])[name]
            paint = Painting(output.images, torch.from_numpy(cells), seeds)
            article = "a " if takes_article(words[name]) else ""
            own = Layout({name: placed.regions[name]})
            kind = last if index == len(placed.names) - 1 else "latent"
            caption = f"a photo of {article}{{{name}}}"
            output = self.base(caption, own, seed=seeds, output_type=kind, callback_on_step_end=paint, **options)
        return replace(output, layout=placed)


class Painting:
    """After each step, puts what is not to be painted back, with as much noise as the step leaves."""

    def __init__(
        self,
        kept: Float[Tensor, "rows channels height width"],
        cells: Bool[Tensor, "height width"],
        seeds: Sequence[int],
    ) -> None:
        self._kept, self._cells = kept, cells.to(kept.device)
        rows = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        noise = [torch.randn(kept.shape[1:], generator=row, dtype=torch.float32, device="cpu") for row in rows]
        self._noise = torch.stack(noise).to(kept)

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Take diffusers' call at the end of a step."""
        timesteps, kept = pipeline.scheduler.timesteps, self._kept
        if step + 1 < len(timesteps):
            later = timesteps[step + 1].expand(len(kept))
            kept = pipeline.scheduler.add_noise(kept, self._noise, later)
        return {"latents": torch.where(self._cells, tensors["latents"], kept)}

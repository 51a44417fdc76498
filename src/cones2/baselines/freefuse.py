"""FreeFuse's soft bias as a layout rule: a constant is added to the scores in place of Eq. 7."""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pydantic
import torch
from torch import Tensor

from cones2.attention import edited_attention
from cones2.baselines.base import Draw, Learned, Rival, with_articles
from cones2.baselines.beside import base_scope, combine_base, learn_base, load_base
from cones2.baselines.setup import Drawer
from cones2.call import Cones2Output, aspect_of, read_layout
from cones2.denoisers import JointSequence
from cones2.errors import LayoutError, SettingsError, check_fields
from cones2.families import Arguments, family_of
from cones2.guidance import Bias, Key, Query, Spans, token_weights
from cones2.layout import Layout
from cones2.presets import PaperPreset
from cones2.prompts import parse_prompt, tokenize_prompt
from cones2.subjects import Subject

_Bias = Annotated[float, pydantic.Field(ge=-1e4, le=1e4)]


@dataclass(frozen=True, kw_only=True)
class FreeFuse:
    """FreeFuse's bias on image-to-text attention, on top of another rival's subjects.

    For a subject's tokens, `own` is added to the scores in its own region and `others` in the other subjects' regions,
    in all steps and whatever the scores' spread: no η(t) and no hard mask. FreeFuse finds its regions in the attention;
    here they are the layout's, so that the rules differ and nothing else. Regions reach a layer's grid as ours do.

    Attributes:
        base: how subjects are learned and drawn.
    """

    base: Rival
    own: _Bias = 1.0
    others: _Bias = -5.0

    def __post_init__(self) -> None:
        check_fields(self, "FreeFuse")

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.base.name}+freefuse"

    scope = base_scope
    learn = learn_base
    combine = combine_base
    load = load_base

    @contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        """Draw the base's subjects under this rule."""
        with self.base.drawing(pipeline, learned) as draw:
            if not isinstance(draw, Drawer):
                raise SettingsError(f"{self.base.name} draws in a way of its own: FreeFuse can't stand beside it.")
            yield _SoftDrawer(draw, self.own, self.others)


@dataclass(frozen=True, eq=False)
class _SoftDrawer:
    """Draws as the base does, its layout read by the other rule."""

    base: Drawer
    own: float
    others: float

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects that a prompt may name."""
        return self.base.subjects

    def __call__(self, prompt: str, layout: Any = None, **options: Any) -> Cones2Output:
        """Draw pictures: arguments and errors are those of `Cones2Pipeline`, without settings of its own rule."""
        pipe, words = self.base.pipeline, {name: each.class_word for name, each in self.subjects.items()}
        prompt = with_articles(prompt, words)
        placed = read_layout(layout, words, aspect_of(pipe.pipeline, options))
        if placed is None:
            return self.base(prompt, **options)
        tokens = tokenize_prompt(parse_prompt(prompt, words), copy.deepcopy(pipe.tokenizer))
        for name in placed.names:
            if name not in tokens.spans:
                raise LayoutError(f"region {name!r} is for no subject of the prompt: write {{{name}}}, or drop it.")
        edit = SoftBias(pipe.pipeline, placed, tokens.spans, self.own, self.others)
        with edited_attention(pipe.unet, family_of(pipe.pipeline), edit):
            return replace(self.base(prompt, **options), layout=placed)


class SoftBias:
    """The edit of a UNet's calls: a bias for the rows that read the prompt, which diffusers puts last."""

    sequence: JointSequence | None = None

    def __init__(self, pipeline: Any, layout: Layout, spans: Spans, own: float, others: float) -> None:
        self._pipeline, self._layout, self._spans, self._own, self._others = pipeline, layout, spans, own, others
        self._grids: tuple[tuple[int, int], ...] = ()
        self._rows = torch.empty(0, dtype=torch.float32, device="cpu")
        self._made: dict[tuple[int, int], Tensor] = {}

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Find the grids of a call, and the rows that read the prompt."""
        steps = int(self._pipeline.scheduler.config.num_train_timesteps)
        call = family_of(self._pipeline).read_call(self._pipeline.unet, steps, args, kwargs)
        self._grids = call.grids
        self._rows = torch.stack([(row == call.text[-1]).all() for row in call.text])
        return args, kwargs

    def bias(self, query: Query, key: Key) -> Bias | None:
        """Return what is added to a layer's scores."""
        [grid] = [grid for grid in self._grids if grid[0] * grid[1] == query.shape[2]]
        if grid not in self._made:
            self._made[grid] = self.weights(grid, key.shape[2]).to(query)
        return self._rows[:, None, None, None].to(query) * self._made[grid]

    def weights(self, grid: tuple[int, int], tokens: int) -> Tensor:
        """Return the bias of every pixel and token, `[pixels, tokens]`."""
        weights = token_weights(PaperPreset(positive=1.0).weigh(self._layout, *grid), self._spans, tokens)
        return self._own * weights.gain + self._others * weights.blocked

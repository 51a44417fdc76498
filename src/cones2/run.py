"""One run of a denoiser under subjects and a layout: what each of its calls reads, and what its layers add."""

import math
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from cones2.denoisers import DenoiserCall, JointSequence, Text, TextEdit, joint_blocks, unwrapped
from cones2.errors import LayoutError, ModelError, SettingsError, check_fields
from cones2.families import Arguments, Family
from cones2.guidance import (
    Bias,
    Key,
    LayoutTensors,
    Query,
    RegionWeights,
    Spans,
    TokenWeights,
    floor_of,
    layout_bias,
    token_weights,
)
from cones2.layout import Layout
from cones2.presets import NoiseLevel, find_preset
from cones2.rasterize import cover, own_cells

_ALIGNED = 8
"""Numbers: fused attention on a GPU copies a mask whose rows do not begin at multiples of it."""


@dataclass(frozen=True, kw_only=True)
class LayoutSettings:
    """How a layout acts (arXiv:2305.19327, Sec. 3.3).

    Attributes:
        layout_scale: multiplies the layout's strength η; 0 turns the layout off, the hard mask too.
        preset: which reading of Eq. 7: `paper` or `cones_v2`.
        layout_effect: `both`, or one alone for ablations: `strengthen` subjects in their own regions (γ+), or `weaken`
            them where they are irrelevant (γ-).
        layout_levels: which of a UNet's grids are edited, 0 the finest; None is all.
        layout_blocks: which blocks of a joint transformer are edited, by their order in a call, from 0; None is all.
        guided_steps: how many steps, from the first, the layout takes part in; None is all.
        weight_negative: γ- of the preset `cones_v2`, everywhere outside a subject's region.

    Raises:
        SettingsError: a value is outside its range.
    """

    layout_scale: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] = 1.0
    preset: str = "paper"
    layout_effect: Annotated[str, Field(pattern="^(both|strengthen|weaken)$")] = "both"
    layout_levels: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    layout_blocks: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] | None = None
    guided_steps: Annotated[int, Field(ge=0, le=1000)] | None = None
    weight_negative: Annotated[float, Field(ge=-1e30, le=0)] | None = None

    def __post_init__(self) -> None:
        check_fields(self, "layout settings")


class _Mask(NamedTuple):
    """The part of a layer's bias that all steps share."""

    gain: Float[Tensor, "pixels tokens"]  # M
    floor: Float[Tensor, "pixels tokens"]  # what hides blocked tokens
    whole: Bias  # of all rows, filled up at its end; each layer changes a part of it


@dataclass(eq=False, kw_only=True)
class _Call:
    """The running call of the denoiser."""

    rows: slice | list[int] | None = None  # the conditional ones; None where there is none
    count: int = 0  # of all rows
    tokens: int = 0
    grids: tuple[tuple[int, int], ...] = ()
    shape: tuple[object, ...] = ()  # what a mask depends on, of the above
    strength: Float[Tensor, "conditional"] | None = None
    is_measured: bool = False
    text: Float[Tensor, "tokens dim"] | None = None  # of one row
    layer: int = -1  # of a joint transformer: the one that asked last
    negatives: int | None = None  # where negative texts begin in its sequence; None where no row reads them


class Run:
    """The edit of one `with` block: asked before each call of the denoiser, and by each of its layers.

    Attributes:
        meter: measures where the attention goes; None where nothing is measured.
        sequence: of the running call of a joint transformer.
        step: which step the next calls belong to, for loops that set it themselves; None counts the calls.
    """

    def __init__(
        self,
        pipeline: Any,
        family: Family,
        inputs: dict[str, Any],
        layout: Layout | None,
        spans: Spans,
        settings: LayoutSettings,
        text: TextEdit | None,
        is_measured: bool,
    ) -> None:
        self.pipeline, self.family, self.inputs = pipeline, family, inputs
        self.regions, self.spans, self.settings, self.text = layout or Layout({}), spans, settings, text
        self.layout = self.regions if self.regions.names and settings.layout_scale > 0 else None
        self.preset = find_preset(settings.preset, weight_negative=settings.weight_negative)
        self.meter: AttentionMeter | None = None
        if is_measured:
            from cones2.monitor import AttentionMeter  # drawing does without

            self.meter = AttentionMeter(self.regions, spans)
        self.step: int | None = None
        self.sequence: JointSequence | None = None
        self._seen: tuple[Text, slice | list[int] | None] | None = None
        self._timesteps: Tensor | None = None
        self._calls = self._total = self._guided = 0
        self._call = _Call()
        self._behind: tuple[Tensor, Tensor] | None = None
        self._masks: dict[tuple[object, ...], _Mask] = {}
        self._laid_out: dict[tuple[object, ...], dict[int, tuple[Tensor, Tensor]]] = {}
        for name, region in (cover(self.layout, 1, 1) if self.layout else {}).items():
            if not region.cover.any():
                raise LayoutError(
                    f"nothing can be seen of region {name!r}: it is too thin, or wholly behind others. Raise its z, or"
                    " make it larger."
                )

    @property
    def acts(self) -> bool:
        """Whether anything has to be done to the denoiser's calls."""
        return bool(self.layout or self.text or self.meter)

    @property
    def can_be_compiled(self) -> bool:
        """Whether its calls differ in numbers alone: none is measured, none has texts of subjects' own to hide."""
        return self.meter is None and not (self.text and self.text.negatives)

    def check_levels(self, denoiser: Any) -> None:
        """Check `layout_levels` and `layout_blocks` against the denoiser's; SettingsError where it has no such one."""
        count, blocks = len(unwrapped(denoiser).config.get("block_out_channels", (0,))), joint_blocks(denoiser)
        for level in self.settings.layout_levels or ():
            if level >= count:
                raise SettingsError(f"layout level {level} is none of this model's: expected 0 to {count - 1}.")
        for block in self.settings.layout_blocks or ():
            if block >= blocks:
                expected = f"expected 0 to {blocks - 1}" if blocks else "a UNet has none; take layout_levels"
                raise SettingsError(f"layout block {block} is none of this model's: {expected}.")

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Arguments:
        """Read the arguments of a call of the denoiser, and return those to make it with."""
        denoiser = getattr(self.pipeline, self.family.denoiser)
        train_steps = int(self.pipeline.scheduler.config.num_train_timesteps)
        call = self.family.read_call(denoiser, train_steps, args, kwargs)
        rows = self._conditional_rows(call.text)
        count, tokens, one = len(call.text), len(self.inputs["prompt_embeds"][0]), call.text[0]
        self.sequence, place = self._with_negatives(call, rows)
        shape = call.grids[0], self.sequence, count, tokens, str(rows), place
        self._call = _Call(
            rows=rows, count=count, tokens=tokens, grids=call.grids, shape=shape, text=one, negatives=place
        )
        if rows is not None:
            args, kwargs = self._begin_conditional(call, rows, args, kwargs)
        if place is not None and self.text and self.family.with_texts:
            kwargs = self.family.with_texts(tuple(self.text.negatives.values()), kwargs)
        return args, kwargs

    def _begin_conditional(
        self, call: DenoiserCall, rows: slice | list[int], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Arguments:
        step, guided = self._count_step(is_repeated=call.is_repeated)
        if self.layout and step < guided:
            strength = self.settings.layout_scale * self.preset.strength(NoiseLevel(call.time[rows], step, guided))
            self._call.strength = strength.to(call.text[0].device, non_blocking=True)
        self._call.is_measured = self.meter is not None and self.meter.begin_call()
        if self.text is None:
            return args, kwargs
        text = self.text.apply(call.text, call.time, rows)
        if isinstance(text, Tensor) and not call.sequence:
            extra = [each.tokens.to(text).expand(len(text), -1, -1) for each in self.text.negatives.values()]
            text = torch.cat([text, *extra], dim=1)
        return self.family.with_text(text, args, kwargs)

    def _with_negatives(
        self, call: DenoiserCall, rows: slice | list[int] | None
    ) -> tuple[JointSequence | None, int | None]:
        """Return the sequence of a joint transformer with subjects' negative texts, and where these begin.

        They stand behind the call's own text, or behind all, and only in calls with a row that reads no prompt.
        """
        sequence, count = call.sequence, len(call.text)
        reading = [] if rows is None else range(count)[rows] if isinstance(rows, slice) else rows
        if sequence is None or not (self.text and self.text.negatives) or len(reading) == count:
            return sequence, None
        place = sequence.length if self.family.block_text else sequence.text + len(call.text[0])
        return sequence.lengthened(place, sum(each.size for each in self.text.negatives.values())), place

    def behind(self) -> tuple[Tensor, Tensor] | None:
        """Return what joint blocks read behind the whole sequence, and its phases, where arguments take no more text.

        Made within the first call, since the denoiser's weights may be on their device then alone.
        """
        read = self.family.block_text
        if read is None or self._call.negatives is None or self.text is None:
            return None
        if self._behind is None:
            denoiser = unwrapped(getattr(self.pipeline, self.family.denoiser))
            found = [read(denoiser, each) for each in self.text.negatives.values()]
            self._behind = torch.cat([states for states, _ in found]), torch.cat([phases for _, phases in found])
        return self._behind

    def bias(self, query: Query, key: Key) -> Bias | None:
        """Return η(t)·M for a layer's conditional rows, and 0 for the others; None where nothing is added."""
        call = self._call
        if len(query) != call.count or (call.rows is None and call.negatives is None):
            return None
        if self.sequence:
            call.layer += 1
            return self._joint_bias(query, key, call, self.sequence)
        assert call.rows is not None
        if call.is_measured and self.meter:
            self.meter.look(query[call.rows], key[call.rows, :, : call.tokens], self._grid(query.shape[2]))
        if call.strength is None and not (self.text and self.text.negatives):
            return None
        return self._cross_bias(query, key, call)

    def tensors(self) -> LayoutTensors | None:
        """Return what the call that was begun adds, for a compiled one; None where nothing is added."""
        call, text = self._call, self._call.text
        if call.rows is None or call.strength is None or text is None:
            return None
        strength, guided = torch.zeros(2, call.count, dtype=torch.float32, device=text.device).unbind()
        strength[call.rows], guided[call.rows] = call.strength, 1
        key = *call.shape, text.dtype, text.device
        if key not in self._laid_out:
            self._laid_out[key] = {math.prod(grid): self._lay_out(grid, text) for grid in call.grids}
        return LayoutTensors(strength, guided, self._laid_out[key])

    @torch.inference_mode(False)
    def _lay_out(self, grid: tuple[int, int], text: Tensor) -> tuple[Tensor, Tensor]:
        """Return M, and what hides blocked tokens, in rows as long as fused attention likes them."""
        gain, blocked = self._weigh(grid)
        gain, floor = (pad(x, (0, -x.shape[1] % _ALIGNED)) for x in (gain, blocked.float() * floor_of(text.dtype)))
        return gain.to(text.device), floor.to(text.device)

    def _cross_bias(self, query: Query, key: Key, call: _Call) -> Bias:
        mask = self._mask(query, key.shape[2])
        whole = mask.whole.clone() if torch.is_grad_enabled() else mask.whole  # a gradient's way back needs this one
        if call.strength is not None:
            seen = key[call.rows] if call.tokens == key.shape[2] else key[call.rows, :, : call.tokens]
            added = layout_bias(query[call.rows], seen, mask.gain, mask.floor, call.strength)
            is_slice = isinstance(call.rows, slice)  # into one, PyTorch casts by itself
            whole[call.rows, :, :, : call.tokens] = added if is_slice else added.to(whole.dtype)
        else:  # past the guided steps, only negative texts' tokens are hidden
            whole[call.rows, :, :, : call.tokens] = 0
        return whole[..., : key.shape[2]]

    def _joint_bias(self, query: Query, key: Key, call: _Call, sequence: JointSequence) -> Bias | None:
        """Place η(t)·M where image rows read text columns; std over these alone."""
        image = slice(sequence.image, sequence.image + math.prod(call.grids[0]))
        text = slice(sequence.text, sequence.text + call.tokens)
        added: Tensor | float | None = None if call.negatives is None else 0.0
        if call.rows is not None:
            queries, keys = query[call.rows, :, image], key[call.rows, :, text]
            if call.is_measured and self.meter:
                self.meter.look(queries, keys, call.grids[0])
            blocks = self.settings.layout_blocks
            if call.strength is not None and (blocks is None or sequence.blocks[call.layer] in blocks):
                mask = self._mask(query, key.shape[2])
                added = layout_bias(queries, keys, mask.gain, mask.floor, call.strength).to(query.dtype)
        if added is None:
            return None
        mask = self._mask(query, key.shape[2])
        whole = mask.whole.clone() if torch.is_grad_enabled() else mask.whole
        if call.rows is not None:
            whole[call.rows, :, image, text] = added
        return whole[..., : key.shape[2]]

    def _conditional_rows(self, text: Text) -> slice | list[int] | None:
        """Find the rows that read the prompt: compared once, since diffusers' loop reads the same tensor in each step.

        Raises:
            SettingsError: a pipeline that calls its denoiser once a step reads another text.
        """
        if self._seen is None or not _is_same(self._seen[0], text):
            prompt, family = self.inputs["prompt_embeds"][0].to(text[0]), self.family
            found = [i for i, row in enumerate(text) if row.shape == prompt.shape and torch.equal(row, prompt)]
            if not found and family.conditional != "apart":
                raise SettingsError(
                    f"the denoiser was called with {len(text)} rows of text, none of them this prompt's: call the"
                    " pipeline with **inputs, and with no other prompt in this block."
                )
            if len(found) == len(text) and len(text) > 1 and self._has_negative(prompt):
                half = len(found) // 2  # a negative prompt that says the same
                found = found[half:] if family.conditional == "last" else found[:half]
            neighbours = bool(found) and found[-1] - found[0] + 1 == len(found)
            self._seen = text, slice(found[0], found[-1] + 1) if neighbours else found or None
        return self._seen[1]

    def _has_negative(self, prompt: Tensor) -> bool:
        negative = self.inputs.get("negative_prompt_embeds")
        return negative is not None and len(negative) > 0 and torch.equal(prompt, negative[0].to(prompt))

    def _count_step(self, *, is_repeated: bool) -> tuple[int, int]:
        """Return which step this call belongs to, and how many are guided.

        A scheduler that calls the denoiser twice in a step has as many guided calls, the same part of all calls.
        """
        scheduler = self.pipeline.scheduler
        if is_repeated:
            return (self._calls - 1 if self.step is None else self.step), self._guided
        if scheduler.timesteps is not self._timesteps or self._calls == self._total:  # a new run in the same block
            begin = getattr(scheduler, "begin_index", None) or 0
            self._timesteps, self._calls = scheduler.timesteps, 0
            self._total = max(1, len(scheduler.timesteps) - begin)
            steps = int(scheduler.num_inference_steps or len(scheduler.timesteps))
            wanted = steps if self.settings.guided_steps is None else min(self.settings.guided_steps, steps)
            self._guided = math.ceil(len(scheduler.timesteps) * wanted / steps)
        self._calls += 1
        return (self._calls - 1 if self.step is None else self.step), self._guided

    def _grid(self, pixels: int) -> tuple[int, int]:
        for grid in self._call.grids:
            if math.prod(grid) == pixels:
                return grid
        sizes = ", ".join(f"{height}x{width}" for height, width in self._call.grids)
        raise ModelError(
            f"an attention layer has {pixels} pixels, expected one of the grids {sizes}: this model shrinks its latents"
            " in a way that layouts do not support. Draw without one."
        )

    def _mask(self, query: Query, length: int) -> _Mask:
        key = (*self._call.shape, query.shape[2], length, query.dtype, query.device)
        if key not in self._masks:
            self._masks[key] = self._new_mask(query, length)
        return self._masks[key]

    @torch.inference_mode(False)  # otherwise later calls outside of it could not change what it made
    def _new_mask(self, query: Query, length: int) -> _Mask:
        call, grid = self._call, self._call.grids[0] if self.sequence else self._grid(query.shape[2])
        gain, blocked = self._weigh(grid)
        floor = floor_of(query.dtype)
        shape = call.count, 1, query.shape[2], -(-length // _ALIGNED) * _ALIGNED
        whole = torch.zeros(shape, dtype=torch.float32, device="cpu")
        if length > call.tokens and not self.sequence:
            whole[..., call.tokens : length] = (~self._visible(grid)).float() * floor
            whole[call.rows, ..., call.tokens : length] = floor
        if call.negatives is not None and self.text and self.sequence:
            from cones2.negatives import hide  # drawing does without

            counts = [each.size for each in self.text.negatives.values()]
            hide(whole, self._visible(grid), self.sequence.image, call.negatives, counts, call.rows, floor)
        return _Mask(gain.to(query.device), (blocked.float() * floor).to(query.device), whole.to(query))

    def _weigh(self, grid: tuple[int, int]) -> TokenWeights:
        """Return M of all tokens on a grid."""
        tokens = self._call.tokens
        if regions := self._regions(grid, self._call.grids.index(grid)):
            return token_weights(regions, self.spans, tokens)
        nothing = torch.zeros(math.prod(grid), tokens, dtype=torch.float32, device="cpu")
        return TokenWeights(nothing, nothing.bool())

    def _regions(self, grid: tuple[int, int], level: int) -> dict[str, RegionWeights]:
        """Return M of each region on a grid, with each region's own weight, and without the effect left out."""
        if self.layout is None or (
            self.settings.layout_levels is not None and level not in self.settings.layout_levels
        ):
            return {}
        found = {}
        for name, (gain, blocked) in self.preset.weigh(self.layout, *grid).items():
            gain = torch.where(gain > 0, self.layout.regions[name].weight * gain, gain)
            if self.settings.layout_effect == "strengthen":
                gain, blocked = gain.clamp(min=0), torch.zeros_like(blocked)
            elif self.settings.layout_effect == "weaken":
                gain = gain.clamp(max=0)
            found[name] = RegionWeights(gain, blocked)
        return found

    def _visible(self, grid: tuple[int, int]) -> Bool[Tensor, "pixels extra"]:
        """Tell which tokens of negative texts an unconditional row sees from each cell."""
        negatives = self.text.negatives if self.text else {}
        columns = [
            torch.from_numpy(own_cells(self.regions, *grid)[name]).reshape(-1, 1).expand(-1, each.size)
            for name, each in negatives.items()
        ]
        return torch.cat([torch.zeros(math.prod(grid), 0, dtype=torch.bool, device="cpu"), *columns], dim=1)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two texts are the same tensors; a list may be made anew for each call."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(a is b for a, b in zip(one, other, strict=True))
    return one is other

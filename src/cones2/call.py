"""One call of a pipeline: its seeds, which of its arguments go where, and what is watched at the end of each step."""

import contextlib
import copy
import difflib
import functools
import inspect
import itertools
import math
import reprlib
import secrets
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL.Image import Image
from torch import Tensor

from cones2.errors import (
    Cancelled,
    Cones2Error,
    Cones2Warning,
    LayoutError,
    OutputError,
    PictureError,
    SettingsError,
    counted,
)
from cones2.families import family_of, is_for_few_steps, native_size
from cones2.layout import Layout
from cones2.models import ModelFacts
from cones2.prompts import OTHER_TEXTS, parse_prompt, unknown_words
from cones2.rasterize import own_cells
from cones2.shared import MOST_PICTURES, Undo, check_seed, shared_change
from cones2.subjects import PROPORTIONS, Subject

if TYPE_CHECKING:
    from cones2.monitor import AttentionReading

_MOST_STEPS = 1000
_MOST_ENLARGED = 1.5  # sides of a picture, in those that the model learned on
_MOST_STRENGTH = 2
_MOST_STRETCHED = 2.0  # a place, in proportion to its subject
_LEAST_ATTENTION = 0.75  # of a region's share of the picture; what mini draws there has three times that share and more
_REFUSED = {
    "prompt_embeds": "the prompt is embedded here, with its subjects: give the prompt as text",
    "negative_prompt_embeds": "the negative prompt is embedded here: give negative_prompt as text",
    "pooled_prompt_embeds": "the prompt is embedded here: give the prompt as text",
    "negative_pooled_prompt_embeds": "the negative prompt is embedded here: give negative_prompt as text",
    "return_dict": "the result is a Cones2Output: read its images",
    "callback": "diffusers no longer calls it: give callback_on_step_end",
    "callback_steps": "diffusers no longer reads it: give callback_on_step_end",
}


@dataclass(frozen=True, eq=False)
class Cones2Output:
    """What a call of `Cones2Pipeline` drew.

    Attributes:
        images: one for each seed, or each generator; PIL images, or what `output_type` asked for.
        layout: where the subjects were placed; None without a layout.
        attention: for each image, where the attention to each subject went; empty where it was not measured.
        records: for each image, how it was made, as JSON values: all that is needed to draw it again.
    """

    images: Any
    layout: Layout | None
    attention: "tuple[tuple[AttentionReading, ...], ...]"
    records: tuple[dict[str, Any], ...]

    def save(self, path: Path | str, index: int = 0) -> None:
        """Write an image as a PNG that carries its record.

        Raises:
            OutputError: the file can't be written, or is called otherwise than `NAME.png`.
            PictureError: there is no such image, it is not a PIL image, or its record is too large.
        """
        from cones2.png import write_picture

        if Path(path).suffix.lower() != ".png":
            raise OutputError(f"{path} does not end in .png: pictures are written as PNG, which keeps their records.")
        if not 0 <= index < len(self.images):
            raise PictureError(f"there is no picture {index}: expected 0 to {len(self.images) - 1}.")
        write_picture(path, self.images[index], self.records[index])

    def __repr__(self) -> str:
        return f"Cones2Output({counted(len(self.images), 'image')} of {self.records[0]['text']!r})"


class StepWatcher:
    """The callback at the end of each step: it cancels, and notes overflow without waiting for the device."""

    def __init__(
        self, cancelled: threading.Event, callback: Callable[..., Any] | None, tensor_inputs: Sequence[str]
    ) -> None:
        self._cancelled = cancelled
        self._callback = callback
        self._asked = list(getattr(callback, "tensor_inputs", tensor_inputs))
        self._finite: Tensor | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the arguments that let a pipeline call it."""
        names = list(dict.fromkeys(["latents", *self._asked]))
        return {"callback_on_step_end": self, "callback_on_step_end_tensor_inputs": names}

    def __call__(self, pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """Take diffusers' call at the end of a step."""
        finite = tensors["latents"].isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        answer: dict[str, Any] = {}
        if self._callback is not None:
            try:
                answer = self._callback(pipeline, step, timestep, {name: tensors[name] for name in self._asked}) or {}
            except Cones2Error:
                raise
            except Exception as error:
                raise Cancelled(f"the callback at step {step} raised {type(error).__name__}: {error}.") from error
        if self._cancelled.is_set() or getattr(pipeline, "interrupt", False):
            raise Cancelled(f"cancelled after step {step + 1}: there is no picture.")
        return answer

    def check_finished(self) -> None:
        """Check the numbers of all steps; SettingsError where some are infinite or NaN."""
        if self._finite is not None and not bool(self._finite):
            raise SettingsError(
                "the latents became infinite or NaN, so there is no picture: take another number of steps, another"
                " scheduler, or dtype bfloat16 or float32."
            )


def seeds_of(
    seed: int | Sequence[int] | None, generator: Any, num_images_per_prompt: int | None
) -> tuple[int, ...] | None:
    """Return the seed of each picture; None where generators are given.

    Raises:
        SettingsError: there are both, another number than of pictures, or what can't be a seed.
    """
    count = 1 if num_images_per_prompt is None else num_images_per_prompt
    _check_count(count, "num_images_per_prompt", MOST_PICTURES)
    if generator is not None:
        if seed is not None:
            raise SettingsError("seed and generator both say how noise is drawn: leave one of them out.")
        return None
    seed = secrets.randbelow(2**32) if seed is None else seed
    if isinstance(seed, str | bool) or not isinstance(seed, int | Iterable):
        check_seed(seed)  # says what is wrong
    seeds = tuple(range(seed, seed + count)) if isinstance(seed, int) else tuple(seed)
    if num_images_per_prompt is not None and len(seeds) != count:
        raise SettingsError(
            f"{counted(len(seeds), 'seed')} for {counted(count, 'picture')}: leave num_images_per_prompt out."
        )
    for each in seeds:
        check_seed(each)
    if not 0 < len(seeds) <= MOST_PICTURES:
        raise SettingsError(f"there are {len(seeds) or 'no'} seeds: expected 1 to {MOST_PICTURES}, one for a picture.")
    return seeds


def check_steps(num_inference_steps: int) -> None:
    """Check the number of a scheduler's steps; SettingsError where it is not a whole number from 1 to 1000."""
    _check_count(num_inference_steps, "num_inference_steps", _MOST_STEPS)


def _check_count(count: object, what: str, most: int) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise SettingsError(f"{what} {reprlib.repr(count)} can't be used: expected a whole number from 1 to {most}.")


def generators_of(seeds: Sequence[int] | None) -> list[torch.Generator] | None:
    """Make each picture's own generator, on the CPU: the same noise on every device and in every batch."""
    return None if seeds is None else [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def fresh_seeds(generators: Any) -> tuple[int, ...] | None:
    """Return the seeds of generators on the CPU from which nothing was drawn; None where something was."""
    given = [generators] if isinstance(generators, torch.Generator) else list(generators)
    seeds = tuple(generator.initial_seed() % 2**63 for generator in given)
    fresh = (torch.Generator("cpu").manual_seed(seed).get_state() for seed in seeds)
    pairs = zip(fresh, given, strict=True)
    return seeds if all(torch.equal(state, generator.get_state()) for state, generator in pairs) else None


def with_both_sides(pipeline: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Return a call's options with the model's own side where only one is given, since diffusers would ignore it."""
    if bool(options.get("height")) == bool(options.get("width")):
        return options
    native = dict(zip(("height", "width"), native_size(pipeline), strict=True))
    return options | {name: options.get(name) or side for name, side in native.items()}


def split_options(pipeline: Any, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tell the arguments of `encode_prompt` from those of the call; SettingsError for one that can't act in either."""
    encode = inspect.signature(pipeline.encode_prompt).parameters
    call = inspect.signature(type(pipeline).__call__).parameters
    for name in options:
        if name in _REFUSED:
            raise SettingsError(f"{name} can't be given: {_REFUSED[name]}.")
        if name not in call:
            near = "".join(f" Did you mean {each!r}?" for each in difflib.get_close_matches(name, call, n=1))
            raise SettingsError(f"{type(pipeline).__name__} takes no argument {name!r}.{near}")
    encoded = {*encode, family_of(pipeline).true_guidance}
    encoding = {name: value for name, value in options.items() if name in encoded and value is not None}
    for name in ("cross_attention_kwargs", "joint_attention_kwargs", "attention_kwargs"):
        if options.get(name) and "scale" in options[name] and "lora_scale" in encode:
            encoding["lora_scale"] = options[name]["scale"]
    only_encoded = (*OTHER_TEXTS, family_of(pipeline).true_guidance)
    return encoding, {name: value for name, value in options.items() if name not in only_encoded}


def aspect_of(pipeline: Any, options: Mapping[str, Any]) -> float:
    """Return width over height of a call's pictures."""
    width, height = _size_of(pipeline, options)
    return width / height


def _size_of(pipeline: Any, options: Mapping[str, Any]) -> tuple[int, int]:
    """Return width and height of pictures: as a call says, as the image that it changes, or the model's own."""
    height, width, image = options.get("height"), options.get("width"), options.get("image")
    first = image[0] if isinstance(image, list | tuple) and image else image
    is_followed = "mask_image" not in options and family_of(pipeline).image_sets_size  # others resize it
    if not (height and width) and isinstance(first, Image) and is_followed:
        width, height = first.size
    if not (height and width):
        height, width = native_size(pipeline)
    return int(width), int(height)


def read_layout(value: Any, class_words: Mapping[str, str], aspect: float) -> Layout | None:
    """Return the layout that a call means: a layout, a dict of shapes or words by name, a file, or `"auto"`.

    Args:
        value: what the call was given.
        class_words: of the subjects of the prompt, by name.
        aspect: width over height of the pictures, for which words become boxes.

    Raises:
        LayoutError: it can't be read, or has a place in words for no subject of the prompt.
    """
    if value is None:
        return None
    if isinstance(value, str) and value == "auto":
        from cones2.places import auto_layout  # layouts of boxes do without

        return auto_layout(list(class_words), class_words, aspect=aspect)
    if not isinstance(value, Mapping):
        return Layout.of(value)
    words = {name: where for name, where in value.items() if isinstance(where, str)}
    for name in words:
        if name not in class_words:
            raise LayoutError(f"region {name!r} is for no subject of the prompt: write {{{name}}} there, or drop it.")
    given = Layout.of({name: where for name, where in value.items() if name not in words})
    if not words:
        return given
    from cones2.places import place_layout

    return place_layout(words, given, class_words=class_words, aspect=aspect)


def own_copy(pipeline: Any, seeds: Sequence[int] | None) -> Any:
    """Return a pipeline for one call: the components are shared, the scheduler and all counters are its own.

    On a GPU its timesteps stay on the host: each step of DDIM and others would wait to read them.
    """
    inner = copy.copy(pipeline)
    scheduler = vars(inner)["scheduler"] = copy.deepcopy(pipeline.scheduler)
    if seeds and hasattr(scheduler, "noise_sampler_seed"):  # it ignores generators
        scheduler.noise_sampler_seed = list(seeds)
    set_timesteps = scheduler.set_timesteps
    if pipeline._execution_device.type != "cpu" and "device" in inspect.signature(set_timesteps).parameters:

        @functools.wraps(set_timesteps)
        def on_host(*args: Any, **kwargs: Any) -> None:
            set_timesteps(*args, **{**kwargs, "device": "cpu"})

        scheduler.set_timesteps = on_host
    return inner


@contextlib.contextmanager
def sliced_decoding(pipeline: Any) -> Iterator[None]:
    """Decode pictures one after the other within a `with` block: decoding is what needs the most memory."""
    vae = getattr(pipeline, "vae", None)
    if vae is None or not hasattr(vae, "use_slicing"):
        yield
        return

    def change() -> Undo:
        before, vae.use_slicing = vae.use_slicing, True
        return lambda: setattr(vae, "use_slicing", before)

    with shared_change(vae, "slicing", change):
        yield


def warn_of_doubts(
    pipeline: Any,
    facts: ModelFacts,
    prompt: str,
    subjects: Mapping[str, Subject],
    layout: Layout | None,
    options: Mapping[str, Any],
) -> None:
    """Warn of what a call asks for and a model hardly gives: words, sizes, strengths, guidance, shapes of places."""
    doubts: list[str] = []
    words = {name: subject.class_word for name, subject in subjects.items()}
    unknown = [] if facts.lexicon is None else unknown_words(parse_prompt(prompt, words).text, facts.lexicon)
    if unknown:
        told = ", ".join(map(repr, unknown[:5])) + (" and more" if len(unknown) > 5 else "")
        doubts.append(f"{facts.name} does not know {told}: expect nothing of that.")
    (width, height), own = _size_of(pipeline, options), math.sqrt(math.prod(native_size(pipeline)))
    is_own = options.get("height") or family_of(pipeline).attention == "cross"  # klein makes large images smaller
    if is_own and height * width > (_MOST_ENLARGED * own) ** 2:
        native = native_size(pipeline)
        size = f"{native[1]}x{native[0]} pixels: at {width}x{height}"
        doubts.append(f"{facts.name} learned on {size} it may draw things several times.")
    strong = [f"{each.strength:g} of {name}" for name, each in subjects.items() if abs(each.strength) > _MOST_STRENGTH]
    if strong:
        told = ", ".join(strong)
        doubts.append(f"strength {told} is far from 1, as learned: above {_MOST_STRENGTH}, pictures break.")
    family = family_of(pipeline)
    argument = family.true_guidance or "guidance_scale"
    scale = options.get(argument)
    scale = family.usual_guidance(pipeline) if scale is None and not family.true_guidance else scale
    if family.velocity and is_for_few_steps(pipeline) and family.has_guidance(pipeline, scale):
        off = f"{argument}={family.guided_above:g} turns it off"
        doubts.append(f"by its name, {facts.name} was distilled to draw without guidance, and {off}.")
    known = {name: word for name, word in words.items() if word in facts.class_words}
    aspect = aspect_of(pipeline, options)
    odd = [name for name in (layout.names if layout else ()) if name in known and _is_odd(layout, name, known, aspect)]
    if odd:
        told = ", ".join(f"{name!r}, a {known[name]}" for name in odd)
        doubts.append(f"the places of {told}, have another shape than it: it may be cut off, or drawn twice.")
    for text in doubts:
        warnings.warn(text, Cones2Warning, stacklevel=3)


def _is_odd(layout: Any, name: str, class_words: Mapping[str, str], aspect: float) -> bool:
    """Whether a region is more than twice as wide or as high as its subject is in proportion."""
    region = layout.regions[name]
    if region.is_rest:
        return False
    box = region.bounds
    wide = aspect * (box.xmax - box.xmin) / (box.ymax - box.ymin) / PROPORTIONS.get(class_words[name], 1.0)
    return not 1 / _MOST_STRETCHED <= wide <= _MOST_STRETCHED


def warn_of_little_attention(attention: "Sequence[Sequence[AttentionReading]]", layout: Layout | None) -> None:
    """Warn of subjects whose own regions got clearly less attention than if it were spread evenly."""
    little: dict[str, None] = {}
    for each in itertools.chain.from_iterable(attention):
        if layout and each.own is not None:
            even = float(own_cells(layout, *each.heat.shape)[each.subject].mean())
            little |= {each.subject: None} if each.own < _LEAST_ATTENTION * even else {}
    if little:
        text = f"little attention fell into the region of {', '.join(little)}: look whether it is there."
        warnings.warn(text, Cones2Warning, stacklevel=3)


def returning(wrapper: Any, inner: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method that returns the wrapped pipeline, such as `to`, return the wrapper."""

    def call(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        return wrapper if result is inner else result

    call.__doc__, call.__name__ = method.__doc__, getattr(method, "__name__", "call")
    return call

"""The config of the authors' inference script and its colour map, read and put into our own terms.

The config is a JSON list whose first entry says what to draw; the colour map is a picture, a plain colour a subject.
"""

import copy
import itertools
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from cones2.cones_v2.tensor import SavedTensor, adopt, encoder_of, read_tensor
from cones2.errors import Cones2Warning, LayoutError, PromptError, SettingsError, first_problem
from cones2.files import exists, expanded, read_bounded
from cones2.images import FORMATS, opened_image
from cones2.layout import Layout, Mask, Region
from cones2.presets import ConesV2Preset
from cones2.shapes import LARGEST_FILE
from cones2.subjects import Subject

SIDE = 768
"""Pixels of a side of the authors' pictures and colour maps, whatever the picture's own."""

_LARGEST_CONFIG = 2**20
_MOST = 64  # subjects, and colours
_AUTHORS = ConesV2Preset()
_COLOUR = re.compile(r"\s*(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3})\s*(,\s*\d{1,3}\s*)?")
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Path = Annotated[str, Field(min_length=1, max_length=4096)]

Colour = tuple[int, int, int]
Span = tuple[int, int]


class _Entry(BaseModel, extra="allow", strict=True, frozen=True):
    prompt: Annotated[str, Field(min_length=1, max_length=5000)]
    residual_dict: Mapping[_Name, _Path]
    color_context: Annotated[
        dict[_Name, tuple[_Name, Annotated[float, Field(gt=0, le=250)]]], Field(min_length=1, max_length=_MOST)
    ]
    guidance_steps: Annotated[int, Field(ge=0, le=1000)] = 50
    guidance_weight: Annotated[float, Field(ge=0, le=80)] = _AUTHORS.scale
    weight_negative: Annotated[float, Field(ge=-1e30, le=0)] = _AUTHORS.negative
    layout: _Path
    subject_list: Annotated[list[tuple[_Name, Annotated[int, Field(ge=1, le=5000)]]], Field(max_length=_MOST)]


@dataclass(frozen=True, eq=False)
class ConesV2Config:
    """A config of the authors' inference script, with its residuals and the regions of its colour map's colours."""

    entry: _Entry
    residuals: Mapping[str, SavedTensor]
    masks: Mapping[Colour, Mask]

    @classmethod
    def load(cls, path: Path | str) -> "ConesV2Config":
        """Read a config, its colour map and its residuals, all of which may come from anyone.

        Paths are relative to the config's folder, or else to the working folder. As in the authors' script, only the
        first entry counts; further ones, unknown keys, and colours that no pixel has make a `Cones2Warning`.

        Raises:
            SettingsError: it can't be read, or is no such config.
            LayoutError: a colour makes no sense, or the picture can't be used.
            ResidualError: a residual is not the tensor that the authors' script saves.
        """
        path = expanded(path)
        entry = _read_entry(path)
        colours = {_colour(text): text for text in entry.color_context}
        if len(colours) < len(entry.color_context):
            raise LayoutError(f"{path}: color_context has one colour twice. Give each region a colour of its own.")
        picture = _find(entry.layout, path)
        masks = read_colours(picture, colours)
        for colour, text in colours.items():
            if colour not in masks:
                _warn(f"no pixel of {picture} is {text}, so {entry.color_context[text][0]!r} gets no region.")
        if unnamed := [name for name, _ in entry.subject_list if name not in entry.residual_dict]:
            raise SettingsError(f"{path}: subject_list has {unnamed[0]!r}, and residual_dict no file for it.")
        files = {name: _find(entry.residual_dict[name], path) for name, _ in entry.subject_list}
        return cls(entry, {name: read_tensor(file) for name, file in files.items()}, masks)

    def arguments(self, pipeline: Any) -> dict[str, Any]:
        """Return the arguments of `Cones2Pipeline` that draw it on the model that the residuals were learned on.

        Words become subjects by name. A colour is for all mentions of its word; several colours of one word are for its
        mentions in their order. Seeds, size and guidance scale are those of the authors' script.

        Raises:
            ModelError: the model is not of Stable Diffusion 1.x or 2.x.
            PromptError: a residual is not where `subject_list` says, or two things are at one word.
            LayoutError: a word has several colours, and another number of mentions.
            ResidualMismatchError: a residual does not fit the model.
        """
        entry, encoder = self.entry, encoder_of(pipeline)
        tokenizer = copy.deepcopy(pipeline.tokenizer)  # which keeps a state that other threads' calls read
        words = _Words(tokenizer, entry.prompt)
        residuals, colours = self._residual_spans(words), self._colour_spans(words)
        spans = sorted({*residuals, *colours})
        for (start, stop), (later, end) in itertools.pairwise(spans):
            if later < stop:
                raise PromptError(f"residuals and colours of {words.text((start, end))!r} overlap in the prompt.")
        template, position = "", 0
        subjects: dict[str, Subject] = {}
        regions: dict[str, Region] = {}
        named: dict[tuple[str, ...], str] = {}
        for span in spans:
            word, source, colour = words.text(span), residuals.get(span, ""), colours.get(span, "")
            # mentions that share all of these share a name
            name = named.setdefault((word, source, colour), _new_name(word, named.values()))
            saved = self.residuals.get(source)
            residual = saved and adopt(encoder, tokenizer, saved, word, origin=source)
            subjects[name] = Subject(word, residual)
            if colour:
                weight = entry.color_context[colour][1] / _AUTHORS.positive
                regions[name] = Region((self.masks[_colour(colour)],), weight=weight)
            start, end = words.characters(span)
            template, position = f"{template}{entry.prompt[position:start]}{{{name}}}", end
        return {
            "prompt": template + entry.prompt[position:],
            "layout": Layout(regions),
            "subjects": subjects,
            "sampler": "cones_v2",
            "preset": "cones_v2",
            "layout_scale": entry.guidance_weight / _AUTHORS.scale,
            "guided_steps": entry.guidance_steps,
            "weight_negative": entry.weight_negative,
            "guidance_scale": 7.5,
            "seed": [0, 1, 2, 3],
            "height": SIDE,
            "width": SIDE,
        }

    def _residual_spans(self, words: "_Words") -> dict[Span, str]:
        """Return the name of the residual at each span, after checking that tokens were not counted wrongly."""
        found: dict[Span, str] = {}
        for name, start in self.entry.subject_list:
            span = start, start + len(self.residuals[name].vector)
            known = [first for first, _ in words.find(name)]
            if span[1] > len(words.ids) - 1:
                raise PromptError(f"subject_list puts {name!r} at token {start}, where the prompt has ended.")
            if known and start not in known:
                text, others = words.text((start, start + 1)), " or ".join(map(str, known))
                where = f"token {start}, which is {text!r}; {name!r} is token {others}"
                raise PromptError(f"subject_list puts {name!r} at {where}.")
            if span in found:
                raise PromptError(f"subject_list puts two residuals at token {start}.")
            found[span] = name
        return found

    def _colour_spans(self, words: "_Words") -> dict[Span, str]:
        """Return the colour of each mention of a word that has one."""
        found: dict[Span, str] = {}
        colours: dict[str, list[str]] = {}
        for colour, (word, _) in self.entry.color_context.items():
            colours.setdefault(word, []).extend([colour] if _colour(colour) in self.masks else [])
        for word, own in colours.items():
            spans = words.find(word)
            if own and not spans:
                _warn(f"color_context has a region for {word!r}, which the prompt does not mention.")
            elif len(own) > 1 and len(own) != len(spans):
                times = f"{len(own)} colours for {word!r}, which the prompt has {len(spans)} times"
                raise LayoutError(f"color_context has {times}: expected one for all, or one for each.")
            found |= zip(spans, own if len(own) > 1 else own * len(spans), strict=False)
        return found


class _Words:
    """A prompt's tokens, start and end included."""

    def __init__(self, tokenizer: Any, prompt: str) -> None:
        tokens = tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
        self._tokenizer, self._prompt = tokenizer, prompt
        self.ids, self._offsets = list(tokens["input_ids"]), tokens["offset_mapping"]

    def find(self, word: str) -> list[Span]:
        """Return the tokens of every mention of a word."""
        wanted = list(self._tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"])
        spans = [(at, at + len(wanted)) for at in range(1, len(self.ids) - len(wanted))]
        return [span for span in spans if wanted and self.ids[slice(*span)] == wanted]

    def characters(self, span: Span) -> Span:
        return self._offsets[span[0]][0], self._offsets[span[1] - 1][1]

    def text(self, span: Span) -> str:
        return self._prompt[slice(*self.characters(span))]


def read_colours(path: Path | str, colours: Iterable[Colour]) -> dict[Colour, Mask]:
    """Read the regions of those colours that a colour map has, scaled to 768 x 768 pixels as by the authors' code.

    A pixel has a colour exactly or not at all.

    Raises:
        LayoutError: the picture can't be read, is too large, damaged, or no PNG, JPEG or WebP.
    """
    content = read_bounded(expanded(path), limit=LARGEST_FILE, error=LayoutError)
    advice = "Save it again as a PNG."
    with opened_image(content, name=str(path), formats=FORMATS, error=LayoutError, advice=advice) as image:
        pixels = np.asarray(image.resize((SIDE, SIDE)).convert("RGB"))
    inside = {colour: (pixels == np.array(colour, np.uint8)).all(-1) for colour in colours}
    return {
        colour: Mask(SIDE, SIDE, (cells * np.uint8(255)).tobytes()) for colour, cells in inside.items() if cells.any()
    }


def _colour(text: str) -> Colour:
    """Read `255,192,0`; a fourth number is left out, as in the authors' code."""
    match = _COLOUR.fullmatch(text)
    red, green, blue = (int(number) for number in match.groups()[:3]) if match else (256, 256, 256)
    if max(red, green, blue) > 255:
        raise LayoutError(f"{text[:40]!r} is not a colour: expected red, green and blue in 0..255, such as 255,192,0.")
    return red, green, blue


def _read_entry(path: Path) -> _Entry:
    content = read_bounded(path, limit=_LARGEST_CONFIG, error=SettingsError)
    try:
        entries = TypeAdapter(list[_Entry]).validate_json(content)
    except ValidationError as error:
        problem = first_problem(error)
        at = f" at {problem.place!r}" if problem.place else ""
        raise SettingsError(f"{path} is not a config of the authors' script{at}: {problem.message}.") from error
    if not entries:
        raise SettingsError(f"{path} is an empty list: expected one entry, that says what to draw.")
    if len(entries) > 1:
        _warn(f"{path} has {len(entries)} entries: only the first is drawn.")
    for key in entries[0].model_extra or ():
        _warn(f"{path} has {key[:60]!r}, which is none of the authors' settings.")
    return entries[0]


def _new_name(word: str, taken: Iterable[str]) -> str:
    """Name a subject after its word: `cat`, and then `cat_2`."""
    base = re.sub(r"\W", "_", word, flags=re.ASCII)[:50]
    base = base if base[:1].isalpha() else f"_{base}"
    numbered = (f"{base}_{number}" for number in itertools.count(2))
    return next(name for name in itertools.chain([base], numbered) if name not in {*taken})


def _find(name: str, config: Path) -> Path:
    """Return the path that a config names: from its own folder, or else from the working folder."""
    beside = config.parent / name
    return Path(name) if not exists(beside) and exists(Path(name)) else beside


def _warn(text: str) -> None:
    warnings.warn(text, Cones2Warning, stacklevel=4)

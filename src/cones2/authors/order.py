"""A config of the authors' script in our own terms: a prompt with names, subjects, a layout and settings."""

import itertools
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cones2.authors.config import ColouredPlace, OfficialConfig, PlacedResidual
from cones2.authors.residual import adopt
from cones2.backbones import Backbone
from cones2.composing.settings import ComposeSettings
from cones2.errors import Cones2Warning, LayoutError, PromptError
from cones2.guidance.presets import OfficialPreset
from cones2.layout.region import Region
from cones2.layout.regions import Layout
from cones2.subjects import Subject

OFFICIAL_SEEDS: tuple[int, ...] = (0, 1, 2, 3)
_SIDE = 768
_DEFAULT = OfficialPreset()

Span = tuple[int, int]


class OfficialOrder(NamedTuple):
    """What `compose` takes."""

    prompt: str
    subjects: Mapping[str, Subject]
    layout: Layout
    settings: ComposeSettings


def order_official(backbone: Backbone, config: OfficialConfig) -> OfficialOrder:
    """Put a config of the authors' script into our terms, for the backbone that its residuals were learned on.

    Words become subjects by name. A colour is for all mentions of its word; several colours of one word are for its
    mentions in their order, where in the authors' code they cancel each other. Settings are those of their script:
    seeds 0 to 3, 50 steps, guidance scale 7.5, 768 x 768 pixels; take others with `dataclasses.replace`.

    Raises:
        PromptError: a residual is not where `subject_list` says, or two things are at one word.
        LayoutError: a word has several colours, and another number of mentions.
        ResidualMismatchError: a residual has another width than the backbone.
    """
    words = _Words.of(backbone, config.prompt)
    mentions = _find_mentions(words, config)
    names = _name(mentions, words)
    subjects, regions = {}, {}
    for mention, name in zip(mentions, names, strict=True):
        word = words.text_of(mention.span)
        residual = mention.residual and adopt(backbone, mention.residual.file, word, origin=mention.residual.name)
        subjects[name] = Subject(word, residual)
        if mention.place:
            regions[name] = Region((mention.place.mask,), weight=mention.place.weight / _DEFAULT.positive)
    spans = [words.characters_of(mention.span) for mention in mentions]
    return OfficialOrder(_template(config.prompt, spans, names), subjects, Layout(regions), _settings(config))


@dataclass(frozen=True)
class _Mention:
    """A word of the prompt, by its tokens, with what the config has for it."""

    span: Span
    residual: PlacedResidual | None
    place: ColouredPlace | None


@dataclass(frozen=True)
class _Words:
    """The prompt's tokens, start and end included."""

    backbone: Backbone
    prompt: str
    ids: Sequence[int]
    offsets: Sequence[Span]

    @classmethod
    def of(cls, backbone: Backbone, prompt: str) -> "_Words":
        tokens = backbone.tokenizer(prompt, return_offsets_mapping=True, truncation=False, verbose=False)
        return cls(backbone, prompt, tokens["input_ids"], tokens["offset_mapping"])

    def find(self, word: str) -> list[Span]:
        """Give the tokens of every mention of a word."""
        wanted = self.backbone.tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
        starts = range(1, len(self.ids) - len(wanted)) if wanted else ()
        return [(at, at + len(wanted)) for at in starts if list(self.ids[at : at + len(wanted)]) == list(wanted)]

    def characters_of(self, span: Span) -> Span:
        return self.offsets[span[0]][0], self.offsets[span[1] - 1][1]

    def text_of(self, span: Span) -> str:
        return self.prompt[slice(*self.characters_of(span))]


def _find_mentions(words: _Words, config: OfficialConfig) -> list[_Mention]:
    residuals = {_span_of(placed, words): placed for placed in config.residuals}
    if len(residuals) != len(config.residuals):
        raise PromptError("subject_list puts two residuals at one token: give each a word of its own.")
    places = dict(_find_places(words, config.places))
    spans = sorted({*residuals, *places})
    for (_, stop), (start, later) in itertools.pairwise(spans):
        if start < stop:
            text = words.text_of((start, later))
            raise PromptError(f"residuals and colours of {text!r} overlap in the prompt: give them the same words.")
    return [_Mention(span, residuals.get(span), places.get(span)) for span in spans]


def _span_of(placed: PlacedResidual, words: _Words) -> Span:
    """Give a residual's tokens, after checking that they were not counted wrongly."""
    start, stop = placed.token, placed.token + len(placed.file.vector)
    known = [first for first, _ in words.find(placed.name)]
    if stop > len(words.ids) - 1:
        raise PromptError(f"subject_list puts {placed.name!r} at token {start}, where the prompt has ended.")
    if known and start not in known:
        raise PromptError(
            f"subject_list puts {placed.name!r} at token {start}, which is {words.text_of((start, start + 1))!r};"
            f" {placed.name!r} is token {' or '.join(map(str, known))} of the prompt."
        )
    return start, stop


def _find_places(words: _Words, places: Sequence[ColouredPlace]) -> Iterator[tuple[Span, ColouredPlace]]:
    for word in dict.fromkeys(place.word for place in places):
        own, spans = [place for place in places if place.word == word], words.find(word)
        if not spans:
            _warn(f"color_context has a place for {word!r}, which the prompt does not mention: it is left out.")
        elif len(own) > 1 and len(own) != len(spans):
            raise LayoutError(
                f"color_context has {len(own)} colours for {word!r}, the prompt has it {len(spans)} times: expected one"
                " for all, or one for each."
            )
        yield from zip(spans, own if len(own) > 1 else own * len(spans), strict=False)


def _name(mentions: Sequence[_Mention], words: _Words) -> list[str]:
    """Name mentions after their words; those of the same word, residual and place share a name."""
    names: dict[tuple[object, ...], str] = {}
    named = []
    for mention in mentions:
        word = words.text_of(mention.span)
        key = word, mention.residual and mention.residual.name, mention.place
        if key not in names:
            base = re.sub(r"\W", "_", word, flags=re.ASCII)[:50]
            base = base if base[:1].isalpha() else f"_{base}"
            numbered = (f"{base}_{number}" for number in itertools.count(2))
            names[key] = next(name for name in itertools.chain([base], numbered) if name not in names.values())
        named.append(names[key])
    return named


def _template(prompt: str, spans: Sequence[Span], names: Sequence[str]) -> str:
    text, position = "", 0
    for (start, stop), name in zip(spans, names, strict=True):
        text += f"{prompt[position:start]}{{{name}}}"
        position = stop
    return text + prompt[position:]


def _settings(config: OfficialConfig) -> ComposeSettings:
    return ComposeSettings(
        seeds=OFFICIAL_SEEDS,
        layout_scale=config.guidance_weight / _DEFAULT.scale,
        guided_steps=config.guidance_steps,
        weight_negative=config.weight_negative,
        height=_SIDE,
        width=_SIDE,
        preset="official",
    )


def _warn(text: str) -> None:
    warnings.warn(text, Cones2Warning, stacklevel=5)

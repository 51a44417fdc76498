"""Captions of scenes, with the token positions of every object's noun.

Appearance words stand before the noun (CLIP's text encoder is causal); the order of objects says nothing about their
places.
"""

from dataclasses import dataclass

import numpy as np

from vocabulary import CLASSES, PATTERNS, SCENES
from world import Placed, Scene

WORDS, CODE, BARE = range(3)
"""How a caption tells an object's looks: in words, by an instance code at its noun, or not at all."""


@dataclass(frozen=True)
class Caption:
    """A caption as words, and for each object the positions of its noun among them."""

    words: tuple[str, ...]
    nouns: tuple[tuple[int, ...], ...]
    modes: tuple[int, ...]

    @property
    def text(self) -> str:
        """The caption as a person would type it."""
        return " ".join(self.words).replace(" ,", ",")


def describe(scene: Scene, rng: np.random.Generator) -> Caption:
    """Write a random caption of a scene."""
    drawn = rng.choice(3, len(scene.objects), p=[0.1, 0.7, 0.2])
    modes = tuple(CODE if o.coded else int(mode) for o, mode in zip(scene.objects, drawn, strict=True))
    words: list[str] = []
    nouns: dict[int, tuple[int, ...]] = {}
    where = SCENES.get(scene.scene, "").split()
    if where and rng.random() < 0.1:
        words, where = [*where, ","], []
    elif where and rng.random() < 0.1:
        where = []
    words += _opening(rng)
    groups = _groups(scene, rng)
    for number, group in enumerate(groups):
        if number:
            last = "with" if rng.random() < 0.08 else "and"
            words += [last if number == len(groups) - 1 else ","]
        for index, link in group:
            words += link
            _add_object(words, nouns, index, scene.objects[index], modes[index], rng)
        if len(groups) == 2 and len(group) == 1 and scene.relation is None:
            words += _place_words(scene, group[0][0], rng)
    words += where
    return Caption(tuple(words), tuple(nouns[index] for index in range(len(scene.objects))), modes)


def _opening(rng: np.random.Generator) -> list[str]:
    chance = rng.random()
    if chance < 0.3:
        return ["a", str(rng.choice(["photo", "photo", "picture", "drawing"])), "of"]
    return [str(rng.choice(["this", "here", "there"])), "is"] if chance < 0.38 else []


def _groups(scene: Scene, rng: np.random.Generator) -> list[list[tuple[int, list[str]]]]:
    """Objects in random order; a relation keeps its two together: "a cat wearing a hat"."""
    order = [int(index) for index in rng.permutation(len(scene.objects))]
    if scene.relation is None:
        return [[(index, [])] for index in order]
    kind, subject, object_ = scene.relation
    groups: list[list[tuple[int, list[str]]]] = [[(index, [])] for index in order if index not in (subject, object_)]
    link = "on top of" if kind == "on" and rng.random() < 0.5 else kind
    pair: list[tuple[int, list[str]]] = [(subject, []), (object_, link.split())]
    groups.insert(int(rng.integers(len(groups) + 1)), pair)
    return groups


def _add_object(
    words: list[str], nouns: dict[int, tuple[int, ...]], index: int, placed: Placed, mode: int, rng: np.random.Generator
) -> None:
    class_word = CLASSES[placed.instance.class_index]
    words += class_word.phrase(_looks(placed, mode), _article(rng)).split()
    length = len(class_word.word.split())
    nouns[index] = tuple(range(len(words) - length, len(words)))


def _article(rng: np.random.Generator) -> str:
    return str(rng.choice(["a", "the", "this", "one"], p=[0.88, 0.08, 0.02, 0.02]))


def _looks(placed: Placed, mode: int) -> str:
    if mode == CODE and placed.told is not None:
        return placed.instance.colour_word or ""
    return adjectives(placed) if mode == WORDS else ""


def adjectives(placed: Placed) -> str:
    """The words that fit an instance: colour and pattern."""
    found = [placed.instance.colour_word, PATTERNS[placed.instance.pattern] if placed.instance.pattern else None]
    return " ".join(word for word in found if word)


def _place_words(scene: Scene, index: int, rng: np.random.Generator) -> list[str]:
    this, other = scene.objects[index], scene.objects[1 - index]
    if abs(this.x - other.x) < 0.3 or rng.random() > 0.12:
        return []
    return ["on", "the", "left" if this.x < other.x else "right"]

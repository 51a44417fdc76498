"""The pictures of an evaluation: what each shows, its seed, and the hash that tells it from every other."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cones2.captions import photo_caption
from cones2.evaluation.protocol import Combination, Protocol, Row, Tier


@dataclass(frozen=True)
class Case:
    """Pictures that are drawn at once: some seeds of one prompt of one combination.

    Attributes:
        combination: whose pictures.
        prompt: its number in the protocol.
        text: with placeholders.
        seeds: one for each picture; the same for every row, so that all begin from the same noise.
        numbers: of the seeds, from 0.
        layout: whether the layout is given.
    """

    combination: Combination
    prompt: int
    text: str
    seeds: tuple[int, ...]
    numbers: tuple[int, ...]
    layout: bool


def cases(protocol: Protocol, row: Row, combination: Combination, tier: Tier) -> Iterator[Case]:
    """Yield the cases of a row and a combination; a larger tier has those of a smaller one, and more."""
    size, batch = protocol.size(tier), protocol.document.drawing.batch
    for layout in row.layouts:
        for number, prompt in enumerate(protocol.document.prompts[: size.prompts]):
            text = prompt.text.replace("{subjects}", phrase(protocol, combination))
            for first in range(0, size.seeds, batch):
                numbers = tuple(range(first, first + batch))
                seeds = tuple(picture_seed(protocol, combination, number, each) for each in numbers)
                yield Case(combination, number, text, seeds, numbers, layout == "with")


def phrase(protocol: Protocol, combination: Combination) -> str:
    """Return the subjects as one says them, by placeholders with their articles: "an {olly}, a {rex} and {ray}"."""
    mentions = [_mention(name, protocol.document.subjects[name].class_word) for name in combination.subjects]
    return " and ".join(part for part in (", ".join(mentions[:-1]), mentions[-1]) if part)


def _mention(name: str, class_word: str) -> str:
    _, _, mention = photo_caption(class_word).partition(" of ")  # "a photo of an owl", "a photo of sunglasses"
    return mention.replace(class_word, f"{{{name}}}")


def picture_seed(protocol: Protocol, combination: Combination, prompt: int, number: int) -> int:
    """Return the seed of one picture, by its combination, prompt and number alone."""
    named = f"{protocol.document.seed}|{combination.name}|{prompt}|{number}".encode()
    return int.from_bytes(hashlib.sha256(named).digest()[:8]) >> 1

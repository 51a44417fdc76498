"""How far learning moved the words that it should leave: the criterion for λ (arXiv:2305.19327, Eq. 3 and 4)."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for
from cones2.errors import CaptionError
from cones2.learning.data import encode_captions
from cones2.learning.objective import preservation_loss
from cones2.learning.ways import CHUNK

_HELD_OUT_SEED = 1


class Displacement(NamedTuple):
    """How far other words than the class word moved.

    Attributes:
        preservation: Eq. 3 itself, a sum of squares over all positions, mean over captions.
        relative: its root as a share of the words' own length; near 0 is best.
    """

    preservation: float
    relative: float


def displacement(backbone: Backbone, tuned: Backbone, captions: Sequence[str], *, class_word: str) -> Displacement:
    """Measure how far a tuned encoder moved the words it should leave, on captions, best such as none learned from."""
    encoded = encode_captions(backbone, captions, class_word)
    moved, length = 0.0, 0.0
    for input_ids, own in zip(torch.split(encoded.input_ids, CHUNK), torch.split(encoded.own, CHUNK), strict=True):
        original = backbone.embed(input_ids)
        moved += len(own) * float(preservation_loss(tuned.embed(input_ids), original, own))
        length += len(own) * float(preservation_loss(torch.zeros_like(original), original, own))
    return Displacement(moved / len(captions), math.sqrt(moved / length))


def held_out_captions(
    class_word: str, learned: Sequence[str], *, count: int = 50, lexicon: Collection[str] | None = None
) -> tuple[str, ...]:
    """Give up to `count` captions for `displacement` that are not among those that were learned from.

    Raises:
        CaptionError: none can be made, as when the lexicon is small.
    """
    known = set(learned)
    made = captions_for(class_word, count=4 * count, seed=_HELD_OUT_SEED, lexicon=lexicon)
    if not (unseen := tuple(caption for caption in made if caption not in known)[:count]):
        raise CaptionError(f"every caption for {class_word!r} was learned from: learn from fewer, to hold some out.")
    return unseen


def unseen_displacement(
    backbone: Backbone, tuned: Backbone, learned: Sequence[str], *, class_word: str
) -> Displacement | None:
    """Measure it on captions that were not learned from; None where none can be held out."""
    try:
        unseen = held_out_captions(class_word, learned, lexicon=backbone.lexicon)
    except CaptionError:
        return None
    return displacement(backbone, tuned, unseen, class_word=class_word)

"""Text and image alignment: cosines between pictures, words and photos, and how they are averaged.

The two automatic metrics of arXiv:2305.19327, Sec. 4 and Table 1. Which encoder the vectors come from is the caller's
to say: they are CLIP-T, CLIP-I and DINO only where it was CLIP or DINO.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from cones2.errors import SettingsError

Vectors = Float[np.ndarray, "_ dim"]
Values = Float[np.ndarray, "_"]


def unit(vectors: Float[np.ndarray, "*batch dim"]) -> Float[np.ndarray, "*batch dim"]:
    """Scale vectors to length 1; a vector of zeros stays one, so that its cosines are 0."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1))


def text_alignment(pictures: Vectors, text: Float[np.ndarray, "dim"] | Vectors) -> Values:
    """Return each picture's cosine with the text, or with the text of its own row, -1 to 1.

    The raw cosine (CLIP-T of Textual Inversion, arXiv:2208.01618, and DreamBooth, arXiv:2208.12242); `clip_score` makes
    of it what other papers print. The text is the prompt as a person reads it, without placeholders and identifiers.
    """
    return np.asarray((unit(pictures) * unit(text)).sum(axis=-1))


def clip_score(cosines: Values, weight: float = 2.5) -> Values:
    """Return weight * max(cosine, 0), 0 to `weight`: CLIPScore (arXiv:2104.08718, Eq. 1, whose weight is 2.5)."""
    return np.asarray(weight * np.maximum(cosines, 0))


def image_alignment(pictures: Vectors, references: Vectors) -> Values:
    """Return each picture's mean cosine with all reference photos of one subject, -1 to 1 (CLIP-I, DINO).

    Their mean over the pictures is the mean of all pairwise cosines (arXiv:2208.01618, Sec. 4).
    """
    return np.asarray(unit(pictures) @ unit(references).mean(axis=0))


def several_alignment(pictures: Vectors, references: Sequence[Vectors]) -> Values:
    """Return each picture's image alignment with several subjects: that with each, averaged over the subjects.

    Each subject counts as much, however many photos it has (arXiv:2305.19327, Sec. 4).
    """
    return np.asarray(np.mean([image_alignment(pictures, each) for each in references], axis=0))


def kept(plain: Vectors, tuned: Vectors) -> Values:
    """Return the cosines of pairs of pictures of one prompt without a subject, by the plain model and by the tuned one.

    1 where learning a subject has left everything else as it was.
    """
    return np.asarray((unit(plain) * unit(tuned)).sum(axis=-1))


@dataclass(frozen=True)
class Average:
    """A mean over combinations (`macro`) and one over pictures (`micro`), with what bounds it.

    Attributes:
        macro: the mean of the combinations' means: each combination counts as much.
        micro: the mean of all pictures.
        floor: the plain model's macro mean, which shows no subject, if it was measured.
        ceiling: that of pictures of the true subjects, if it was measured.
    """

    macro: float
    micro: float
    floor: float | None = None
    ceiling: float | None = None

    @property
    def between(self) -> float | None:
        """Where the mean lies between floor (0) and ceiling (1); None without both, or where they are equal."""
        if self.floor is None or self.ceiling is None or self.ceiling == self.floor:
            return None
        return (self.macro - self.floor) / (self.ceiling - self.floor)


def average(
    values: Mapping[str, Values], floor: Mapping[str, Values] | None = None, ceiling: Mapping[str, Values] | None = None
) -> Average:
    """Average the pictures' values of each combination, by the combination's name.

    Raises:
        SettingsError: a combination has no pictures, or floor or ceiling are of other combinations.
    """
    if not values or any(len(each) == 0 for each in values.values()):
        raise SettingsError("there are combinations without pictures: expected at least one of each. Draw them first.")
    for name, bound in (("floor", floor), ("ceiling", ceiling)):
        if bound is not None and bound.keys() != values.keys():
            raise SettingsError(f"the {name} is of other combinations: expected {', '.join(values)}. Draw those.")
    return Average(
        _macro(values),
        float(np.concatenate(list(values.values())).mean()),
        None if floor is None else _macro(floor),
        None if ceiling is None else _macro(ceiling),
    )


def _macro(values: Mapping[str, Values]) -> float:
    return float(np.mean([each.mean() for each in values.values()]))

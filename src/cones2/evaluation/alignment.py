"""Text and image alignment: cosines between pictures, words and photos, and how they are averaged.

The two automatic metrics of arXiv:2305.19327, Sec. 4 and Table 1. Which encoder the vectors come from is the caller's
to say: they are CLIP-T, CLIP-I and DINO only where it was CLIP or DINO.
"""

from collections.abc import Mapping, Sequence

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


def macro(values: Mapping[str, Values]) -> float:
    """Return the mean of the combinations' means, from their pictures' values: each combination counts as much.

    Raises:
        SettingsError: a combination has no pictures, or there is none.
    """
    return float(np.mean([each.mean() for each in _some(values).values()]))


def micro(values: Mapping[str, Values]) -> float:
    """Return the mean of all pictures; raises as `macro`."""
    return float(np.concatenate(list(_some(values).values())).mean())


def between(mean: float, floor: float, ceiling: float) -> float | None:
    """Return where a mean lies from floor (0: the plain model) to ceiling (1: true subjects); None where they meet."""
    return None if floor == ceiling else (mean - floor) / (ceiling - floor)


def _some(values: Mapping[str, Values]) -> Mapping[str, Values]:
    if not values or any(len(each) == 0 for each in values.values()):
        raise SettingsError("there are combinations without pictures: expected at least one of each. Draw them first.")
    return values

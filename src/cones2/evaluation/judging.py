"""What the judges saw in a picture, whole, so that a new measure needs no new pictures; and what they look for.

The vectors are kept as half floats, which moves a cosine by less than 1e-3.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pydantic
import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from cones2.errors import SettingsError
from cones2.evaluation import second_judge
from cones2.evaluation.alignment import unit
from cones2.evaluation.matching import Seen
from cones2.judge import PICTURE, WIDTH, Judge
from cones2.photos import Photo, crop_square, stack_pixels

MOST_SEEN = 64
"""Objects of one picture."""

_Text = Annotated[str, pydantic.Field(max_length=3 * 2**12)]  # MOST_SEEN plain looks are 12,120 characters
_Share = Annotated[float, pydantic.Field(ge=0, le=1)]
_Box = tuple[_Share, _Share, _Share, _Share]
_MOST_WORDS = 1024


def packed(vectors: Sequence[Float[np.ndarray, "dim"]]) -> str:
    """Return vectors as base64 of little-endian half floats."""
    return base64.b64encode(np.array(vectors, dtype="<f2").tobytes()).decode()


def unpacked(text: str, count: int, width: int) -> Float[np.ndarray, "{count} {width}"]:
    """Return `count` vectors of length 1 from what `packed` wrote.

    Raises:
        SettingsError: it is no such text.
    """
    try:
        numbers = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f2").astype(float)
        if not np.isfinite(numbers).all():
            raise ValueError("not finite")
        return unit(numbers.reshape(count, width))
    except ValueError as error:
        raise SettingsError(f"{text[:20]!r}... holds no {count} vectors: the results are damaged.") from error


class Judged(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """One picture through the judges' eyes.

    Attributes:
        classes, scores, boxes: of each object, surest first.
        identities: how each looks to the judge.
        plain_looks: how each looks to the second judge.
        words: the picture among the words that the judge knows, classes and then scenes.
        whole: the picture as one thing.
        scene: its name; "" is a plain wall.
    """

    classes: Annotated[list[Annotated[int, pydantic.Field(ge=0, lt=_MOST_WORDS)]], pydantic.Field(max_length=MOST_SEEN)]
    scores: list[_Share]
    boxes: list[_Box]
    identities: _Text
    plain_looks: _Text
    words: Annotated[list[_Share], pydantic.Field(max_length=_MOST_WORDS)]
    whole: _Text
    scene: Annotated[str, pydantic.Field(max_length=100)]

    @pydantic.model_validator(mode="after")
    def _as_many_of_each(self) -> "Judged":
        if not len(self.classes) == len(self.scores) == len(self.boxes):
            raise ValueError("expected as many classes as scores and boxes")
        self.seen()
        self.seen(plainly=True)
        unpacked(self.whole, 1 if self.whole else 0, WIDTH)
        return self

    def seen(self, *, plainly: bool = False) -> Seen:
        """Return what measures take; `plainly` by the looks of the second judge."""
        count = len(self.classes)
        text, width = (self.plain_looks, second_judge.DIMENSIONS) if plainly else (self.identities, WIDTH)
        looks = unpacked(text, count, width)
        boxes = np.array(self.boxes, dtype=float).reshape(count, 4)
        return Seen(np.array(self.classes, dtype=int), np.array(self.scores, dtype=float), boxes, looks)


NOTHING = Judged(classes=[], scores=[], boxes=[], identities="", plain_looks="", words=[], whole="", scene="")
"""Of a picture that there is none of, since what should have drawn it could not be learned."""


def judge_pictures(judge: Judge, images: Sequence[Image]) -> list[Judged]:
    """Look at pictures, each cut to a square."""
    pixels = as_pixels(images)
    words, scenes = _words(judge, pixels), judge.scenes(pixels)
    wholes = embed_whole(judge, pixels)
    found = []
    for row, sightings in enumerate(judge.look(pixels)):
        sightings = sightings[:MOST_SEEN]
        boxes = torch.tensor([one.box for one in sightings], dtype=torch.float32, device="cpu").reshape(-1, 4)
        rows = torch.full((len(sightings),), row, dtype=torch.long, device="cpu")
        plain = second_judge.describe(pixels, boxes, rows)
        found.append(
            Judged(
                classes=[one.class_index for one in sightings],
                scores=[round(one.score, 4) for one in sightings],
                boxes=[_rounded(one.box) for one in sightings],
                identities=packed([one.embedding.numpy() for one in sightings]),
                plain_looks=packed(list(plain.numpy())),
                words=[round(value, 4) for value in words[row].tolist()],
                whole=packed([wholes[row].numpy()]),
                scene=scenes[row],
            )
        )
    return found


@dataclass(frozen=True, eq=False)
class References:
    """What a subject looks like, and others that it must be told from.

    Attributes:
        class_index: the judge's.
        identity: to the judge, over its photos, of length 1.
        lookalikes: likewise of each other one.
        plain_look, plain_lookalikes: the same to the second judge.
        wholes: each photo as one thing.
        true: the likeness of the subject in each photo with its identity over the other photos, -1 to 1.
    """

    class_index: int
    identity: Float[np.ndarray, "dim"]
    lookalikes: Float[np.ndarray, "others dim"]
    plain_look: Float[np.ndarray, "plain"]
    plain_lookalikes: Float[np.ndarray, "others plain"]
    wholes: Float[np.ndarray, "photos dim"]
    true: Float[np.ndarray, "shown"]


def look_up(judge: Judge, class_word: str, photos: Sequence[Photo], others: Sequence[Photo]) -> References:
    """Return the references of a subject from its photos, and of its look-alikes from one photo of each.

    Raises:
        SettingsError: the judge does not know the class, or sees nothing of it in any photo.
    """
    if class_word not in judge.world.classes:
        known = ", ".join(judge.world.classes)
        raise SettingsError(f"the judge knows no {class_word!r}: expected one of {known}. Take another subject.")
    kind = judge.world.classes.index(class_word)
    own, shown = (_looks(judge, kind, each) for each in (photos, others))
    if not len(own[0]):
        raise SettingsError(f"the judge sees no {class_word} in any of {len(photos)} photos. Take clearer ones.")
    mean = [unit(looks.mean(axis=0)) for looks in own]
    wholes = embed_whole(judge, as_pixels([photo.image for photo in photos])).numpy()
    return References(kind, mean[0], shown[0], mean[1], shown[1], unit(wholes), _true_pairs(own[0]))


def _true_pairs(looks: Float[np.ndarray, "shown dim"]) -> Float[np.ndarray, "shown"]:
    others = unit((looks.sum(axis=0) - looks) if len(looks) > 1 else looks)
    return np.asarray((looks * others).sum(axis=1))


def as_pixels(images: Sequence[Image]) -> Float[Tensor, "batch 3 128 128"]:
    """Return pictures as the judge takes them, in 0..1."""
    return stack_pixels([crop_square(each.convert("RGB"), PICTURE) for each in images]) / 255


def embed_whole(judge: Judge, pixels: Float[Tensor, "batch 3 128 128"]) -> Float[Tensor, "batch dim"]:
    """Embed whole pictures as if each were one object: backgrounds count, too, as they do in CLIP-I."""
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float32, device="cpu").repeat(len(pixels), 1)
    return judge.embed(pixels, boxes, torch.arange(len(pixels), dtype=torch.long, device="cpu"))


def prompt_words(judge: Judge, classes: Sequence[int], scene: str) -> Float[np.ndarray, "words"]:
    """Return a prompt among the words that the judge knows: 1 at each class and at the scene, 0 elsewhere.

    Its cosine with a picture's `words` is the text alignment of the embedded model's pictures (J-T).

    Raises:
        SettingsError: the judge does not know the scene.
    """
    scenes = (*judge.world.scenes, "")
    if scene not in scenes:
        raise SettingsError(f"the judge knows no scene {scene!r}: expected one of {', '.join(scenes[:-1])}, or none.")
    words = np.zeros(len(judge.world.classes) + len(scenes))
    words[[*classes, len(judge.world.classes) + scenes.index(scene)]] = 1
    return words


@torch.no_grad()
def _words(judge: Judge, pixels: Float[Tensor, "batch 3 128 128"]) -> Float[Tensor, "batch words"]:
    found = judge.detector(pixels)
    return torch.cat([found.heat.sigmoid().flatten(2).amax(2), found.scene.softmax(1)], dim=1)


def _looks(
    judge: Judge, kind: int, photos: Sequence[Photo]
) -> tuple[Float[np.ndarray, "shown dim"], Float[np.ndarray, "shown plain"]]:
    """Return how the surest object of a class looks to both judges, in each photo that shows one."""
    found: list[tuple[np.ndarray, np.ndarray]] = []
    for judged in judge_pictures(judge, [photo.image for photo in photos]) if photos else ():
        one, plainly = judged.seen(), judged.seen(plainly=True)
        found += [(one.identities[at], plainly.identities[at]) for at in np.flatnonzero(one.classes == kind)[:1]]
    looks = np.array([look for look, _ in found]).reshape(len(found), WIDTH)
    return looks, np.array([look for _, look in found]).reshape(len(found), second_judge.DIMENSIONS)


def _rounded(box: _Box) -> _Box:
    xmin, ymin, xmax, ymax = (round(side, 4) for side in box)
    return xmin, ymin, xmax, ymax

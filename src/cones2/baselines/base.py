"""What every rival is: it learns subjects from photos, keeps them as bytes, and draws them in a `with` block.

A rival is a frozen dataclass whose fields are its settings, validated when it is made. Evaluation knows no more of it
than `Rival` says:

    steps = rival.learn(pipeline, {"rex": Lesson(photos, "dog"), "mimi": Lesson(others, "cat")}, seed=0)
    *_, last = steps
    content = last.learned.to_bytes()  # safetensors: its length is the storage
    with rival.drawing(pipeline, rival.load(content)) as draw:
        output = draw("a {rex} and a {mimi} on the beach", layout, seed=0)

A rival of the scope `subject` learns one subject at a time, and `combine` puts several together without training; one
of the scope `set` learns all subjects of a picture together, anew for each set.
"""

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

from PIL import Image

from cones2.call import Cones2Output
from cones2.captions import indefinite_article
from cones2.errors import SettingsError
from cones2.learning.data import PhotoSource, as_photos
from cones2.photos import Photo
from cones2.prompts import check_class_word
from cones2.subjects import Subject

Scope = Literal["subject", "set"]

_ARTICLE = re.compile(r"\b([Aa])n? (?=\{(\w+)\})")


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a subject is learned from.

    Attributes:
        photos: of the subject; a folder, or photos, PIL images or paths.
        class_word: the word, or words, for its raw category.
        priors: pictures of other things of its class, for rivals that keep the class as it was: drawn by the model
            itself (`trainer.prior_pictures`). None of them turns that term off.

    Raises:
        CaptionError: the class word can't be used.
        LearningError, PhotoError: there is no photo, or one can't be used.
    """

    photos: PhotoSource | Sequence[PhotoSource]
    class_word: str
    priors: Sequence[Image.Image] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_word", check_class_word(self.class_word))
        object.__setattr__(self, "photos", as_photos(self.photos))

    @property
    def pictures(self) -> tuple[Photo, ...]:
        """The photos, read."""
        return as_photos(self.photos)


@runtime_checkable
class Learned(Protocol):
    """What a rival learned of one or several subjects, and keeps.

    Attributes:
        texts: by subject name, the words of a prompt that carry it: an identifier and the class word, a pseudo-word, or
            the class word alone. `{name}` becomes these words, and a region of that name covers their tokens.
    """

    @property
    def texts(self) -> Mapping[str, str]:
        """By subject name, the words that carry it."""

    def to_bytes(self) -> bytes:
        """Return the file's content; its length is what the subjects take to store."""


@runtime_checkable
class Draw(Protocol):
    """Draws pictures of what was learned; a `Cones2Pipeline` is one."""

    @property
    def subjects(self) -> Mapping[str, Subject]:
        """The subjects that a prompt may name."""

    def __call__(self, prompt: str, layout: Any = None, **options: Any) -> Cones2Output:
        """Draw as `Cones2Pipeline` does, with its arguments: `seed`, `num_inference_steps`, `guidance_scale`..."""


@dataclass(frozen=True, eq=False)
class Step:
    """What one step of a rival's learning did.

    Attributes:
        step: this step, from 1; 0 where there is nothing to learn.
        steps: how many there are.
        loss: before this step's update.
    """

    step: int
    steps: int
    loss: float
    _read: Callable[[], Learned] = field(repr=False)

    @cached_property
    def learned(self) -> Learned:
        """What is learned up to this step; ask before the next one is taken."""
        return self._read()


@runtime_checkable
class Rival(Protocol):
    """A way to learn subjects and to draw them.

    Attributes:
        name: of its row in a table, and in its files.
        scope: whether one `subject` is learned at a time, or a whole `set` together.
    """

    @property
    def name(self) -> str:
        """The row of a table."""

    @property
    def scope(self) -> Scope:
        """What is learned together."""

    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        """Return a generator of the steps of learning, all arguments checked before it is returned.

        The pipeline stays as it is, bit for bit. The same call gives the same bytes on one machine.

        Args:
            pipeline: of Stable Diffusion 1.x or 2.x, whole (not offloaded), or a `Cones2Pipeline`.
            lessons: by subject name; exactly one for the scope `subject`.
            seed: for crops, noise, timesteps and new words.

        Raises:
            ModelError: the rival can't learn on this model.
            SettingsError: there are several lessons for the scope `subject`, or the seed can't be used.
            Cones2Error: of photos and class words; while learning, LearningError where a loss is not finite.
        """

    def combine(self, pipeline: Any, learned: Sequence[Learned]) -> Learned:
        """Put subjects that were learned apart together, without training.

        Raises:
            SettingsError: two have the same name, or were learned by another rival; or the scope is `set`.
        """

    def load(self, content: bytes) -> Learned:
        """Read what `to_bytes` wrote, from anyone's file.

        Raises:
            ResidualError: it is not a sound file of this rival.
        """

    def drawing(self, pipeline: Any, learned: Learned) -> AbstractContextManager[Draw]:
        """Draw within a `with` block; the caller's pipeline is the same, bit for bit, within it and afterwards."""


def check_lessons(rival: Rival, lessons: Mapping[str, Lesson]) -> None:
    """Check that a rival can learn as many subjects as there are lessons; SettingsError where it can't."""
    if not lessons or (rival.scope == "subject" and len(lessons) != 1):
        expected = "exactly 1, and the others apart" if rival.scope == "subject" else "at least 1"
        raise SettingsError(f"{rival.name} got {len(lessons)} lessons: expected {expected}.")


def check_together(rival: Rival, learned: Sequence[Learned]) -> None:
    """Check that what was learned apart can be put together; SettingsError where it can't."""
    names = [name for each in learned for name in each.texts]
    if not names or len(set(names)) < len(names):
        raise SettingsError(f"{rival.name} can't put together subjects called {names}: expected different names.")
    if rival.scope == "set" and len(learned) > 1:
        raise SettingsError(f"{rival.name} learns the subjects of a picture together: learn this set anew.")


def with_articles(prompt: str, texts: Mapping[str, str]) -> str:
    """Return a prompt whose "a" and "an" before placeholders fit the words that will stand there.

    Example:
        >>> with_articles("an {hugo} on the beach", {"hugo": "zzq owl"})
        'a {hugo} on the beach'
    """

    def agreed(found: re.Match[str]) -> str:
        if found[2] not in texts:
            return found[0]
        article = indefinite_article(texts[found[2]])
        return f"{found[1]}{article[1:]} "

    return _ARTICLE.sub(agreed, prompt)

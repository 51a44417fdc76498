"""Pictures of what is learned so far, how like the subject they are, and an end where that rises no more.

`watch` stands between `learn` and whoever shows its steps. It draws with the untouched backbone and the residual so
far, as composing will, and draws none of learning's random numbers: the residual is that of a learning not watched.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from cones2.backbones import Backbone
from cones2.captions.corpus import find_class_word, photo_caption
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.errors import SettingsError
from cones2.learning.loop import LearnStep
from cones2.residual.residual import Residual
from cones2.steps import finish
from cones2.subjects import Subject
from cones2.watching.looks import Look, best_look, load_looks, save_look

Identity = Callable[[Sequence[Image]], float]
"""How like the subject pictures are: higher is more like it."""

_NAME = "subject"
_PREVIEW = ComposeSettings(steps=20)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What to look at while learning.

    Attributes:
        every: steps between two looks; the last step is looked at, too. None never looks.
        prompt: what is drawn, with the placeholder `{subject}`; None is the photos' own caption.
        settings: how it is drawn: quickly, the same seed each time.
        identity: measures the pictures of each look.
        patience: stop after so many looks without a rise of the identity, and keep the residual of the best look.

    Raises:
        SettingsError: a number is below 1, or there is a patience but nothing to look at or no measure.
    """

    every: int | None = None
    prompt: str | None = None
    settings: ComposeSettings = _PREVIEW
    identity: Identity | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} is {value}: expected at least 1.")
        if self.patience is not None and (self.every is None or self.identity is None):
            raise SettingsError("patience needs pictures to look at and a measure of identity: give both, or neither.")

    @property
    def how(self) -> str:
        """A hash of what is drawn and of what measures it: looks of another one can't be compared."""
        measure = getattr(self.identity, "__qualname__", type(self.identity).__qualname__)
        return hashlib.sha256(repr((self.prompt, self.settings, measure)).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class WatchedStep:
    """A step of learning, and what was seen at it.

    Attributes:
        learned: the step.
        pictures: what it draws, one for each seed; none where it was not looked at.
        identity: how like the subject they are; None where there is no measure, or no pictures.
        stopped: whether learning ends here, before its last step, since the identity rises no more.
        best: the best look so far, whose residual is the one to keep; None without patience.
    """

    learned: LearnStep
    pictures: tuple[Image, ...] = ()
    identity: float | None = None
    stopped: bool = False
    best: Look | None = None

    @property
    def step(self) -> int:
        """This step, from 1."""
        return self.learned.step

    @property
    def steps(self) -> int:
        """How many there are at most."""
        return self.learned.steps

    @property
    def residual(self) -> Residual:
        """The residual to keep: that of the best look where there is patience, this step's otherwise."""
        return self.best.residual if self.best else self.learned.residual


def watch(
    steps: Generator[LearnStep, None, None], backbone: Backbone, *, plan: Watch, checkpoint: Path | None = None
) -> Generator[WatchedStep, None, None]:
    """Follow `learn` and look at it as planned; `steps` is closed whatever happens.

    Args:
        steps: of `learn` on this backbone. Stopped by patience, it writes no last checkpoint.
        backbone: the untouched one.
        plan: when to look, and at what.
        checkpoint: `learn`'s own, where the looks that patience counts are kept: a learning that is interrupted and
            resumed then stops at the same step, with the same residual, as an undisturbed one.

    Raises:
        Cones2Error: learning or drawing fails, or a look can't be kept or read again.
    """
    looks: list[Look] | None = None
    with closing(steps):
        for step in steps:
            if looks is None:
                looks = _looks_before(step, plan, checkpoint)
            if plan.every is None or (step.step % plan.every and step.step < step.steps):
                yield WatchedStep(step, best=best_look(looks))
                continue
            # Interrupted before this look is kept, learning resumes from an earlier step, and looks again.
            step.keep_on_close(plan.patience is None)
            pictures = draw_preview(backbone, step.residual, plan)
            identity = plan.identity(pictures) if plan.identity else None
            if identity is not None and plan.patience is not None:
                looks.append(Look(step.step, identity, step.loss, step.residual))
                if checkpoint is not None:
                    save_look(checkpoint, looks[-1], how=plan.how)
            stopped = step.step < step.steps and _rises_no_more(looks, plan.patience)
            step.keep_on_close(not stopped)
            yield WatchedStep(step, pictures, identity, stopped, best_look(looks))
            if stopped:
                return


def _looks_before(step: LearnStep, plan: Watch, checkpoint: Path | None) -> list[Look]:
    """Take up the looks at steps before this one, the first that is taken now, where patience counts them."""
    looks = [] if checkpoint is None else load_looks(checkpoint, until=step.step - 1, how=plan.how)
    return [] if plan.patience is None else looks


def _rises_no_more(looks: Sequence[Look], patience: int | None) -> bool:
    best = best_look(looks)
    return patience is not None and best is not None and sum(look.step > best.step for look in looks) >= patience


def draw_preview(backbone: Backbone, residual: Residual, plan: Watch) -> tuple[Image, ...]:
    """Draw a residual as planned."""
    prompt = plan.prompt or _photo_prompt(residual.class_word)
    subjects = {_NAME: Subject(residual.class_word, residual)}
    return finish(compose(backbone, prompt, subjects=subjects, settings=plan.settings)).pictures


def _photo_prompt(class_word: str) -> str:
    caption = photo_caption(class_word)
    start, stop = find_class_word(caption, class_word)
    return f"{caption[:start]}{{{_NAME}}}{caption[stop:]}"

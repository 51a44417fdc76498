"""Learning many subjects, one after the other: what fails harms no other, and what is finished is not done again."""

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cones2.backbones import Backbone
from cones2.captions.corpus import captions_for, check_class_word, read_captions
from cones2.errors import Cones2Error, ResidualError, SettingsError
from cones2.learning.checkpoints import remove_checkpoints
from cones2.learning.displacement import unseen_displacement
from cones2.learning.lesson import hash_of, how_learned, model_settings
from cones2.learning.loop import LearnStep, learn
from cones2.learning.manifest import Assignment
from cones2.learning.recipe import Recipe, find_recipe
from cones2.library import Library
from cones2.photos import Photo, load_photos, photo_report
from cones2.residual.residual import Residual


@dataclass(frozen=True)
class Outcome:
    """What became of one subject.

    Attributes:
        name: of the subject.
        class_word: what it is.
        state: `learned` now, `finished` before, or `failed`.
        seconds: spent on it now.
        loss: of the last step, where it was learned now.
        findings: what is doubtful about its photos, where it was learned now.
        displacement: how far other words moved, as a share of their length, where it was learned now and captions
            could be held out.
        preservation: the same as Eq. 3 has it.
        problem: why it failed; empty where it did not.
    """

    name: str
    class_word: str
    state: Literal["learned", "finished", "failed"]
    seconds: float
    loss: float | None = None
    findings: tuple[str, ...] = ()
    displacement: float | None = None
    preservation: float | None = None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class LearnAllStep:
    """Where learning many subjects stands.

    Attributes:
        name: the subject at work.
        number: of it, from 1.
        count: how many subjects there are.
        learning: its own last step; None where it took none, and when it has ended, so that its optimiser's memory is
            free for the next.
        outcomes: of the subjects that have ended; at the last step, all of them.
    """

    name: str
    number: int
    count: int
    learning: LearnStep | None
    outcomes: tuple[Outcome, ...]

    @property
    def step(self) -> int:
        """Step of the subject at work."""
        return self.learning.step if self.learning else 0

    @property
    def steps(self) -> int:
        """How many steps that subject takes."""
        return self.learning.steps if self.learning else 0


def learn_all(
    backbone: Backbone, assignments: Sequence[Assignment], library: Library, *, save_memory: bool = False
) -> Generator[LearnAllStep, None, None]:
    """Learn subjects into a library, step by step.

    A subject is finished, and not learned again, when the library has its name with a residual of the same photos,
    masks, captions, class word, recipe, seed and text encoder. Any other file of that name, a broken one too,
    is replaced. An interrupted subject goes on from its last checkpoint, in a hidden folder of the library. Whatever
    fails in one subject becomes its outcome. `save_memory` is `learn`'s.

    Raises:
        SettingsError: there are no assignments.
    """
    if not assignments:
        raise SettingsError("there are no subjects to learn: give at least one.")
    return _steps(backbone, assignments, library, save_memory=save_memory)


def _steps(
    backbone: Backbone, assignments: Sequence[Assignment], library: Library, *, save_memory: bool
) -> Generator[LearnAllStep, None, None]:
    outcomes: tuple[Outcome, ...] = ()
    for number, assignment in enumerate(assignments, start=1):
        at = LearnAllStep(assignment.name, number, len(assignments), None, outcomes)
        began = time.monotonic()
        outcome = Outcome(assignment.name, assignment.class_word, "finished", 0.0)
        try:
            for learning, told in _learn(backbone, assignment, library, save_memory=save_memory):
                outcome = told
                yield replace(at, learning=learning)
                del learning  # and with it the optimiser, before the next subject begins
        except Exception as error:  # of any kind: the other subjects must not suffer
            outcome = replace(outcome, state="failed", problem=_explain(error))
        outcomes = (*outcomes, replace(outcome, seconds=time.monotonic() - began))
        yield replace(at, outcomes=outcomes)


def _learn(
    backbone: Backbone, assignment: Assignment, library: Library, *, save_memory: bool
) -> Iterator[tuple[LearnStep, Outcome]]:
    """Take the steps of one subject, and keep what was learned; take none where it is finished."""
    library.check_case(assignment.name)
    sources = _Sources.read(assignment, backbone)
    residual = _load_sound(library.path_of(assignment.name))
    if residual is not None and sources.was_learned_by(residual, backbone):
        return
    report = photo_report(sources.photos, size=min(backbone.default_size))
    report.check()
    findings = tuple(finding.text for finding in report.findings)
    outcome = Outcome(assignment.name, assignment.class_word, "learned", 0.0, findings=findings)
    folder = library.folder / f".{assignment.name}-{sources.digest(backbone)}.learning"
    steps = learn(
        backbone,
        sources.photos,
        sources.class_word,
        recipe=sources.recipe,
        seed=sources.seed,
        captions=sources.captions,
        checkpoint=folder,
        resume=True,
        save_memory=save_memory,
    )
    with closing(steps):
        for step in steps:
            outcome = replace(outcome, loss=step.loss)
            if step.step == step.steps:
                steps.close()  # which gives its checkpoints free
                library.add(assignment.name, step.residual, replace=True)
                _remove_checkpoints(library.folder, assignment.name)
                outcome = _with_displacement(outcome, backbone, step, sources)
            yield step, outcome


def _with_displacement(outcome: Outcome, backbone: Backbone, last: LearnStep, sources: "_Sources") -> Outcome:
    moved = unseen_displacement(backbone, last.tuned, sources.captions, class_word=sources.class_word)
    return outcome if moved is None else replace(outcome, displacement=moved.relative, preservation=moved.preservation)


@dataclass(frozen=True)
class _Sources:
    """All that a residual depends on, but the backbone."""

    photos: tuple[Photo, ...]
    class_word: str
    captions: tuple[str, ...]
    recipe: Recipe
    seed: int

    @classmethod
    def read(cls, assignment: Assignment, backbone: Backbone) -> "_Sources":
        """Read photos and captions."""
        class_word = check_class_word(assignment.class_word)
        recipe = assignment.recipe or find_recipe(backbone.learn_preset)
        captions = (
            read_captions(assignment.captions, class_word)
            if assignment.captions
            else captions_for(class_word, count=recipe.caption_count, lexicon=backbone.lexicon)
        )
        photos = load_photos(assignment.photos, masks=assignment.masks)
        return cls(photos, class_word, tuple(captions), recipe, assignment.seed)

    def was_learned_by(self, residual: Residual, backbone: Backbone) -> bool:
        """Tell whether a residual is what they would give."""
        how = self._how_learned()
        return (
            residual.class_word == self.class_word
            and residual.photos == tuple(photo.sha256 for photo in self.photos)
            and residual.encoder.fits(backbone.encoder_id)
            and all(residual.recipe.get(name) == value for name, value in how.items())
        )

    def _how_learned(self) -> dict[str, object]:
        """Tell how it is learned when all steps are taken."""
        captions, taken = hash_of(self.captions), self.recipe.steps
        return how_learned(self.recipe, self.seed, taken=taken, captions=captions, photos=self.photos)

    def digest(self, backbone: Backbone) -> str:
        """Name them: another photo, recipe or model begins in another folder, and resumes from no other's."""
        photos = [photo.sha256 for photo in self.photos]
        how = self._how_learned()
        parts = [photos, self.class_word, how, model_settings(backbone)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _load_sound(path: Path) -> Residual | None:
    """Read a subject's file; None where there is none, or a broken one, which is then learned anew."""
    try:
        return Residual.load(path) if path.exists() else None
    except ResidualError:
        return None


def _remove_checkpoints(folder: Path, name: str) -> None:
    """Remove those of a finished subject, older lessons' too."""
    for checkpoints in folder.glob(f".{name}-*.learning"):
        remove_checkpoints(checkpoints)


def _explain(error: Exception) -> str:
    return str(error) if isinstance(error, Cones2Error) else f"{type(error).__name__}: {error}"

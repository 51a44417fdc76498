"""Learning many subjects into a library, one after the other: what fails harms no other, and nothing is done twice."""

import hashlib
import json
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from cones2.captions import captions_for, check_class_word, read_captions
from cones2.errors import Cones2Error, ResidualError, SettingsError, first_problem
from cones2.families import family_of, native_size
from cones2.files import expanded, read_toml
from cones2.fingerprint import fingerprints
from cones2.learning.checkpoints import remove_checkpoints
from cones2.learning.data import hash_of, how_learned, strange_photos
from cones2.learning.learner import LearnStep
from cones2.learning.model import model_settings
from cones2.learning.recipe import Recipe, find_recipe
from cones2.library import Library, check_name
from cones2.photos import Photo, load_photos, photo_report
from cones2.pipeline import Cones2Pipeline
from cones2.record import describe_adapters
from cones2.residual import EncoderId, Residual
from cones2.shared import check_seed

_EXAMPLE = '[subjects.rex], photos = "photos/rex", class_word = "dog"'


@dataclass(frozen=True)
class Assignment:
    """A subject to learn.

    Attributes:
        name: what the library will call it.
        photos: their folder, or one photo.
        class_word: what it is.
        recipe: how to learn; None is what suits the model.
        seed: for all that is drawn by chance.
        masks: the folder of the photos' masks, if there are any.
        captions: the user's own captions, one a line; None makes them.

    Raises:
        SettingsError: the seed can't be one.
    """

    name: str
    photos: Path
    class_word: str
    recipe: Recipe | None = None
    seed: int = 0
    masks: Path | None = None
    captions: Path | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class Outcome:
    """What became of one subject; loss, findings and displacement (Eq. 3) are those of a subject that was learned."""

    name: str
    class_word: str
    state: Literal["learned", "finished", "failed"]
    seconds: float = 0.0
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
        learning: its own last step; None where it took none, and when it has ended.
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

    def save_checkpoint(self) -> None:
        """Write a checkpoint of the subject at work, for instance before closing the generator."""
        if self.learning is not None:
            self.learning.save_checkpoint()


def learn_all(
    pipe: Cones2Pipeline,
    assignments: Sequence[Assignment],
    library: Library,
    *,
    save_memory: bool = False,
    force: bool = False,
) -> Generator[LearnAllStep, None, None]:
    """Learn subjects into a library, step by step.

    A subject is finished, and not learned again, when the library has its name with a residual of the same photos,
    masks, captions, class word, recipe, seed, LoRA and text encoder. Any other file of that name is replaced. An
    interrupted subject goes on from its last checkpoint, in a hidden folder of the library. `save_memory` and `force`
    are those of `learn_steps`.

    Raises:
        SettingsError: there are no assignments.
    """
    if not assignments:
        raise SettingsError("there are no subjects to learn: give at least one.")
    return _steps(pipe, assignments, library, save_memory=save_memory, force=force)


def _steps(
    pipe: Cones2Pipeline, assignments: Sequence[Assignment], library: Library, **options: bool
) -> Generator[LearnAllStep, None, None]:
    outcomes: tuple[Outcome, ...] = ()
    for number, assignment in enumerate(assignments, start=1):
        at = LearnAllStep(assignment.name, number, len(assignments), None, outcomes)
        began = time.monotonic()
        outcome = Outcome(assignment.name, assignment.class_word, "finished")
        try:
            for learning, told in _learn(pipe, assignment, library, **options):
                outcome = told
                yield replace(at, learning=learning)
                del learning  # and with it the optimiser, before the next subject begins
        except Exception as error:  # of any kind: the other subjects must not suffer
            problem = str(error) if isinstance(error, Cones2Error) else f"{type(error).__name__}: {error}"
            outcome = replace(outcome, state="failed", problem=problem)
        outcomes = (*outcomes, replace(outcome, seconds=time.monotonic() - began))
        yield replace(at, outcomes=outcomes)


def _learn(
    pipe: Cones2Pipeline, assignment: Assignment, library: Library, **given: bool
) -> Iterator[tuple[LearnStep, Outcome]]:
    """Take the steps of one subject, and keep what was learned; take none where it is finished."""
    name = check_name(assignment.name)
    library.check_free(name, replace=True)
    word = check_class_word(assignment.class_word)
    recipe = assignment.recipe or find_recipe(pipe.facts.recipe or "paper")
    if assignment.captions:
        captions = read_captions(assignment.captions, word)
    else:
        captions = captions_for(word, count=recipe.caption_count, lexicon=pipe.facts.lexicon)
    photos = load_photos(assignment.photos, masks=assignment.masks)
    adapters = describe_adapters(pipe.pipeline)
    how = how_learned(recipe, assignment.seed, hash_of(captions), photos, adapters, taken=recipe.steps)
    encoders = fingerprints(pipe.pipeline, family_of(pipe.pipeline), pipe.facts.name)
    if _is_learned(library.path_of(name), word, photos, how, encoders):
        _remove_checkpoints(library, name)  # of one that was killed before it did
        return
    report = photo_report(photos, size=min(native_size(pipe.pipeline)))
    findings = tuple(each.text for each in (*report.findings, *strange_photos(pipe.facts, photos)))
    outcome = Outcome(name, assignment.class_word, "learned", findings=findings)
    settings = [[each.sha256 for each in photos], word, how, model_settings(pipe.pipeline, encoders)]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:12]  # nothing resumes from another's steps
    options: dict[str, Any] = {"seed": assignment.seed, "captions": captions, **given}
    folder = library.folder / f".{name}-{digest}.learning"
    steps = pipe.learn_steps(photos, word, recipe, checkpoint=folder, resume=True, **options)
    with closing(steps):
        for step in steps:
            outcome = replace(outcome, loss=step.loss)
            if step.step == step.steps:
                residual, moved = step.residual, step.displacement()
                steps.close()  # which gives its checkpoints free
                library.add(name, residual, replace=True)
                _remove_checkpoints(library, name)
                if moved is not None:
                    outcome = replace(outcome, displacement=moved.relative, preservation=moved.preservation)
            yield step, outcome


def _remove_checkpoints(library: Library, name: str) -> None:
    for folder in library.folder.glob(f".{name}-*.learning"):
        remove_checkpoints(folder)


def _is_learned(
    path: Path, class_word: str, photos: Sequence[Photo], how: dict[str, Any], encoders: Sequence[EncoderId]
) -> bool:
    """Return whether a subject's file is what they would give; one that is broken is not."""
    try:
        residual = Residual.load(path) if path.exists() else None
    except ResidualError:
        return False
    if residual is None or not residual.fits(encoders):
        return False
    hashes = tuple(photo.sha256 for photo in photos)
    return (residual.class_word, residual.photos, dict(residual.recipe)) == (class_word, hashes, how)


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")


class _Subject(_Strict):
    photos: str
    class_word: str
    recipe: str | None = None
    seed: int | None = None
    masks: str | None = None
    captions: str | None = None


class _Manifest(_Strict):
    subjects: Annotated[dict[str, _Subject], pydantic.Field(min_length=1)]
    recipe: str | None = None
    seed: int = 0


def read_manifest(path: Path | str) -> tuple[Assignment, ...]:
    """Read subjects to learn from a TOML file; its paths are relative to its own folder.

    Raises:
        SettingsError: it can't be read, has no subjects, an unknown key, or a value that can't be used.
    """
    path = expanded(path)
    content = read_toml(path, example=_EXAMPLE)
    try:
        manifest = _Manifest.model_validate(content)
        assignments = tuple(_assign(name, manifest, path.parent) for name in manifest.subjects)
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        raise SettingsError(f"{path} is wrong at {problem.place!r}: {problem.message}. Expected {_EXAMPLE}.") from error
    except Cones2Error as error:
        raise SettingsError(f"{path}: {error}") from error
    seen: dict[str, str] = {}
    for name in manifest.subjects:
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise SettingsError(f"{path}: subjects {other!r} and {name!r} differ only in case: rename one.")
    return assignments


def _assign(name: str, manifest: _Manifest, folder: Path) -> Assignment:
    subject = manifest.subjects[name]

    def here(file: str | None) -> Path | None:
        return None if file is None else folder / expanded(file)

    recipe = subject.recipe or manifest.recipe
    if recipe is not None:
        recipe = str(here(recipe)) if recipe.endswith(".toml") else recipe
    return Assignment(
        name,
        folder / expanded(subject.photos),
        subject.class_word,
        recipe=None if recipe is None else find_recipe(recipe),
        seed=manifest.seed if subject.seed is None else subject.seed,
        masks=here(subject.masks),
        captions=here(subject.captions),
    )

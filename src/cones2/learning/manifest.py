"""Manifests: many subjects to learn, in one TOML file."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pydantic
from pydantic import Field

from cones2.checking import first_problem
from cones2.errors import Cones2Error, SettingsError
from cones2.files import expanded, read_bounded
from cones2.learning.recipe import Recipe, find_recipe
from cones2.library import check_name

LARGEST_MANIFEST = 2**20

_EXAMPLE = '[subjects.rex], photos = "photos/rex", class_word = "dog"'


@dataclass(frozen=True)
class Assignment:
    """A subject to learn.

    Attributes:
        name: what the library will call it.
        photos: their folder, or one photo.
        class_word: what it is.
        recipe: how to learn; None is what suits the backbone.
        seed: for all that is drawn by chance.
        masks: the folder of the photos' masks, if there are any.
        captions: the user's own captions, one a line; None makes them.

    Raises:
        LibraryError: the name can't be one.
    """

    name: str
    photos: Path
    class_word: str
    recipe: Recipe | None = None
    seed: int = 0
    masks: Path | None = None
    captions: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name)


def read_manifest(path: Path | str) -> tuple[Assignment, ...]:
    """Read a manifest; its paths are relative to its own folder.

    Raises:
        SettingsError: it can't be read, has no subjects, an unknown key, or a value that can't be used.
    """
    path = Path(path)
    content = read_bounded(path, limit=LARGEST_MANIFEST, error=SettingsError)
    try:
        fields = _Manifest.model_validate(tomllib.loads(content.decode("utf-8-sig")))
        assignments = tuple(_assign(name, fields, path.parent) for name in fields.subjects)
        _check_cases(assignments)
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        raise SettingsError(f"{path} is wrong at {problem.place!r}: {problem.message}. Expected {_EXAMPLE}.") from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is no TOML: {error}. Expected {_EXAMPLE}.") from error
    except Cones2Error as error:
        raise SettingsError(f"{path}: {error}") from error
    return assignments


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
    subjects: Annotated[dict[str, _Subject], Field(min_length=1)]
    recipe: str | None = None
    seed: int = 0


def _assign(name: str, manifest: _Manifest, folder: Path) -> Assignment:
    subject = manifest.subjects[name]
    recipe = subject.recipe or manifest.recipe
    if recipe is not None and recipe.endswith(".toml"):
        recipe = str(folder / expanded(recipe))
    return Assignment(
        name,
        folder / expanded(subject.photos),
        subject.class_word,
        recipe=None if recipe is None else find_recipe(recipe),
        seed=manifest.seed if subject.seed is None else subject.seed,
        masks=None if subject.masks is None else folder / expanded(subject.masks),
        captions=None if subject.captions is None else folder / expanded(subject.captions),
    )


def _check_cases(assignments: tuple[Assignment, ...]) -> None:
    seen: dict[str, str] = {}
    for assignment in assignments:
        other = seen.setdefault(assignment.name.casefold(), assignment.name)
        if other != assignment.name:
            raise SettingsError(f"subjects {other!r} and {assignment.name!r} differ only in case: rename one.")

"""What a batch is to do, as people write it: subjects to learn and pictures to draw, in TOML, or as lines of JSON.

Whatever may vary takes one value or a list of them, and every combination is drawn.
"""

import array
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pydantic

from cones2.errors import Cones2Error, SettingsError, first_problem
from cones2.files import exists, expanded, is_folder, is_name, is_regular, name_hint, read_toml
from cones2.learning.recipe import Recipe, find_recipe
from cones2.library import find_residual
from cones2.photos import pictures_in
from cones2.prompts import check_class_word
from cones2.residual import Residual
from cones2.shared import check_seed
from cones2.single_files import CONFIG_NAMES

MOST_PICTURES = 10_000_000
"""Pictures of a job."""
LARGEST_LEASE = 64
"""Pictures that are committed at once."""

_LONGEST_LINE = 2**16
_EXAMPLE = '[subjects.rex], photos = "photos/rex", class_word = "dog"; [[pictures]], prompt = "a {rex}", seed = [0, 1]'
_RANGE = r"^\d{1,19}-\d{1,19}$"


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


_Seed = Annotated[int, pydantic.Field(ge=0, lt=2**63)]
_Count = Annotated[int, pydantic.Field(ge=1, le=10_000)]
_Levels = Annotated[list[pydantic.NonNegativeInt], pydantic.Field(min_length=1)]
LISTS = ("layout_levels", "layout_blocks")
"""Settings of which one value is a list."""
_Place = dict[str, Any] | str


class Pictures(_Strict):
    """Pictures to draw: each field has one value, or several, and every combination is a picture.

    Attributes:
        prompt: with placeholders.
        subject: which of the job's subjects stands for a placeholder; without, the one of its name.
        strength: of a placeholder's residual.
        layout: regions by placeholder, shapes or words; the name of one of the job's layouts, `auto`, or `none`.
        seed: or a range in text, `0-99`.
    """

    prompt: str | Annotated[list[str], pydantic.Field(min_length=1)]
    subject: dict[str, str | list[str]] = {}
    strength: dict[str, float | list[float]] = {}
    layout: _Place | list[_Place] = "none"
    seed: _Seed | list[_Seed] | Annotated[str, pydantic.Field(pattern=_RANGE)] = 0
    scheduler: str | list[str] | None = None
    negative_prompt: str | list[str] | None = None
    num_inference_steps: _Count | list[_Count] = 50
    guidance_scale: float | list[float] | None = None
    guidance_rescale: float | list[float] | None = None
    true_cfg_scale: float | list[float] | None = None
    height: _Count | list[_Count] | None = None
    width: _Count | list[_Count] | None = None
    layout_scale: float | list[float] | None = None
    layout_effect: str | list[str] | None = None
    layout_levels: _Levels | list[_Levels] | None = None
    layout_blocks: _Levels | list[_Levels] | None = None
    preset: str | list[str] | None = None
    guided_steps: int | list[int] | None = None
    weight_negative: float | list[float] | None = None
    force: bool | None = None

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return all values of each field that is given, prompt first and seed last, which varies fastest.

        Those of `subject` and `strength` are fields of their own, `strength.rex`.
        """
        found: dict[str, tuple[Any, ...]] = {"prompt": _several(self.prompt)}
        for kind in ("subject", "strength"):
            found |= {f"{kind}.{name}": _several(value) for name, value in getattr(self, kind).items()}
        found["layout"] = _several(self.layout)
        for name in SETTINGS:
            if (value := getattr(self, name)) is not None:
                found[name] = _several(value)
        for name in LISTS:
            if (values := getattr(self, name)) is not None:
                found[name] = tuple(map(tuple, values if isinstance(values[0], list) else [values]))
        found["seed"] = _seeds(self.seed)
        for name, values in found.items():
            if not values:
                raise SettingsError(f"{name} has no values: expected at least one.")
        return found


SETTINGS = tuple(
    name for name in Pictures.model_fields if name not in ("prompt", "subject", "strength", "layout", "seed")
)
"""Fields of `Pictures` that are arguments of `Cones2Pipeline` by the same name, and `scheduler`."""


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _seeds(value: Any) -> Any:
    if not isinstance(value, str):
        return _several(value)
    first, last = (check_seed(int(part)) for part in value.split("-"))
    if not first <= last < first + MOST_PICTURES:
        raise SettingsError(f"the seeds {value!r} make no sense: expected a range such as '0-99'.")
    return range(first, last + 1)


@dataclass(frozen=True)
class Photographed:
    """A subject that is to be learned from its photos."""

    photos: tuple[Path, ...]
    class_word: str
    recipe: Recipe | None = None
    seed: int = 0
    masks: Path | None = None
    captions: Path | None = None
    force: bool = False


Source = Photographed | Residual | str
"""What a subject of a job is: to be learned, learned already, or the class word of an untaught one."""


@dataclass(frozen=True)
class Job:
    """Subjects and pictures, read and checked as far as they can be without a model.

    Attributes:
        subjects: by name.
        pictures: what is to be drawn.
        layouts: by name.
        model, config, dtype: as `Cones2Pipeline.from_pretrained` takes them.
        lease: how many pictures are committed at once; None is what suits their number.
        save_memory: of learning.
    """

    subjects: Mapping[str, Source] = field(default_factory=dict)
    pictures: Sequence[Pictures] = ()
    layouts: Mapping[str, Any] = field(default_factory=dict)
    model: str = "mini"
    config: str | None = None
    dtype: str | None = None
    lease: int | None = None
    save_memory: bool = False


class _Subject(_Strict):
    photos: str | None = None
    residual: str | None = None
    class_word: str | None = None
    recipe: str | None = None
    seed: _Seed | None = None
    masks: str | None = None
    captions: str | None = None
    force: bool = False


class _Document(_Strict):
    model: str = "mini"
    config: str | None = None
    dtype: str | None = None
    recipe: str | None = None
    seed: _Seed = 0
    lease: Annotated[int, pydantic.Field(ge=1, le=LARGEST_LEASE)] | None = None
    save_memory: bool = False
    subjects: dict[str, _Subject] = {}
    layouts: dict[str, _Place] = {}
    pictures: list[Pictures] = []
    cases: str | None = None


def read_job(path: Path | str) -> Job:
    """Read a job from TOML; or from `.jsonl`, each line being what stands in `[[pictures]]`, drawn on `mini`.

    Its paths are relative to its own folder. In TOML, `cases` names such a file of lines.

    Raises:
        SettingsError: it can't be read, has nothing to do, an unknown key, or a value that can't be used.
    """
    path = expanded(path)
    if path.suffix == ".jsonl":
        return Job(pictures=Lines(path))
    content = read_toml(path, example=_EXAMPLE)
    try:
        document = _Document.model_validate(content)
        subjects = {name: _source(name, each, document, path.parent) for name, each in document.subjects.items()}
        _check_names(subjects)
        if document.cases is not None and document.pictures:
            raise SettingsError("cases and [[pictures]] exclude each other: leave one out.")
        layouts = {name: _near(place, path.parent) for name, place in document.layouts.items()}
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        got = f"{problem.place!r} is {problem.got}: {problem.message}"
        raise SettingsError(f"{path} is wrong, {got}. Expected such as {_EXAMPLE}.") from error
    except Cones2Error as error:
        raise SettingsError(f"{path}: {error}") from error
    pictures = Lines(path.parent / expanded(document.cases)) if document.cases else document.pictures
    if not (subjects or pictures):
        raise SettingsError(f"{path} has nothing to learn and nothing to draw. Expected such as {_EXAMPLE}.")
    settings = {name: getattr(document, name) for name in ("dtype", "lease", "save_memory")}
    settings["config"] = None if document.config is None else found_in(path.parent, document.config)
    return Job(subjects, pictures, layouts, model=found_in(path.parent, document.model), **settings)


def found_in(folder: Path, model: str) -> str:
    """Return the whole path of a model or config that stands in a folder; any other as it is called."""
    place = folder / expanded(model)
    return str(place.absolute()) if model not in ("mini", *CONFIG_NAMES) and exists(place) else model


def _near(place: _Place, folder: Path) -> _Place:
    return str(folder / expanded(place)) if isinstance(place, str) and place.endswith(".json") else place


def _check_names(subjects: Mapping[str, Source]) -> None:
    seen: dict[str, str] = {}
    for name in subjects:
        if not is_name(name):
            raise SettingsError(f"{name[:100]!r} can't name a subject: {name_hint(name)}")
        if (other := seen.setdefault(name.casefold(), name)) != name:
            raise SettingsError(f"subjects {other!r} and {name!r} differ only in case: rename one.")


def _source(name: str, subject: _Subject, document: _Document, folder: Path) -> Source:
    """Return what a subject is; files are looked for, and photos counted, so that a misspelt path is told at once."""

    def here(file: str | None) -> Path | None:
        return None if file is None else folder / expanded(file)

    if subject.residual is not None:
        if subject.photos is not None:
            raise SettingsError(f"subject {name!r} has photos and a residual: leave one out.")
        file = here(subject.residual)
        return find_residual(file if file is not None and is_regular(file) else subject.residual)
    if subject.class_word is None:
        raise SettingsError(f"subject {name!r} has no class_word: say what it is.")
    word = check_class_word(subject.class_word)
    if subject.photos is None:
        return word
    recipe = subject.recipe or document.recipe
    if recipe is not None and recipe.endswith(".toml"):
        recipe = str(here(recipe))
    masks = here(subject.masks)
    if masks is not None and not is_folder(masks):
        raise SettingsError(f"no masks of {name!r} at {masks}: expected a folder with a mask for each photo.")
    return Photographed(
        tuple(pictures_in(folder / expanded(subject.photos), masks)),
        word,
        recipe=None if recipe is None else find_recipe(recipe),
        seed=document.seed if subject.seed is None else subject.seed,
        masks=masks,
        captions=here(subject.captions),
        force=subject.force,
    )


class Lines(Sequence[Pictures]):
    """Pictures in a file of JSON, one object a line; a line is read when it is asked for.

    Raises:
        SettingsError: the file can't be read or is empty; or, when it is asked for, a line is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._starts = path, array.array("Q")
        if not is_regular(path):
            raise SettingsError(f"can't read {path}: expected a file with a line of JSON for each picture.")
        place = 0
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE + 1):
                if len(line) > _LONGEST_LINE:
                    raise SettingsError(f"{path} has a line of over {_LONGEST_LINE:,} bytes: split it.")
                if line.strip():
                    self._starts.append(place)
                place += len(line)
                if len(self._starts) > MOST_PICTURES:
                    raise SettingsError(f"{path} has over {MOST_PICTURES:,} lines: split it.")
        if not self._starts:
            raise SettingsError(f'{path} is empty: expected lines such as {{"prompt": "a {{rex}}", "seed": 1}}.')

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Pictures]:
        with self._path.open("rb") as file:
            for number, start in enumerate(self._starts):
                file.seek(start)
                yield self._parsed(number, file.readline(_LONGEST_LINE))

    def __getitem__(self, number: Any) -> Any:
        with self._path.open("rb") as file:
            file.seek(self._starts[number])
            return self._parsed(number, file.readline(_LONGEST_LINE))

    def _parsed(self, number: int, line: bytes) -> Pictures:
        try:
            return Pictures.model_validate_json(line)
        except pydantic.ValidationError as error:
            problem = first_problem(error)
            told = f"{problem.place or 'the whole'!r} is {problem.got}: {problem.message}"
            raise SettingsError(f"{self._path}, picture {number + 1}: {told}.") from error


def as_json(value: Any) -> bytes:
    """Return JSON of a value that is the same for equal values: sorted, without spaces, in ASCII."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()

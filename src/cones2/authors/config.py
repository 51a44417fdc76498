"""The config of the authors' inference script: a JSON list whose first entry says what to draw."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from cones2.authors.colours import Colour, absence, parse_colour, read_masks
from cones2.authors.tensor import AuthorsFile, read_authors_file
from cones2.checking import first_problem
from cones2.errors import Cones2Warning, LayoutError, SettingsError
from cones2.files import read_bounded
from cones2.layout.masks import Mask

_LARGEST_FILE = 2**20
_MOST = 64  # subjects, and colours

_Name = Annotated[str, Field(min_length=1, max_length=200)]
_PathText = Annotated[str, Field(min_length=1, max_length=4096)]


class PlacedResidual(NamedTuple):
    """A residual, and where the prompt has it."""

    name: str
    token: int
    file: AuthorsFile


class ColouredPlace(NamedTuple):
    """The region of a word, and how strongly that is drawn to it (γ+)."""

    word: str
    mask: Mask
    weight: float


class _Entry(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    prompt: Annotated[str, Field(min_length=1, max_length=5000)]
    residual_dict: Mapping[_Name, _PathText]
    color_context: Annotated[
        dict[_Name, tuple[_Name, Annotated[float, Field(gt=0, le=250)]]], Field(min_length=1, max_length=_MOST)
    ]
    guidance_steps: Annotated[int, Field(ge=0, le=1000)] = 50
    guidance_weight: Annotated[float, Field(ge=0, le=80)] = 0.08
    weight_negative: Annotated[float, Field(ge=-1e30, le=0)] = -1e8
    layout: _PathText
    subject_list: Annotated[list[tuple[_Name, Annotated[int, Field(ge=1, le=5000)]]], Field(max_length=_MOST)]


@dataclass(frozen=True, eq=False)
class OfficialConfig:
    """What a config of the authors' inference script asks for, with the files that it names read.

    Attributes:
        prompt: as the model reads it.
        residuals: those that `subject_list` puts into the prompt; others of `residual_dict` are not read.
        places: the regions, in the order of `color_context`.
        guidance_steps: how many steps, from the first, the layout takes part in.
        guidance_weight: η's factor.
        weight_negative: γ-, everywhere outside a region.
    """

    prompt: str
    residuals: tuple[PlacedResidual, ...]
    places: tuple[ColouredPlace, ...]
    guidance_steps: int
    guidance_weight: float
    weight_negative: float

    @classmethod
    def load(cls, path: Path | str) -> "OfficialConfig":
        """Read a config, its layout picture and its residuals, all of which may come from anyone.

        Paths in it are relative to its own folder, or else to the working folder. Like the authors' script it draws
        the first entry only, and leaves unknown keys out. Each of these makes a `Cones2Warning`, and so does a colour
        that no pixel has: its word gets no region.

        Raises:
            SettingsError: it can't be read, or is not such a config.
            LayoutError: a colour makes no sense, or the picture can't be used.
            ResidualError: a residual is not the tensor that the authors' script saves.
        """
        path = Path(path)
        entry = _read_entry(path)
        colours = {parse_colour(text): place for text, place in entry.color_context.items()}
        if len(colours) < len(entry.color_context):
            raise LayoutError(f"{path}: color_context has one colour twice. Give each place a colour of its own.")
        picture = _find(entry.layout, path)
        masks: Mapping[Colour, Mask] = read_masks(picture, colours)
        for colour, (word, _) in colours.items():
            if colour not in masks:
                _warn(f"{absence(colour, picture)} So {word!r} gets no region; a JPEG has no exact colours.")
        return cls(
            prompt=entry.prompt,
            residuals=tuple(_place(name, token, entry, path) for name, token in entry.subject_list),
            places=tuple(
                ColouredPlace(word, masks[colour], weight)
                for colour, (word, weight) in colours.items()
                if colour in masks
            ),
            guidance_steps=entry.guidance_steps,
            guidance_weight=entry.guidance_weight,
            weight_negative=entry.weight_negative,
        )


def _read_entry(path: Path) -> _Entry:
    content = read_bounded(path, limit=_LARGEST_FILE, error=SettingsError)
    try:
        entries = TypeAdapter(list[_Entry]).validate_json(content)
    except ValidationError as error:
        problem = first_problem(error)
        at = f" at {problem.place!r}" if problem.place else ""
        raise SettingsError(
            f"{path} is no config of the authors' script{at}: {problem.message}. Expected their"
            " guidance_config_example.json with values of your own."
        ) from error
    if not entries:
        raise SettingsError(f"{path} is an empty list: expected one entry, that says what to draw.")
    if len(entries) > 1:
        _warn(f"{path} has {len(entries)} entries: as in the authors' script, only the first is drawn.")
    for key in entries[0].model_extra or ():
        _warn(f"{path} has {key[:60]!r}, which is none of the authors' settings: it is left out.")
    return entries[0]


def _place(name: str, token: int, entry: _Entry, path: Path) -> PlacedResidual:
    if name not in entry.residual_dict:
        raise SettingsError(f"{path}: subject_list names {name!r}, which has no file in residual_dict. Name its file.")
    return PlacedResidual(name, token, read_authors_file(_find(entry.residual_dict[name], path)))


def _warn(text: str) -> None:
    warnings.warn(text, Cones2Warning, stacklevel=4)


def _find(name: str, config: Path) -> Path:
    """Give the path that a config names: from its own folder, or else from the working folder."""
    beside = config.parent / name
    return Path(name) if not beside.exists() and Path(name).exists() else beside

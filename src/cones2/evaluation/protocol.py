"""What an evaluation is to do, written down before it is done: `protocol.toml`.

Subjects, combinations, prompts, seeds, rows, claims and predictions. Its hash is in every line of results, so that
nothing of it can be changed afterwards.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from cones2.batch.job import as_json
from cones2.errors import Cones2Error, SettingsError, first_problem
from cones2.files import expanded, is_name, name_hint, read_toml
from cones2.layout import Layout
from cones2.prompts import check_class_word

Tier = Literal["s", "m", "l"]
TIERS: tuple[Tier, ...] = ("s", "m", "l")
"""Sizes, each of which holds the ones before it: for a test, for a first look, for a claim."""
Measure = Literal["text", "image"]

_EXAMPLE = '[subjects.rex], photos = "photos/rex", class_word = "dog"; [[combinations]], subjects = ["rex", "mimi"]'
_Name = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
_Box = Annotated[list[Annotated[float, pydantic.Field(ge=0, le=1)]], pydantic.Field(min_length=4, max_length=4)]


class _Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class SubjectEntry(_Strict):
    """A subject: its photos and class word, and pictures of others of its class that it must be told from.

    The protocol's other subjects of its class are such others, too.

    Attributes:
        photos: a folder, from which it is learned and by which it is known again.
        class_word: as people call it.
        lookalikes: a folder in which each picture shows another one.
    """

    photos: str
    class_word: str
    lookalikes: str | None = None


class Combination(_Strict):
    """Subjects that share pictures: the unit of all statistics.

    Attributes:
        subjects: names; one alone is a combination, too.
        tier: the smallest that draws it.
        boxes: where each is asked for, by name; without, equal columns.
    """

    subjects: Annotated[list[str], pydantic.Field(min_length=1, max_length=8)]
    tier: Tier = "l"
    boxes: dict[str, _Box] = {}

    @property
    def name(self) -> str:
        """Its subjects' names, joined."""
        return "+".join(self.subjects)

    @property
    def places(self) -> dict[str, tuple[float, float, float, float]]:
        """The box of each subject, xmin, ymin, xmax, ymax in 0..1."""
        count = len(self.subjects)
        columns = {
            name: (round(number / count + 0.02, 4), 0.15, round((number + 1) / count - 0.02, 4), 0.95)
            for number, name in enumerate(self.subjects)
        }
        return columns | {name: (box[0], box[1], box[2], box[3]) for name, box in self.boxes.items()}


class Prompt(_Strict):
    """A sentence with `{subjects}` where the subjects stand, and the scene by which the judge knows it."""

    text: str
    scene: str = ""


class Row(_Strict):
    """A system to be compared.

    Attributes:
        name: of its row in the tables.
        rival: which class of `cones2.baselines`: `DreamBooth`.
        settings: its fields; what tuning chose is written here. A table with a `rival` of its own is a rival.
        layouts: whether its pictures are drawn with the layout, without one, or both.
        tier: the smallest that draws it.
        subjects: the most in one picture.
    """

    name: _Name
    rival: str
    settings: dict[str, pydantic.JsonValue] = {}
    layouts: Annotated[list[Literal["with", "without"]], pydantic.Field(min_length=1, max_length=2)] = ["with"]
    tier: Tier = "s"
    subjects: Annotated[int, pydantic.Field(ge=1, le=8)] = 8


class Size(_Strict):
    """How much of every combination a tier draws: as many prompts and seeds, from the first."""

    prompts: Annotated[int, pydantic.Field(ge=1, le=1000)]
    seeds: Annotated[int, pydantic.Field(ge=1, le=1000)]


class Drawing(_Strict):
    """How every picture is drawn, whoever draws it.

    Attributes:
        scheduler, num_inference_steps, guidance_scale: as `Cones2Pipeline` takes them.
        batch: how many seeds of a prompt are drawn at once, which changes a picture's last bits.
        side: of the square pictures, in pixels; None is the model's own.
    """

    scheduler: str = "dpm++"
    num_inference_steps: Annotated[int, pydantic.Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[float, pydantic.Field(gt=0, le=100)] = 7.5
    batch: Annotated[int, pydantic.Field(ge=1, le=64)] = 1
    side: Annotated[int, pydantic.Field(ge=8, le=4096)] | None = None


class Claim(_Strict):
    """That a row is above every rival in all measures, of so many subjects, with everybody's layout or nobody's."""

    row: str
    rivals: Annotated[list[str], pydantic.Field(min_length=1)]
    subjects: Annotated[int, pydantic.Field(ge=2, le=8)]
    layout: Literal["with", "without"] = "with"
    measures: Annotated[list[Measure], pydantic.Field(min_length=1)] = ["text", "image"]


class Prediction(_Strict):
    """What is expected of one comparison, before it is run."""

    row: str
    rival: str
    measure: str
    subjects: Annotated[int, pydantic.Field(ge=1, le=8)]
    layout: Literal["with", "without"] = "with"
    expected: Literal["higher", "lower", "no difference"]
    why: str = ""


class _Document(_Strict):
    """All of `protocol.toml`.

    `budget` is how many bytes the packed lines of all rows may have; `collapse` the likeness below which a subject
    counts as collapsed, without which it is what 5 % of the photos stay below; `priors` how many pictures of a class
    the model draws for rivals that keep the class as it was.
    """

    version: Literal[1]
    model: str = "mini"
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**63)] = 0
    budget: Annotated[int, pydantic.Field(ge=1)] = 20_000_000
    priors: Annotated[int, pydantic.Field(ge=0, le=10_000)] = 200
    collapse: Annotated[float, pydantic.Field(ge=-1, le=1)] | None = None
    subjects: Annotated[dict[str, SubjectEntry], pydantic.Field(min_length=1)]
    combinations: Annotated[list[Combination], pydantic.Field(min_length=1)]
    prompts: Annotated[list[Prompt], pydantic.Field(min_length=1)]
    tiers: dict[Tier, Size]
    drawing: Drawing = Drawing()
    rows: Annotated[list[Row], pydantic.Field(min_length=1)]
    claims: list[Claim] = []
    predictions: list[Prediction] = []

    @pydantic.model_validator(mode="after")
    def _hangs_together(self) -> "_Document":
        _check_subjects(self)
        _check_combinations(self)
        _check_comparisons(self)
        _check_sizes(self)
        return self


@dataclass(frozen=True, eq=False)
class Protocol:
    """A protocol, read and checked.

    Attributes:
        document: what it says.
        folder: to which its paths are relative.
        sha256: of what it says, whatever its comments and order of keys.
    """

    document: _Document
    folder: Path
    sha256: str

    def size(self, tier: Tier) -> Size:
        """Return how much of each combination a tier draws."""
        return self.document.tiers[tier]

    def combinations(self, tier: Tier) -> list[Combination]:
        """Return the combinations of a tier, those of smaller tiers first."""
        return _within(self.document.combinations, tier)

    def rows(self, tier: Tier) -> list[Row]:
        """Return the rows of a tier."""
        return _within(self.document.rows, tier)

    def photos(self, subject: str) -> Path:
        """Return the folder of a subject's photos."""
        return self.folder / expanded(self.document.subjects[subject].photos)

    def lookalikes(self, subject: str) -> Path | None:
        """Return the folder of its look-alikes, if it has one."""
        folder = self.document.subjects[subject].lookalikes
        return None if folder is None else self.folder / expanded(folder)


def read_protocol(path: Path | str) -> Protocol:
    """Read `protocol.toml`; its paths are relative to its own folder.

    Raises:
        SettingsError: it can't be read, has an unknown key or a value that can't be used, or contradicts itself.
    """
    path = expanded(path)
    try:
        document = _Document.model_validate(read_toml(path, example=_EXAMPLE))
    except pydantic.ValidationError as error:
        problem = first_problem(error)
        got = f"{problem.place or 'the whole'!r}: {problem.message.removeprefix('Value error, ')}"
        raise SettingsError(f"{path} is wrong, {got}. Expected such as {_EXAMPLE}.") from error
    return Protocol(document, path.parent, hashlib.sha256(as_json(document.model_dump())).hexdigest())


def _within(entries: Sequence[Any], tier: Tier) -> list[Any]:
    reached = TIERS[: TIERS.index(tier) + 1]
    return [entry for each in reached for entry in entries if entry.tier == each]


def _check_subjects(document: _Document) -> None:
    for name, subject in document.subjects.items():
        if not is_name(name):
            raise ValueError(f"{name[:100]!r} can't name a subject: {name_hint(name)}")
        try:
            check_class_word(subject.class_word)
        except Cones2Error as error:
            raise ValueError(f"subject {name!r}: {error}") from error


def _check_combinations(document: _Document) -> None:
    _check_different("combinations", [each.name for each in document.combinations])
    for each in document.combinations:
        unknown = set(each.subjects) - document.subjects.keys()
        if unknown or len(set(each.subjects)) < len(each.subjects) or not each.boxes.keys() <= set(each.subjects):
            known = ", ".join(document.subjects)
            raise ValueError(f"combination {each.name!r}: expected each subject once, of {known}, and boxes of those.")
        try:
            Layout.of(each.places)
        except Cones2Error as error:
            raise ValueError(f"combination {each.name!r}: {error}") from error


def _check_comparisons(document: _Document) -> None:
    rows = [row.name for row in document.rows]
    _check_different("rows", rows)
    named = {name for claim in document.claims for name in (claim.row, *claim.rivals)}
    named |= {name for prediction in document.predictions for name in (prediction.row, prediction.rival)}
    if unknown := named - set(rows):
        raise ValueError(f"claims and predictions name {sorted(unknown)}: expected rows, {', '.join(rows)}.")


def _check_different(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise ValueError(f"two {kind} have the same name: expected different ones.")


def _check_sizes(document: _Document) -> None:
    if set(document.tiers) != set(TIERS):
        raise ValueError(f"tiers are {[*document.tiers]}: expected {', '.join(TIERS)}.")
    sizes = [document.tiers[tier] for tier in TIERS]
    if any(one.prompts > other.prompts or one.seeds > other.seeds for one, other in pairwise(sizes)):
        raise ValueError("tiers shrink: expected at least as many prompts and seeds of m as of s, and of l as of m.")
    if sizes[-1].prompts > len(document.prompts):
        raise ValueError(f"tier l has {sizes[-1].prompts} prompts: expected at most {len(document.prompts)}.")
    if any(size.seeds % document.drawing.batch for size in sizes):
        raise ValueError(f"seeds of a tier: expected multiples of the batch, {document.drawing.batch}.")
    for prompt in document.prompts:
        if prompt.text.count("{subjects}") != 1:
            raise ValueError(f"prompt {prompt.text[:100]!r}: expected {{subjects}} once.")

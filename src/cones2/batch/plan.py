"""What a job comes to: cases, each known by the hash of all that makes its picture, in leases that are done whole.

A case that changes has another hash, and is done anew; whatever else is done stays done.
"""

import bisect
import functools
import hashlib
import importlib.metadata
import itertools
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from cones2.batch.job import LARGEST_LEASE, MOST_PICTURES, SETTINGS, Job, Photographed, Pictures, as_json, found_in
from cones2.call import check_steps, read_layout
from cones2.errors import Cones2Error, LayoutError, ModelError, SettingsError
from cones2.files import exists, expanded, read_bounded
from cones2.layout import Layout
from cones2.library import find_residual
from cones2.models import find_model
from cones2.presets import find_preset
from cones2.prompts import parse_prompt, placeholders
from cones2.residual import Residual
from cones2.run import LayoutSettings
from cones2.schedulers import scheduler_name
from cones2.shared import check_seed

_MANY = 128  # leases of a job, unless that makes them larger than LARGEST_LEASE: enough for every worker to have some
_BLOCK = 2**20  # bytes that are hashed at once
_LAYOUT_FIELDS = tuple(each.name for each in fields(LayoutSettings))


def hash_of(value: Any) -> str:
    """Return the sha256 of JSON values."""
    return hashlib.sha256(as_json(value)).hexdigest()


class Case(NamedTuple):
    """A picture to draw.

    Attributes:
        id: the hash of `made`, and of the model.
        made: all that makes it: prompt, subjects, layout, seed, scheduler and arguments, as JSON values.
        labels: what it is called in the job, by field.
    """

    id: str
    made: dict[str, Any]
    labels: dict[str, Any]


@dataclass(frozen=True)
class Lesson:
    """A subject to learn, as JSON values.

    Attributes:
        id: the hash of all that makes it, and of the model.
        name: what the job calls it.
        photographed: files and their hashes, class word, recipe and seed.
    """

    id: str
    name: str
    photographed: dict[str, Any]


@dataclass(frozen=True)
class Lease:
    """What one worker does at a time, and commits at once.

    Attributes:
        id: the hash of what is in it.
        numbers: of its cases; none where it is a subject to learn.
        needs: ids of the subjects that must be learned before.
        case, origin: the case that failed in another lease, where this is to do it again, and that lease.
    """

    id: str
    numbers: Sequence[int] = ()
    needs: frozenset[str] = frozenset()
    case: str = ""
    origin: str = ""

    @property
    def sole(self) -> str:
        """The only thing that it is for: a subject to learn, or a case that failed; empty for any other lease."""
        return self.case or ("" if self.numbers else self.id)


@dataclass(frozen=True, eq=False)
class Plan:
    """A job's lessons, cases and leases.

    Attributes:
        model: name, config, dtype and what identifies the weights.
        lessons: subjects to learn, by id.
        residuals: subjects that were learned before, by id.
        leases: of lessons first.
        total: how many cases.
        entries: what is drawn, and the number of each one's first case.
    """

    job: Job
    model: dict[str, Any]
    lessons: Mapping[str, Lesson]
    residuals: Mapping[str, Residual]
    total: int
    entries: "_Entries"
    leases: tuple[Lease, ...] = field(default=())

    @classmethod
    def of(cls, job: Job) -> "Plan":
        """Hash everything that a job names, and check every combination of it that the model is not needed for.

        Raises:
            SettingsError: a value can't be used, or there are too many pictures.
            Cones2Error: a prompt, layout, subject or model can't be used.
        """
        name, config = (each and found_in(Path(), each) for each in (job.model, job.config))
        model = {"name": name, "config": config, "dtype": job.dtype, "weights": weights_of(job.model)}
        what = model | {"name": None, "config": config and Path(config).name}  # whatever folder of whatever machine
        head = as_json({"cones2": importlib.metadata.version("cones2"), "model": what})
        names, lessons, residuals = {}, {}, {}
        for name, source in job.subjects.items():
            subject: tuple[str, str | None] = (source if isinstance(source, str) else source.class_word, None)
            if isinstance(source, Photographed):
                lesson = _lesson(name, source, head)
                lessons[lesson.id], subject = lesson, (source.class_word, lesson.id)
            elif isinstance(source, Residual):
                residuals[source.sha256], subject = source, (source.class_word, source.sha256)
            names[name] = subject
        entries = _Entries(job, names, residuals, head)
        if len(entries) > MOST_PICTURES:
            raise SettingsError(f"the job has {len(entries):,} pictures: expected at most {MOST_PICTURES:,}. Split it.")
        size = job.lease or min(LARGEST_LEASE, max(1, math.ceil(len(entries) / _MANY)))
        leases = [Lease(lesson) for lesson in lessons]
        unlike = entries.unlike()
        while some := dict(itertools.islice(unlike, size)):
            taught = {each["residual"] for case in some.values() for each in case.made["subjects"].values()}
            needs = frozenset(taught & lessons.keys())
            leases.append(Lease(hash_of([case.id for case in some.values()]), _compact(tuple(some)), needs))
        total = sum(len(lease.numbers) for lease in leases)
        return cls(job, model, lessons, residuals, total, entries, tuple(leases))

    def cases(self, lease: Lease) -> list[Case]:
        """Return the cases of a lease."""
        return [self.entries.case(number) for number in lease.numbers]

    def retries(self, lease: Lease, failed: Collection[str]) -> list[Lease]:
        """Return a lease of its own for each of a lease's cases that failed in it."""
        if not failed:
            return []
        cases = zip(lease.numbers, self.cases(lease), strict=True)
        return [
            Lease(hash_of(["again", case.id]), (number,), lease.needs, case.id, lease.id)
            for number, case in cases
            if case.id in failed
        ]

    def describe(self) -> dict[str, Any]:
        """Return what whoever looks at the results needs to know, as JSON values."""
        return {
            "format": 1,
            "model": self.model["name"],
            "config": self.model["config"],
            "pictures": self.total,
            "subjects": {lesson.id: lesson.name for lesson in self.lessons.values()},
            "leases": [[each.id, len(each.numbers), sorted(each.needs)] for each in self.leases if each.numbers],
        }


def _compact(numbers: tuple[int, ...]) -> Sequence[int]:
    """Return numbers that follow one another as a range, which takes less memory."""
    return range(numbers[0], numbers[-1] + 1) if numbers[-1] - numbers[0] == len(numbers) - 1 else numbers


def weights_of(model: str) -> str:
    """Return what identifies a model: the commit of a Hub's, else a hash of its files; ModelError where it is none."""
    place = expanded(model)
    folder = place if model != "mini" and exists(place) else find_model(model)[0]
    if model != "mini" and folder != place:  # of the Hub's cache, where it is called by its commit
        return folder.name
    try:
        return _hash_files(folder)
    except OSError as error:
        raise ModelError(
            f"can't read all of {folder}: {error.filename}: {error.strerror}. Make it readable."
        ) from error


def _hash_files(place: Path) -> str:
    digest = hashlib.sha256()
    for path in [place] if place.is_file() else sorted(_files_below(place)):
        if path.suffix in (".safetensors", ".json", ".txt", ".model"):
            digest.update(f"{path.relative_to(place).as_posix()}\n".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
    return digest.hexdigest()


def _files_below(folder: Path) -> Iterator[Path]:
    """Yield all files of a folder and its folders; OSError where one can't be listed, which `rglob` would leave out."""
    for each in folder.iterdir():
        if each.is_dir() and not each.is_symlink():
            yield from _files_below(each)
        elif each.is_file():
            yield each


def _lesson(name: str, source: Photographed, head: bytes) -> Lesson:
    masks = () if source.masks is None else sorted(path for path in source.masks.iterdir() if path.is_file())
    hashes: dict[str, Any] = {
        "photos": [_hash_file(path) for path in source.photos],
        "masks": [[path.name, _hash_file(path)] for path in masks] or None,
        "captions": None if source.captions is None else _hash_file(source.captions),
    }
    recipe = None if source.recipe is None else asdict(source.recipe)
    how = {"class_word": source.class_word, "recipe": recipe, "seed": source.seed}
    made = hashlib.sha256(head + as_json({"learn": hashes | how})).hexdigest()
    files = {
        "photos": [str(path.absolute()) for path in source.photos],
        "masks": None if source.masks is None else str(source.masks.absolute()),
        "captions": None if source.captions is None else str(source.captions.absolute()),
    }
    known: list[tuple[Path, Any]] = [*zip(source.photos, hashes["photos"], strict=True)]
    known += [(path, digest) for path, (_, digest) in zip(masks, hashes["masks"] or (), strict=True)]
    known += [] if source.captions is None else [(source.captions, hashes["captions"])]
    carried = [[str(path.absolute()), digest] for path, digest in known]
    return Lesson(made, name, files | how | {"hashes": hashes["photos"], "force": source.force, "files": carried})


def _hash_file(path: Path) -> str:
    return hashlib.sha256(read_bounded(path, limit=2**27, error=SettingsError)).hexdigest()


class _Entries:
    """Every combination of every entry of a job, by number, made when it is asked for."""

    def __init__(
        self,
        job: Job,
        names: Mapping[str, tuple[str, str | None]],
        residuals: dict[str, Residual],
        head: bytes,
    ) -> None:
        self._job, self._names, self._residuals, self._head = job, dict(names), residuals, head
        counts = []
        for number, pictures in enumerate(job.pictures, start=1):
            try:
                counts.append(math.prod(map(len, pictures.axes().values())))
                if counts[-1] <= MOST_PICTURES:
                    self._check(pictures)
            except Cones2Error as error:
                raise type(error)(f"pictures {number}: {error}") from error
        self._ends = list(itertools.accumulate(counts))
        self._last: tuple[int, dict[str, tuple[Any, ...]]] | None = None
        self._frame = functools.lru_cache(maxsize=1024)(self._new_frame)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def unlike(self) -> Iterator[tuple[int, Case]]:
        """Yield all cases and their numbers, of equal ones the first alone."""
        seen: set[int] = set()
        for number in range(len(self)):
            case = self.case(number)
            key = int(case.id[:24], 16)  # half of a hash will do, and takes less memory
            if key not in seen:
                seen.add(key)
                yield number, case

    def case(self, number: int) -> Case:
        """Return a case by its number."""
        entry = bisect.bisect_right(self._ends, number)
        if self._last is None or self._last[0] != entry:
            self._last = entry, self._job.pictures[entry].axes()
        axes = self._last[1]
        rest, picked = number - (self._ends[entry - 1] if entry else 0), {}
        for name, values in reversed(axes.items()):
            rest, picked[name] = rest // len(values), rest % len(values)
        chosen = {name: axes[name][at] for name, at in reversed(picked.items())}
        made = dict(
            self._frame(
                chosen["prompt"],
                json.dumps(chosen["layout"]),
                tuple((name, value) for name, value in chosen.items() if "." in name),
                (chosen.get("height"), chosen.get("width")),
                placeholders(" ".join(axes["prompt"])),
            )
        )
        settings = {name: value for name, value in chosen.items() if name in SETTINGS}
        made |= {"seed": chosen["seed"], "scheduler": settings.pop("scheduler", None), "arguments": settings}
        digest = hashlib.sha256(self._head)
        digest.update(as_json(made))
        layout = chosen["layout"]
        called = layout if isinstance(layout, str) else str(picked["layout"] + 1)
        return Case(digest.hexdigest(), made, {**chosen, "layout": called})

    def _new_frame(
        self, prompt: str, layout: str, of_subjects: Any, shape: tuple[int | None, int | None], known: tuple[str, ...]
    ) -> dict[str, Any]:
        """Return what a case has apart from its seed and settings."""
        given = dict(of_subjects)
        found = {name: self._find(given.get(f"subject.{name}", name)) for name in placeholders(prompt)}
        words = {name: word for name, (word, _) in found.items()}
        subjects = {
            name: {"class_word": word, "residual": residual, "strength": float(given.get(f"strength.{name}", 1.0))}
            for name, (word, residual) in found.items()
        }
        parse_prompt(prompt, words)
        height, width = shape
        placed = self._place(json.loads(layout), words, known, width / height if width and height else 1.0)
        return {"prompt": prompt, "subjects": subjects, "layout": placed}

    def _find(self, name: str) -> tuple[str, str | None]:
        """Return class word and residual's id of a subject of the job, else of the library, the examples or a file."""
        if name not in self._names:
            residual = find_residual(name)
            self._residuals[residual.sha256] = residual
            self._names[name] = residual.class_word, residual.sha256
        return self._names[name]

    def _place(self, layout: Any, words: dict[str, str], known: tuple[str, ...], aspect: float) -> Any:
        """Return a layout's JSON values for the placeholders of one prompt, of those that all prompts have."""
        layout = self._job.layouts.get(layout, layout) if isinstance(layout, str) else layout
        if layout == "none":
            return None
        if isinstance(layout, str) and layout != "auto":
            if not layout.endswith(".json"):
                names = ", ".join([*self._job.layouts, "auto", "none"])
                raise LayoutError(f"there is no layout {layout!r}: expected one of {names}, or regions by name.")
            layout = dict(Layout.load(layout).regions)
        if isinstance(layout, Mapping):
            for name in layout:
                if name not in known:
                    raise LayoutError(f"region {name!r} is for no subject of the prompts: write {{{name}}} there.")
            layout = {name: place for name, place in layout.items() if name in words}
        read = read_layout(layout or None, words, aspect)
        return None if read is None or not read.regions else json.loads(read.to_json())

    def _check(self, pictures: Pictures) -> None:
        """Check the values of an entry one by one, and of its subjects and layouts every combination."""
        axes = pictures.axes()
        known = placeholders(" ".join(axes["prompt"]))
        for name in (*pictures.subject, *pictures.strength):
            if name not in known:
                raise SettingsError(f"{name!r} is in no prompt of these pictures: write {{{name}}} there, or drop it.")
        for name, values in axes.items():
            for value in values:
                _check_value(name, value)
        for name, strengths in pictures.strength.items():
            who = axes.get(f"subject.{name}", (name,))
            if not any(self._find(each)[1] for each in who) and set(_flat(strengths)) != {1.0}:
                raise SettingsError(f"strength.{name} is of {name!r}, which has no residual: drop it.")
        varied = [[(name, value) for value in axes[name]] for name in axes if name.startswith("subject.")]
        for prompt, layout, *subjects in itertools.product(axes["prompt"], axes["layout"], *varied):
            self._new_frame(prompt, json.dumps(layout), tuple(subjects), (None, None), known)


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_value(name: str, value: Any) -> None:
    if name == "scheduler":
        scheduler_name(value)
    elif name == "seed":
        check_seed(value)
    elif name == "num_inference_steps":
        check_steps(value)
    elif name == "preset":
        find_preset(value)
    elif name in _LAYOUT_FIELDS and name != "weight_negative":  # which needs its preset beside it
        LayoutSettings(**{name: value})

"""By which hashes what is learned and drawn is known again: of all that decides it."""

import ast
import functools
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cones2.baselines.base import Rival
from cones2.batch.plan import hash_of, weights_of
from cones2.evaluation.cases import Case
from cones2.evaluation.protocol import Combination, Protocol, Row
from cones2.photos import Photo, load_photos

_NOT_FOLLOWED = ("cones2.cli.", "cones2.evaluation.")  # they neither learn nor draw

LearningIds = Mapping[tuple[str, ...], str]
"""By subjects that are learned together, the hash of all that decides what is learned of them."""


@dataclass(frozen=True, eq=False)
class Identifiers:
    """The hashes of one row.

    Attributes:
        protocol: which the row is of.
        row: whose.
        rival: that implements it.
        photos: of each subject.
        weights: what identifies the model.
        threads: of the machine, which change last bits.
        code: the hash of the rival's, and of its base's.
    """

    protocol: Protocol
    row: Row
    rival: Rival
    photos: Mapping[str, tuple[Photo, ...]]
    weights: str
    threads: int = field(default_factory=torch.get_num_threads)
    code: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        code = self.code or tuple(code_hash(type(each).__module__) for each in with_bases(self.rival))
        object.__setattr__(self, "code", code)  # read once: `replace` takes it along

    def learning(self, combination: Combination) -> LearningIds:
        """Return which of a combination's subjects are learned together, with the hash of each."""
        together = self.rival.scope == "set"
        lessons = [tuple(combination.subjects)] if together else [(name,) for name in combination.subjects]
        return {lesson: self._learning_id(lesson) for lesson in lessons}

    def pictures(self, case: Case) -> list[str]:
        """Return the hash of each picture of a case."""
        places = case.combination.places if case.layout else None
        how = self.protocol.document.drawing.model_dump()
        learned = list(self.learning(case.combination).values())
        same = {"learned": learned, "prompt": case.text, "places": places, "batch": list(case.seeds), **how}
        return [hash_of({**same, "seed": seed, "size": how["batch"]}) for seed in case.seeds]

    def _learning_id(self, subjects: tuple[str, ...]) -> str:
        entries = self.protocol.document.subjects
        photos = {name: [photo.sha256 for photo in self.photos[name]] for name in subjects}
        words = {name: entries[name].class_word for name in subjects}
        return hash_of({**self._method, "photos": photos, "words": words, "seed": self.protocol.document.seed})

    @functools.cached_property
    def _method(self) -> dict[str, Any]:
        """What decides how a rival learns: its settings, its code, the model, and the machine's threads."""
        return {
            "rival": self.row.rival,
            "settings": self.row.settings,
            "code": list(self.code),
            "weights": self.weights,
            "threads": self.threads,
        }


def identifiers_of(protocol: Protocol, make_rival: Callable[[Row], Rival]) -> Callable[[Row], Identifiers]:
    """Return what makes the identifiers of a protocol's rows.

    Raises:
        PhotoError, ModelError: photos or the model can't be read.
    """
    photos = {name: load_photos(protocol.photos(name)) for name in protocol.document.subjects}
    weights = weights_of(protocol.document.model)
    return lambda row: Identifiers(protocol, row, make_rival(row), photos, weights)


def with_bases(rival: Any) -> Iterator[Any]:
    """Yield a rival, and then what it learns as (`base`), and what that learns as."""
    while rival is not None:
        yield rival
        rival = getattr(rival, "base", None)


def code_hash(module: str) -> str:
    """Return the hash of a module's source, and of all of cones2 that its imports lead to."""
    sources: dict[str, str] = {}
    left = [module]
    while left:
        name = left.pop()
        if name not in sources and (source := _source(name)) is not None:
            sources[name] = source
            left += [each for each in _imported(source) if not f"{each}.".startswith(_NOT_FOLLOWED)]
    return hash_of(sources)


def _source(module: str) -> str | None:
    """Return the source of a module; None where a name is no module, but something within one."""
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return None
    return None if found is None or found.origin is None else Path(found.origin).read_text(encoding="utf-8")


@functools.cache
def _imported(source: str) -> list[str]:
    """Return what a source imports of cones2, within functions, too: `from a import b` may be of a module `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    return [name for name in names if name.startswith("cones2.")]

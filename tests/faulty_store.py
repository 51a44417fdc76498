"""A storage in memory that fails as storages do, and hands without a model.

`Death` stands for a process that is killed. The storage promises what `Store` does: a thing that has a name is whole.
Only where nobody reads what has not been committed, or nothing was promised, may a part of the bytes be there: of tars,
of a checkpoint that has no manifest yet, of copies on this machine, and of notes.
"""

import collections
import dataclasses
import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from cones2.batch.plan import Lesson
from cones2.errors import OutputError
from cones2.residual import EncoderId, Residual, ResidualPart

_CHANGES = 3  # that a stale list does not know


class Death(BaseException):
    """The process is killed."""


class TornError(OutputError):
    """The storage fails amid the bytes."""


class StaleError(OutputError):
    """The storage lists what was there a while ago."""


class MemoryStore:
    """A storage of dictionaries; `fault` is asked before and after each operation on a name, and may raise."""

    def __init__(self, fault: Callable[[str, str, str], None] = lambda _when, _operation, _name: None) -> None:
        self.things: dict[str, bytes] = {}
        self.fault = fault
        self.calls: Counter[str] = Counter()
        self.changed = 0
        self._changes: dict[str, collections.deque[tuple[str, bool]]] = {}

    def create(self, name: str, content: bytes) -> bool:
        self.calls["create"] += 1
        self.fault("before", "create", name)
        if name not in self.things:
            self._change(name, content)
        self.fault("after", "create", name)
        return self.things[name] == content

    def write(self, name: str, content: bytes) -> None:
        self.calls["write"] += 1
        self.fault("before", "write", name)
        self._change(name, content)
        self.fault("after", "write", name)

    def note(self, name: str, content: bytes) -> None:
        self.calls["write"] += 1
        try:
            self.fault("before", "note", name)
        except TornError:
            self._change(name, content[: len(content) // 2])
        except OutputError:
            return
        else:
            self._change(name, content)

    def put(self, name: str, path: Path) -> None:
        self.calls["write"] += 1
        content = path.read_bytes()
        try:
            self.fault("before", "put", name)
        except TornError:
            if not name.endswith(".json"):
                self._change(name, content[: len(content) // 2])
            raise
        self._change(name, content)
        self.fault("after", "put", name)
        path.unlink(missing_ok=True)

    def get(self, name: str, path: Path) -> None:
        torn = None
        try:
            self.fault("before", "get", name)
        except TornError as error:
            torn = error
        if (content := self.things.get(name)) is None:
            raise OutputError(f"there is no {name}.")
        path.write_bytes(content[: len(content) // 2] if torn else content)
        if torn:
            raise torn

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        self.calls["read"] += 1
        self.fault("before", "read", name)
        content = self.things.get(name)
        return None if content is None else content[start:end]

    def names(self, folder: str) -> list[str]:
        self.calls["list"] += 1
        try:
            self.fault("before", "names", folder)
        except StaleError:
            found = set(self._list(folder))
            for name, was_there in reversed(self._changes.get(folder, ())):
                (found.add if was_there else found.discard)(name)
            return sorted(found)
        return self._list(folder)

    def delete(self, name: str) -> None:
        self.fault("before", "delete", name)
        if name in self.things:
            self._change(name, None)
        self.fault("after", "delete", name)

    def _list(self, folder: str) -> list[str]:
        start = f"{folder}/"
        return sorted(name.removeprefix(start) for name in self.things if name.startswith(start))

    def _change(self, name: str, content: bytes | None) -> None:
        self.changed += 1
        folder, _, file = name.rpartition("/")
        self._changes.setdefault(folder, collections.deque(maxlen=_CHANGES)).append((file, name in self.things))
        if content is None:
            del self.things[name]
        else:
            self.things[name] = content


PICTURE = io.BytesIO()
Image.new("RGB", (2, 2), "red").save(PICTURE, format="PNG")


class StillHands:
    """Writes for each case bytes that depend on what makes it alone, and learns residuals of nothing."""

    def __init__(self, broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.broken = broken
        self.drawn: Counter[int] = Counter()

    def draw(self, made: dict[str, Any], path: Path) -> None:
        self.drawn[made["seed"]] += 1
        if made["seed"] in self.broken:
            raise ValueError(f"seed {made['seed']} is broken")
        path.write_bytes(content_of(made))

    def learn(self, lesson: Lesson, folder: Path) -> Iterator["StillStep"]:
        steps = folder / "step-00000001.json"
        first = 2 if steps.exists() else 1
        for step in range(first, 4):
            yield StillStep(step, lesson, folder)

    def report(self, lesson: Lesson, last: Any) -> dict[str, Any]:
        return {"name": lesson.name, "loss": last.loss}


@dataclasses.dataclass(frozen=True)
class StillStep:
    """A step of learning nothing."""

    step: int
    lesson: Lesson
    folder: Path
    steps: int = 3
    loss: float = 0.5

    def save_checkpoint(self) -> None:
        for suffix in ("safetensors", "json"):
            (self.folder / f"step-{self.step:08d}.{suffix}").write_bytes(b"{}")

    @property
    def residual(self) -> Residual:
        return numbered_residual(self.lesson, int(self.lesson.id[:6], 16) / 2**24)


def numbered_residual(lesson: Lesson, number: float) -> Residual:
    """Make a residual that is a number."""
    encoder = EncoderId("text_encoder", "none", 2, "0" * 64, (1.0,))
    part = ResidualPart(encoder, ("dog",), torch.tensor([[number, 1.0]], dtype=torch.float32))
    word = lesson.photographed["class_word"]
    return Residual(word, (part,), recipe={}, photos=("0" * 64,), tool_version="0")


def content_of(made: dict[str, Any]) -> bytes:
    """What `StillHands` draws of a case: a PNG to the eye, and no two alike."""
    return PICTURE.getvalue() + hashlib.sha256(repr(made["seed"]).encode()).digest()

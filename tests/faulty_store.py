"""A storage in memory that fails as storages do, before it wrote and after; and hands without a model.

`Death` stands for a process that is killed there.
"""

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


class Death(BaseException):
    """The process is killed."""


class MemoryStore:
    """A storage of dictionaries; `fault` is asked before and after each change, and may raise."""

    def __init__(self, fault: Callable[[str, str], None] = lambda _when, _name: None) -> None:
        self.things: dict[str, bytes] = {}
        self.fault = fault
        self.created: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def create(self, name: str, content: bytes) -> bool:
        self.calls["create"] += 1
        self.fault("before", name)
        if name not in self.things:
            self.things[name] = content
            self.created[name] += 1
        self.fault("after", name)
        return self.things[name] == content

    def write(self, name: str, content: bytes) -> None:
        self.calls["write"] += 1
        self.fault("before", name)
        self.things[name] = content
        self.fault("after", name)

    def note(self, name: str, content: bytes) -> None:
        self.calls["write"] += 1
        self.things[name] = content

    def put(self, name: str, path: Path) -> None:
        self.calls["write"] += 1
        self.fault("before", name)
        self.things[name] = path.read_bytes()
        self.fault("after", name)
        path.unlink()

    def get(self, name: str, path: Path) -> None:
        path.write_bytes(self.things[name])

    def read(self, name: str, start: int = 0, end: int | None = None) -> bytes | None:
        self.calls["read"] += 1
        content = self.things.get(name)
        return None if content is None else content[start:end]

    def names(self, folder: str) -> list[str]:
        self.calls["list"] += 1
        start = f"{folder}/"
        return sorted(name.removeprefix(start) for name in self.things if name.startswith(start))

    def delete(self, name: str) -> None:
        self.fault("before", name)
        self.things.pop(name, None)


def fail(_name: str) -> None:
    raise OutputError("the storage is not there.")


def die(_name: str) -> None:
    raise Death


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
        number = int(self.lesson.id[:6], 16) / 2**24
        encoder = EncoderId("text_encoder", "none", 2, "0" * 64, (1.0,))
        part = ResidualPart(encoder, ("dog",), torch.tensor([[number, 1.0]], dtype=torch.float32))
        word = self.lesson.photographed["class_word"]
        return Residual(word, (part,), recipe={}, photos=("0" * 64,), tool_version="0")


def content_of(made: dict[str, Any]) -> bytes:
    """What `StillHands` draws of a case: a PNG to the eye, and no two alike."""
    return PICTURE.getvalue() + hashlib.sha256(repr(made["seed"]).encode()).digest()

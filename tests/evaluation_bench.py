"""A little evaluation: two example subjects, a rival that knows only words, and pictures of noise."""

import contextlib
import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from cones2.baselines.base import Draw, Learned, Lesson, Scope, Step
from cones2.errors import LearningError
from cones2.evaluation.protocol import Row
from cones2.examples import EXAMPLES
from cones2.pipeline import Cones2Pipeline
from cones2.subjects import Subject

PROTOCOL = """
version = 1
model = "{model}"
subjects.rex = {{photos = "{examples}/rex/photos", class_word = "dog", lookalikes = "{examples}/fido/photos"}}
subjects.fido = {{photos = "{examples}/fido/photos", class_word = "dog"}}
subjects.mimi = {{photos = "{examples}/mimi/photos", class_word = "cat", lookalikes = "{examples}/luna/photos"}}
drawing = {{scheduler = "ddim", num_inference_steps = 1, side = 64, batch = {batch}}}
tiers = {{s = {{prompts = 1, seeds = 2}}, m = {{prompts = 2, seeds = 2}}, l = {{prompts = 2, seeds = 4}}}}

[[combinations]]
subjects = ["rex"]
tier = "s"

[[combinations]]
subjects = ["rex", "mimi"]
tier = "s"
boxes.rex = [0.0, 0.2, 0.5, 1.0]

[[combinations]]
subjects = ["fido", "mimi"]
tier = "m"

[[prompts]]
text = "{{subjects}}"

[[prompts]]
text = "{{subjects}} on the beach"
scene = "beach"

[[rows]]
name = "plain"
rival = "words"
layouts = ["with", "without"]

[[rows]]
name = "joint"
rival = "joint words"
settings = {{steps = 2}}

[[claims]]
row = "plain"
rivals = ["joint"]
subjects = 2

[[predictions]]
row = "plain"
rival = "joint"
measure = "all_right"
subjects = 2
expected = "no difference"
why = "both know only words"
"""


def write_protocol(folder: Path, model: Path, *, batch: int = 1, change: Callable[[str], str] = str) -> Path:
    """Write a protocol, changed as asked, and return its path."""
    examples = Path(EXAMPLES["rex"].folder).parent.as_posix()
    path = folder / "protocol.toml"
    path.write_text(change(PROTOCOL.format(model=model.as_posix(), examples=examples, batch=batch)), encoding="utf-8")
    return path


@dataclass(frozen=True)
class OnlyWords:
    """What a rival learned that learns nothing."""

    texts: Mapping[str, str]

    def to_bytes(self) -> bytes:
        return json.dumps(dict(self.texts)).encode()


@dataclass(frozen=True, kw_only=True)
class Words:
    """A rival that draws the class words alone; its learning can fail."""

    name: ClassVar[str] = "words"
    scope: Scope = "subject"
    steps: int = 0
    fails: bool = False
    lessons: list[tuple[str, ...]]

    def learn(self, pipeline: Any, lessons: Mapping[str, Lesson], *, seed: int = 0) -> Generator[Step, None, None]:
        del pipeline, seed
        self.lessons.append(tuple(lessons))
        if self.fails:
            raise LearningError("the loss is nan")
        known = OnlyWords({name: lesson.class_word for name, lesson in lessons.items()})
        for step in range(self.steps + 1):
            yield Step(step, self.steps, 0.0, lambda: known)

    def combine(self, pipeline: Any, learned: Sequence[Learned]) -> Learned:
        del pipeline
        return OnlyWords({name: text for each in learned for name, text in each.texts.items()})

    def load(self, content: bytes) -> Learned:
        return OnlyWords(json.loads(content))

    @contextlib.contextmanager
    def drawing(self, pipeline: Any, learned: Learned) -> Iterator[Draw]:
        drawer = Cones2Pipeline(pipeline.pipeline)
        for name, text in learned.texts.items():
            drawer.load_subject(name, Subject(text))
        yield drawer


def maker(lessons: list[tuple[str, ...]], *, fails: str = "") -> Callable[[Row], Words]:
    """Return what makes rivals of rows, which note what they learn in `lessons`."""

    def make(row: Row) -> Words:
        rival = Words(lessons=lessons, fails=row.name == fails)
        steps = row.settings.get("steps", 0)
        assert isinstance(steps, int)
        return replace(rival, scope="set" if row.rival == "joint words" else "subject", steps=steps)

    return make

"""Pictures of what is learned so far, how like the subject they are, and stopping early when that no longer improves.

The pictures are drawn as any others, and draw none of learning's random numbers: the residual is the same without them.
`logged` keeps them as files: the curves in `curves.csv`, and images as `0050-0.png` (the step, then which image).
"""

import base64
import hashlib
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pydantic
from PIL.Image import Image

from cones2.captions import photo_prompt
from cones2.errors import LearningError, OutputError, SettingsError
from cones2.files import expanded, make_folder, read_bounded, write_atomically
from cones2.learning.learner import LearnStep
from cones2.residual import Residual

Identity = Callable[[Sequence[Image]], float]
"""Measures how like the subject pictures are: higher is more like it. Kept previews know it by its qualified name."""

_NAME = "subject"
_LARGEST_FILE = 2**26


def _residual(value: object) -> Residual:
    return value if isinstance(value, Residual) else Residual.from_bytes(base64.b64decode(str(value)))


class Preview(pydantic.BaseModel, frozen=True):
    """A step at which pictures were measured.

    Attributes:
        loss: L of Eq. 4 at that step.
    """

    step: int
    identity: float
    loss: float
    residual: Annotated[
        Any,  # a Residual, into which pydantic need not look
        pydantic.PlainValidator(_residual),
        pydantic.PlainSerializer(lambda residual: base64.b64encode(residual.to_bytes()).decode(), when_used="json"),
    ]


@dataclass(frozen=True, eq=False)
class PreviewedStep:
    """A step of learning, and what it draws.

    Attributes:
        images: what it draws, one for each seed; none where it was not drawn.
        identity: how like the subject they are; None where there is no measure, or no images.
        stopped: whether learning ends here, before its last step, since the identity rises no more.
        best: the best preview so far, whose residual is the one to keep; None without patience.
    """

    learned: LearnStep
    images: tuple[Image, ...] = ()
    identity: float | None = None
    stopped: bool = False
    best: Preview | None = None

    @property
    def step(self) -> int:
        """This step, from 1."""
        return self.learned.step

    @property
    def steps(self) -> int:
        """How many there are at most."""
        return self.learned.steps

    @property
    def residual(self) -> Residual:
        """The residual to keep: that of the best preview where there is patience, this step's otherwise."""
        residual: Residual = self.best.residual if self.best else self.learned.residual
        return residual

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, as `LearnStep.save_checkpoint` does."""
        self.learned.save_checkpoint()


def with_previews(
    steps: Generator[LearnStep, None, None],
    pipe: Callable[..., Any],
    *,
    every: int,
    prompt: str | None = None,
    identity: Identity | None = None,
    patience: int | None = None,
    checkpoint: Path | str | None = None,
    drawing: Mapping[str, Any] | None = None,
) -> Generator[PreviewedStep, None, None]:
    """Return a generator that follows `learn_steps`, and draws some of its steps; it closes `steps` when it ends.

    Args:
        steps: of `learn_steps`.
        pipe: a `Cones2Pipeline` around the same pipeline.
        every: steps between two previews; the last step has one, too.
        prompt: what is drawn, with the placeholder `{subject}`; None is the photos' own caption.
        identity: measures the images of each preview.
        patience: stop after so many previews without a rise of the identity, and keep the residual of the best.
        checkpoint: the folder of `learn_steps`, where previews are kept as well: a learning that is interrupted and
            resumed then stops at the same step, with the same residual, as an undisturbed one, and by one measure.
        drawing: arguments of the pipeline's call; 20 steps and seed 0 where they do not say.

    Raises:
        SettingsError: a number is below 1, or there is patience without a measure.
        LearningError: while it runs, previews that were kept are damaged, or were drawn or measured in another way.
    """
    for name, value in (("every", every), ("patience", patience)):
        if value is not None and value < 1:
            raise SettingsError(f"{name} is {value}: expected at least 1.")
    if patience is not None and identity is None:
        raise SettingsError("patience needs a measure of identity: give one, or leave patience out.")
    options = {"num_inference_steps": 20, "seed": 0, **(drawing or {})}
    measure = getattr(identity, "__qualname__", type(identity).__qualname__)
    drawn = hashlib.sha256(repr((prompt, sorted(options.items()), measure)).encode()).hexdigest()
    file = expanded(checkpoint) / "previews.json" if checkpoint is not None and identity is not None else None

    def follow() -> Generator[PreviewedStep, None, None]:
        previews: list[Preview] | None = None
        with closing(steps):
            for step in steps:
                previews = _read(file, drawn, before=step.step) if previews is None else previews
                images: tuple[Image, ...] = ()
                likeness = None
                if step.step % every == 0 or step.step == step.steps:
                    text = prompt or photo_prompt(step.residual.class_word, _NAME)
                    images = tuple(pipe(text, subjects={_NAME: step.residual}, **options).images)
                    likeness = identity(images) if identity else None
                if likeness is not None:
                    previews.append(Preview(step=step.step, identity=likeness, loss=step.loss, residual=step.residual))
                    if file is not None:  # before a checkpoint of this step can be written
                        write_atomically(file, _Document(drawn=drawn, previews=previews).model_dump_json().encode())
                best = max(previews if patience else (), key=lambda preview: preview.identity, default=None)
                waited = sum(preview.step > best.step for preview in previews) if best else 0
                stopped = patience is not None and waited >= patience and step.step < step.steps
                yield PreviewedStep(step, images, likeness, stopped, best)
                if stopped:
                    return

    return follow()


class _Document(pydantic.BaseModel):
    drawn: str
    previews: list[Preview]


def _read(file: Path | None, drawn: str, *, before: int) -> list[Preview]:
    """Read the previews before a step: a learning that was interrupted takes the later steps again."""
    if file is None or not file.exists():
        return []
    content = read_bounded(file, limit=_LARGEST_FILE, error=LearningError)
    try:
        document = _Document.model_validate_json(content)
    except ValueError as error:
        advice = "Delete it, and waiting for a better one begins anew; or begin again without resuming"
        raise LearningError(f"{file} is damaged, expected previews of learning. {advice}.") from error
    previews = [preview for preview in document.previews if preview.step < before]
    if previews and document.drawn != drawn:
        raise LearningError(
            f"the previews in {file} were drawn or measured in another way: resume as learning began, or begin again"
            " without resuming."
        )
    return previews


COLUMNS = ("step", "loss", "subject_loss", "preservation_loss", "identity")
"""Of `curves.csv`: L of Eq. 4, Eq. 2, Eq. 3, and how like the subject the images are, where that was measured."""


def logged(steps: Generator[PreviewedStep, None, None], folder: Path) -> Generator[PreviewedStep, None, None]:
    """Pass on the steps of `with_previews` and write them into `folder`; `steps` is closed at the end.

    The curves are written with each preview and at the end, whole or not at all. A learning that is resumed keeps the
    rows before its first step; one that begins anew replaces them all.

    Raises:
        OutputError: the folder can't be made or written, or its `curves.csv` is something else.
    """
    path = folder / "curves.csv"
    make_folder(folder)
    content = read_bounded(path, limit=2**27, error=OutputError) if path.exists() else b""
    header, *found = [tuple(line.split(",")) for line in content.decode(errors="replace").splitlines()] or [COLUMNS]
    if header != COLUMNS or not all(row[0].isdecimal() and len(row[0]) < 10 for row in found):
        raise OutputError(f"{path} is there, and cones2 did not write it. Move it away, or choose another folder.")
    rows: list[tuple[str, ...]] = []

    def write_curves() -> None:
        write_atomically(path, "".join(f"{','.join(row)}\n" for row in (COLUMNS, *rows)).encode())

    def follow() -> Generator[PreviewedStep, None, None]:
        with closing(steps):
            try:
                for step in steps:
                    rows[:] = rows or [row for row in found if int(row[0]) < step.step]
                    learned = step.learned
                    numbers = (learned.loss, learned.subject_loss, learned.preservation_loss, step.identity)
                    rows.append((str(step.step), *("" if value is None else f"{value:.6g}" for value in numbers)))
                    for number, image in enumerate(step.images):
                        content = io.BytesIO()
                        image.save(content, "PNG")
                        write_atomically(folder / f"{step.step:04}-{number}.png", content.getvalue())
                    if step.images:
                        write_curves()
                    yield step
            finally:
                if rows:
                    write_curves()

    return follow()

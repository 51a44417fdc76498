"""Where curves and pictures go: a folder, TensorBoard, Weights & Biases. Each is told of every step, by whoever loops.

TensorBoard and Weights & Biases are extras, imported when one of them is asked for.
"""

import csv
import importlib
import io
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL.Image import Image

from cones2.errors import OutputError, SettingsError
from cones2.files import make_folder, read_bounded, write_atomically
from cones2.picture import write_picture
from cones2.watching.watch import WatchedStep

_LARGEST_CURVES = 2**27


@runtime_checkable
class Log(Protocol):
    """Somewhere that numbers and pictures of a learning can be seen."""

    def take(self, step: WatchedStep) -> None:
        """Note a step."""

    def close(self) -> None:
        """Write what is not written yet."""


def logged(steps: Generator[WatchedStep, None, None], logs: Iterable[Log]) -> Generator[WatchedStep, None, None]:
    """Tell every log of every step on its way; logs and steps are closed whatever happens."""
    with ExitStack() as open_logs, closing(steps):
        told = [open_logs.enter_context(closing(log)) for log in logs]
        for step in steps:
            for log in told:
                log.take(step)
            yield step


def numbers_of(step: WatchedStep) -> dict[str, float]:
    """Give a step's curves by name: loss (Eq. 4), subject_loss (Eq. 2), preservation_loss (Eq. 3), identity if seen."""
    learned = step.learned
    numbers = {
        "loss": learned.loss,
        "subject_loss": learned.subject_loss,
        "preservation_loss": learned.preservation_loss,
    }
    return numbers if step.identity is None else numbers | {"identity": step.identity}


class FolderLog:
    """Pictures as `0050-0.png` (step, then which) and the curves as `curves.csv`, in a folder.

    The curves are written with each look and at the end, whole or not at all. A learning that is resumed goes on with
    those that are there up to its first step; one that begins anew replaces them.

    Raises:
        OutputError: the folder can't be made, or its `curves.csv` is something else.
    """

    _COLUMNS = ("step", "loss", "subject_loss", "preservation_loss", "identity")

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self.folder = folder
        self._found = self._read()
        self._rows: dict[int, dict[str, str]] = {}

    def take(self, step: WatchedStep) -> None:
        """Note a step, and write its pictures."""
        if not self._rows:
            self._rows = {number: row for number, row in self._found.items() if number < step.step}
        self._rows[step.step] = {name: f"{value:.6g}" for name, value in numbers_of(step).items()}
        for index, picture in enumerate(step.pictures):
            made = {"step": step.step, "class_word": step.learned.residual.class_word}
            write_picture(self.folder / f"{step.step:04}-{index}.png", picture, made)
        if step.pictures:
            self.close()

    def close(self) -> None:
        """Write the curves; leave those that are there where no step was taken."""
        if not self._rows:
            return
        text = io.StringIO()
        table = csv.DictWriter(text, self._COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows({"step": str(step), **self._rows[step]} for step in sorted(self._rows))
        write_atomically(self.folder / "curves.csv", text.getvalue().encode())

    def _read(self) -> dict[int, dict[str, str]]:
        path = self.folder / "curves.csv"
        if not path.exists():
            return {}
        content = read_bounded(path, limit=_LARGEST_CURVES, error=OutputError)
        try:
            header, *rows = csv.reader(content.decode().splitlines())
            if tuple(header) != self._COLUMNS:
                raise ValueError(f"its columns are {header}")
            return {int(step): dict(zip(self._COLUMNS[1:], values, strict=True)) for step, *values in rows}
        except (ValueError, csv.Error) as error:
            advice = "Move it away, or choose another folder"
            raise OutputError(f"{path} is there, and cones2 did not write it. {advice}.") from error


class TensorBoardLog:
    """Curves and pictures as an event file of TensorBoard's in a folder.

    Raises:
        SettingsError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        module = _import_extra("torch.utils.tensorboard", "tensorboard")
        make_folder(folder)
        self._writer: Any = module.SummaryWriter(str(folder))

    def take(self, step: WatchedStep) -> None:
        """Note a step."""
        for name, value in numbers_of(step).items():
            self._writer.add_scalar(name, value, step.step)
        for index, picture in enumerate(step.pictures):
            self._writer.add_image(f"picture/{index}", np.array(picture), step.step, dataformats="HWC")

    def close(self) -> None:
        """Write what is not written yet."""
        self._writer.close()


class WandbLog:
    """Curves and pictures as a run of Weights & Biases; `WANDB_MODE=offline` keeps it on this machine.

    Raises:
        SettingsError: wandb is not installed, or can't begin a run.
    """

    def __init__(self, project: str, *, settings: Mapping[str, object], folder: Path | None = None) -> None:
        self._wandb = _import_extra("wandb", "wandb")
        try:
            self._run: Any = self._wandb.init(project=project, config=dict(settings), dir=folder)
        except self._wandb.Error as error:
            advice = "Run `wandb login`, or set WANDB_MODE=offline"
            raise SettingsError(f"Weights & Biases can't begin a run of {project!r}: {error}. {advice}.") from error

    def take(self, step: WatchedStep) -> None:
        """Note a step."""
        values: dict[str, object] = dict(numbers_of(step))
        if step.pictures:
            values["pictures"] = self._pictures(step.pictures)
        self._run.log(values, step=step.step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()

    def _pictures(self, pictures: Sequence[Image]) -> list[Any]:
        return [self._wandb.Image(picture) for picture in pictures]


def _import_extra(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(f"{extra} is not installed: pip install 'cones2[{extra}]'.") from error

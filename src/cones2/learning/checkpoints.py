"""Checkpoints of learning: killed at any moment, it resumes to the same residual.

The folder holds the newest two. Each is a `step-N.safetensors` and, written after it, a `step-N.json` with its hash and
the settings that it depends on. A checkpoint whose manifest or hash fails is passed over for the one before.
"""

import contextlib
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pydantic
import safetensors.torch
import torch
from torch import Tensor

from cones2.errors import LearningError, OutputError
from cones2.files import locked, make_folder, read_bounded, write_atomically

_KEPT = 2
_LARGEST_MANIFEST = 2**24
_OURS = re.compile(r"step-[0-9]{8,}\.(json|safetensors)", re.ASCII)
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)


class _Manifest(pydantic.BaseModel, strict=True, frozen=True):
    format: Literal[2] = 2
    step: int
    sha256: str
    settings: dict[str, pydantic.JsonValue]


@dataclass(frozen=True)
class Checkpoints:
    """The newest states of one learning, in a folder of their own.

    Attributes:
        settings: JSON values that the states depend on.
    """

    folder: Path
    settings: Mapping[str, pydantic.JsonValue]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other learners out of the folder; the lock ends with the process, however that ends.

        Raises:
            LearningError: another learner is at work in it.
            OutputError: the folder can't be made or written, or is a link.
        """
        if self.folder.is_symlink():  # what it leads to may be anybody's
            raise OutputError(f"{self.folder} is a link: give the folder itself, or remove the link.")
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / "lock", wait=False))
            except BlockingIOError as error:
                advice = "Wait for it to end, or choose another folder"
                raise LearningError(f"another learner is at work in {self.folder}. {advice}.") from error
            _delete(self._files(_UNFINISHED))  # what a killed learner was writing
            yield

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """Write the state after `step`, then its manifest, then delete all but the newest two.

        Raises:
            OutputError: the folder can't be written or the disk is full; the earlier checkpoints stay.
        """
        content = safetensors.torch.save(dict(tensors))
        manifest = _Manifest(step=step, sha256=hashlib.sha256(content).hexdigest(), settings=dict(self.settings))
        path = self.folder / f"step-{step:08d}.safetensors"
        write_atomically(path, content)
        write_atomically(path.with_suffix(".json"), manifest.model_dump_json(indent=1).encode())
        kept = {path.stem for path in [*reversed(self._files(_OURS, ".json"))][:_KEPT]}
        _delete(path for path in self._files(_OURS) if path.stem not in kept)

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Return the newest sound checkpoint's step and state; step 0 and no state where there is none.

        Raises:
            LearningError: it was made with other settings; says which differs.
        """
        for path in reversed(self._files(_OURS, ".json")):
            with contextlib.suppress(OSError, pydantic.ValidationError):
                manifest = _Manifest.model_validate_json(read_bounded(path, limit=_LARGEST_MANIFEST, error=OutputError))
                state = path.with_suffix(".safetensors")
                content = read_bounded(state, limit=state.stat().st_size, error=OutputError)
                if manifest.sha256 == hashlib.sha256(content).hexdigest():
                    self._check_settings(manifest)
                    return manifest.step, safetensors.torch.load(content)
        return 0, {}

    def delete(self) -> None:
        """Delete all checkpoints; the folder stays, and what else is in it."""
        _delete(self._files(_OURS))

    def _files(self, name: re.Pattern[str], suffix: str = "") -> list[Path]:
        # Sorted, each manifest is before the state that it vouches for.
        files = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in files if name.fullmatch(path.name) and path.name.endswith(suffix))

    def _check_settings(self, manifest: _Manifest) -> None:
        for name, value in self.settings.items():
            if manifest.settings.get(name) != value:
                raise LearningError(
                    f"can't resume from {self.folder}: {name} is {value}, but it began with"
                    f" {manifest.settings.get(name)}. Resume with what it began with, or begin again without resuming."
                )


def state_of(optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what a step changes, not copied, by name: parameters, their averages and the optimiser's moments."""
    parameters = optimizer.param_groups[0]["params"]
    tensors = {f"parameter.{index}": parameter.detach() for index, parameter in enumerate(parameters)}
    tensors |= {f"average.{index}": average for index, average in enumerate(averages)}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"{name}.{index}": moment for name, moment in moments.items()}
    return tensors


def restore(state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, averages: Sequence[Tensor]) -> None:
    """Go back to what `state_of` gave."""
    parameters = optimizer.param_groups[0]["params"]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, index = key.split(".")
        if name == "parameter":
            parameters[int(index)].data.copy_(tensor)
        elif name == "average":
            averages[int(index)].copy_(tensor)
        else:
            moments.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def is_waiting(folder: Path, residual: Path) -> bool:
    """Return whether a learning that was stopped can go on in its folder; not if its file was written since.

    Raises:
        LearningError: another learner is at work in it.
        OutputError: it is a link, or can't be written.
    """
    if not (folder.is_symlink() or folder.exists()):
        return False
    with Checkpoints(folder, {}).held():
        saved = [path.stat().st_mtime_ns for path in folder.glob("step-*.json")]
    return bool(saved) and not (residual.exists() and residual.stat().st_mtime_ns >= max(saved))


def remove_checkpoints(folder: Path) -> None:
    """Remove a learning's folder, unless it is not there, is a link, or another learner is at work in it."""
    if folder.is_symlink() or not folder.is_dir():  # a lock would make it
        return
    with contextlib.suppress(BlockingIOError, OutputError), locked(folder / "lock", wait=False):
        shutil.rmtree(folder, ignore_errors=True)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

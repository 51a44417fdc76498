"""Checkpoints of learning: killed at any moment, it resumes to the same residual.

The folder holds the newest two. Each is a `step-N.safetensors` and, written after it, a `step-N.json` with its hash and
the settings that it depends on. A checkpoint whose manifest or hash fails is passed over for the one before.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from cones2.errors import LearningError, OutputError
from cones2.files import held, make_folder, write_atomically

_FORMAT = 1
_KEPT = 2
_OURS = re.compile(r"step-[0-9]{8,}\.(json|safetensors)", re.ASCII)
_UNFINISHED = re.compile(r"\.[0-9a-f]{16}\.part", re.ASCII)


@dataclass(frozen=True)
class Checkpoints:
    """The newest states of one learning, in a folder of their own.

    Attributes:
        folder: where they are; made when held.
        settings: JSON values that the states depend on.
    """

    folder: Path
    settings: Mapping[str, object]

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other learners out of the folder; the lock goes with the process, however it ends.

        Raises:
            LearningError: another learner is at work in it.
            OutputError: the folder can't be made or written.
        """
        make_folder(self.folder)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(held(self.folder / "lock", wait=False))
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
        sha256 = hashlib.sha256(content).hexdigest()
        manifest = {"format": _FORMAT, "step": step, "sha256": sha256, "settings": dict(self.settings)}
        path = self.folder / f"step-{step:08d}.safetensors"
        write_atomically(path, content)
        write_atomically(path.with_suffix(".json"), json.dumps(manifest, indent=1).encode())
        kept = {newest.stem for newest in self._manifests()[:_KEPT]}
        _delete(path for path in self._files(_OURS) if path.stem not in kept)

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Give the newest sound checkpoint's step and state; step 0 and no state where there is none.

        Raises:
            LearningError: it was made with other settings; says which differs.
        """
        for path in self._manifests():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError):
                manifest = json.loads(path.read_bytes())
                content = path.with_suffix(".safetensors").read_bytes()
                if manifest["format"] == _FORMAT and manifest["sha256"] == hashlib.sha256(content).hexdigest():
                    self._check_settings(dict(manifest["settings"]))
                    return int(manifest["step"]), safetensors.torch.load(content)
        return 0, {}

    def delete(self) -> None:
        """Delete all checkpoints; the folder stays, and what else is in it."""
        _delete(self._files(_OURS))

    def _files(self, name: re.Pattern[str]) -> list[Path]:
        # Sorted, each manifest is before the state that it vouches for.
        return sorted(path for path in self.folder.iterdir() if name.fullmatch(path.name))

    def _manifests(self) -> list[Path]:
        return [path for path in reversed(self._files(_OURS)) if path.suffix == ".json"]

    def _check_settings(self, before: Mapping[str, Any]) -> None:
        for name, value in self.settings.items():
            if before.get(name) != value:
                raise LearningError(
                    f"can't resume from {self.folder}: {name} is {value}, but it began with {before.get(name)}."
                    " Resume with what it began with, or begin again without resuming."
                )


def remove_checkpoints(folder: Path) -> None:
    """Remove a learning's folder, unless it is not there or another learner is at work in it."""
    with contextlib.suppress(BlockingIOError, OutputError), held(folder / "lock", wait=False):
        shutil.rmtree(folder, ignore_errors=True)


def _delete(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)

"""Drawing a picture again from its record: the same batch, of which one is kept, with the same threads."""

import importlib.metadata
import os
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import torch

from cones2.backbones import Backbone
from cones2.composing.loop import compose
from cones2.composing.records import PictureRecord, RecordedSubject
from cones2.composing.sampler import ComposeStep
from cones2.errors import Cones2Warning, ResidualError
from cones2.residual.residual import Residual
from cones2.subjects import Subject

FindResidual = Callable[[str], Residual | None]
"""Gives the residual of a sha256, or None: `cones2.Library.find`, or the `get` of a dict."""


def compose_again(backbone: Backbone, made: PictureRecord, *, find: FindResidual) -> Generator[ComposeStep, None, None]:
    """Draw the picture of a record again, step by step; the last step holds it.

    Bit for bit the same on the same machine, device, dtype and versions: all seeds of its batch are drawn, and its own
    is kept. PyTorch's thread count is the record's until the generator ends or is closed. What is not the same here
    as it was there is told in a `Cones2Warning`.

    Args:
        backbone: the record's own, or another to draw the same with.
        made: what to draw; `dataclasses.replace` changes it.
        find: gives a residual by the sha256 of its file.

    Raises:
        ResidualError: a residual is not found.
        Cones2Error: as `compose` does.
    """
    warn_of_differences(backbone, made)
    subjects = {name: recall(name, subject, find) for name, subject in made.subjects.items()}
    with threads(made.threads):
        steps = compose(backbone, made.prompt, subjects=subjects, layout=made.layout, settings=made.settings)
    return _keep(steps, made.settings.seeds.index(made.seed), made.threads)


def recall(name: str, recorded: RecordedSubject, find: FindResidual) -> Subject:
    """Give the subject that a record calls `name`.

    Raises:
        ResidualError: its residual is not found.
    """
    residual = None
    if recorded.residual is not None:
        residual = find(recorded.residual)
        if residual is None:
            raise ResidualError(
                f"no residual at hand is the picture's {name!r}, a {recorded.class_word}"
                f" (sha256 {recorded.residual[:12]}...): add its file to the library, or give it by name."
            )
    return Subject(recorded.class_word, residual, **recorded.options)


def warn_of_differences(backbone: Backbone, made: PictureRecord) -> None:
    """Warn where model, device, dtype, threads or versions are not the record's, so that the picture may differ."""
    if made.backbone.weights != [part.weights for part in backbone.encoder_id.parts]:
        _warn(f"the picture was drawn on {made.backbone.name}, this is {backbone.name}: expect another picture.")
        return
    pairs: dict[str, tuple[object, object]] = {
        "device": (made.device, str(backbone.device)),
        "dtype": (made.dtype, str(backbone.dtype).removeprefix("torch.")),
        "threads": (made.threads, _possible(made.threads)),
    }
    for library, version in made.versions.items():
        pairs[library] = version, importlib.metadata.version(library)
    differing = [f"{name} {there} there, {here} here" for name, (there, here) in pairs.items() if there != here]
    if differing:
        _warn(f"the picture may differ in its last bits: {'; '.join(differing)}.")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute with `count` threads, or as many as this machine has, until the block ends."""
    before = torch.get_num_threads()
    torch.set_num_threads(_possible(count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _possible(count: int) -> int:
    return min(count, max(os.cpu_count() or 1, torch.get_num_threads()))


def _keep(steps: Generator[ComposeStep, None, None], row: int, count: int) -> Generator[ComposeStep, None, None]:
    with threads(count), closing(steps):
        for step in steps:
            yield replace(step, latents=step.latents[row : row + 1], pictures=step.pictures[row : row + 1])


def _warn(text: str) -> None:
    warnings.warn(text, Cones2Warning, stacklevel=4)

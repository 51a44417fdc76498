"""What `cones2 compose` does: read subjects and places, check the order, draw under a bar, write the pictures."""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from cones2.backbones import Backbone
from cones2.checking import is_name
from cones2.cli.options import number, unique
from cones2.cli.outputs import Output, beside
from cones2.cli.progress import follow, waiting
from cones2.composing.again import recall, threads
from cones2.composing.heat import draw_attention
from cones2.composing.latents import write_latents
from cones2.composing.loop import compose
from cones2.composing.records import RecordedSubject, picture_record
from cones2.composing.settings import ComposeSettings
from cones2.errors import LayoutError, SettingsError
from cones2.files import expanded, make_folder
from cones2.guidance.leakage import Leakage
from cones2.layout.regions import Layout
from cones2.library import Library
from cones2.picture import write_picture
from cones2.prompts import parse_prompt
from cones2.residual.residual import Residual
from cones2.subjects import Subject

_BATCH = 4  # pictures drawn at once: more need more memory, and show nothing for longer


def read_subjects(
    learned: Iterable[str],
    plain: Iterable[str],
    *,
    strengths: Iterable[str],
    library: Library,
    recorded: Mapping[str, RecordedSubject] = MappingProxyType({}),
) -> dict[str, Subject]:
    """Read `--subject`, `--plain` and `--strength`, over the subjects of a record.

    Raises:
        SettingsError: a text can't be read, or a name is there twice or not at all.
        LibraryError: the library has no such subject.
        ResidualError: a file is not a residual, or a recorded one is not in the library.
        CaptionError: a plain word can't be used.
    """
    learned = (text if "=" in text else f"{text}={text}" for text in learned)
    sources = unique("--subject", learned, example="rex=rex.safetensors")
    words = unique("--plain", (text if "=" in text else f"{text}={text}" for text in plain), example="cup=mug")
    factors = unique("--strength", strengths, example="rex=0.8")
    for name in words.keys() & sources.keys():
        raise SettingsError(f"{name!r} is both a --subject and --plain: leave one out.")
    given = {name: _taught(read_residual(source, library), recorded.get(name)) for name, source in sources.items()}
    given |= {name: Subject(word) for name, word in words.items()}
    found = {name: given.get(name) or recall(name, each, library.find) for name, each in recorded.items()} | given
    return found | _strengthened(found, factors)


def read_residual(source: str, library: Library) -> Residual:
    """Read a subject from the library where `source` is a name, else from the file of this path.

    Raises:
        LibraryError: the library has no such subject.
        ResidualError: the file is not a residual.
    """
    return library.load(source) if is_name(source) else Residual.load(expanded(source))


class Drawn(NamedTuple):
    """A picture, its seed, what it was before the autoencoder drew it, how it was made, and where attention went."""

    seed: int
    picture: Image
    latents: Float[Tensor, "channels height width"]
    record: dict[str, Any]
    attention: tuple[Leakage, ...] = ()


@dataclass(frozen=True)
class Order:
    """Pictures to draw, checked as far as they can be without a model.

    Attributes:
        prompt: with placeholders.
        subjects: by name.
        layout: where they belong.
        settings: how to draw.
        keep: the one seed whose picture is wanted; the others are drawn with it, since a batch moves the last bits.
        threads: of PyTorch; None leaves them as they are.
        measure_attention: whether to tell and draw where the attention to each subject went.

    Raises:
        PromptError: prompt and subjects do not match.
        LayoutError: a region is for no subject.
        SettingsError: attention is to be measured, and there is no region to measure by.
    """

    prompt: str
    subjects: Mapping[str, Subject]
    layout: Layout | None
    settings: ComposeSettings
    keep: int | None = None
    threads: int | None = None
    measure_attention: bool = False

    @property
    def count(self) -> int:
        """How many pictures it makes."""
        return len(self.settings.seeds) if self.keep is None else 1

    @property
    def text(self) -> str:
        """What the model reads."""
        return parse_prompt(self.prompt, {name: subject.class_word for name, subject in self.subjects.items()}).text

    def __post_init__(self) -> None:
        _ = self.text  # checks the prompt
        for name in self.layout.names if self.layout else ():
            if name not in self.subjects:
                known = ", ".join(self.subjects) or "none"
                raise LayoutError(f"a region is for {name!r}, which is no --subject or --plain; those are: {known}.")
        if self.measure_attention and not (self.layout and self.layout.names):
            raise SettingsError("--attention measures by regions, and there are none: give --box or --layout.")

    def draw(self, backbone: Backbone, seeds: tuple[int, ...], *, what: str | None = None) -> Iterator[Drawn]:
        """Draw one batch under a bar that says `what`, else which seeds."""
        options: dict[str, Any] = {
            "subjects": self.subjects,
            "layout": self.layout,
            "settings": replace(self.settings, seeds=seeds),
        }
        with waiting("reading the prompt"):  # and, the first time, the text encoders' weights, to know what fits them
            steps = compose(backbone, self.prompt, **options, measure_attention=self.measure_attention)
        last = follow(steps, what or _seeds_told(seeds))
        attention = last.attention or [()] * len(seeds)
        for seed, picture, latents, readings in zip(seeds, last.pictures, last.latents, attention, strict=True):
            yield Drawn(seed, picture, latents, picture_record(backbone, self.prompt, seed, **options), readings)

    def carry_out(self, backbone: Backbone, output: Output, *, latents: Path | None = None) -> dict[str, Any]:
        """Draw all in batches, write each batch as soon as it is drawn, then all `latents`; report as JSON values."""
        began, written = time.monotonic(), []
        kept: dict[int, Tensor] = {}
        with threads(self.threads) if self.threads else nullcontext():
            for seeds in self._batches():
                for drawn in self._wanted(self.draw(backbone, seeds)):
                    path = output.write(drawn.picture, drawn.record, seed=drawn.seed)
                    told = {"path": str(path), "record": drawn.record}
                    written.append(told | ({"attention": self._tell(drawn, path)} if drawn.attention else {}))
                    if latents is not None:
                        kept[drawn.seed] = drawn.latents.cpu()
        if latents is not None:
            make_folder(latents.parent)
            write_latents(latents, torch.stack(list(kept.values())), list(kept))
        seconds = round(time.monotonic() - began, 3)
        return {"prompt": self.prompt, "text": self.text, "pictures": written, "seconds": seconds}

    def _tell(self, drawn: Drawn, path: Path) -> dict[str, Any]:
        """Draw where attention went beside the picture, and report it as JSON values."""
        heat_map = beside(path, "attention")
        sheet = draw_attention(drawn.picture, drawn.attention, self.layout or Layout({}))
        write_picture(heat_map, sheet, drawn.record)
        subjects = {each.subject: {"reading": str(each), **each.describe()} for each in drawn.attention}
        return {"heat_map": str(heat_map), "subjects": subjects}

    def _batches(self) -> list[tuple[int, ...]]:
        seeds = self.settings.seeds
        size = _BATCH if self.keep is None else len(seeds)
        return [seeds[first : first + size] for first in range(0, len(seeds), size)]

    def _wanted(self, drawn: Iterable[Drawn]) -> list[Drawn]:
        return list(drawn) if self.keep is None else [each for each in drawn if each.seed == self.keep][:1]


def _seeds_told(seeds: tuple[int, ...]) -> str:
    return f"drawing seed {seeds[0]}" if len(seeds) == 1 else f"drawing seeds {seeds[0]}-{seeds[-1]}"


def _taught(residual: Residual, recorded: RecordedSubject | None) -> Subject:
    return Subject(residual.class_word, residual, **(recorded.options if recorded else {}))


def _strengthened(subjects: Mapping[str, Subject], factors: Mapping[str, str]) -> dict[str, Subject]:
    """Give those subjects that have a `--strength`, with it."""
    learned = [name for name, subject in subjects.items() if subject.residual is not None]
    for name in factors:
        if name not in learned:
            known = ", ".join(learned) or "none"
            raise SettingsError(f"--strength names {name!r}, which is no --subject: expected {known}.")
    return {name: replace(subjects[name], strength=number("--strength", text)) for name, text in factors.items()}

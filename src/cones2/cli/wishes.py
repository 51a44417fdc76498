"""What a user asks for on the command line: a new order, or a picture again but for the options given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import typer
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from cones2.backbones import Backbone, open_backbone
from cones2.cli.orders import Order, read_subjects
from cones2.composing.again import warn_of_differences
from cones2.composing.records import PictureRecord
from cones2.composing.settings import ComposeSettings
from cones2.errors import BackboneError
from cones2.layout.regions import Layout
from cones2.library import Library
from cones2.subjects import Subject


@dataclass(frozen=True)
class Wish:
    """A prompt, and the picture to start from, if any: what the user gives comes before what the picture says."""

    prompt: str
    made: PictureRecord | None
    library: Library

    @classmethod
    def read(cls, prompt: str | None, source: Path | None, *, library: Path | None) -> "Wish":
        """Read the picture; a prompt of its own leaves out those of its subjects that it does not name.

        Raises:
            typer.BadParameter: there is neither a prompt nor a picture.
            PictureError: the picture has no sound record.
        """
        if prompt is None and source is None:
            raise typer.BadParameter("give one, or a picture with --from.", param_hint="PROMPT")
        made = None if source is None else PictureRecord.load(source)
        if made and prompt is not None:
            made = made.naming(frozenset(name for name in made.subjects if f"{{{name}}}" in prompt))
        return cls(made.prompt if made and prompt is None else prompt or "", made, Library.open(library))

    def subjects(
        self, learned: Sequence[str], plain: Sequence[str], *, strengths: Sequence[str]
    ) -> Mapping[str, Subject]:
        """Read `--subject`, `--plain` and `--strength`, over the picture's subjects; raises as `read_subjects` does."""
        recorded = self.made.subjects if self.made else {}
        return read_subjects(learned, plain, strengths=strengths, library=self.library, recorded=recorded)

    @property
    def layout(self) -> Layout | None:
        """The picture's layout."""
        return self.made.layout if self.made else None

    def settings(self, values: Mapping[str, Any], *, seed: int | None, count: int | None) -> ComposeSettings:
        """Give the picture's settings, else the usual ones, but for the values given; None is not given.

        Raises:
            SettingsError: a value is outside its range.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if self.made is None or seed is not None or count is not None:
            usual = self.made.seed if self.made else 0
            first = usual if seed is None else seed
            given["seeds"] = tuple(range(first, first + (count or 1)))
        return replace(self.made.settings if self.made else ComposeSettings(), **given)

    def order(
        self, subjects: Mapping[str, Subject], layout: Layout | None, settings: ComposeSettings, *, again: bool
    ) -> Order:
        """Give the order; drawn `again`, in the picture's own batch, the picture itself is kept of that.

        Raises:
            PromptError: prompt and subjects do not match.
            LayoutError: a region is for no subject.
        """
        if self.made is None or not again:
            return Order(self.prompt, subjects, layout, settings)
        return Order(self.prompt, subjects, layout, settings, keep=self.made.seed, threads=self.made.threads)

    def open_backbone(
        self, model: str | None, *, device: str | None, dtype: str | None, model_config: str | None = None
    ) -> Backbone:
        """Open the model that is given, else the picture's, else `mini`.

        Raises:
            BackboneError: it can't be opened, or the picture's is not one that the user has.
        """
        if self.made is None:
            return open_backbone(model or "mini", device=device, dtype=dtype, model_config=model_config)
        device, dtype = device or _present(self.made.device), dtype or self.made.dtype
        model = model or _trusted(self.made.backbone.name)
        backbone = open_backbone(model, device=device, dtype=dtype, model_config=model_config)
        warn_of_differences(backbone, self.made)
        return backbone


def _trusted(name: str) -> str:
    """Give the model that a picture names, if it is `mini` or on this machine: nobody's picture fetches a model."""
    try:
        fetched = "/" in name and isinstance(try_to_load_from_cache(name, "model_index.json"), str)
    except HFValidationError:
        fetched = False
    if name == "mini" or fetched:
        return name
    raise BackboneError(f"the picture was drawn on {name!r}: give that model, or another one, with --model.")


def _present(device: str) -> str | None:
    """Give the picture's device if this machine has such a one; None is the best there is."""
    kind = device.split(":")[0]
    return kind if torch.get_device_module(kind).is_available() else None

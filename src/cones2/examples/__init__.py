"""Example subjects for `mini`: photos of individuals that it never saw, and residuals learned from them.

Where each drawing comes from is in `subjects.json`; how they were made, in `recipes/mini/examples.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from cones2.residual import Residual

if TYPE_CHECKING:
    from cones2.photos import Photo

_HERE = Path(__file__).parent


@dataclass(frozen=True, repr=False)
class Example:
    """An example subject."""

    name: str
    class_word: str
    folder: Path

    def __repr__(self) -> str:
        return f"Example({self.name!r}, {self.class_word!r})"

    @property
    def photos(self) -> tuple["Photo", ...]:
        """Its photos, read anew each time."""
        from cones2.photos import load_photos  # which imports PyTorch

        return load_photos(self.folder / "photos")

    @property
    def residual(self) -> Residual:
        """What was learned from its photos on `mini`, read anew each time.

        Raises:
            ResidualError: the file is missing or damaged.
        """
        return Residual.load(self.folder / f"{self.name}.safetensors")


def _read_examples() -> dict[str, Example]:
    subjects = json.loads((_HERE / "subjects.json").read_text(encoding="utf-8"))
    return {name: Example(name, subject["class_word"], _HERE / name) for name, subject in subjects.items()}


EXAMPLES: Mapping[str, Example] = MappingProxyType(_read_examples())
"""The shipped subjects by name."""

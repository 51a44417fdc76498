"""How a residual is learned, as one small validated setting; the presets `paper`, `mini` and `direct`."""

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Literal

import pydantic

from cones2.errors import SettingsError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a residual is learned (arXiv:2305.19327, Sec. 3.2). The defaults are the preset `paper`.

    Attributes:
        steps: optimiser steps.
        batch_size: noised photos a step.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's.
        preservation_weight: λ of Eq. 4.
        captions_per_step: captions of Eq. 3's mean in each step.
        caption_count: captions containing the class word, for Eqs. 3 and 5, when the user brings none.
        views_per_photo: the whole photo, and this many less one closer crops of it. Each is encoded once.
        tune: which of the text encoder's parameters are tuned: `all`, those of its transformer `layers`, or none, the
            `residual` itself being learned at the encoder's output (Table A1).

    Raises:
        SettingsError: a value outside its range.
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(extra="forbid", strict=True)

    steps: int = 3000
    batch_size: int = 1
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    preservation_weight: float = 0.01
    captions_per_step: int = 4
    caption_count: int = 1000
    views_per_photo: int = 1
    tune: Literal["all", "layers", "residual"] = "all"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "captions_per_step", "caption_count", "views_per_photo"):
            value = getattr(self, name)
            _check(name, value, value >= 1, "at least 1")
        _check("learning_rate", self.learning_rate, 0 < self.learning_rate < math.inf, "a number above 0")
        for name in ("weight_decay", "preservation_weight"):
            value = getattr(self, name)
            _check(name, value, 0 <= value < math.inf, "a number of at least 0")

    @classmethod
    def from_toml(cls, path: Path) -> "Recipe":
        """Read a recipe file: the settings to change, and `preset = "mini"` to start from another preset than `paper`.

        Raises:
            SettingsError: the file can't be read, is no TOML, or has an unknown setting or a value out of range.
        """
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            expected = "Expected a TOML file with lines like `steps = 300`."
            raise SettingsError(f"can't read the recipe {path}: {' '.join(str(error).split())}. {expected}") from error
        base = _find_preset(settings.pop("preset", "paper"))
        # By way of JSON, since pydantic's strict mode makes a dataclass of a JSON object but not of a dict.
        merged = json.dumps(dataclasses.asdict(base) | settings, default=str)
        try:
            return pydantic.TypeAdapter(cls).validate_json(merged)
        except pydantic.ValidationError as error:
            raise SettingsError(f"{path}: {_explain(error)}") from error


def find_recipe(name_or_toml: str) -> Recipe:
    """The preset of this name, or the recipe in this TOML file (a name that ends in `.toml`).

    Raises:
        SettingsError: there is no such preset, or the file is not a recipe.
    """
    if name_or_toml.endswith(".toml"):
        return Recipe.from_toml(Path(name_or_toml))
    return _find_preset(name_or_toml)


def _find_preset(name: object) -> Recipe:
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(f"there is no recipe {name!r}. Expected {', '.join(RECIPES)} or the path of a .toml file.")
    return RECIPES[name]


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise SettingsError(f"{name} is {value!r}. Expected {expected}: correct the recipe.")


def _explain(error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    name = str(first["loc"][0])
    if first["type"] == "unexpected_keyword_argument":
        known = [field.name for field in dataclasses.fields(Recipe)]
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        return f"{name!r} is no setting of a recipe. Did you mean {nearest!r}?"
    return f"{name} is {first['input']!r}. {first['msg']}: correct the recipe."


# For a subject in a minute on two CPU cores. With 4 captions a step costs 1.2 times the UNet's forward and backward,
# with 16 it costs 1.9 times.
_MINI = Recipe(steps=300, batch_size=4, learning_rate=1e-4, weight_decay=0.0, views_per_photo=4, tune="layers")

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Batch, learning rate and steps are the paper's (App. A). AdamW and its decay are those of the authors' code,
        # since the paper names no optimiser; it names no λ either, so 0.01 is ours.
        "paper": Recipe(),
        "mini": _MINI,
        # The other way of the paper's Table A1, for any backbone. The paper says nothing of its settings: these are
        # ours, chosen on mini (docs/learning.md): with more steps the residual grows, and goes less well with others.
        "direct": dataclasses.replace(_MINI, steps=100, learning_rate=1e-2, tune="residual"),
    }
)

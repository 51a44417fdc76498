"""How a residual is learned, as one small validated setting; the presets `paper`, `mini` and `direct`."""

import dataclasses
import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import pydantic

from cones2.errors import SettingsError, check_fields
from cones2.files import expanded, read_toml

_Count = Annotated[int, pydantic.Field(ge=1, le=10**9)]
_AtMostAHundred = Annotated[int, pydantic.Field(ge=1, le=100)]
_Positive = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
_Side = Annotated[int, pydantic.Field(ge=64, le=2048, multiple_of=16)]
_NotNegative = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a residual is learned (arXiv:2305.19327, Sec. 3.2). The defaults are the preset `paper`.

    Attributes:
        steps: optimiser steps.
        batch_size: noised photos in a step.
        learning_rate: AdamW's, constant.
        weight_decay: AdamW's.
        preservation_weight: λ of Eq. 4.
        captions_per_step: captions of Eq. 3's mean in each step.
        caption_count: captions that contain the class word, for Eqs. 3 and 5, when the user brings none.
        views_per_photo: the whole photo, and this many less one closer crops of it. Each is encoded once.
        tune: which of the text encoder's parameters are tuned: `all`, those of its transformer `layers`, or none, the
            `residual` itself being learned at the encoder's output (Table A1).
        averaged: with `tune = "residual"`: Δ is the average of what the steps came to, newer ones weighing more.
        norm_limit: with `tune = "residual"`: how long Δ may become at a token, in lengths of the class word's own
            embedding there; None is no limit.
        side: of the views in pixels, which takes less memory where it is less than the model's own, None.

    Raises:
        SettingsError: a value is of another type or outside its range.
    """

    steps: _Count = 3000
    batch_size: _AtMostAHundred = 1
    learning_rate: _Positive = 1e-6
    weight_decay: _NotNegative = 0.01
    preservation_weight: _NotNegative = 0.01
    captions_per_step: _AtMostAHundred = 4
    caption_count: _Count = 1000
    views_per_photo: _AtMostAHundred = 1
    tune: Literal["all", "layers", "residual"] = "all"
    averaged: bool = False
    norm_limit: _Positive | None = None
    side: _Side | None = None

    def __post_init__(self) -> None:
        check_fields(self, "a recipe")
        for name in ("averaged", "norm_limit"):
            if getattr(self, name) and self.tune != "residual":
                raise SettingsError(f"{name} is for tune 'residual', and tune is {self.tune!r}: leave one of them out.")

    @classmethod
    def from_toml(cls, path: Path | str) -> "Recipe":
        """Read a recipe file: the settings to change, and `preset = "mini"` to start from another preset than `paper`.

        Raises:
            SettingsError: the file can't be read, is not TOML, or has an unknown setting or a value out of range.
        """
        settings = read_toml(expanded(path), example="lines such as steps = 300")
        try:
            base = _find_preset(settings.pop("preset", "paper"))
            known = [field.name for field in dataclasses.fields(cls)]
            if unknown := [name[:100] for name in settings if name not in known]:
                nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)[0]
                raise SettingsError(f"{unknown[0]!r} is not a setting of a recipe. Did you mean {nearest!r}?")
            return dataclasses.replace(base, **settings)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from error


def find_recipe(recipe: Recipe | Path | str) -> Recipe:
    """Return a recipe as it is, the preset of a name, or what a `.toml` file says; SettingsError for all else."""
    if isinstance(recipe, Recipe):
        return recipe
    return Recipe.from_toml(recipe) if str(recipe).endswith(".toml") else _find_preset(recipe)


def _find_preset(name: object) -> Recipe:
    if not isinstance(name, str) or name not in RECIPES:
        raise SettingsError(
            f"there is no recipe {reprlib.repr(name)}: expected a Recipe, {', '.join(RECIPES)}, or the path of a .toml"
            " file."
        )
    return RECIPES[name]


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Batch, learning rate and steps are the paper's (App. A). AdamW and its decay are those of the authors' code,
        # since the paper names no optimiser; it names no λ either, so 0.01 is ours.
        "paper": Recipe(),
        # For a subject in a minute on two CPU cores. What Eq. 3's captions cost is shared by the photos of a step: half
        # of the steps with twice the photos, at twice the rate, come to a lower Eq. 2 in three quarters of the time.
        "mini": Recipe(steps=150, batch_size=8, learning_rate=2e-4, weight_decay=0.0, views_per_photo=4, tune="layers"),
        # The other way of the paper's Table A1, for any model. The paper says nothing of its settings: these are ours,
        # chosen on mini (docs/learning.md) and untried on others.
        "direct": Recipe(
            steps=300,
            batch_size=4,
            learning_rate=1e-2,
            weight_decay=0.0,
            views_per_photo=4,
            tune="residual",
            averaged=True,
        ),
    }
)
"""Ready-made recipes by name."""

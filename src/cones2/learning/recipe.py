"""How a residual is learned, as one small validated setting; the presets `paper`, `mini` and `direct`."""

import dataclasses
import difflib
import reprlib
import sys
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeGuard, get_args

from cones2.errors import SettingsError
from cones2.files import read_bounded

LARGEST_RECIPE = 2**20
_AVERAGED = "true or false, and false unless tune is residual"

Tune = Literal["all", "layers", "residual"]


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
        averaged: with `tune = "residual"`: Δ is the average of what the steps came to, newer ones weighing more.

    Raises:
        SettingsError: a value outside its range.
    """

    steps: int = 3000
    batch_size: int = 1
    learning_rate: float = 1e-6
    weight_decay: float = 0.01
    preservation_weight: float = 0.01
    captions_per_step: int = 4
    caption_count: int = 1000
    views_per_photo: int = 1
    tune: Tune = "all"
    averaged: bool = False

    def __post_init__(self) -> None:
        _check_values(dataclasses.asdict(self))

    @classmethod
    def from_toml(cls, path: Path) -> "Recipe":
        """Read a recipe file: the settings to change, and `preset = "mini"` to start from another preset than `paper`.

        Raises:
            SettingsError: the file can't be read, is no TOML, or has an unknown setting or a value out of range.
        """
        content = read_bounded(path, limit=LARGEST_RECIPE, error=SettingsError)
        try:
            settings = tomllib.loads(content.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            expected = "Expected a TOML file with lines like `steps = 300`."
            raise SettingsError(f"can't read the recipe {path}: {' '.join(str(error).split())}. {expected}") from error
        try:
            base = _find_preset(settings.pop("preset", "paper"))
            _check_names(settings)
            _check_values(dataclasses.asdict(base) | settings)
            typed = {name: type(getattr(base, name))(value) for name, value in settings.items()}  # 1 is 1.0 for a rate
            return dataclasses.replace(base, **typed)
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from error


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
        raise SettingsError(
            f"there is no recipe {reprlib.repr(name)}. Expected {', '.join(RECIPES)} or the path of a .toml file."
        )
    return RECIPES[name]


def _check_names(settings: Iterable[str]) -> None:
    known = [field.name for field in dataclasses.fields(Recipe)]
    for name in settings:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise SettingsError(f"{name[:100]!r} is no setting of a recipe. Did you mean {nearest!r}?")


def _check_values(settings: Mapping[str, object]) -> None:
    for name in ("steps", "batch_size", "captions_per_step", "caption_count", "views_per_photo"):
        value = settings[name]
        _check(name, value, type(value) is int and value >= 1, "a whole number of at least 1")
    rate = settings["learning_rate"]
    _check("learning_rate", rate, _is_number(rate) and 0 < rate <= sys.float_info.max, "a number above 0")
    for name in ("weight_decay", "preservation_weight"):
        value = settings[name]
        _check(name, value, _is_number(value) and 0 <= value <= sys.float_info.max, "a number of at least 0")
    _check("tune", settings["tune"], settings["tune"] in get_args(Tune), "all, layers or residual")
    averaged, alone = settings["averaged"], settings["tune"] == "residual"
    _check("averaged", averaged, averaged is False or (averaged is True and alone), _AVERAGED)


def _check(name: str, value: object, valid: bool, expected: str) -> None:
    if not valid:
        raise SettingsError(f"{name} is {reprlib.repr(value)}. Expected {expected}: correct the recipe.")


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


# For a subject in a minute on two CPU cores. What Eq. 3's captions cost is shared by the photos of a step: half of the
# steps with twice the photos, at twice the rate, come to a lower Eq. 2 in three quarters of the time.
_MINI = Recipe(steps=150, batch_size=8, learning_rate=2e-4, weight_decay=0.0, views_per_photo=4, tune="layers")
_DIRECT = Recipe(
    steps=300,
    batch_size=4,
    learning_rate=1e-2,
    weight_decay=0.0,
    views_per_photo=4,
    tune="residual",
    averaged=True,
)

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        # Batch, learning rate and steps are the paper's (App. A). AdamW and its decay are those of the authors' code,
        # since the paper names no optimiser; it names no λ either, so 0.01 is ours.
        "paper": Recipe(),
        "mini": _MINI,
        # The other way of the paper's Table A1, for any backbone. The paper says nothing of its settings: these are
        # ours, chosen on mini (docs/learning.md) and untried on others.
        "direct": _DIRECT,
    }
)

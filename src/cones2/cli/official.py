"""`cones2 compose --official`: what a config of the authors' script asks for, but for the options given."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cones2.authors.config import OfficialConfig
from cones2.authors.order import OFFICIAL_SEEDS, order_official
from cones2.backbones import Backbone
from cones2.cli.orders import Order
from cones2.errors import SettingsError


@dataclass(frozen=True)
class OfficialWish:
    """A config, the seeds to draw, and settings in place of the authors'."""

    config: OfficialConfig
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, settings: Mapping[str, Any], *, seed: int | None, count: int | None) -> "OfficialWish":
        """Read the config; settings of None are not given.

        Raises:
            Cones2Error: the config, or a file that it names, can't be used.
        """
        seeds = OFFICIAL_SEEDS
        if seed is not None or count is not None:
            seeds = tuple(range(seed or 0, (seed or 0) + (count or 1)))
        given = {name: value for name, value in settings.items() if value is not None}
        return cls(OfficialConfig.load(path), seeds, given)

    def order(self, backbone: Backbone) -> Order:
        """Give the order, for the model that the config's residuals were learned on.

        Raises:
            Cones2Error: prompt, residuals and colours do not match, or a setting is outside its range.
        """
        prompt, subjects, layout, settings = order_official(backbone, self.config)
        return Order(prompt, subjects, layout, replace(settings, seeds=self.seeds, **self.settings))


def refuse_beside(option: str, others: Mapping[str, object]) -> None:
    """Refuse what an option says already.

    Raises:
        SettingsError: another one is given.
    """
    for other, value in others.items():
        if value:
            raise SettingsError(f"{other} and {option} can't be used together: leave one out.")

"""The leakage meter: where in the picture the attention to each subject's words fell.

It takes the scores before a layout's edit: the edit hides a subject in the others' regions, so edited attention is 0
there whatever the picture shows; the scores before it tell whose features the picture has, and where. Only every fifth
UNet call is looked at, as building scores costs what the fused attention saves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import SettingsError
from cones2.guidance.cells import own_cells
from cones2.guidance.layout_guidance import Spans
from cones2.layout.regions import Layout


@dataclass(frozen=True, eq=False)
class Leakage:
    """Where the attention to one subject's words fell in one picture, in parts of 1.

    Attributes:
        subject: its name.
        own: in its own region; None where it has none.
        others: by other subject, in that one's region less its own; where others overlap, both count it.
        outside: in no region.
        heat: the attention itself, 1 in all, on the finest grid that was looked at.
    """

    subject: str
    own: float | None
    others: Mapping[str, float]
    outside: float
    heat: Float[Tensor, "height width"]

    def __str__(self) -> str:
        """Give one line, as in `cup: 22 % in its own region, 61 % in rex's, 17 % outside`."""
        own = [] if self.own is None else [f"{self.own:.0%} in its own region"]
        others = [f"{part:.0%} in {name}'s" for name, part in self.others.items()]
        parts = ", ".join([*own, *others, f"{self.outside:.0%} outside"])
        return f"{self.subject}: {parts.replace('%', ' %')}"

    def describe(self) -> dict[str, Any]:
        """Give the numbers as JSON values."""
        return {"own": self.own, "others": dict(self.others), "outside": self.outside}


class AttentionMeter:
    """Adds up the attention to each subject's words over layers, heads and the UNet calls that it looks at.

    Args:
        layout: the regions to measure by.
        spans: the token ranges of every subject to measure.
        every: how many UNet calls to go on after each that is looked at; the first one is.

    Raises:
        SettingsError: the layout has no region.
    """

    def __init__(self, layout: Layout, spans: Spans, *, every: int = 5) -> None:
        if not layout.names:
            raise SettingsError(
                "attention is measured by regions, and there are none: give a layout, or don't measure."
            )
        self._layout = layout
        self._spans = spans
        self._every = every
        self._calls = 0
        self._maps: dict[tuple[int, int], Float[Tensor, "pictures height width subjects"]] = {}

    def begin_call(self) -> bool:
        """Count a UNet call, and tell whether its layers are to be looked at."""
        self._calls += 1
        return (self._calls - 1) % self._every == 0

    @torch.no_grad()
    def look(
        self,
        query: Float[Tensor, "pictures heads pixels dim"],
        key: Float[Tensor, "pictures heads tokens dim"],
        grid: tuple[int, int],
    ) -> None:
        """Add a layer's attention, for the conditional rows, one for each picture."""
        attention = torch.softmax((query @ key.mT).float() * query.shape[-1] ** -0.5, dim=-1)
        words = torch.zeros(key.shape[2], len(self._spans), device=key.device)
        for column, spans in enumerate(self._spans.values()):
            for start, stop in spans:
                words[start:stop, column] = 1
        found = (attention.mean(1) @ words).reshape(len(query), *grid, len(self._spans))
        self._maps[grid] = self._maps[grid] + found if grid in self._maps else found

    def read(self) -> tuple[tuple[Leakage, ...], ...]:
        """Give the reading of every subject, picture by picture; each layer counts the same, whatever its grid."""
        finest = max(self._maps)
        maps = {grid: found.cpu() / (grid[0] * grid[1]) for grid, found in self._maps.items()}
        heat = torch.stack([_enlarged(found, finest) for found in maps.values()]).sum(0)
        pictures = range(len(heat))
        return tuple(
            tuple(
                self._reading(name, {grid: found[i, :, :, j] for grid, found in maps.items()}, heat[i, :, :, j])
                for j, name in enumerate(self._spans)
            )
            for i in pictures
        )

    def _reading(
        self,
        name: str,
        maps: Mapping[tuple[int, int], Float[Tensor, "_ _"]],
        heat: Float[Tensor, "height width"],
    ) -> Leakage:
        total = sum(float(found.sum()) for found in maps.values())

        def part(where: Mapping[tuple[int, int], Bool[Tensor, "_ _"]]) -> float:
            return sum(float(found[where[grid]].sum()) for grid, found in maps.items()) / total

        own = {grid: self._cells(name, grid) for grid in maps}
        others = {other: {grid: self._cells(other, grid) & ~own[grid] for grid in maps} for other in self._others(name)}
        outside = {grid: ~torch.stack([own[grid], *(cells[grid] for cells in others.values())]).any(0) for grid in maps}
        return Leakage(
            subject=name,
            own=part(own) if name in self._layout.names else None,
            others={other: part(cells) for other, cells in others.items()},
            outside=part(outside),
            heat=heat / heat.sum(),
        )

    def _others(self, name: str) -> list[str]:
        return [other for other in self._layout.names if other != name]

    def _cells(self, name: str, grid: tuple[int, int]) -> Bool[Tensor, "_ _"]:
        if name not in self._layout.names:
            return torch.zeros(grid, dtype=torch.bool)
        return own_cells(self._layout, name, *grid)


def _enlarged(
    maps: Float[Tensor, "pictures _ _ subjects"], grid: tuple[int, int]
) -> Float[Tensor, "pictures _ _ subjects"]:
    """Bring maps to a finer grid, with what they hold in all kept."""
    finer = F.interpolate(maps.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    scale = maps.sum((1, 2)) / finer.sum((2, 3))
    return (finer * scale[..., None, None]).permute(0, 2, 3, 1)

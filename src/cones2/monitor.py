"""The attention meter: where in the picture the attention to each subject's words fell.

It reads the scores before a layout's edit, which hides a subject in the others' regions whatever the picture shows.
Only every fifth call of the denoiser is looked at, since building the scores costs what fused attention saves.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from cones2.errors import SettingsError
from cones2.guidance import Spans
from cones2.layout import Layout
from cones2.rasterize import own_cells

Grid = tuple[int, int]

_EVERY = 5


@dataclass(frozen=True, eq=False)
class AttentionReading:
    """Where the attention to one subject's words fell in one picture, as fractions of 1.

    Attributes:
        subject: its name.
        own: in its own region; None if it has none.
        others: by other subject, in that one's region less its own; where others overlap, both count it.
        outside: in no region.
        heat: the attention itself, which sums to 1, on the finest grid that was looked at.
    """

    subject: str
    own: float | None
    others: Mapping[str, float]
    outside: float
    heat: Float[Tensor, "height width"]

    def __repr__(self) -> str:
        """Return one line, as in `cup: 22 % in its own region, 61 % in rex's, 17 % outside`."""
        own = [] if self.own is None else [f"{self.own:.0%} in its own region"]
        others = [f"{part:.0%} in {name}'s" for name, part in self.others.items()]
        parts = ", ".join([*own, *others, f"{self.outside:.0%} outside"])
        return f"{self.subject}: {parts.replace('%', ' %')}"

    def describe(self) -> dict[str, Any]:
        """Return the fractions as JSON values."""
        return {"own": self.own, "others": dict(self.others), "outside": self.outside}


class AttentionMeter:
    """Adds up the attention to each subject's words over layers, heads and every fifth call of the denoiser.

    Raises:
        SettingsError: the layout has no region.
    """

    def __init__(self, layout: Layout, spans: Spans) -> None:
        if not layout.names:
            raise SettingsError("attention is measured by regions, and there are none: give a layout.")
        self._layout = layout
        self._spans = spans
        self._calls = 0
        self._maps: dict[Grid, Float[Tensor, "pictures height width subjects"]] = {}
        self._own: dict[Grid, dict[str, Bool[Tensor, "height width"]]] = {}

    def begin_call(self) -> bool:
        """Count a call of the denoiser, and return whether its layers are to be looked at."""
        self._calls += 1
        return self._calls % _EVERY == 1

    @torch.no_grad()
    def look(
        self,
        query: Float[Tensor, "pictures heads pixels dim"],
        key: Float[Tensor, "pictures heads tokens dim"],
        grid: Grid,
    ) -> None:
        """Add a layer's attention, of the conditional rows only, one for each picture; `grid` is (height, width)."""
        attention = torch.softmax((query @ key.mT).float() * query.shape[-1] ** -0.5, dim=-1)
        words = torch.zeros(key.shape[2], len(self._spans), dtype=torch.float32, device=key.device)
        for column, spans in enumerate(self._spans.values()):
            for start, stop in spans:
                words[start:stop, column] = 1
        found = (attention.mean(1) @ words).reshape(len(query), *grid, len(self._spans))
        self._maps[grid] = self._maps[grid] + found if grid in self._maps else found

    def read(self) -> tuple[tuple[AttentionReading, ...], ...]:
        """Return every subject's reading, picture by picture; each layer counts the same. Empty if none was seen."""
        if not self._maps:
            return ()
        maps = {grid: found.cpu() / (grid[0] * grid[1]) for grid, found in self._maps.items()}
        heat = torch.stack([_enlarged(found, max(maps)) for found in maps.values()]).sum(0)

        def reading(picture: int, column: int, name: str) -> AttentionReading:
            seen = {grid: found[picture, ..., column] for grid, found in maps.items()}
            return self._reading(name, seen, heat[picture, ..., column])

        pictures = range(len(heat))
        return tuple(tuple(reading(each, *span) for span in enumerate(self._spans)) for each in pictures)

    def _reading(
        self, name: str, maps: Mapping[Grid, Float[Tensor, "_ _"]], heat: Float[Tensor, "height width"]
    ) -> AttentionReading:
        masses = dict.fromkeys(self._layout.names, 0.0)
        outside = 0.0
        for grid, found in maps.items():
            cells = self._cells(grid)
            own = cells.get(name, torch.zeros(grid, dtype=torch.bool, device="cpu"))
            for other in cells:
                masses[other] += float(found[own if other == name else cells[other] & ~own].sum())
            outside += float(found[~torch.stack(list(cells.values())).any(0)].sum())
        total = sum(float(found.sum()) for found in maps.values())
        parts = {other: mass / total for other, mass in masses.items()}
        return AttentionReading(name, parts.pop(name, None), parts, outside / total, heat / heat.sum())

    def _cells(self, grid: Grid) -> dict[str, Bool[Tensor, "height width"]]:
        if grid not in self._own:
            cells = own_cells(self._layout, *grid)
            self._own[grid] = {name: torch.from_numpy(own) for name, own in cells.items()}
        return self._own[grid]


def _enlarged(
    maps: Float[Tensor, "pictures _ _ subjects"], grid: Grid
) -> Float[Tensor, "pictures rows columns subjects"]:
    """Return maps on a finer grid; what each holds in all stays the same."""
    finer = F.interpolate(maps.permute(0, 3, 1, 2), grid, mode="bilinear", align_corners=False)
    scale = maps.sum((1, 2)) / finer.sum((2, 3))
    return (finer * scale[..., None, None]).permute(0, 2, 3, 1)

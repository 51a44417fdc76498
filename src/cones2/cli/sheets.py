"""What `cones2 grid` does: read the axes, check every cell, draw them one by one, hang them on one sheet."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cones2.backbones import Backbone
from cones2.cli.options import unique
from cones2.cli.orders import Drawn, Order, read_residual
from cones2.cli.outputs import Output
from cones2.composing.grid import Axis, Cell, parse_values, plan_grid
from cones2.composing.settings import ComposeSettings
from cones2.composing.sizes import latent_shape
from cones2.layout.regions import Layout
from cones2.library import Library
from cones2.picture import Row, contact_sheet, write_picture
from cones2.subjects import Subject


def read_axes(texts: Iterable[str], library: Library) -> tuple[Axis, ...]:
    """Read `--vary`.

    Raises:
        SettingsError: a text can't be read, or names what can't be varied.
        LibraryError: the library has no such subject.
        ResidualError: a file is not a residual.
    """
    given = unique("--vary", texts, example="seed=0,1,2,3")
    return tuple(_axis(name, [value.strip() for value in text.split(",")], library) for name, text in given.items())


@dataclass(frozen=True, eq=False)
class Plan:
    """A grid to draw: the order of each cell, row by row.

    Attributes:
        prompt: of all.
        axes: what changes.
        rows: the cells.
        orders: in the cells' order, checked as far as they can be without a model.
    """

    prompt: str
    axes: tuple[Axis, ...]
    rows: tuple[tuple[Cell, ...], ...]
    orders: tuple[Order, ...]

    @classmethod
    def check(
        cls,
        prompt: str,
        axes: tuple[Axis, ...],
        *,
        subjects: Mapping[str, Subject],
        layout: Layout | None,
        settings: ComposeSettings,
    ) -> "Plan":
        """Plan the cells.

        Raises:
            Cones2Error: one of them can't be drawn.
        """
        varied = {axis.subject: _first(axis) for axis in axes if axis.name.startswith("subject.")}
        rows = plan_grid(axes, subjects={**varied, **subjects}, settings=settings)
        orders = tuple(Order(prompt, cell.subjects, layout, cell.settings) for row in rows for cell in row)
        return cls(prompt, axes, rows, orders)

    def placed(self, layout: Layout | None) -> "Plan":
        """Give the same with another layout of the same names."""
        return replace(self, orders=tuple(replace(order, layout=layout) for order in self.orders))

    @property
    def count(self) -> int:
        """How many pictures it has."""
        return len(self.orders)

    def carry_out(self, backbone: Backbone, out: Path, *, cell: int) -> dict[str, Any]:
        """Draw the cells, write each as soon as it is drawn, then the sheet; report as JSON values.

        Raises:
            SettingsError: the size of one does not suit the model; told before any is drawn.
        """
        for order in self.orders:
            latent_shape(backbone, order.settings)
        began, output, written, drawn = time.monotonic(), Output(out), [], []
        for number, order in enumerate(self.orders, start=1):
            picture = self._draw(backbone, order, number)
            written.append(output.write(picture.picture, picture.record, seed=picture.seed))
            drawn.append(picture)
        sheet = out / f"{written[0].name.partition('-')[0]}-grid.png"
        files = [path.name for path in written]
        made = {"prompt": self.prompt, "grid": {axis.name: list(axis.labels) for axis in self.axes}, "pictures": files}
        write_picture(sheet, contact_sheet(self._hang(drawn), cell=cell), made)
        pictures = [
            {"path": str(path), "labels": dict(cell.labels), "record": each.record}
            for path, cell, each in zip(written, self._cells(), drawn, strict=True)
        ]
        return {"grid": str(sheet), "pictures": pictures, "seconds": round(time.monotonic() - began, 3)}

    def _draw(self, backbone: Backbone, order: Order, number: int) -> Drawn:
        (drawn,) = order.draw(backbone, order.settings.seeds, what=f"drawing {number} of {self.count}")
        return drawn

    def _cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row]

    def _hang(self, drawn: Sequence[Drawn]) -> list[Row]:
        """Label rows by what is the same in them, and pictures by what is not."""
        across, width = self.axes[0], len(self.axes[0].values)
        return [
            Row(
                _told({name: row[0].labels[name] for name in row[0].labels if name != across.name}) or self.prompt,
                tuple(each.picture for each in drawn[width * number : width * (number + 1)]),
                tuple(_told({across.name: cell.labels[across.name]}) for cell in row),
            )
            for number, row in enumerate(self.rows)
        ]


def _axis(name: str, texts: list[str], library: Library) -> Axis:
    name = name if "." in name else name.replace("-", "_")
    values = parse_values(name, texts)
    if name.startswith("subject."):
        values = tuple(read_residual(value, library) for value in values)
    return Axis(name, values, tuple(texts))


def _first(axis: Axis) -> Subject:
    return Subject(axis.values[0].class_word, axis.values[0])


def _told(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {label}" for name, label in labels.items())

"""What `cones2 demo` does: learn, draw with and without layout and residuals, and hang it all on one sheet."""

import json
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from cones2.backbones import Backbone
from cones2.cli.orders import Order
from cones2.cli.progress import follow
from cones2.composing.settings import ComposeSettings
from cones2.examples import EXAMPLES
from cones2.files import make_folder
from cones2.layout.drawing import draw_layout
from cones2.layout.regions import Layout
from cones2.learning.loop import learn
from cones2.learning.recipe import Recipe
from cones2.picture import Row, contact_sheet, write_picture
from cones2.residual.residual import Residual
from cones2.subjects import Subject

SHEET = "contact-sheet.png"


@dataclass(frozen=True)
class Show:
    """Which example subjects are shown, and how.

    Attributes:
        learned: those learned on the spot.
        ready: those whose shipped residual is taken.
        prompt: names all of them.
        layout: places all of them.
    """

    learned: tuple[str, ...]
    ready: tuple[str, ...]
    prompt: str
    layout: Layout

    @property
    def names(self) -> tuple[str, ...]:
        """All subjects."""
        return self.learned + self.ready

    def learning_all(self) -> "Show":
        """The same where no ready residual fits: on another model than `mini`."""
        return replace(self, learned=self.names, ready=())


SHOW = Show(
    learned=("rex", "bobo"),
    ready=("mimi", "momo"),
    prompt="a {rex}, a {bobo}, a {mimi} and a {momo} on the beach",
    layout=Layout.from_numbers(
        {
            "rex": [(0.05, 0.05, 0.48, 0.48)],
            "bobo": [(0.52, 0.05, 0.95, 0.48)],
            "mimi": [(0.05, 0.52, 0.48, 0.95)],
            "momo": [(0.52, 0.52, 0.95, 0.95)],
        }
    ),
)


def exhibit(backbone: Backbone, out: Path, *, show: Show, recipe: Recipe, settings: ComposeSettings) -> Iterator[str]:
    """Make everything and write it to `out`; say after each stage what it made and took."""
    make_folder(out)
    show.layout.save(out / "layout.json")
    subjects = yield from _gather(backbone, out, show, recipe)
    plain = {name: Subject(subject.class_word) for name, subject in subjects.items()}
    hung = [*_lobby(show, backbone.default_size)]
    for title, order in {
        "composed": Order(show.prompt, subjects, show.layout, settings),
        "without layout": Order(show.prompt, subjects, None, settings),
        "without residuals": Order(show.prompt, plain, show.layout, settings),
    }.items():
        began = time.monotonic()
        hung.append(_draw(backbone, order, out, title))
        yield f"{len(settings.seeds)} pictures {title}: {time.monotonic() - began:.0f} s."
    made = {"prompt": show.prompt, "layout": json.loads(show.layout.to_json())}
    write_picture(out / SHEET, contact_sheet(hung), made)


def _gather(backbone: Backbone, out: Path, show: Show, recipe: Recipe) -> Generator[str, None, dict[str, Subject]]:
    """Learn subjects and take those that are ready."""
    subjects = {}
    for name in show.names:
        began = time.monotonic()
        residual = _learn(backbone, name, recipe) if name in show.learned else EXAMPLES[name].residual
        residual.save(out / f"{name}.safetensors")
        subjects[name] = Subject(residual.class_word, residual)
        how = f"learned in {time.monotonic() - began:.0f} s" if name in show.learned else "taken as it is shipped"
        yield f"{name}, a {residual.class_word}: {how}."
    return subjects


def _learn(backbone: Backbone, name: str, recipe: Recipe) -> Residual:
    example = EXAMPLES[name]
    steps = learn(backbone, example.photos, example.class_word, recipe=recipe)
    return follow(steps, f"learning {name}", tell=lambda step: f"loss {step.loss:.4f}").residual


def _lobby(show: Show, size: tuple[int, int]) -> Iterator[Row]:
    """Hang what was given: the photos, and the layout."""
    examples = [EXAMPLES[name] for name in show.names]
    yield Row(
        "The photos",
        tuple(_collage([photo.image for photo in example.photos]) for example in examples),
        tuple(f"{example.name}, a {example.class_word}" for example in examples),
    )
    height, width = size
    drawn = draw_layout(show.layout, width=512, height=512 * height // width)
    yield Row(f"The layout of: {show.prompt}", (drawn,))


def _draw(backbone: Backbone, order: Order, out: Path, title: str) -> Row:
    drawn = list(order.draw(backbone, order.settings.seeds))
    for each in drawn:
        write_picture(out / f"{title.replace(' ', '-')}-seed{each.seed}.png", each.picture, each.record)
    heading = title.capitalize() if title == "composed" else f"The same {title}"
    return Row(heading, tuple(each.picture for each in drawn), tuple(f"seed {each.seed}" for each in drawn))


def _collage(photos: Sequence[Image.Image], width: int = 480) -> Image.Image:
    """Put square photos in two rows as wide as each other."""
    rows = [row for row in (photos[: len(photos) // 2], photos[len(photos) // 2 :]) if row]
    sheet = Image.new("RGB", (width, sum(width // len(row) for row in rows)), "white")
    top = 0
    for row in rows:
        side = width // len(row)
        for column, photo in enumerate(row):
            sheet.paste(photo.resize((side, side), Image.Resampling.LANCZOS), (column * side, top))
        top += side
    return sheet

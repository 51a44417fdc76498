"""`cones2 demo`: the whole method on the embedded model, in a few minutes on a CPU."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cones2.cli.console import drawing, follow, say, waiting
from cones2.cli.options import Replace, open_model, option

if TYPE_CHECKING:
    from PIL.Image import Image

PROMPT = "a {rex} and a {momo} on the beach"
BOXES = {"rex": (0.05, 0.38, 0.52, 0.9), "momo": (0.6, 0.52, 0.93, 0.9)}
_LEARNED = ("rex",)
_SEEDS = (0, 1, 2, 3)


def demo(
    out: Annotated[Path, option("--out -o", "The folder for what it makes.", "DIR")] = Path("demo"),
    model: Annotated[str, typer.Option(hidden=True)] = "mini",
    learn_steps: Annotated[int | None, typer.Option(hidden=True)] = None,
    steps: Annotated[int, typer.Option(hidden=True)] = 30,
    replace: Replace = False,
) -> None:
    """Learn a subject from its photos, take another that is learned, and draw both where a layout puts them.

    Example: cones2 demo -o demo
    """
    began = time.monotonic()
    with waiting("starting"):
        from dataclasses import replace as changed

        from cones2.cli.outputs import check_new
        from cones2.drawing import Row, contact_sheet, draw_layout
        from cones2.examples import EXAMPLES
        from cones2.files import make_folder
        from cones2.layout import Layout
        from cones2.learning.recipe import find_recipe
        from cones2.png import write_picture

        sheet, layout_file = out / "contact-sheet.png", out / "layout.json"
        check_new(sheet, suffix=".png", replace=replace)
        layout, recipe = Layout.of(BOXES), find_recipe("direct")
        recipe = recipe if learn_steps is None else changed(recipe, steps=learn_steps)
    pipe = open_model(model, device="cpu")
    make_folder(out)
    layout.save(layout_file)
    for name in BOXES:
        example = EXAMPLES[name]
        if name in _LEARNED or model != "mini":  # where no shipped residual fits
            started = time.monotonic()
            taken = pipe.learn_steps(example.photos, example.class_word, recipe)
            residual = follow(taken, f"learning {name}", tell=lambda step: f"loss {step.loss:.4f}").residual
            say(f"{name}, a {example.class_word}: learned in {time.monotonic() - started:.0f} s.")
        else:
            residual = example.residual
            say(f"{name}, a {example.class_word}: taken as it is shipped.")
        residual.save(out / f"{name}.safetensors")
        pipe.load_subject(name, residual)
    rows = [
        Row(
            "The photos",
            tuple(_collage([photo.image for photo in EXAMPLES[name].photos]) for name in BOXES),
            tuple(f"{name}, a {EXAMPLES[name].class_word}" for name in BOXES),
        )
    ]
    captions = tuple(f"seed {seed}" for seed in _SEEDS)
    for title, places in (("with layout", layout), ("without layout", None)):
        with drawing(f"drawing {title}") as at_step_end:
            output = pipe(
                PROMPT, places, seed=list(_SEEDS), num_inference_steps=steps, callback_on_step_end=at_step_end
            )
        for seed, image, record in zip(_SEEDS, output.images, output.records, strict=True):
            write_picture(out / f"{title.replace(' ', '-')}-seed{seed}.png", image, record)
        if places is not None:
            shown = tuple(draw_layout(layout, background=image) for image in output.images)
            rows.append(Row(f"The layout of {PROMPT!r}", shown, captions))
        rows.append(Row(title.capitalize(), tuple(output.images), captions))
        say(f"{len(_SEEDS)} pictures {title}.")
    write_picture(sheet, contact_sheet(rows), {"prompt": PROMPT})
    say(f"All of it took {time.monotonic() - began:.0f} s. Look at {sheet}")
    say(f"The pictures, the layout and the residuals are in {out}, too.")


def _collage(photos: Sequence["Image"], width: int = 480) -> "Image":
    """Put square photos in two rows as wide as each other."""
    from PIL import Image

    rows = [row for row in (photos[: len(photos) // 2], photos[len(photos) // 2 :]) if row]
    sheet = Image.new("RGB", (width, sum(width // len(row) for row in rows)), "white")
    top = 0
    for row in rows:
        side = width // len(row)
        for column, photo in enumerate(row):
            sheet.paste(photo.resize((side, side), Image.Resampling.LANCZOS), (column * side, top))
        top += side
    return sheet

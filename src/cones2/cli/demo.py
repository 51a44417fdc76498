"""`cones2 demo`: the whole method on the embedded model, in a few minutes on a CPU."""

import time
from pathlib import Path
from typing import Annotated

import typer

from cones2.cli.console import say
from cones2.cli.progress import waiting


def demo(
    out: Annotated[Path, typer.Option(help="The folder for what it makes.", metavar="DIR")] = Path("demo"),
    model: Annotated[str, typer.Option(hidden=True)] = "mini",
    learn_steps: Annotated[int | None, typer.Option(hidden=True)] = None,
    steps: Annotated[int, typer.Option(hidden=True)] = 50,
) -> None:
    """Learn two subjects from their photos, take two that are learned, and draw all four where a layout puts them.

    Example: cones2 demo --out demo
    """
    began = time.monotonic()
    with waiting("starting"):
        from dataclasses import replace

        from cones2.backbones import open_backbone
        from cones2.cli.exhibition import SHEET, SHOW, exhibit
        from cones2.cli.outputs import check_file, check_folder
        from cones2.composing.settings import ComposeSettings
        from cones2.layout.regions import Layout
        from cones2.learning.recipe import find_recipe
        from cones2.picture import read_record
        from cones2.residual.residual import Residual

        check_folder(out)
        check_file(out / SHEET, suffix=".png", read=read_record)
        check_file(out / "layout.json", suffix=".json", read=Layout.load)
        for name in SHOW.names:
            check_file(out / f"{name}.safetensors", suffix=".safetensors", read=Residual.load)
        settings = ComposeSettings(seeds=(0, 1, 2, 3), steps=steps, guidance_scale=4.0)  # suits mini
        backbone = open_backbone(model, device="cpu")
    recipe = find_recipe("direct")
    recipe = replace(recipe, steps=learn_steps or recipe.steps)
    show = SHOW if model == "mini" else SHOW.learning_all()
    for line in exhibit(backbone, out, show=show, recipe=recipe, settings=settings):
        say(line)
    say(f"All of it took {time.monotonic() - began:.0f} s. Look at {out / SHEET}")
    say(f"The pictures, the layout and the residuals are in {out}, too.")

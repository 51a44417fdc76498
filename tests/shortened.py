"""Runs a script of `recipes/mini` with few steps and few look-alikes: `python tests/shortened.py SCRIPT ...`."""

import importlib
import runpy
import sys
from dataclasses import replace
from pathlib import Path

from cones2.learning import recipe


def shorten() -> None:
    """Two steps of drawing and of learning, eight captions, and eight individuals to take look-alikes from."""
    recipe.RECIPES = {name: replace(each, steps=2, caption_count=8) for name, each in recipe.RECIPES.items()}
    drawing = importlib.import_module("drawing")
    for name in ("SETTINGS", "TAUGHT_SETTINGS"):
        setattr(drawing, name, {**getattr(drawing, name), "num_inference_steps": 2})
    importlib.import_module("lookalikes").draw_pool.__defaults__ = (8,)  # of 120
    ways = importlib.import_module("ways")
    vars(ways)["WAYS"] = {name: replace(each, steps=2) for name, each in ways.WAYS.items()}


if __name__ == "__main__":
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    shorten()
    runpy.run_path(sys.argv[0], run_name="__main__")

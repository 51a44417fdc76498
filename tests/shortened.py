"""Runs a script of `recipes/mini` with few steps and few look-alikes: `python tests/shortened.py SCRIPT ...`."""

import dataclasses
import importlib
import runpy
import sys
from pathlib import Path
from typing import Any

from cones2.composing import loop as composing
from cones2.learning.lesson import Lesson

prepare, start = Lesson.prepare, composing._start_scheduler


def prepare_two_steps(*given: Any, captions: list[str], recipe: Any, **options: Any) -> Lesson:
    return prepare(*given, captions=captions[:8], recipe=dataclasses.replace(recipe, steps=2), **options)


def start_with_few_steps(backbone: Any, settings: Any) -> Any:
    return start(backbone, dataclasses.replace(settings, steps=min(settings.steps, 2)))


if __name__ == "__main__":
    Lesson.prepare = staticmethod(prepare_two_steps)
    composing._start_scheduler = start_with_few_steps
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    importlib.import_module("lookalikes").draw_pool.__defaults__ = (8,)  # of 120
    runpy.run_path(sys.argv[0], run_name="__main__")

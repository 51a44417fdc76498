"""Drawing cases with mini by cones2's own API, and sheets of pictures with their boxes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cones2.judge import PICTURE, Corners, Sighting
from cones2.pipeline import Cones2Pipeline
from cones2.schedulers import make_scheduler
from evaluation_cases import Case

Settings = Mapping[str, Any]
"""Arguments of a call of `Cones2Pipeline`."""

SETTINGS: Settings = MappingProxyType({"num_inference_steps": 20, "guidance_scale": 7.5})
TAUGHT_SETTINGS: Settings = MappingProxyType({**SETTINGS, "guidance_scale": 4.0})
"""For mini's subjects: at this scale they are known best, and keep to their boxes best (`evaluate.py guidance`)."""


def open_for_drawing(model: str | Path) -> Cones2Pipeline:
    """Open `mini` or a diffusers folder on the CPU, with DPM++."""
    pipe = Cones2Pipeline.from_pretrained(model, device="cpu")
    pipe.scheduler = make_scheduler("dpm++", pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_case(pipe: Cones2Pipeline, case: Case, settings: Settings = SETTINGS) -> Tensor:
    """Pictures of a case, one for each of its seeds: `[seeds, 3, 128, 128]` in 0..1."""
    return to_tensor(pipe(case.prompt, case.layout, subjects=case.subjects, seed=case.seeds, **settings).images)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the judge sees them, at its size."""
    resized = [picture.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(one) for one in resized])).permute(0, 3, 1, 2).float() / 255


def to_picture(image: Tensor, boxes: Sequence[Corners] = (), sightings: Sequence[Sighting] = ()) -> Image.Image:
    """One picture with the boxes asked for (white) and what the judge saw (red)."""
    picture = Image.fromarray((image.clamp(0, 1) * 255).byte().permute(1, 2, 0).numpy())
    pen = ImageDraw.Draw(picture)
    outlines = [(box, "white") for box in boxes] + [(sighting.box, "red") for sighting in sightings]
    for box, colour in outlines:
        pen.rectangle([side * (PICTURE - 1) for side in box], outline=colour)
    return picture


def make_sheet(pictures: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Tile pictures, row by row."""
    sheet = Image.new("RGB", (PICTURE * min(columns, len(pictures)), PICTURE * -(-len(pictures) // columns)))
    for number, picture in enumerate(pictures):
        sheet.paste(picture, (number % columns * PICTURE, number // columns * PICTURE))
    return sheet

"""Drawing cases with mini by cones2's own API, and sheets of pictures with their boxes."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from cones2.backbones import Backbone
from cones2.composing.loop import compose
from cones2.composing.settings import ComposeSettings
from cones2.judge import PICTURE, Sighting
from evaluation_cases import Case
from metrics import Box

SETTINGS = ComposeSettings(steps=20, scheduler="dpm++")
TAUGHT_SETTINGS = replace(SETTINGS, guidance_scale=4.0)
"""For mini's subjects: at this scale they are known best, and keep to their boxes best (`evaluate.py guidance`)."""


def draw_case(backbone: Backbone, case: Case, settings: ComposeSettings = SETTINGS) -> Tensor:
    """Pictures of a case, one for each of its seeds: `[seeds, 3, 128, 128]` in 0..1."""
    settings = replace(settings, seeds=case.seeds)
    *_, last = compose(backbone, case.prompt, subjects=case.subjects, layout=case.layout, settings=settings)
    return to_tensor(last.pictures)


def to_tensor(pictures: Sequence[Image.Image]) -> Tensor:
    """Pictures as the judge sees them, at its size."""
    resized = [picture.convert("RGB").resize((PICTURE, PICTURE), Image.Resampling.BILINEAR) for picture in pictures]
    return torch.from_numpy(np.stack([np.asarray(one) for one in resized])).permute(0, 3, 1, 2).float() / 255


def to_picture(image: Tensor, boxes: Sequence[Box] = (), sightings: Sequence[Sighting] = ()) -> Image.Image:
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

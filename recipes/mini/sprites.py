"""Sprites: open emoji fetched from npm, drawn with resvg, and split into parts that can be recoloured.

Each sprite becomes seven planes: four soft part masks (largest part first) and a shading residual in RGB, all
premultiplied by alpha. The picture of an instance is `sum_k mask_k * colour_k + shading`: recolouring is a sum, on any
device.
"""

import io
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
import torch
from PIL import Image
from torch import Tensor

from vocabulary import CLASSES

ICON_SETS = ("noto", "noto-v1", "fluent-emoji-flat", "fxemoji", "twemoji", "emojione")
TRAINED_STYLES = ("belt", "mug0", "fluent-emoji-flat")
"""What training sees of each class: its first of these styles, and no other. Two cores learn one bold shape of a class
well, or three of them badly."""
SPRITE_SIZE = 96
PARTS = 4


@dataclass(frozen=True)
class SpriteAtlas:
    """All sprites of the world.

    Attributes:
        planes: `[sprites, 2, 7, size, size]`; the second axis is sharp and blurred, for large and for small drawings.
        palette: `[sprites, 4, 3]`, the natural colour of each part.
        class_index: `[sprites]`, which class a sprite draws.
        held_out: `[sprites]`, true for the styles that training never sees.
        names: a name for each sprite.
    """

    planes: Tensor
    palette: Tensor
    class_index: Tensor
    held_out: Tensor
    names: tuple[str, ...]

    def save(self, path: Path) -> None:
        """Save everything but the code that made it."""
        from safetensors.torch import save_file

        tensors = {
            "planes": self.planes,
            "palette": self.palette,
            "class_index": self.class_index,
            "held_out": self.held_out,
        }
        save_file(tensors, path, metadata={"names": json.dumps(self.names)})

    @staticmethod
    def load(path: Path) -> "SpriteAtlas":
        """Load what `save` wrote."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            names = tuple(json.loads(file.metadata()["names"]))
            return SpriteAtlas(**{key: file.get_tensor(key) for key in file.keys()}, names=names)  # noqa: SIM118


def fetch_icons(folder: Path) -> None:
    """Fetch the icon sets from the npm registry into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / "node_modules/@iconify-json" / name).exists() for name in ICON_SETS):
        return
    subprocess.run(["npm", "init", "-y"], cwd=folder, check=True, capture_output=True)
    packages = [f"@iconify-json/{name}" for name in ICON_SETS]
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", *packages], cwd=folder, check=True, capture_output=True
    )


def build_atlas(folder: Path) -> SpriteAtlas:
    """Draw and split every sprite of every class."""
    planes, palettes, classes, held_out, names = [], [], [], [], []
    for class_number, class_word in enumerate(CLASSES):
        drawings = list(_icon_drawings(folder, class_word.icons)) if class_word.icons else list(_mug_drawings())
        if class_word.word == "ball":
            drawings += list(_ball_drawings())
        trained = next(style for style in TRAINED_STYLES if style in dict(drawings))
        for name, svg in drawings:
            sharp = _draw(svg)
            masks, palette = _split(sharp)
            planes.append(torch.stack([masks, _blur(masks)]))
            palettes.append(palette)
            classes.append(class_number)
            held_out.append(name != trained)
            names.append(f"{class_word.word}/{name}")
    return SpriteAtlas(
        torch.stack(planes), torch.stack(palettes), torch.tensor(classes), torch.tensor(held_out), tuple(names)
    )


def _icon_drawings(folder: Path, icons: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for icon_set in ICON_SETS:
        data = json.loads((folder / "node_modules/@iconify-json" / icon_set / "icons.json").read_text())
        icon = next((name for name in icons if name in data["icons"]), None)
        if icon is None or (icon_set, icon) in {("fxemoji", "sunglasses"), ("fxemoji", "cat")}:
            continue  # fxemoji's sunglasses are a face that wears them
        body = data["icons"][icon]
        width, height = body.get("width", data.get("width", 16)), body.get("height", data.get("height", 16))
        box = f"{body.get('left', 0)} {body.get('top', 0)} {width} {height}"
        yield icon_set, _svg(body["body"], box)


MUG_SHAPES = ((50, 60, 0, 6), (56, 48, 6, 12), (44, 66, -4, 4), (60, 56, 10, 20), (50, 54, 3, 2))
"""Width, height, taper and rounding of the mugs."""


def _mug_drawings() -> Iterator[tuple[str, str]]:
    """Mugs drawn from parameters: a body, a rim and a handle."""
    for number, (width, height, taper, round_) in enumerate(MUG_SHAPES):
        left, top = 42 - width / 2, 50 - height / 2
        right, bottom = left + width, top + height
        low, high, foot = left + taper, right - taper, bottom - round_
        corners = f"L{high} {foot} Q{high} {bottom} {high - round_} {bottom} L{low + round_} {bottom}"
        body = _path(f"M{left} {top} L{right} {top} {corners} Q{low} {bottom} {low} {foot} Z", 'fill="#d8443c"')
        curve = f"Q{right + 24} {top + 10} {right + 20} 50 Q{right + 16} {bottom - 10} {high - 1} {bottom - 14}"
        handle = _path(f"M{right - 2} {top + 12} {curve}", 'fill="none" stroke="#8e2a25" stroke-width="8"')
        rim = f'<ellipse cx="42" cy="{top}" rx="{width / 2}" ry="6" fill="#5b3a29" stroke="#f5e9dc" stroke-width="3"/>'
        slope = f"L{left + 12 + taper / 2} {bottom - 8} L{left + 6 + taper} {bottom - 8} Z"
        shade = _path(f"M{left + 4} {top + 8} L{left + 12} {top + 8} {slope}", 'fill="#ffffff" opacity="0.3"')
        yield f"mug{number}", _svg(handle + body + shade + rim, "0 0 100 100")


def _ball_drawings() -> Iterator[tuple[str, str]]:
    """Balls drawn from parameters: panels, a belt, a star."""
    disc = '<circle cx="50" cy="50" r="46" fill="#3b82d8"/>'
    light = '<ellipse cx="34" cy="28" rx="14" ry="9" fill="#ffffff" opacity="0.45"/>'
    panels = ""
    for angle in np.arange(3) * 2 * np.pi / 3:
        middle, start, end = _on_circle(40, angle), _on_circle(46, angle + 0.5), _on_circle(46, angle + 1.05)
        panels += _path(f"M50 50 Q{middle} {start} A46 46 0 0 1 {end} Z", 'fill="#f4f1e8"')
    belt = _path("M5 40 Q50 56 95 40 L95 60 Q50 76 5 60 Z", 'fill="#f2c230"')
    star = _path("M50 20 L58 42 L81 42 L62 56 L69 79 L50 65 L31 79 L38 56 L19 42 L42 42 Z", 'fill="#f7d64a"')
    clip = '<defs><clipPath id="c"><circle cx="50" cy="50" r="46"/></clipPath></defs>'
    yield "panels", _svg(disc + panels + light, "0 0 100 100")
    yield "belt", _svg(f'{clip}{disc}<g clip-path="url(#c)">{belt}</g>{light}', "0 0 100 100")
    yield "star", _svg(disc + star + light, "0 0 100 100")


def _on_circle(radius: float, angle: float) -> str:
    return f"{50 + radius * np.cos(angle):.1f} {50 + radius * np.sin(angle):.1f}"


def _path(steps: str, style: str) -> str:
    return f'<path d="{steps}" {style}/>'


def _svg(body: str, box: str) -> str:
    head = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {head} viewBox="{box}" width="{SPRITE_SIZE * 2}" height="{SPRITE_SIZE * 2}">{body}</svg>'


def _draw(svg: str) -> np.ndarray:
    """Draw, crop to what is opaque, and centre in a square: `[size, size, 4]` in 0..1."""
    image = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda value: 255 * (value > 20)).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((SPRITE_SIZE, SPRITE_SIZE), Image.Resampling.LANCZOS), dtype=np.float32) / 255


def _split(rgba: np.ndarray, rounds: int = 20) -> tuple[Tensor, Tensor]:
    """Split a drawing into `PARTS` colour clusters, largest first, and what they leave over as shading."""
    alpha, rgb = rgba[..., 3], rgba[..., :3]
    points = rgb[alpha > 0.5]
    rng = np.random.default_rng(0)
    centres = points[rng.choice(len(points), 1)]
    while len(centres) < PARTS:  # farthest-point start: small vivid parts get a cluster of their own
        distance = ((points[:, None] - centres) ** 2).sum(-1).min(1)
        centres = np.vstack([centres, points[distance.argmax()]])
    for _ in range(rounds):
        label = ((points[:, None] - centres) ** 2).sum(-1).argmin(1)
        centres = np.stack([points[label == k].mean(0) if (label == k).any() else centres[k] for k in range(PARTS)])
    counts = np.bincount(label, minlength=PARTS)
    centres = centres[np.argsort(-counts)]
    squared = ((rgb[:, :, None] - centres) ** 2).sum(-1)
    weights = np.exp(-squared / 0.01) + 1e-8
    masks = weights / weights.sum(-1, keepdims=True) * alpha[..., None]
    shading = (rgb * alpha[..., None] - masks @ centres).clip(-0.25, 0.25)
    planes = np.concatenate([masks, shading], axis=-1).transpose(2, 0, 1)
    return torch.from_numpy(planes.astype(np.float32)), torch.from_numpy(centres.astype(np.float32))


def _blur(planes: Tensor) -> Tensor:
    """Halve the resolution and come back, so that small drawings do not alias."""
    small = torch.nn.functional.avg_pool2d(planes, 3, 3)
    return torch.nn.functional.interpolate(small[None], SPRITE_SIZE, mode="bilinear", align_corners=False)[0]

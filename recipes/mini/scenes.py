"""Backgrounds: each scene is a small random SVG, drawn with resvg."""

import io

import numpy as np
import resvg_py
from PIL import Image

from vocabulary import SCENES


def draw_scene(scene: str, rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw one random background of a scene: uint8 `[size, size, 3]`. The scene "" is a plain wall."""
    body = _PAINTERS[scene](rng)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100" width="{size}" height="{size}">{body}</svg>'
    return np.asarray(Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg)))).convert("RGB"))


def draw_pool(rng: np.random.Generator, size: int, per_scene: int) -> np.ndarray:
    """Draw `per_scene` backgrounds of every scene, plain last: uint8 `[scenes + 1, per_scene, 3, size, size]`."""
    pool = [[draw_scene(scene, rng, size) for _ in range(per_scene)] for scene in (*SCENES, "")]
    return np.asarray(pool).transpose(0, 1, 4, 2, 3)


def _colour(rng: np.random.Generator, base: tuple[int, int, int], spread: int = 14) -> str:
    shade = rng.integers(-spread, spread + 1) + rng.integers(-spread // 2, spread // 2 + 1, 3)
    return "rgb({},{},{})".format(*np.clip(np.array(base) + shade, 0, 255))


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"/>'


def _path(steps: str, fill: str) -> str:
    return f'<path d="{steps}" fill="{fill}"/>'


def _circle(x: float, y: float, radius: float, fill: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{fill}"/>'


def _beach(rng: np.random.Generator) -> str:
    sea, sand = rng.uniform(28, 45), rng.uniform(52, 66)
    body = _rect(0, 0, 100, 100, _colour(rng, (150, 210, 245))) + _rect(0, sea, 100, 60, _colour(rng, (40, 140, 190)))
    bend = rng.uniform(20, 80), sand + rng.uniform(-6, 6)
    shore = f"M0 {sand:.0f} Q{bend[0]:.0f} {bend[1]:.0f} 100 {sand + rng.uniform(-3, 3):.0f} V100 H0 Z"
    body += _path(shore, _colour(rng, (236, 212, 150)))
    return body + _circle(rng.uniform(8, 92), rng.uniform(8, 20), 7, _colour(rng, (255, 240, 150)))


def _snow(rng: np.random.Generator) -> str:
    ground = rng.uniform(48, 64)
    body = _rect(0, 0, 100, 100, _colour(rng, (176, 196, 216)))
    for _ in range(3):
        x, width, top = rng.uniform(0, 100), rng.uniform(25, 45), rng.uniform(14, 34)
        body += _path(
            f"M{x - width:.0f} {ground + 4:.0f} L{x:.0f} {top:.0f} L{x + width:.0f} {ground + 4:.0f} Z",
            _colour(rng, (140, 158, 184)),
        )
    body += _path(
        f"M0 {ground:.0f} Q50 {ground + rng.uniform(-8, 8):.0f} 100 {ground:.0f} V100 H0 Z",
        _colour(rng, (240, 244, 250), 6),
    )
    return body + "".join(_circle(rng.uniform(0, 100), rng.uniform(0, 100), 1.3, "white") for _ in range(14))


def _forest(rng: np.random.Generator) -> str:
    ground = rng.uniform(55, 68)
    body = _rect(0, 0, 100, 100, _colour(rng, (190, 222, 190)))
    for x in np.linspace(2, 98, 7) + rng.uniform(-5, 5, 7):
        top, width = rng.uniform(2, 24), rng.uniform(10, 16)
        body += _rect(x - 2, ground - 10, 4, 14, _colour(rng, (105, 75, 50)))
        body += _path(
            f"M{x - width:.0f} {ground - 6:.0f} L{x:.0f} {top:.0f} L{x + width:.0f} {ground - 6:.0f} Z",
            _colour(rng, (40, 110, 60)),
        )
    return body + _rect(0, ground, 100, 50, _colour(rng, (105, 150, 70)))


def _city(rng: np.random.Generator) -> str:
    ground = rng.uniform(62, 74)
    body, x = _rect(0, 0, 100, 100, _colour(rng, (205, 215, 225))), 0.0
    while x < 100:
        width, top, fill = rng.uniform(14, 26), rng.uniform(6, 40), _colour(rng, (135, 130, 140), 24)
        body += _rect(x, top, width, ground - top, fill)
        for row in np.arange(top + 4, ground - 6, 9):
            body += "".join(
                _rect(column, row, 3.5, 4.5, "rgb(250,235,170)") for column in np.arange(x + 3, x + width - 5, 7)
            )
        x += width
    body += _rect(0, ground, 100, 50, _colour(rng, (90, 92, 98)))
    return body + "".join(
        _rect(column, (ground + 100) / 2, 12, 2.5, "rgb(240,240,240)") for column in range(4, 100, 24)
    )


def _kitchen(rng: np.random.Generator) -> str:
    counter, tile = rng.uniform(58, 70), rng.uniform(12, 18)
    body = _rect(0, 0, 100, 100, _colour(rng, (228, 236, 232)))
    line = _colour(rng, (170, 196, 190))
    body += "".join(_rect(0, y, 100, 1, line) for y in np.arange(rng.uniform(0, tile), counter, tile))
    body += "".join(_rect(x, 0, 1, counter, line) for x in np.arange(rng.uniform(0, tile), 100, tile))
    body += _rect(0, counter, 100, 50, _colour(rng, (176, 128, 84))) + _rect(
        0, counter, 100, 4, _colour(rng, (120, 84, 54))
    )
    return body


def _night(rng: np.random.Generator) -> str:
    ground = rng.uniform(60, 74)
    body = _rect(0, 0, 100, 100, _colour(rng, (22, 26, 66), 8))
    body += "".join(
        _circle(rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(0.6, 1.3), "rgb(250,245,210)") for _ in range(24)
    )
    body += _circle(rng.uniform(12, 88), rng.uniform(10, 22), 8, "rgb(245,238,200)")
    return body + _path(
        f"M0 {ground:.0f} Q{rng.uniform(20, 80):.0f} {ground - 10:.0f} 100 {ground:.0f} V100 H0 Z",
        _colour(rng, (38, 52, 60), 8),
    )


def _plain(rng: np.random.Generator) -> str:
    base = tuple(rng.integers(110, 245, 3))
    return _rect(0, 0, 100, 100, _colour(rng, base, 4)) + _rect(0, rng.uniform(60, 80), 100, 50, _colour(rng, base, 20))


_PAINTERS = {
    "beach": _beach,
    "snow": _snow,
    "forest": _forest,
    "city": _city,
    "kitchen": _kitchen,
    "night": _night,
    "": _plain,
}

"""Plots as SVG, of nothing but numbers: the same numbers are the same bytes."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 190, 30, 50
_COLOURS = ("#0b62c4", "#c4480b", "#2c8a3c", "#8a2c86", "#8a6a0b", "#0b8a8a", "#c40b3e", "#5a5a5a", "#6a4fd0")
_DASHES = ("", "6 3", "2 3")


@dataclass(frozen=True)
class Point:
    """A value, and its interval if it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Axes:
    """The area of a plot: what its axes are called, and from where to where they go."""

    x: str
    y: str
    xs: tuple[float, float]
    ys: tuple[float, float]

    def across(self, value: float) -> float:
        """Return where a value of x is, in pixels from the left."""
        share = (value - self.xs[0]) / ((self.xs[1] - self.xs[0]) or 1)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def down(self, value: float) -> float:
        """Return where a value of y is, in pixels from the top."""
        share = (value - self.ys[0]) / ((self.ys[1] - self.ys[0]) or 1)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def curves(title: str, axes: Axes, lines: Mapping[str, Sequence[Point]]) -> str:
    """Return a plot with a line through the points of each name."""
    parts = []
    for number, points in enumerate(lines.values()):
        places = " ".join(f"{axes.across(point.x)},{axes.down(point.y)}" for point in points)
        dashes = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        style = f'fill="none" stroke="{_colour(number)}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts += [f'<polyline points="{places}" {style}/>', *_marks(axes, number, points)]
    return _plot(title, axes, parts, list(lines))


def scatter(title: str, axes: Axes, points: Mapping[str, Point]) -> str:
    """Return a plot with a point for each name."""
    parts = [mark for number, point in enumerate(points.values()) for mark in _marks(axes, number, [point])]
    return _plot(title, axes, parts, list(points))


def _marks(axes: Axes, number: int, points: Sequence[Point]) -> list[str]:
    marks = []
    for point in points:
        x = axes.across(point.x)
        if point.low is not None and point.high is not None:
            ends = [axes.down(min(max(end, axes.ys[0]), axes.ys[1])) for end in (point.low, point.high)]
            marks.append(f'<path d="M{x} {ends[0]}V{ends[1]}" stroke="{_colour(number)}" stroke-opacity="0.5"/>')
        marks.append(f'<circle cx="{x}" cy="{axes.down(point.y)}" r="4" fill="{_colour(number)}"/>')
    return marks


def _plot(title: str, axes: Axes, parts: Sequence[str], names: Sequence[str]) -> str:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif"'
            ' font-size="12">',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
            _text(float(_LEFT), 18.0, title, "start"),
            *_ticks(axes),
            f'<path d="M{_LEFT} {_TOP}V{bottom}H{right}" fill="none" stroke="black"/>',
            _text((_LEFT + right) / 2, _HEIGHT - 10.0, axes.x, "middle"),
            _text(15.0, _TOP - 8.0, axes.y, "start"),
            *parts,
            *(_legend(number, name) for number, name in enumerate(names)),
            "</svg>\n",
        ]
    )


def _ticks(axes: Axes) -> list[str]:
    ticks = []
    for step in range(6):
        y = axes.ys[0] + step * (axes.ys[1] - axes.ys[0]) / 5
        ticks.append(f'<path d="M{_LEFT} {axes.down(y)}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        ticks.append(_text(_LEFT - 8.0, axes.down(y) + 4, f"{y:.2f}", "end"))
    whole = all(float(end).is_integer() for end in axes.xs)
    count = int(axes.xs[1] - axes.xs[0]) if whole and axes.xs[1] - axes.xs[0] >= 1 else 5
    for step in range(count + 1):
        x = axes.xs[0] + step * (axes.xs[1] - axes.xs[0]) / count
        ticks.append(_text(axes.across(x), _HEIGHT - _BOTTOM + 18, f"{x:.0f}" if whole else f"{x:.2f}", "middle"))
    return ticks


def _legend(number: int, name: str) -> str:
    x, y = _WIDTH - _RIGHT + 15.0, _TOP + 10.0 + 16.0 * number
    return f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{_colour(number)}"/>' + _text(x + 10.0, y, name, "start")


def _text(x: int | float, y: int | float, text: str, anchor: str) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]

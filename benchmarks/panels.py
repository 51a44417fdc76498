"""Curves as a picture: one panel each, side by side, with what is level marked at 1."""

from collections.abc import Mapping
from xml.sax.saxutils import escape

from pairs import Interval

_WIDTH, _HEIGHT, _LEFT, _TOP, _GAP = 180, 150, 36, 30, 34
_STYLE = "text{font:11px sans-serif;fill:#555}.name{font-weight:bold}"


def panels(curves: Mapping[str, Mapping[int, Interval]]) -> str:
    """Return an SVG of curves by name; a point is a median with its interval, by the amount it was measured at."""
    ratios = [ratio for curve in curves.values() for ratio in curve.values()]
    low = min(0.95, *(ratio.low for ratio in ratios), *(ratio.median for ratio in ratios)) - 0.02
    high = max(1.1, *(ratio.high for ratio in ratios), *(ratio.median for ratio in ratios)) + 0.02
    width = _LEFT + len(curves) * (_WIDTH + _GAP)
    height = _TOP + _HEIGHT + 24
    drawn = [
        _panel(name, curve, _LEFT + index * (_WIDTH + _GAP), (low, high))
        for index, (name, curve) in enumerate(curves.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">\n'
        f'<style>{_STYLE}</style>\n<rect width="{width}" height="{height}" fill="#fff"/>\n{"".join(drawn)}</svg>\n'
    )


def _panel(name: str, curve: Mapping[int, Interval], left: int, ends: tuple[float, float]) -> str:
    low, high = ends

    def y(value: float) -> float:
        return round(_TOP + _HEIGHT * (high - value) / (high - low), 1)

    lines = [f'<text class="name" x="{left}" y="{_TOP - 12}">{escape(name)}</text>\n']
    for tick in (value / 10 for value in range(int(low * 10) + 1, int(high * 10) + 1)):
        colour = "#999" if tick == 1 else "#e5e5e5"
        lines.append(f'<path d="M{left} {y(tick)}h{_WIDTH}" stroke="{colour}"/>')
        lines.append(f'<text x="{left - 4}" y="{y(tick) + 4}" text-anchor="end">{tick:.1f}</text>\n')
    places = [round(left + _WIDTH * (index + 0.5) / len(curve), 1) for index in range(len(curve))]
    points = " ".join(f"{x},{y(ratio.median)}" for x, ratio in zip(places, curve.values(), strict=True))
    lines.append(f'<polyline points="{points}" fill="none" stroke="#2a6" stroke-width="1.5"/>\n')
    for x, (amount, ratio) in zip(places, curve.items(), strict=True):
        lines.append(f'<path d="M{x} {y(ratio.low)}V{y(ratio.high)}" stroke="#2a6"/>')
        lines.append(f'<circle cx="{x}" cy="{y(ratio.median)}" r="3" fill="#2a6"/>')
        lines.append(f'<text x="{x}" y="{_TOP + _HEIGHT + 16}" text-anchor="middle">{amount}</text>\n')
    return "".join(lines)

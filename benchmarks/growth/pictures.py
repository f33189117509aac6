"""Accuracy against training FLOPs and against parameters, as pictures that read on light and on dark pages."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 60, 230, 40, 50
LINE = 15
"""Least distance of two labels."""

STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333; }
text.own { font-weight: bold; }
.axis { stroke: #888; stroke-width: 1; }
.leader { stroke: #bbb; stroke-width: 0.7; fill: none; }
.error { stroke: #777; stroke-width: 1.2; }
circle.row { fill: #4878a8; } .own { fill: #c8502a; }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd; } .leader { stroke: #666; } .error { stroke: #999; }
  circle.row { fill: #7fb0e0; } .own { fill: #ff8c61; }
}
"""


class Point(NamedTuple):
    """A row: where it lies, and its 95 % interval upwards and downwards."""

    name: str
    x: float
    y: float
    low: float
    high: float


def points(table: Mapping[str, Any], quantity: str) -> list[Point]:
    """Rows of a table at ``"train_flops"`` (of the grown run's) or ``"parameters"``; accuracy in percent."""
    column = "train_flops_relative" if quantity == "train_flops" else quantity
    return [Point(name, row[column][0], *row["accuracy"]) for name, row in table.items()]


def picture(title: str, x_label: str, found: Sequence[Point]) -> str:
    """An SVG of all points over a logarithmic axis, each with its interval and a label at the right.

    The grown rows have a colour of their own.
    """
    xs, lows, highs = [p.x for p in found], [p.low for p in found], [p.high for p in found]
    x_of = _scale(math.log(min(xs)), math.log(max(xs)), LEFT + 15, WIDTH - RIGHT - 15)
    y_of = _scale(min(lows), max(highs), HEIGHT - BOTTOM - 10, TOP + 10)
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text x="{LEFT}" y="20">{escape(title)}</text>',
        f'<path class="axis" fill="none" d="M{LEFT} {TOP} V{floor} H{right}"/>',
        f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_label)}</text>',
    ]
    for value in (min(lows), max(highs)):
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(value) + 4:.1f}" text-anchor="end">{value:.1f} %</text>')
    for value in sorted({min(xs), max(xs)}):
        parts.append(f'<text x="{x_of(math.log(value)):.1f}" y="{floor + 18}" text-anchor="middle">{value:,.3g}</text>')
    ordered = sorted(found, key=lambda point: -point.y)
    labelled = zip(ordered, _spread([y_of(point.y) for point in ordered]), strict=True)
    for point, label_y in sorted(labelled, key=lambda pair: _is_own(pair[0])):  # nothing lies over its own
        x, y = x_of(math.log(point.x)), y_of(point.y)
        kind = "own" if _is_own(point) else "row"
        parts += [
            f'<path class="leader" d="M{x:.1f} {y:.1f} L{right + 8} {label_y:.1f}"/>',
            f'<path class="error" d="M{x:.1f} {y_of(point.low):.1f} V{y_of(point.high):.1f}"/>',
            f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>',
            f'<text class="{kind}" x="{right + 12}" y="{label_y + 4:.1f}">{escape(point.name)}, {point.y:.1f} %</text>',
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _is_own(point: Point) -> bool:
    return "grown" in point.name


def _scale(low: float, high: float, start: float, end: float) -> Any:
    """From values to pixels; a single value lies in the middle."""
    if high == low:
        return lambda value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _spread(heights: Sequence[float]) -> list[float]:
    """Rising heights moved as little as needed to be ``LINE`` apart, inside the picture while there is room."""
    found: list[float] = []
    for index, height in enumerate(heights):
        left = len(heights) - 1 - index
        at_most = HEIGHT - 10 - LINE * left
        found.append(max(min(height, at_most), found[-1] + LINE if found else 10.0))
    return found

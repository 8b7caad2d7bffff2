"""Draw a plot as inline SVG: axes with round ticks, lines, steps and points, a legend. No script, font or file.

It is for pages that must open anywhere, also in many years; plots for documents are drawn with matplotlib elsewhere.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Literal

# Okabe and Ito 2008: colours that colour-blind readers distinguish too.
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#7a4a1e",
    "#6a3d9a",
    "#8c8c8c",
    "#1a1a1a",
)

_WIDTH, _HEIGHT = 620, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 14, 30, 44
_LEGEND_ROW = 17
_MOST_TICKS = 7
_SHORT_LOG = 10.0
# Lines with more points are thinned: a page should not weigh more than what it says.
_MOST_POINTS = 400

Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Points under one name: joined, as steps to the right, or alone."""

    label: str
    points: tuple[Point, ...]
    shape: Literal["line", "steps", "points"] = "line"
    is_dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A label with its unit, and whether equal steps are equal factors (then every value must be above 0)."""

    label: str
    is_log: bool = False


def draw(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The plot as an <svg> element; the legend stands below it."""
    points = [point for one in series for point in one.points]
    spans = [_span([point[side] for point in points], axis.is_log) for side, axis in enumerate((x, y))]
    height = _HEIGHT + _LEGEND_ROW * len(series)

    def place(point: Point) -> tuple[float, float]:
        across, up = (
            _share(value, span, axis.is_log) for value, span, axis in zip(point, spans, (x, y), strict=True)
        )
        return _LEFT + across * (_WIDTH - _LEFT - _RIGHT), _HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM)

    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">',
        f'<text x="{_LEFT}" y="18" class="title">{escape(title)}</text>',
    ]
    for tick in ticks(*spans[0], is_log=x.is_log):
        across, _ = place((tick, spans[1][0]))
        parts.append(f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}" class="grid"/>')
        parts.append(
            f'<text x="{across:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="middle">{_number(tick)}</text>'
        )
    for tick in ticks(*spans[1], is_log=y.is_log):
        _, up = place((spans[0][0], tick))
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up:.1f}" y2="{up:.1f}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{up + 4:.1f}" text-anchor="end">{_number(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">{escape(x.label)}</text>')
    upright = f"translate(14 {(_TOP + _HEIGHT - _BOTTOM) / 2:.0f}) rotate(-90)"
    parts.append(f'<text transform="{upright}" text-anchor="middle">{escape(y.label)}</text>')
    for index, one in enumerate(series):
        colour = COLOURS[index % len(COLOURS)]
        parts += _marks(one, [place(point) for point in _thin(one)], colour)
        row = _HEIGHT + _LEGEND_ROW * index + 8
        parts.append(f'<rect x="{_LEFT}" y="{row - 9}" width="12" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{_LEFT + 18}" y="{row}">{escape(one.label)}</text>')
    return "\n".join((*parts, "</svg>"))


def ticks(low: float, high: float, *, is_log: bool) -> list[float]:
    """Round values from `low` to `high`: on a log axis 1, 2 and 5 times powers of ten, else steps of those.

    A log axis too short for three of the former has the latter.
    """
    if is_log and high / low > _SHORT_LOG:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        for leads in ((1, 2, 5), (1,)):
            found = [lead * 10.0**power for power in range(first, last + 1) for lead in leads]
            found = [value for value in found if low * 0.999 <= value <= high * 1.001]
            if len(found) <= _MOST_TICKS + 2:
                return found
        return found[:: -(-len(found) // _MOST_TICKS)]
    size = 10.0 ** math.floor(math.log10((high - low) / _MOST_TICKS))
    step = next(lead * size for lead in (1, 2, 5, 10) if (high - low) / (lead * size) <= _MOST_TICKS)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _span(values: Sequence[float], is_log: bool) -> tuple[float, float]:
    """From a little below the lowest value to a little above the highest; a linear axis begins at 0."""
    least, most = min(values), max(values)
    if not is_log:
        return min(0.0, least), (most * 1.05 or 1.0)
    room = max(1.15, (most / least) ** 0.06)
    return least / room, most * room


def _share(value: float, span: tuple[float, float], is_log: bool) -> float:
    low, high = span
    if is_log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _marks(series: Series, places: Sequence[Point], colour: str) -> list[str]:
    parts = []
    if series.shape != "points":
        steps = places[:1]
        for before, after in pairwise(places):
            corner = [(after[0], before[1])] if series.shape == "steps" else []
            steps = [*steps, *corner, after]
        path = " ".join(f"{across:.1f},{up:.1f}" for across, up in steps)
        dashed = ' stroke-dasharray="5 4"' if series.is_dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>')
    if series.shape != "steps":
        parts += [f'<circle cx="{across:.1f}" cy="{up:.1f}" r="3.6" fill="{colour}"/>' for across, up in places]
    return parts


def _thin(series: Series) -> list[Point]:
    points = list(series.points)
    if len(points) <= _MOST_POINTS:
        return points
    return [points[round(index * (len(points) - 1) / (_MOST_POINTS - 1))] for index in range(_MOST_POINTS)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

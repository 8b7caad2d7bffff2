"""A plot for a page that must open anywhere and for ever: matplotlib's SVG as an element, which fetches nothing."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

from cycler import cycler
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from edgeclip_bench.measure.plot_style import COLOURS, GRID, plot_style

_WIDTH_IN, _HEIGHT_IN, _LEGEND_ROW_IN = 6.2, 3.4, 0.19
# A line with more points is thinned: a page should not weigh more than what it says.
_MOST_POINTS = 400
# A logarithmic axis over less than this factor has no two powers of ten: its ticks are in equal steps.
_SHORT_LOG = 10.0

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
    """The plot as an <svg> element, a legend of all series below it. A linear axis begins at 0."""
    # Words stay words, in the reader's own font.
    with plot_style(
        axes__grid=True,
        axes__prop_cycle=cycler(color=COLOURS),
        svg__fonttype="none",
        grid__color=GRID,
        xtick__color="black",
        ytick__color="black",
    ):
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN + _LEGEND_ROW_IN * len(series)), layout="constrained")
        axes = figure.subplots()
        axes.set_title(title, loc="left", fontweight="bold", parse_math=False)
        axes.set_axisbelow(True)
        for one in series:
            across, up = zip(*_thin(one.points), strict=True)
            axes.plot(
                across,
                up,
                label=one.label,
                linestyle="none" if one.shape == "points" else "dashed" if one.is_dashed else "solid",
                drawstyle="steps-post" if one.shape == "steps" else "default",
                marker="none" if one.shape == "steps" else "o",
                markersize=4.5,
                clip_on=one.shape == "steps",
            )
        for axis, one_axis, set_scale, set_least in (
            (x, axes.xaxis, axes.set_xscale, axes.set_xlim),
            (y, axes.yaxis, axes.set_yscale, axes.set_ylim),
        ):
            one_axis.set_label_text(axis.label, parse_math=False)
            values = [point[axis is y] for each in series for point in each.points]
            if axis.is_log:
                set_scale("log")
                is_short = max(values) < _SHORT_LOG * min(values)
                one_axis.set_major_locator(
                    MaxNLocator(7, steps=(1, 2, 5, 10)) if is_short else LogLocator(subs=(1, 2, 5), numticks=8)
                )
                one_axis.set_minor_formatter(NullFormatter())
            elif min(values) >= 0:
                set_least(0, max(values) * 1.05 or 1.0)
            one_axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
        legend = figure.legend(loc="outside lower left", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _element(file.getvalue(), title)


def _element(document: str, title: str) -> str:
    """The <svg> element of a document, as wide as its place, with ids of its own, for several share a page.

    In HTML an <svg> needs no namespaces, and without them nothing in the page looks like an address.
    """
    svg = document[document.index("<svg") :].rstrip()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href=", "href=")
    svg = re.sub(r' (width|height)="[^"]*pt"', "", svg, count=2)
    mark = hashlib.sha256(svg.encode()).hexdigest()[:8]
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def _thin(points: Sequence[Point]) -> list[Point]:
    if len(points) <= _MOST_POINTS:
        return list(points)
    return [points[round(index * (len(points) - 1) / (_MOST_POINTS - 1))] for index in range(_MOST_POINTS)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"

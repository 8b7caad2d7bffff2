"""Draw quality against truncate_dim: what a shorter vector costs.

A row of panels for each data set and direction: the figure itself, and the share of the full width's that is kept.
One line for each language, and overall as a bold one with its 95 % interval.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from edgeclip_bench.measure.plot_style import COLOURS, GRID, INK, PALE, drawable, plot_style, save_figure
from edgeclip_bench.quality.against import Comparison
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.report import WAYS
from edgeclip_bench.quality.scores import DataScores, Score
from edgeclip_bench.quality.searches import Direction

FORMATS = ("png", "svg")

# Languages beyond the colours are coloured by their place from worst to best.
_MANY = "turbo"
_LEGEND_ROWS = 14
# Between two ticks: their labels would touch below.
_LEAST_OCTAVES = 0.3


class _Line(NamedTuple):
    """The scores of one line of a plot at each dim, ascending."""

    label: str
    scores: tuple[Score, ...]


def save_curves(found: Evaluation | Comparison, folder: Path) -> list[Path]:
    """Draw curve.png and curve.svg; of a comparison with the other's overall as a dashed line."""
    evaluation, reference = (found, None) if isinstance(found, Evaluation) else (found.evaluation, found.reference)
    paths = [folder / f"curve.{kind}" for kind in FORMATS]
    with plot_style(font__size=10.0):
        figure = draw(evaluation, reference)
        for path in paths:
            save_figure(figure, path)
    return paths


def draw(found: Evaluation, reference: Evaluation | None = None) -> Figure:
    """The figure; `save_curves` gives it its style."""
    rows = [
        (data, direction, _lines(data, direction))
        for data in found.data
        for direction in dict.fromkeys(score.direction for score in data.scores)
    ]
    others = {data.label: data for data in reference.data} if reference else {}
    most = max(len(lines) for _, _, lines in rows)
    figure = Figure(
        figsize=(10.2 + 0.8 * math.ceil(most / _LEGEND_ROWS), 0.8 + 3.4 * len(rows)),
        layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.12),
    )
    against = f"\nthe other: {_name(reference)}" if reference else ""
    title = drawable(f"Quality against truncate_dim: {_name(found)}{against}")
    figure.suptitle(title, fontsize=12, color=INK, parse_math=False)
    figure.supxlabel("shaded: the 95 % interval of overall", fontsize=9, color=PALE)
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for (data, direction, lines), (quality, kept) in zip(rows, axes, strict=True):
        for axis, what in ((quality, ""), (kept, ": kept")):
            words = drawable(f"{data.label}, {WAYS[direction]}{what}")
            axis.set_title(words, loc="left", fontsize=11, color=INK, parse_math=False)
            _set_dims(axis, found.dims)
        quality.set_ylabel(f"{lines[0].scores[0].metric} (per cent)")
        kept.set_ylabel(f"per cent of {found.dims[-1]} dimensions")
        kept.axhline(100, color="#888888", linewidth=0.8, zorder=1)
        _draw_lines(quality, kept, lines)
        if reference is not None:
            _draw_reference(quality, kept, _lines(others[data.label], direction)[-1])
        if len(lines) > 1 or reference is not None:
            drawn = sorted(quality.get_lines(), key=lambda line: -line.get_ydata()[-1])  # as they end on the right
            kept.legend(
                handles=drawn,
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                ncols=math.ceil(len(drawn) / _LEGEND_ROWS),
                frameon=False,
            )
    return figure


def _draw_lines(quality: Axes, kept: Axes, lines: Sequence[_Line]) -> None:
    """Draw thin lines for languages, and on top a bold one for overall, with its interval."""
    for line, colour in zip(lines, (*_colours(lines[:-1]), INK), strict=True):
        bold = line.scores[0].is_overall
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": 2.8 if bold else 1.3,
            "marker": "o",
            "markersize": 5.5 if bold else 3.5,
            "zorder": 4 if bold else 3,
            "label": line.label,
        }
        dims = [score.dim for score in line.scores]
        quality.plot(dims, [100 * score.value for score in line.scores], **style)
        if bold:
            low, high = ([100 * getattr(score, end) for score in line.scores] for end in ("low", "high"))
            quality.fill_between(dims, low, high, color=colour, alpha=0.10, linewidth=0, zorder=2)
        if any(score.kept is not None for score in line.scores):
            kept.plot(dims, [math.nan if s.kept is None else 100 * s.kept for s in line.scores], **style)


def _draw_reference(quality: Axes, kept: Axes, line: _Line) -> None:
    style: dict[str, Any] = {"color": INK, "linewidth": 1.6, "linestyle": (0, (4, 2)), "zorder": 5}
    dims = [score.dim for score in line.scores]
    quality.plot(dims, [100 * score.value for score in line.scores], label=f"{line.label}, the other", **style)
    kept.plot(dims, [math.nan if s.kept is None else 100 * s.kept for s in line.scores], **style)


def _set_dims(axis: Axes, dims: Sequence[int]) -> None:
    axis.set_xscale("log", base=2)
    axis.set_xticks(shown_ticks(dims), [str(dim) for dim in shown_ticks(dims)])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("truncate_dim (dimensions)")
    axis.grid(color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)


def shown_ticks(dims: Sequence[int]) -> list[int]:
    """The dims whose labels have room beside each other, the largest among them."""
    shown: list[int] = []
    for dim in sorted(dims, reverse=True):
        if not shown or math.log2(shown[-1] / dim) >= _LEAST_OCTAVES:
            shown.append(dim)
    return shown[::-1]


def _lines(data: DataScores, direction: Direction | None) -> list[_Line]:
    """The first metric of a direction: its languages by name, overall last."""
    scores = [score for score in data.scores if score.direction == direction]
    first = scores[0]  # of pages: at the first max_pixels
    scores = [one for one in scores if one.metric == first.metric and _is_plain(one, first.max_pixels)]
    names = sorted({score.language or "" for score in scores if not score.is_overall})
    lines = [
        _Line(label=name, scores=tuple(s for s in scores if not s.is_overall and s.language == name))
        for name in names
    ]
    overall = tuple(score for score in scores if score.is_overall)
    return [*lines, _Line(label="overall" if names else overall[0].language or "overall", scores=overall)]


def _is_plain(score: Score, max_pixels: int | None) -> bool:
    """Whether a score is of single vectors, of which alone a part may be taken."""
    return (score.space, score.max_pixels) == ("single", max_pixels)


def _colours(lines: Sequence[_Line]) -> list[Any]:
    if len(lines) < len(COLOURS):  # the last is that of overall
        return list(COLOURS[: len(lines)])
    order = sorted(range(len(lines)), key=lambda index: lines[index].scores[-1].value)
    return [mpl.colormaps[_MANY](0.05 + 0.9 * order.index(index) / (len(lines) - 1)) for index in range(len(lines))]


def _name(found: Evaluation) -> str:
    precisions = ", ".join(f"{graph} {precision}" for graph, precision in found.bundle.precision.items())
    return f"{Path(found.bundle.name).name} ({precisions})"

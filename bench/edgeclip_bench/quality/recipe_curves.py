"""The recipes of `edgeclip quantize --report` as files: recipes.json, and what they cost and save as a picture.

For each graph what is kept against time, better towards the upper left, and below it a bar for each recipe's size.
The Pareto front is one of three figures, so it is no line: its members are filled. Steps are of time and loss alone.
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from edgeclip.errors import InputError
from edgeclip.manifest import Modality
from edgeclip_bench.measure.documents import make_document, save
from edgeclip_bench.measure.plot_labels import Point, place_labels
from edgeclip_bench.measure.plot_style import COLOURS, GRID, INK, PALE, drawable, plot_style, save_figure
from edgeclip_quant.budget import Budget
from edgeclip_quant.pick.pareto import Candidate, Comparison, Pick, alike_words, front
from edgeclip_quant.recipes import INT8, is_default

FILES = ("recipes.json", "recipes.png", "recipes.svg")
DEFAULT = INT8

# Shapes say the same once more.
_FRONT, _OTHER, _NEVER, _PICKED = COLOURS[0], "#777777", COLOURS[1], COLOURS[2]
_DOT_PT, _LABEL_PT = 7.0, 9.0
_RINGS = {"default": (1.9, INK), "picked": (2.5, _PICKED)}  # of a dot's width, and the colour
_ROW_INCHES, _LEGEND_INCHES = 0.25, 0.27
# A loss of 1 is a right angle: what lies beyond it is drawn there.
_LARGEST_LOSS = 1.0


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report, before the work; InputError where it cannot be written, or holds other files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in folder.iterdir()]
        others = sorted(name for name in names if name not in FILES and not name.startswith("."))
    except OSError as error:
        raise InputError(f"--report {folder}: no folder can be made there ({error.strerror})") from error
    if others:
        raise InputError(
            f"--report {folder}: holds {others[0]}{' and more' if len(others) > 1 else ''}, which is of no report; "
            "choose a folder that is new, empty, or of an earlier report"
        )
    if not os.access(folder, os.W_OK):
        raise InputError(f"--report {folder}: cannot be written to")


def save_report(
    folder: Path,
    comparison: Comparison,
    budget: Budget | None,
    picked: Pick | None,
    document: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write recipes.json (`document`, or one made now), recipes.png and recipes.svg when all are whole."""
    document = document or report_document(comparison, budget, picked)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".") as stage, plot_style():
            figure = draw(comparison, budget, picked)
            for name in FILES:
                path = Path(stage) / name
                if path.suffix == ".json":
                    save(document, path)
                else:
                    save_figure(figure, path)
            return [(Path(stage) / name).replace(folder / name) for name in FILES]
    except OSError as error:
        raise InputError(f"--report {folder}: cannot be written ({error.strerror or error})") from error


def report_document(comparison: Comparison, budget: Budget | None, picked: Pick | None) -> dict[str, Any]:
    """Every figure of every recipe and graph, and the machine they were measured on; NaN and infinity are None."""
    best = front(comparison)
    bounds = asdict(budget) if budget else None
    if bounds and bounds["token_cosine"] is None:  # it is for models of multi vectors
        del bounds["token_cosine"]
    figures: dict[str, Any] = {
        "model": comparison.model,
        "default": next((one.recipe.name for one in comparison.candidates if is_default(one.recipe)), DEFAULT.name),
        "is_calibration_made_up": comparison.is_made_up,
        "budget": bounds,
        "picked": {one.graph: one.recipe.name for one in picked.choice.candidates} if picked else None,
        "source_bytes": dict(comparison.source_bytes),
        "candidates": [
            {
                "graph": one.graph,
                "recipe": one.recipe.name,
                "describes": one.recipe.describes,
                "is_on_front": one in best,
                "never_taken": comparison.objection(one),
                "kept_cosine": one.kept,
                "kernels": dict(one.kernels),
                "largest_layer_error": _finite(one.largest_layer_error),
                "measured": {name: _finite(value) for name, value in asdict(one.measured).items()},
            }
            for one in comparison.candidates
        ],
    }
    return make_document("edgeclip quantize --report", figures)


def draw(comparison: Comparison, budget: Budget | None = None, picked: Pick | None = None) -> Figure:
    """The figure; `save_report` gives it its style."""
    rows = 2 + max(len(comparison.of(name)) for name in comparison.modalities)
    figure = Figure(figsize=(13, 5.4 + rows * _ROW_INCHES), layout="constrained")
    axes = figure.subplots(2, len(comparison.modalities), height_ratios=[3.8, rows * _ROW_INCHES], squeeze=False)
    # A second line for the legend: two things outside the axes would stand on each other.
    figure.suptitle(drawable(f"{comparison.model}: recipes for the CPU\n "), fontsize=13, color=INK, parse_math=False)
    line = 1 - _LEGEND_INCHES / figure.get_figheight()
    figure.legend(
        handles=_legend(picked), loc="upper center", bbox_to_anchor=(0.5, line), ncols=6, frameon=False, fontsize=9
    ).set_in_layout(False)
    figure.supxlabel(_footer(comparison, budget), fontsize=8.5, color=PALE, parse_math=False)
    top, bottom = _limits(comparison, budget)
    drawn = [_rows(comparison, picked, modality, top) for modality in comparison.modalities]
    for modality, mine, places, sizes in zip(comparison.modalities, drawn, *axes, strict=True):
        _draw_places(places, mine, budget, steps(comparison, modality))
        places.set_ylim(bottom, top)
        ticks = cosine_ticks(1.5 * top, bottom)
        places.set_yticks([top, *(loss for loss, _ in ticks)], ["1", *(label for _, label in ticks)])
        first = comparison.of(modality)[0]
        places.set_title(f"{first.graph} graph", loc="left", fontsize=11, color=INK)
        places.set_xlabel(f"time, of fp32's ({first.measured.latency_input})")
        _draw_sizes(sizes, mine, rows)
    figure.draw_without_rendering()  # labels stand by dots, and only now it is known where those are
    for mine, places in zip(drawn, axes[0], strict=True):
        _draw_labels(places, mine)
    return figure


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A recipe on a graph, or fp32, as it is drawn: `place` is its time and loss, `label` stands beside its dot."""

    name: str
    label: str
    place: Point
    cosine: str
    size_mb: float
    marker: str = "D"
    colour: str = INK
    is_filled: bool = True
    tags: tuple[str, ...] = ()


def _rows(comparison: Comparison, picked: Pick | None, modality: Modality, top: float) -> list[_Row]:
    """fp32, which stands at the top though it loses nothing, and the recipes, numbered alike in all graphs."""
    best, names = front(comparison), list(dict.fromkeys(one.recipe.name for one in comparison.candidates))
    size_mb = comparison.source_bytes[modality] / 1e6
    rows = [_Row(name="fp32", label="fp32", place=(1.0, top), cosine="1", size_mb=size_mb)]
    for one in comparison.of(modality):
        number, is_never = names.index(one.recipe.name) + 1, comparison.objection(one) is not None
        is_tagged = {
            "default": is_default(one.recipe),
            "picked": picked is not None and one in picked.choice.candidates,
        }
        tags = tuple(tag for tag, is_its in is_tagged.items() if is_its)
        rows.append(
            _Row(
                name=f"{number}  {one.recipe.name}",
                label=f"{number} {', '.join(tags)}".rstrip(),
                place=_place(one),
                cosine=f"{one.measured.worst_cosine:.5f}",
                size_mb=one.measured.weight_bytes / 1e6,
                marker="^" if is_never else "o",
                colour=_NEVER if is_never else _FRONT if one in best else _OTHER,
                is_filled=one in best,
                tags=tags,
            )
        )
    return rows


def steps(comparison: Comparison, modality: Modality) -> list[Point]:
    """Time and loss of the recipes that lose less than every faster one, by time; sizes are not looked at."""
    found: list[Point] = []
    for one in sorted(comparison.usable(modality), key=lambda one: (one.latency, one.loss)):
        if math.isfinite(one.loss) and (not found or one.loss < found[-1][1]):
            found.append((one.latency, one.loss))
    return found


def cosine_ticks(least: float, largest: float) -> list[tuple[float, str]]:
    """Losses between two, a third of a decade apart, with the cosines that they are: (0.003, "0.997")."""
    ticks = []
    for digits in range(9):
        for first in (3, 1):
            loss = first * 10.0**-digits
            if least <= loss <= min(largest, 1.0):
                ticks.append((loss, f"{1 - loss:.{digits}f}"))
    return ticks


def _draw_places(axes: Axes, rows: Sequence[_Row], budget: Budget | None, best: Sequence[Point]) -> None:
    for row in rows:
        axes.plot(
            *row.place,
            marker=row.marker,
            markersize=_DOT_PT,
            markerfacecolor=row.colour if row.is_filled else "white",
            markeredgecolor=row.colour,
            markeredgewidth=1.6,
            linestyle="none",
            clip_on=row is not rows[0],  # fp32 stands on the edge
            zorder=4,
        )
        for width, ring in (_RINGS[tag] for tag in row.tags):
            size = width * _DOT_PT
            axes.plot(*row.place, "o", markersize=size, markerfacecolor="none", markeredgecolor=ring, zorder=3)
    corners = [corner for corner in (*best, rows[0].place) if corner[0] <= 1]
    axes.step(*zip(*corners, strict=True), where="post", color=_FRONT, linewidth=1, alpha=0.5, zorder=2)
    if budget and budget.cosine is not None and budget.cosine < 1:
        axes.axhline(1 - budget.cosine, color=_NEVER, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        axes.text(
            0.995, 1 - budget.cosine, f"budget: {budget.cosine:g}", color=_NEVER, fontsize=8.5, ha="right", va="top",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    times = [row.place[0] for row in rows]
    margin = 0.08 * (max(times) - min(times) or 1)
    axes.set_xlim(min(times) - margin, max(times) + margin)
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel("worst cosine")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_labels(axes: Axes, rows: Sequence[_Row]) -> None:
    """Numbers and names beside the dots, in points of the page."""
    points = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    dots = [tuple(points * axes.transData.transform(row.place)) for row in rows]
    sizes = [(0.6 * _LABEL_PT * len(row.label) + 2, 1.2 * _LABEL_PT) for row in rows]
    left, bottom, right, top = (points * edge for edge in axes.get_window_extent().extents)
    widths = [_DOT_PT * max([1.3, *(_RINGS[tag][0] for tag in row.tags)]) for row in rows]
    middles = place_labels(dots, sizes, (left, bottom, right, top), widths)
    for row, dot, middle in zip(rows, dots, middles, strict=True):
        is_far = math.dist(dot, middle) > 3 * _LABEL_PT
        note = axes.annotate(
            row.label,
            row.place,
            xytext=(middle[0] - dot[0], middle[1] - dot[1]),
            textcoords="offset points",
            fontsize=_LABEL_PT,
            color=INK,
            weight="bold" if row.tags else "normal",
            ha="center",
            va="center",
            zorder=6,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkB": 4} if is_far else None,
        )
        note.set_in_layout(False)


def _draw_sizes(axes: Axes, rows: Sequence[_Row], room: int) -> None:
    """A row for each recipe: its name, a bar, and the figures; `room` is for so many, the header among them."""
    across = axes.get_yaxis_transform()
    cell: dict[str, Any] = {"transform": across, "ha": "right", "va": "center"}
    for x, header in ((0.5, "MB"), (0.57, "time"), (0.76, "worst cosine")):
        axes.text(x, -1, header, fontsize=8.5, color=PALE, **cell)
    axes.text(0, -1, "size", transform=across, va="center", fontsize=8.5, color=PALE)
    for place, row in enumerate(rows):
        face, size = row.colour if row.is_filled else "white", row.size_mb
        axes.barh(place, size, height=0.6, color=face, edgecolor=row.colour, linewidth=1.2)
        axes.text(
            0.5, place, f"{size:.{0 if size >= 100 else 1 if size >= 10 else 2}f}", fontsize=9, color=INK, **cell
        )
        axes.text(0.57, place, f"{row.place[0]:.2f}", fontsize=9, color=INK, **cell)
        axes.text(0.76, place, row.cosine, fontsize=9, color=INK, **cell)
        axes.text(1.0, place, ", ".join(row.tags), fontsize=9, color=INK, weight="bold", **cell)
    axes.set_xlim(0, 2.6 * max(row.size_mb for row in rows))  # the figures stand to the right
    axes.set_ylim(room - 1.4, -1.6)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_horizontalalignment("left")
    axes.tick_params(axis="y", length=0, pad=118)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(picked: Pick | None) -> list[Line2D]:
    def dot(marker: str, face: str, edge: str, label: str, size: float = _DOT_PT) -> Line2D:
        style: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 1.4}
        return Line2D([], [], linestyle="none", marker=marker, markersize=size, label=label, **style)

    handles = [
        dot("o", _FRONT, _FRONT, "on the Pareto front: size, time, worst cosine"),
        dot("o", "white", _OTHER, "not on it"),
        dot("^", "white", _NEVER, "never taken"),
        dot("o", "none", INK, f"default (--to {DEFAULT.name})", 1.5 * _DOT_PT),
    ]
    if picked:
        handles.append(dot("o", "none", _PICKED, "picked (--to auto)", 1.5 * _DOT_PT))
    return [*handles, Line2D([], [], color=_FRONT, alpha=0.5, linewidth=1, label="the best cosine for the time")]


def _footer(comparison: Comparison, budget: Budget | None) -> str:
    first = [comparison.of(modality)[0].measured for modality in comparison.modalities]
    inputs = " and ".join(f"{one.samples} {one.modality}s" for one in first)
    never: dict[str, list[str]] = {}
    for one in comparison.candidates:
        if objection := comparison.objection(one):
            never.setdefault(objection, []).append(one.recipe.name)
    reasons = "; ".join(f"{', '.join(dict.fromkeys(names))} ({reason})" for reason, names in never.items())
    rounds = min(one.measured.latency_samples or 0 for one in comparison.candidates)
    lines = [
        f"cosine: the worst of {inputs} ({first[0].data}), against fp32; "
        f"calibrated on {'made-up inputs' if comparison.is_made_up else 'others like them'}",
        f"time: the median of {rounds} rounds or more in turn with fp32 on {first[0].machine}; "
        f"{alike_words()} count as the same",
    ]
    if reasons:
        lines.append(f"never taken: {reasons}")
    if budget:
        moved = [f"{one.graph} {one.recipe.name}" for one in comparison.candidates if one.kept is not None]
        words = f"; for it layers were moved to finer kernels: {', '.join(moved)}" if moved else ""
        lines.append(f"budget: {budget}{words}")
    return drawable("\n".join(lines))


def _limits(comparison: Comparison, budget: Budget | None) -> tuple[float, float]:
    """The losses at the top, where fp32 stands though it loses nothing, and at the bottom."""
    losses = [_place(one)[1] for one in comparison.candidates]
    if budget and budget.cosine is not None and budget.cosine < 1:
        losses.append(min(1 - budget.cosine, _LARGEST_LOSS))
    return min(losses) / 4, max(losses) * 2


def _place(one: Candidate) -> Point:
    return one.latency, min(one.loss, _LARGEST_LOSS)


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

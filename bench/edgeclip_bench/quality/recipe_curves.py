"""The recipes of `edgeclip quantize --report` as files: recipes.json, and what they cost and save as a picture.

For each graph what is kept against time, better towards the upper left, and below it a bar for each recipe's size.
The Pareto front is one of three figures, so it is no line: its members are filled. Steps are of time and loss alone.
"""

import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from edgeclip.errors import InputError
from edgeclip.manifest import Modality
from edgeclip_bench.measure.documents import make_document, save
from edgeclip_bench.measure.plot_labels import place_labels
from edgeclip_bench.measure.plot_style import COLOURS, GRID, INK, PALE, drawable, plot_style, save_figure
from edgeclip_quant.budget import Budget
from edgeclip_quant.pick.pareto import Candidate, Comparison, Pick, alike_words, front
from edgeclip_quant.recipes import INT8, is_default

FILES = ("recipes.json", "recipes.png", "recipes.svg")
DEFAULT = INT8

# Shapes say the same once more.
_FRONT, _OTHER, _NEVER, _PICKED = COLOURS[0], "#777777", COLOURS[1], COLOURS[2]
_DOT_PT, _LABEL_PT = 7.0, 9.0
_DEFAULT_RING, _PICKED_RING = 1.9, 2.5  # of a dot's width
_ROW_INCHES, _LEGEND_INCHES = 0.25, 0.27
# A loss of 1 is a right angle: what lies beyond it is drawn there.
_LARGEST_LOSS = 1.0


def prepare_folder(folder: Path) -> None:
    """Make the folder of a report, before the work.

    InputError when it cannot be made or written to, and when it holds anything but an earlier report, so that
    no other files are mixed with the report's.
    """
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
    """Write recipes.json, recipes.png and recipes.svg when all are whole; InputError when they cannot be written.

    `document` is what `report_document` gave; None: it is made now.
    """
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
    figures: dict[str, Any] = {
        "model": comparison.model,
        "default": next((one.recipe.name for one in comparison.candidates if is_default(one.recipe)), DEFAULT.name),
        "is_calibration_made_up": comparison.is_made_up,
        "budget": _bounds(budget) if budget else None,
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


def _bounds(budget: Budget) -> dict[str, float | None]:
    """A budget's bounds; that on tokens only where there is one."""
    bounds = asdict(budget)
    return (
        bounds if budget.token_cosine is not None else {key: bounds[key] for key in bounds if key != "token_cosine"}
    )


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
    for name, places, sizes in zip(comparison.modalities, *axes, strict=True):
        _draw_places(places, comparison, budget, picked, name)
        _draw_sizes(sizes, comparison, picked, name, rows)
    figure.draw_without_rendering()  # labels stand by dots, and only now it is known where those are
    for name, places in zip(comparison.modalities, axes[0], strict=True):
        _draw_labels(places, comparison, picked, name)
    return figure


def steps(comparison: Comparison, modality: Modality) -> list[tuple[float, float]]:
    """Time and loss of the recipes that lose less than every faster one, by time; sizes are not looked at."""
    found: list[tuple[float, float]] = []
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


def _draw_places(
    axes: Axes, comparison: Comparison, budget: Budget | None, picked: Pick | None, modality: Modality
) -> None:
    best = front(comparison)
    top, bottom = _limits(comparison, budget)
    for one in comparison.of(modality):
        place, colour = _place(one), _colour(comparison, best, one)
        axes.plot(
            *place,
            marker="^" if comparison.objection(one) else "o",
            markersize=_DOT_PT,
            markerfacecolor=colour if one in best else "white",
            markeredgecolor=colour,
            markeredgewidth=1.6,
            linestyle="none",
            zorder=4,
        )
        for width, ring in _rings(one, picked):
            size = width * _DOT_PT
            axes.plot(*place, "o", markersize=size, markerfacecolor="none", markeredgecolor=ring, zorder=3)
    axes.plot(1, top, marker="D", markersize=_DOT_PT, color=INK, clip_on=False, zorder=5)
    corners = [*steps(comparison, modality), (1.0, top)]
    corners = [corner for corner in corners if corner[0] <= 1]
    axes.step(*zip(*corners, strict=True), where="post", color=_FRONT, linewidth=1, alpha=0.5, zorder=2)
    if budget and budget.cosine is not None and budget.cosine < 1:
        axes.axhline(1 - budget.cosine, color=_NEVER, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        axes.text(
            0.995, 1 - budget.cosine, f"budget: {budget.cosine:g}", color=_NEVER, fontsize=8.5, ha="right", va="top",
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    times = [1.0, *(one.latency for one in comparison.of(modality))]
    margin = 0.08 * (max(times) - min(times) or 1)
    axes.set_xlim(min(times) - margin, max(times) + margin)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    ticks = cosine_ticks(1.5 * top, bottom)
    axes.set_yticks([top, *(loss for loss, _ in ticks)], ["1", *(label for _, label in ticks)])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_title(f"{comparison.of(modality)[0].graph} graph", loc="left", fontsize=11, color=INK)
    axes.set_xlabel(f"time, of fp32's ({comparison.of(modality)[0].measured.latency_input})")
    axes.set_ylabel("worst cosine")
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)


def _draw_labels(axes: Axes, comparison: Comparison, picked: Pick | None, modality: Modality) -> None:
    """Numbers and names beside the dots, in points of the page."""
    points = 72 / axes.get_figure(root=True).dpi  # type: ignore[union-attr]
    labels = ["fp32"] + [_label(comparison, picked, one) for one in comparison.of(modality)]
    places = [(1.0, axes.get_ylim()[1])] + [_place(one) for one in comparison.of(modality)]
    dots = [tuple(points * axes.transData.transform(place)) for place in places]
    sizes = [(0.6 * _LABEL_PT * len(label) + 2, 1.2 * _LABEL_PT) for label in labels]
    window = axes.get_window_extent()
    left, bottom, right, top = (points * edge for edge in window.extents)
    rings = [1.3, *(max([1.3, *(width for width, _ in _rings(one, picked))]) for one in comparison.of(modality))]
    middles = place_labels(dots, sizes, (left, bottom, right, top), [_DOT_PT * ring for ring in rings])
    for label, place, dot, middle in zip(labels, places, dots, middles, strict=True):
        is_far = math.dist(dot, middle) > 3 * _LABEL_PT
        note = axes.annotate(
            label,
            place,
            xytext=(middle[0] - dot[0], middle[1] - dot[1]),
            textcoords="offset points",
            fontsize=_LABEL_PT,
            color=INK,
            weight="bold" if " " in label else "normal",
            ha="center",
            va="center",
            zorder=6,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.7, "shrinkB": 4} if is_far else None,
        )
        note.set_in_layout(False)


def _draw_sizes(axes: Axes, comparison: Comparison, picked: Pick | None, modality: Modality, rows: int) -> None:
    """A row for each recipe: its name, a bar, and the figures; room for `rows`, with header and fp32."""
    best, mine = front(comparison), comparison.of(modality)
    source = comparison.source_bytes[modality] / 1e6
    names = ["fp32", *(f"{_number(comparison, one)}  {one.recipe.name}" for one in mine)]
    sizes = [source, *(one.measured.weight_bytes / 1e6 for one in mine)]
    times = [1.0, *(one.latency for one in mine)]
    cosines = ["1", *(f"{one.measured.worst_cosine:.5f}" for one in mine)]
    marks = ["", *(", ".join(_tags(one, picked)) for one in mine)]
    colours = [INK, *(_colour(comparison, best, one) for one in mine)]
    filled = [True, *(one in best for one in mine)]
    for row, (size, colour, is_filled) in enumerate(zip(sizes, colours, filled, strict=True)):
        axes.barh(row, size, height=0.6, color=colour if is_filled else "white", edgecolor=colour, linewidth=1.2)
    axes.set_xlim(0, 2.6 * max(sizes))  # the figures stand to the right
    axes.set_ylim(rows - 1.4, -1.6)
    axes.set_yticks(range(len(names)), names)
    for label in axes.get_yticklabels():
        label.set_parse_math(False)
        label.set_horizontalalignment("left")
    axes.tick_params(axis="y", length=0, pad=118)
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    columns = (
        (0.5, "MB", [_megabytes(size) for size in sizes]),
        (0.57, "time", [f"{time:.2f}" for time in times]),
        (0.76, "worst cosine", cosines),
        (1.0, "", marks),
    )
    across = axes.get_yaxis_transform()
    for x, header, cells in columns:
        axes.text(x, -1, header, transform=across, ha="right", va="center", fontsize=8.5, color=PALE)
        for row, cell in enumerate(cells):
            weight = "bold" if header == "" else "normal"
            axes.text(x, row, cell, transform=across, ha="right", va="center", fontsize=9, color=INK, weight=weight)
    axes.text(0, -1, "size", transform=across, va="center", fontsize=8.5, color=PALE)


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


def _place(one: Candidate) -> tuple[float, float]:
    return one.latency, min(one.loss, _LARGEST_LOSS)


def _colour(comparison: Comparison, best: Sequence[Candidate], one: Candidate) -> str:
    if comparison.objection(one):
        return _NEVER
    return _FRONT if one in best else _OTHER


def _number(comparison: Comparison, one: Candidate) -> int:
    """The number of a recipe, which is the same in all graphs."""
    names = dict.fromkeys(candidate.recipe.name for candidate in comparison.candidates)
    return list(names).index(one.recipe.name) + 1


def _label(comparison: Comparison, picked: Pick | None, one: Candidate) -> str:
    return f"{_number(comparison, one)} {', '.join(_tags(one, picked))}".rstrip()


def _tags(one: Candidate, picked: Pick | None) -> list[str]:
    return ["default"] * (is_default(one.recipe)) + ["picked"] * _is_picked(one, picked)


def _is_picked(one: Candidate, picked: Pick | None) -> bool:
    return picked is not None and one in picked.choice.candidates


def _rings(one: Candidate, picked: Pick | None) -> list[tuple[float, str]]:
    """The width and colour of each ring around a candidate."""
    return [(_DEFAULT_RING, INK)] * (is_default(one.recipe)) + [(_PICKED_RING, _PICKED)] * _is_picked(one, picked)


def _megabytes(size: float) -> str:
    return f"{size:.{0 if size >= 100 else 1 if size >= 10 else 2}f}"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

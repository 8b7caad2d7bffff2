"""Every recipe has its place, its bar and its figures; who is on the front, the default and the pick are seen."""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.axes import Axes
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.manifest import MODALITIES
from edgeclip_bench.quality.recipe_curves import (
    FILES,
    cosine_ticks,
    draw,
    prepare_folder,
    report_document,
    save_report,
    steps,
)
from edgeclip_quant.budget import Budget, parse_budget
from edgeclip_quant.pick.pareto import Comparison, Pick, front, pick
from edgeclip_quant.recipes import COMPARED, recipes_for
from tests.scenes.compared import all_recipes, candidate, comparison

BUDGET = parse_budget("cosine=0.99", "int8")


def picked(found: Comparison, budget: Budget = BUDGET) -> Pick:
    pair = pick(found, budget)
    assert pair is not None
    return pair


def panels(found: Comparison, budget: Budget | None = None, pair: Pick | None = None) -> list[Axes]:
    """Of text and vision: places, then sizes."""
    return draw(found, budget, pair).axes


def dots(axes: Axes, marker: str) -> list[tuple[float, float, Any]]:
    """Where the markers of one shape stand, and what they are filled with; rings left out."""
    found = []
    for line in axes.get_lines():
        if line.get_marker() == marker and line.get_markersize() < 8:
            (x,), (y,) = line.get_data()
            found.append((x, y, line.get_markerfacecolor()))
    return found


def test_every_recipe_stands_where_its_time_and_loss_are() -> None:
    found = all_recipes()
    best = front(found)
    assert 2 < len(best) < len(found.candidates)
    for modality, axes in zip(MODALITIES, panels(found), strict=False):
        usable = [one for one in found.of(modality) if found.objection(one) is None]
        assert [dot[:2] for dot in dots(axes, "o")] == [(one.latency, one.loss) for one in usable]
        assert [dot[2] != "white" for dot in dots(axes, "o")] == [one in best for one in usable]
        never = [one for one in found.of(modality) if found.objection(one)]
        assert [dot[:2] for dot in dots(axes, "^")] == [(one.latency, one.loss) for one in never]
        assert {dot[2] for dot in dots(axes, "^")} == {"white"}
        assert len(never) == 2


def test_fp32_stands_at_its_own_time_above_all() -> None:
    for axes in panels(all_recipes())[:2]:
        ((x, y, _),) = dots(axes, "D")
        bottom, top = axes.get_ylim()
        assert (x, y) == (1.0, top) and top < bottom
        assert axes.get_yticklabels()[0].get_text() == "1" and axes.get_yticks()[0] == top


def test_default_and_pick_have_a_ring_and_a_word() -> None:
    found = all_recipes()
    pair = picked(found)
    for modality, axes in zip(MODALITIES, panels(found, BUDGET, pair), strict=False):
        rings = [line.get_data() for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
        default, taken = (
            found.of(modality)[0],
            next(one for one in pair.choice.candidates if one.modality == modality),
        )
        assert taken is not default
        assert [(x[0], y[0]) for x, y in rings] == [(one.latency, one.loss) for one in (default, taken)]
        words = [text.get_text() for text in axes.texts]
        number = [one.name for one in COMPARED].index(taken.recipe.name) + 1
        assert "1 default" in words and f"{number} picked" in words
    assert not any("picked" in text.get_text() for axes in panels(found) for text in axes.texts)


def test_one_that_is_default_and_pick_says_both_beside_its_figures() -> None:
    found = comparison()
    places, _, sizes, _ = panels(found, BUDGET, picked(found))
    assert "1 default, picked" in [text.get_text() for text in places.texts]
    row = {text.get_text(): text.get_window_extent() for text in sizes.texts if text.get_position()[1] == 1}
    assert row["default, picked"].x0 > row["0.99900"].x1


def test_axes_are_named_and_the_losses_are_told_as_cosines() -> None:
    text, vision, *_ = panels(all_recipes())
    assert (text.get_title(loc="left"), vision.get_title(loc="left")) == ("text graph", "vision graph")
    assert text.get_xlabel() == "time, of fp32's (16 tokens)" and vision.get_xlabel() == "time, of fp32's (1 image)"
    assert text.get_ylabel() == vision.get_ylabel() == "worst cosine"
    assert text.get_yscale() == "log" and text.get_ylim() == vision.get_ylim()
    shown = [label.get_text() for label in text.get_yticklabels()][1:]
    assert [1 - float(label) for label in shown] == pytest.approx(text.get_yticks()[1:])
    assert "0.99" in shown and "0.999" in shown


@pytest.mark.parametrize(
    ("least", "largest", "labels"),
    [
        (0.002, 0.2, ["0.9", "0.97", "0.99", "0.997"]),
        (0.3, 5.0, ["0", "0.7"]),
        (0.9e-4, 1.1e-4, ["0.9999"]),
        (1e-5, 0.9e-4, ["0.99997", "0.99999"]),
    ],
)
def test_ticks_are_cosines_that_can_be_read(least: float, largest: float, labels: list[str]) -> None:
    ticks = sorted(cosine_ticks(least, largest), reverse=True)
    assert [label for _, label in ticks] == labels
    assert [1 - float(label) for label in labels] == pytest.approx([loss for loss, _ in ticks])


def test_a_budget_is_a_line_in_sight() -> None:
    budget = parse_budget("cosine=0.5", "int8")
    for axes in panels(all_recipes(), budget)[:2]:
        (line,) = (line for line in axes.get_lines() if line.is_dashed())
        assert set(line.get_ydata()) == {0.5}
        assert axes.get_ylim()[0] > 0.5
        assert "budget: 0.5" in [text.get_text() for text in axes.texts]
    assert not any(line.is_dashed() for line in panels(all_recipes())[0].get_lines())


def test_steps_are_the_least_loss_for_the_time() -> None:
    found = comparison(
        candidate("text", "int8", time=0.5, cosine=0.99),
        candidate("text", "int4", time=0.4, cosine=0.9),
        candidate("text", "int8-blocks", time=0.6, cosine=0.95),
        candidate("text", "int8-per-row", time=0.7, cosine=0.999),
        candidate("text", "int8-static", time=0.1, cosine=math.nan),
        candidate("text", "int8-dynamic", time=0.1, cosine=0.9999),
    )
    assert steps(found, "text") == [
        (0.4, pytest.approx(0.1)),
        (0.5, pytest.approx(0.01)),
        (0.7, pytest.approx(0.001)),
    ]


def test_a_row_for_each_recipe_holds_its_bar_and_its_figures() -> None:
    """Under the same number in all graphs, though the vision graph has no table and so no row for it."""
    found = all_recipes()
    numbers = {recipe.name: number for number, recipe in enumerate(COMPARED, start=1)}
    kept = dataclasses.replace(found, candidates=tuple(
        one for one in found.candidates if one.recipe in recipes_for(has_table=one.modality == "text")
    ))  # fmt: skip
    for modality, axes in zip(MODALITIES, panels(kept)[2:], strict=True):
        mine = kept.of(modality)
        names = [label.get_text() for label in axes.get_yticklabels()]
        assert names == ["fp32", *(f"{numbers[one.recipe.name]}  {one.recipe.name}" for one in mine)]
        widths = [bar.get_width() for bar in axes.patches]  # type: ignore[attr-defined]
        assert widths == pytest.approx([4.0, *(one.measured.weight_bytes / 1e6 for one in mine)])
        texts = [text.get_text() for text in axes.texts]
        for one in mine:
            assert f"{one.measured.weight_bytes / 1e6:.2f}" in texts
            assert f"{one.latency:.2f}" in texts and f"{one.measured.worst_cosine:.5f}" in texts
        assert texts.count("default") == 1
    assert len(kept.of("image")) == len(kept.of("text")) - 1


def test_the_footer_says_what_and_where_and_why_not() -> None:
    found = all_recipes(is_made_up=True)
    figure = draw(found, BUDGET)
    (footer,) = (text.get_text() for text in figure.texts if "median" in text.get_text())
    for words in (
        "8 texts and 8 images (photos)",
        "calibrated on made-up inputs",
        "30 rounds",
        "a processor, 2 threads",
        "int8-dynamic, int8-dynamic-smooth (a vector depends on its batch)",
        "int8-static (made-up inputs cannot fix scales)",
        "budget: cosine=0.99,recall=0.5",
    ):
        assert words in footer
    assert "never taken" not in "".join(text.get_text() for text in draw(comparison()).texts)


def test_the_footer_names_what_was_moved_for_the_budget() -> None:
    found = comparison(candidate("text", "int4", kept=0.99))
    (footer,) = (text.get_text() for text in draw(found, BUDGET).texts if "median" in text.get_text())
    assert "moved to finer kernels: text int4" in footer


def test_the_document_holds_every_figure() -> None:
    found = all_recipes()
    document = json.loads(json.dumps(report_document(found, BUDGET, picked(found)), allow_nan=False))
    assert document["picked"] == {one.graph: one.recipe.name for one in picked(found).choice.candidates}
    bounds = dataclasses.asdict(BUDGET)
    assert document["budget"] == {name: bounds[name] for name in ("cosine", "recall_points", "size_mb")}
    assert document["default"] == "int8" and document["machine"]["processor"]
    best = front(found)
    for one, row in zip(found.candidates, document["candidates"], strict=True):
        assert (row["graph"], row["recipe"]) == (one.graph, one.recipe.name)
        assert row["measured"] == dataclasses.asdict(one.measured)
        assert row["is_on_front"] == (one in best)
        assert row["never_taken"] == found.objection(one)
    nothing = report_document(found, None, None)
    assert (nothing["budget"], nothing["picked"]) == (None, None)


def test_nan_is_null_and_drawn_at_the_bottom(tmp_path: Path) -> None:
    found = comparison(candidate("text", "int8", cosine=math.nan), candidate("text", "int4"))
    save_report(tmp_path, found, None, None)
    rows = json.loads((tmp_path / "recipes.json").read_text())["candidates"]
    assert rows[0]["measured"]["worst_cosine"] is None and rows[0]["largest_layer_error"] is None
    assert dots(panels(found)[0], "o")[0][:2] == (0.5, 1.0)


@pytest.mark.parametrize("budget", ["cosine=1", "cosine=-1", "size_mb=900"])
def test_extremes_are_drawn(budget: str) -> None:
    """Graphs that lost nothing, or everything, all alike."""
    for cosine in (1.0, 0.0, -1.0):
        found = comparison(*(candidate(modality, "int8", cosine=cosine, time=1.0) for modality in MODALITIES))
        for axes in panels(found, parse_budget(budget, "int8"))[:2]:
            bottom, top = axes.get_ylim()
            assert 0 < top < dots(axes, "o")[0][1] < bottom


def test_files_open_and_are_the_same_each_time(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        prepare_folder(folder)
        paths = save_report(folder, all_recipes(), BUDGET, picked(all_recipes()))
        assert [path.name for path in paths] == list(FILES)
        assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0][1:] == contents[1][1:]
    documents = [json.loads(found[0]) for found in contents]
    assert all(document.pop("measured_at") for document in documents) and documents[0] == documents[1]
    with Image.open(tmp_path / "a" / "recipes.png") as image:
        image.load()
        assert image.width > 1500
    assert re.match(r"<\?xml .*<svg ", contents[0][2].decode(), re.DOTALL)
    assert mpl.rcParams["svg.hashsalt"] is None


def test_names_in_any_script_and_with_signs_of_mathematics_are_drawn(tmp_path: Path) -> None:
    one = candidate("text", "int8")
    odd = dataclasses.replace(one, measured=dataclasses.replace(one.measured, data="绘画 $x_ \udcff"))
    save_report(tmp_path, dataclasses.replace(comparison(odd), model="$\\frac 绘画"), BUDGET, None)


def test_an_earlier_report_is_replaced_and_nothing_else_is_mixed_with(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    prepare_folder(folder)
    (folder / ".DS_Store").touch()
    save_report(folder, all_recipes(), None, None)
    prepare_folder(folder)
    (folder / "holiday.jpg").touch()
    with pytest.raises(InputError, match=r"holds holiday.jpg, which is of no report; choose a folder that is new"):
        prepare_folder(folder)
    (folder / "a.txt").touch()
    with pytest.raises(InputError, match=r"holds a.txt and more, which is"):
        prepare_folder(folder)


def test_a_folder_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--report .*file: no folder can be made there \(File exists\)"):
        prepare_folder(tmp_path / "file")
    with pytest.raises(InputError, match=r"no folder can be made there \(Not a directory\)"):
        prepare_folder(tmp_path / "file" / "report")


def test_what_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "recipes.png").mkdir()
    (tmp_path / "recipes.png" / "a").touch()
    with pytest.raises(InputError, match=r"--report .*: cannot be written \("):
        save_report(tmp_path, all_recipes(), None, None)
    with pytest.raises(InputError, match=r"--report .*nowhere: cannot be written \(No such file or directory\)"):
        save_report(tmp_path / "nowhere", all_recipes(), None, None)

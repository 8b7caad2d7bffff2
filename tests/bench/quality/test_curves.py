"""A line for each language and a bold one for overall, dims on a log2 axis, and files that open."""

import re
from pathlib import Path

import pytest
from PIL import Image

from edgeclip_bench.quality.against import Comparison
from edgeclip_bench.quality.curves import draw, save_curves, shown_ticks
from tests.scenes.evaluation_data import made_evaluation

MANY = tuple(f"l{index}" for index in range(36))


def test_a_panel_shows_the_figures() -> None:
    found = made_evaluation()
    figure = draw(found)
    assert len(figure.axes) == 4
    for direction, quality, kept in zip(("text_to_image", "image_to_text"), *[iter(figure.axes)] * 2, strict=True):
        lines = {str(line.get_label()): line for line in quality.get_lines()}
        assert set(lines) == {"de", "en", "zh", "overall"}
        for label, line in lines.items():
            scores = [
                score
                for score in found.data[0].scores
                if (score.direction, score.metric, score.language or "overall") == (direction, "recall@1", label)
            ]
            assert list(line.get_xdata()) == [64, 256, 1024]
            assert list(line.get_ydata()) == pytest.approx([100 * score.value for score in scores])
            (share,) = (other for other in kept.get_lines() if other.get_label() == label)
            assert list(share.get_ydata()) == pytest.approx([100 * (score.kept or 0) for score in scores])
        widths = {label: line.get_linewidth() for label, line in lines.items()}
        assert widths.pop("overall") > 2 * max(widths.values())


def test_axes_are_titled_and_have_units() -> None:
    quality, kept, *_ = draw(made_evaluation()).axes
    assert quality.get_xscale() == "log"
    assert [label.get_text() for label in quality.get_xticklabels()] == ["64", "256", "1024"]
    assert quality.get_xlabel() == kept.get_xlabel() == "truncate_dim (dimensions)"
    assert (quality.get_ylabel(), kept.get_ylabel()) == ("recall@1 (per cent)", "per cent of 1024 dimensions")
    assert quality.get_title(loc="left") == "xtd10, text to image"


def test_the_legend_is_in_the_order_of_the_lines() -> None:
    _, kept, *_ = draw(made_evaluation()).axes
    assert [text.get_text() for text in kept.get_legend().get_texts()] == ["de", "zh", "overall", "en"]


def test_one_line_needs_no_legend() -> None:
    assert all(axis.get_legend() is None for axis in draw(made_evaluation(languages=())).axes)


def test_many_languages_have_colours_of_their_own() -> None:
    quality, *_ = draw(made_evaluation(languages=MANY)).axes
    assert len({line.get_color() for line in quality.get_lines()}) == 37


@pytest.mark.parametrize(
    ("dims", "shown"),
    [
        ((64, 128, 256, 512, 768, 1024), [64, 128, 256, 512, 768, 1024]),
        ((1000, 1010, 1024), [1024]),
        ((8, 9, 15, 16), [9, 16]),
        ((1,), [1]),
    ],
)
def test_ticks_have_room(dims: tuple[int, ...], shown: list[int]) -> None:
    assert shown_ticks(dims) == shown


def test_files_open_and_are_the_same_each_time(tmp_path: Path) -> None:
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        paths = save_curves(made_evaluation(), folder)
        assert [path.name for path in paths] == ["curve.png", "curve.svg"]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    with Image.open(tmp_path / "a" / "curve.png") as image:
        image.load()
        assert image.width > 1500
    assert re.match(r"<\?xml .*<svg ", contents[0][1].decode(), re.DOTALL)


def test_names_in_any_script_and_with_signs_of_mathematics_are_drawn(tmp_path: Path) -> None:
    """Without a warning, which the font would give, and an error, which matplotlib's formulas would."""
    save_curves(made_evaluation(name="绘画 $x_ \udcff", bundle="$\\frac"), tmp_path)


def test_the_other_bundle_is_a_dashed_line(tmp_path: Path) -> None:
    found = Comparison(
        evaluation=made_evaluation(),
        reference=made_evaluation(bundle="bundles/fp32"),
        differences=(),
        agreements=(),
        closeness=(),
        worst=(),
    )
    quality, *_ = draw(found.evaluation, found.reference).axes
    (other,) = (line for line in quality.get_lines() if line.get_label() == "overall, the other")
    assert other.is_dashed()
    assert len(save_curves(found, tmp_path)) == 2

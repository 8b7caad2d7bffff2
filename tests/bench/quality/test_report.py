"""What was measured can be read: aligned tables, pages without broken rows, a document without NaN."""

import dataclasses
import json
from pathlib import Path

import pytest

from edgeclip_bench.quality.against import (
    Agreement,
    Comparison,
    DataCloseness,
    Difference,
    WorstInput,
    compare,
)
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.report import make_report, render_json, render_markdown, render_text
from tests.scenes.evaluation_data import image_text, made_evaluation, perturbed


def made_comparison() -> Comparison:
    facts = {"data": "xtd10", "direction": "text_to_image", "language": None, "is_overall": True}
    return Comparison(
        evaluation=made_evaluation(),
        reference=made_evaluation(bundle="bundles/fp32"),
        differences=tuple(
            Difference(
                **facts,
                metric=metric,
                dim=dim,
                value=0.5,
                reference=0.507,
                points=-0.7,
                low=-1.2,
                high=-0.2,
                samples=9,
            )
            for dim in (64, 256, 1024)
            for metric in ("recall@1", "recall@5")
        ),
        agreements=tuple(
            Agreement(**facts, metric="agreement@10", dim=dim, share=0.98765, samples=9) for dim in (64, 256, 1024)
        ),
        closeness=(
            DataCloseness(
                data="xtd10", modality="text", samples=9, worst=0.91, first_percentile=0.95, mean=0.9912345
            ),
        ),
        worst=(
            WorstInput(
                data="xtd10",
                modality="text",
                input="海滩 | a\nline " + "x" * 100 + " end",
                cosine=0.91,
                direction="text_to_image",
                language="zh",
                rank=17,
                reference_rank=None,
            ),
        ),
    )


def table_of(text: str, title: str) -> list[str]:
    """The lines of a table, its title left out."""
    return text.split(f"{title}\n", 1)[1].split("\n\n", 1)[0].split("\n")


def test_the_languages_stand_at_full_width_and_overall_last() -> None:
    text = render_text(make_report(made_evaluation()))
    assert table_of(text, "xtd10, text to image: languages at 1024 dimensions, per cent") == [
        "language  samples              recall@1              recall@5  published  difference",
        "de           1000  45.61 [43.61, 46.61]  65.61 [63.61, 66.61]      60.00       +5.61",
        "en           1000  42.61 [40.61, 43.61]  62.61 [60.61, 63.61]      60.00       +2.61",
        "zh           1000  44.61 [42.61, 45.61]  64.61 [62.61, 65.61]      60.00       +4.61",
        "overall      3000  44.11 [42.11, 45.11]  64.11 [62.11, 65.11]      60.00       +4.11",
        "  overall: all captions together",
        "  published: https://example.org/paper table 1",
        "  published figures are jina-clip-v2's on the whole test split; a part of it is another test",
    ]
    lines = table_of(text, "xtd10, image to text: languages at 1024 dimensions, per cent")
    assert "published" not in lines[0] and lines[-1] == "  overall: mean over languages"


def test_overall_stands_at_every_dim_with_what_is_kept() -> None:
    text = render_text(make_report(made_evaluation()))
    lines = table_of(text, "xtd10, text to image: 3000 queries, all captions together, by truncate_dim, per cent")
    assert lines[:4] == [
        "dim               recall@1   kept              recall@5  published  difference   kept",
        "64    38.25 [36.25, 39.25]  93.8%  58.25 [56.25, 59.25]          -           -  93.8%",
        "256   42.94 [40.94, 43.94]  98.4%  62.94 [60.94, 63.94]          -           -  98.4%",
        "1024  44.11 [42.11, 45.11]  99.6%  64.11 [62.11, 65.11]      60.00       +4.11  99.6%",
    ]
    assert any("256 keep at least 99%" in line and "https://jina.ai" in line for line in lines)


def test_other_models_are_not_held_against_published_shares() -> None:
    assert "keep at least" not in render_text(make_report(made_evaluation(dims=(64, 256, 512))))


@pytest.mark.parametrize(("dims", "is_there"), [((64, 1024), True), ((64, 512), False)])
def test_averages_over_many_sets_stand_below_a_table(dims: tuple[int, ...], is_there: bool) -> None:
    """Of jina-clip-v2's width alone, and never in a column."""
    found = made_evaluation(name="mteb-sts", languages=(), dims=dims, directions=(None,))
    scores = tuple(dataclasses.replace(score, metric="spearman") for score in found.data[0].scores[::2])
    found = dataclasses.replace(found, data=(dataclasses.replace(found.data[0], scores=scores),))
    (table,) = make_report(found).tables
    averages = [note for note in table.notes if "comparable with no single one" in note]
    assert len(averages) == (2 if is_there else 0)
    assert not is_there or averages[0].startswith(
        "published: spearman 81.29, the average over MTEB's English STS sets, comparable with no single one (https"
    )
    assert "published" not in table.header


def test_one_language_has_one_table_a_direction() -> None:
    report = make_report(made_evaluation(languages=()))
    assert [table.title for table in report.tables] == [
        "xtd10, text to image: 3000 queries, by truncate_dim, per cent",
        "xtd10, image to text: 3000 queries, by truncate_dim, per cent",
    ]


def test_what_the_figures_depend_on_stands_first() -> None:
    lines = render_text(make_report(made_evaluation())).split("\n")
    assert lines[:4] == [
        "Quality of bundles/jina-clip-v2-int8",
        "bundles/jina-clip-v2-int8: jinaai/jina-clip-v2 at abc, text int8, vision fp32, for cpu",
        "on cpu, a processor, 2 processors; edgeclip 0.1.0, onnxruntime 1.31.1",
        "xtd10: image-text retrieval, 1000 images, 3000 captions in de, en, zh; of 4000 inputs 900 embedded, "
        "3000 from the cache, 100 repeated, 2 cut to the model's length",
    ]


def test_differences_have_signs_and_what_was_found_by_both() -> None:
    text = render_text(make_report(made_comparison()))
    assert table_of(text, "xtd10, text to image: difference, by truncate_dim, in points") == [
        "dim               recall@1              recall@5  agreement@10",
        "64    -0.70 [-1.20, -0.20]  -0.70 [-1.20, -0.20]        98.77%",
        "256   -0.70 [-1.20, -0.20]  -0.70 [-1.20, -0.20]        98.77%",
        "1024  -0.70 [-1.20, -0.20]  -0.70 [-1.20, -0.20]        98.77%",
    ]
    assert "against bundles/fp32: jinaai/jina-clip-v2 at abc" in text


def test_the_worst_inputs_are_one_line_each() -> None:
    """However long they are, and as wide as a terminal shows them."""
    lines = table_of(render_text(make_report(made_comparison())), "xtd10, text: inputs with the lowest cosines")
    assert len(lines) == 2
    cell = "海滩 | a line " + "x" * 16 + " … " + "x" * 24 + " end"
    assert lines[1] == f"{cell}        zh  0.910000            -        17"
    assert len(lines[0]) == len(lines[1]) + 2  # two characters are two columns wide


def test_a_page_has_whole_rows() -> None:
    page = render_markdown(make_report(made_comparison()))
    tables = [block.split("\n") for block in page.split("\n\n") if block.startswith("| ")]
    assert len(tables) == 7
    for table in tables:
        columns = {line.replace("\\|", "").count("|") for line in table}
        assert len(columns) == 1
        assert set(table[1]) <= set("|-: ")
    assert "海滩 \\| a line" in page
    assert page.startswith("# Quality of bundles/jina-clip-v2-int8 against bundles/fp32\n")


@pytest.mark.parametrize("found", [made_evaluation(), made_comparison()], ids=["evaluation", "comparison"])
def test_the_document_holds_everything(found: Evaluation | Comparison) -> None:
    document = json.loads(render_json(found))
    assert document.pop("benchmark") == "edgeclip_bench.quality"
    assert document | json.loads(json.dumps(found.as_dict())) == document
    assert json.loads(json.dumps(dataclasses.asdict(found))).items() <= document.items()
    assert render_json(found).endswith("}\n")


def test_a_real_comparison_renders(bundle: Path, tmp_path: Path) -> None:
    data = [image_text(tmp_path / "images")]
    found = compare(bundle, perturbed(bundle, tmp_path / "other", "text"), data, cache=None, device="cpu")
    report = make_report(found)
    assert len(report.tables) == 4 + 4 + 3
    text = render_text(report)
    assert "nan" not in text.lower()
    for table in report.tables:
        assert all(len(row) == len(table.header) for row in table.rows)
    json.loads(render_json(found))
    assert render_markdown(report).count("\n## ") == len(report.tables)

"""The demo's results as tables: int8 beside fp32, recall by language and by dimension, a search."""

from collections.abc import Iterable, Sequence

from edgeclip.manifest import Modality
from edgeclip.tables import format_table
from edgeclip_bench.demo.run import LANGUAGES, Demo
from edgeclip_bench.demo.stages import Smaller, costs_table, introduction, seconds_table
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.searches import Direction

_DIRECTIONS: dict[Direction, str] = {"text_to_image": "text to image", "image_to_text": "image to text"}
_METRIC = "recall@5"
_EMBEDDED: dict[Modality, str] = {"text": "captions", "image": "pictures"}


def render_demo(found: Demo) -> str:
    """Every table, with a line before each that needs one; without int8's columns where there is no such bundle."""
    figures = found.figures
    (data,) = figures.evaluation.data
    what = (
        f"{introduction(figures, 'jina-clip-v2', 'scenes')}\n"
        f"{data.sizes['images']} pictures of combinations that training never showed, in families that differ in one "
        f"attribute,\nand {data.sizes['captions']} captions in {len(data.languages)} languages."
    )
    tables = [_by_language(figures.evaluations), _by_dim(figures.evaluations)]
    if figures.int8:
        closeness = [
            (f"worst cosine to fp32, {one.samples} {_EMBEDDED[one.modality]}", "1", f"{one.worst:.4f}")
            for one in figures.int8.comparison.closeness
        ]
        tables = [costs_table(figures, figures.int8, closeness), *tables, _moved(figures.int8)]
    return "\n\n".join((what, *tables, _questions(found), seconds_table(figures)))


def _by_language(evaluations: Sequence[Evaluation]) -> str:
    (data,) = evaluations[0].data
    full = max(evaluations[0].dims)
    rows = [(language or "all", *_recalls(evaluations, language, full)) for language in (*data.languages, None)]
    return format_table((f"{_METRIC} at {full} dims", *_columns(evaluations)), rows)


def _by_dim(evaluations: Sequence[Evaluation]) -> str:
    rows = [(f"{dim} dims", *_recalls(evaluations, None, dim)) for dim in sorted(evaluations[0].dims, reverse=True)]
    return format_table((f"{_METRIC}, all languages", *_columns(evaluations)), rows)


def _columns(evaluations: Sequence[Evaluation]) -> Iterable[str]:
    for title in _DIRECTIONS.values():
        yield from (title, "int8")[: len(evaluations)]


def _recalls(evaluations: Sequence[Evaluation], language: str | None, dim: int) -> Iterable[str]:
    for direction in _DIRECTIONS:
        for evaluation in evaluations:
            (value,) = (
                one.value
                for one in evaluation.data[0].scores
                if (one.metric, one.direction, one.language, one.dim) == (_METRIC, direction, language, dim)
            )
            yield f"{value:.3f}"


def _moved(int8: Smaller) -> str:
    full = max(int8.comparison.evaluation.dims)
    moves = ",\nby ".join(
        f"{one.points:+.2f} points {_DIRECTIONS[one.direction]} ({one.low:+.2f} to {one.high:+.2f})"
        for one in int8.comparison.differences
        if (one.metric, one.language, one.dim) == (_METRIC, None, full) and one.direction in _DIRECTIONS
    )
    return f"int8 moves {_METRIC} by {moves}: 95 % intervals, of the same queries."


def _questions(found: Demo) -> str:
    """The table of queries; its texts stand in the last column, because they are long or run from right to left."""
    header = ("asked in", "place", "int8", "ms", "int8") if found.figures.int8 else ("asked in", "place", "ms")
    rows = [
        (
            LANGUAGES[one.language],
            *(str(answer.place) for answer in one.answers),
            *(f"{answer.latency_ms:.1f}" for answer in one.answers),
        )
        for one in found.questions
    ]
    first, *lines = format_table(header, rows).splitlines()
    asked = (f"{line}  {one.text}" for line, one in zip(lines, found.questions, strict=True))
    said = "The place at which what was meant was found, and the time to embed the text and search all pictures:"
    return "\n".join((said, first, *asked))

"""The demo's results as tables: int8 beside fp32, recall by language and by dimension, a search."""

from collections.abc import Iterable, Sequence

from edgeclip.manifest import MODALITIES, PROOF_DATA, Modality
from edgeclip.tables import format_bytes, format_table
from edgeclip_bench.demo.run import LANGUAGES, Demo, Smaller
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.searches import Direction

_DIRECTIONS: dict[Direction, str] = {"text_to_image": "text to image", "image_to_text": "image to text"}
_METRIC = "recall@5"
_EMBEDDED: dict[Modality, str] = {"text": "captions", "image": "pictures"}


def render_demo(found: Demo) -> str:
    """Every table, with a line before each that needs one; without int8's columns where there is no such bundle."""
    evaluations = [found.evaluation, *([found.int8.comparison.evaluation] if found.int8 else [])]
    parts = [_what(found)]
    if found.int8:
        parts.append(_costs(found, found.int8))
    parts += [_by_language(evaluations), _by_dim(evaluations)]
    if found.int8:
        parts.append(_moved(found.int8))
    return "\n\n".join((*parts, _questions(found), _seconds(found)))


def _what(found: Demo) -> str:
    manifest, evaluation = found.manifest, found.evaluation
    (data,) = evaluation.data
    parameters = sum(graph.parameters for graph in manifest.graphs.values())
    return (
        f"A small model of jina-clip-v2's kind, trained on drawn scenes: {parameters:,} parameters, "
        f"running on {evaluation.device}.\n"
        f"{data.sizes['images']} pictures of combinations that training never showed, in families that differ in one "
        f"attribute,\nand {data.sizes['captions']} captions in {len(data.languages)} languages."
    )


def _costs(found: Demo, int8: Smaller) -> str:
    """Size, closeness on the demo's own inputs, and the ratio of times that quantising measured."""
    rows = [("bundle", format_bytes(found.manifest.weight_bytes), format_bytes(int8.manifest.weight_bytes))]
    worst = {one.modality: (one.samples, one.worst) for one in int8.comparison.closeness}
    for modality in MODALITIES:
        samples, cosine = worst[modality]
        rows.append((f"worst cosine to fp32, {samples} {_EMBEDDED[modality]}", "1", f"{cosine:.4f}"))
    for modality in MODALITIES:
        proof = int8.manifest.measurement(modality, "single", "fp32 bundle", PROOF_DATA)
        assert proof is not None
        assert proof.latency_ratio is not None, "a bundle for the CPU is timed"
        rows.append((f"time of {proof.latency_input}, as a share of fp32's", "1", f"{proof.latency_ratio:.2f}"))
    return format_table(("what int8 saves and costs", "fp32", "int8"), rows)


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
    header = ("asked in", "place", "int8", "ms", "int8") if found.int8 else ("asked in", "place", "ms")
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


def _seconds(found: Demo) -> str:
    rows = [(stage, f"{seconds:.1f}") for stage, seconds in found.seconds.items()]
    return format_table(("where the time went", "seconds"), [*rows, ("all", f"{sum(found.seconds.values()):.1f}")])

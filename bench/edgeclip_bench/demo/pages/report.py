"""The page demo's results as tables: int8 beside fp32, nDCG@5 by setting and by language, the heat maps."""

from collections.abc import Iterator, Sequence

from edgeclip.manifest import MODALITIES, PROOF_DATA
from edgeclip.tables import format_bytes, format_table
from edgeclip_bench.demo.pages.run import PagesDemo
from edgeclip_bench.demo.run import Smaller
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.pages.averages import setting_of
from edgeclip_bench.quality.pages.report import setting_words
from edgeclip_bench.quality.pages.search import Setting
from edgeclip_bench.quality.scores import Score

_METRIC = "ndcg@5"


def render_pages_demo(found: PagesDemo) -> str:
    """Every table, with a line before each that needs one; without int8's columns where there is no such bundle."""
    evaluations = [found.evaluation, *([found.int8.comparison.evaluation] if found.int8 else [])]
    parts = [_what(found)]
    if found.int8:
        parts.append(_costs(found, found.int8))
    parts += [_by_setting(evaluations), _by_language(evaluations), _heat(found), _seconds(found)]
    return "\n\n".join(parts)


def _what(found: PagesDemo) -> str:
    manifest, evaluation = found.manifest, found.evaluation
    (data,) = evaluation.data
    parameters = sum(graph.parameters for graph in manifest.graphs.values())
    return (
        f"A small model of jina-embeddings-v4's kind, trained on drawn pages: {parameters:,} parameters, "
        f"running on {evaluation.device}.\n"
        f"{data.sizes['pages']} pages with facts that training never combined, in families that differ in one "
        f"particular,\nand {data.sizes['queries']} questions in {len(data.languages)} languages."
    )


def _costs(found: PagesDemo, int8: Smaller) -> str:
    """Size, and what quantising proved: the worst vectors and tokens, and the ratio of times."""
    rows = [("bundle", format_bytes(found.manifest.weight_bytes), format_bytes(int8.manifest.weight_bytes))]
    for space in ("single", "multi"):
        for modality in MODALITIES:
            proof = int8.manifest.measurement(modality, space, "fp32 bundle", PROOF_DATA)
            if proof is not None:
                what = "vector" if space == "single" else "token"
                rows.append((f"worst {what}'s cosine to fp32, {modality}s", "1", f"{proof.worst_cosine:.4f}"))
                if proof.latency_ratio is not None:
                    share = f"time of {proof.latency_input}, as a share of fp32's"
                    rows.append((share, "1", f"{proof.latency_ratio:.2f}"))
    return format_table(("what int8 saves and costs", "fp32", "int8"), rows)


def _by_setting(evaluations: Sequence[Evaluation]) -> str:
    rows = [
        (setting_words(setting), *(f"{value:.3f}" for value in _values(evaluations, setting, None)))
        for setting in _settings(evaluations[0])
    ]
    return format_table((f"{_METRIC}, all languages", *_columns(evaluations)), rows)


def _by_language(evaluations: Sequence[Evaluation]) -> str:
    """At full width, of single and of multi vectors."""
    (data,) = evaluations[0].data
    shown = [setting for setting in _settings(evaluations[0]) if setting.pooled == 1]
    whole = [next(one for one in shown if one.space == space) for space in ("single", "multi")]
    rows = [
        (
            language,
            *(f"{value:.3f}" for setting in whole for value in _values(evaluations, setting, language)),
        )
        for language in data.languages
    ]
    header = [f"{setting.space}{suffix}" for setting in whole for suffix in ("", " int8")[: len(evaluations)]]
    return format_table((f"{_METRIC} by the question's language", *header), rows)


def _settings(evaluation: Evaluation) -> list[Setting]:
    """Single vectors from the widest on, then multi vectors from those that are not pooled on."""
    (data,) = evaluation.data
    found = dict.fromkeys(setting_of(score) for score in data.scores)
    return sorted(found, key=lambda setting: (setting.space != "single", -setting.dim, setting.pooled))


def _values(evaluations: Sequence[Evaluation], setting: Setting, language: str | None) -> Iterator[float]:
    for evaluation in evaluations:
        (data,) = evaluation.data
        yield next(one.value for one in data.scores if _is(one, setting, language))


def _is(score: Score, setting: Setting, language: str | None) -> bool:
    is_asked = score.is_overall if language is None else score.language == language and not score.is_overall
    return score.metric == _METRIC and setting_of(score) == setting and is_asked


def _columns(evaluations: Sequence[Evaluation]) -> Sequence[str]:
    return ("fp32", "int8")[: len(evaluations)]


def _heat(found: PagesDemo) -> str:
    hottest = found.hottest
    if not hottest.pages:
        return "No question found a page that answers it first, so no heat map is judged."
    return (
        f"Heat maps: of {hottest.pages} pages that were found first and answer, the hottest image token holds the "
        f"heading or a fact that was\nasked for on {hottest.right / hottest.pages:.0%}; "
        f"{hottest.by_chance:.0%} of all image tokens do."
    )


def _seconds(found: PagesDemo) -> str:
    rows = [(stage, f"{seconds:.1f}") for stage, seconds in found.seconds.items()]
    return format_table(("where the time went", "seconds"), [*rows, ("all", f"{sum(found.seconds.values()):.1f}")])

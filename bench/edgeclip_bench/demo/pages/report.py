"""The page demo's results as tables: int8 beside fp32, nDCG@5 by setting and by language, the heat maps."""

from collections.abc import Iterator, Sequence

from edgeclip.manifest import Space
from edgeclip.tables import format_table
from edgeclip_bench.demo.pages.run import PagesDemo
from edgeclip_bench.demo.stages import Figures, costs_table, introduction, proofs, seconds_table
from edgeclip_bench.quality.evaluate import Evaluation
from edgeclip_bench.quality.pages.averages import setting_of
from edgeclip_bench.quality.pages.report import setting_words
from edgeclip_bench.quality.pages.search import Setting
from edgeclip_bench.quality.scores import Score

_METRIC = "ndcg@5"
_WHAT: dict[Space, str] = {"single": "vector", "multi": "token"}


def render_pages_demo(found: PagesDemo) -> str:
    """Every table, with a line before each that needs one; without int8's columns where there is no such bundle."""
    figures = found.figures
    (data,) = figures.evaluation.data
    what = (
        f"{introduction(figures, 'jina-embeddings-v4', 'pages')}\n"
        f"{data.sizes['pages']} pages with facts that training never combined, in families that differ in one "
        f"particular,\nand {data.sizes['queries']} questions in {len(data.languages)} languages."
    )
    tables = [_by_setting(figures), _by_language(figures)]
    if figures.int8:
        closeness = [
            (f"worst {_WHAT[one.space]}'s cosine to fp32, {one.modality}s", "1", f"{one.worst_cosine:.4f}")
            for one in proofs(figures.int8.manifest)
        ]
        tables.insert(0, costs_table(figures, figures.int8, closeness))
    return "\n\n".join((what, *tables, _heat(found), seconds_table(figures)))


def _by_setting(found: Figures) -> str:
    rows = [
        (setting_words(setting), *_values(found.evaluations, setting, None))
        for setting in _settings(found.evaluation)
    ]
    return format_table((f"{_METRIC}, all languages", *found.precisions), rows)


def _by_language(found: Figures) -> str:
    """At full width, of single and of multi vectors."""
    (data,) = found.evaluation.data
    shown = [setting for setting in _settings(found.evaluation) if setting.pooled == 1]
    whole = [next(one for one in shown if one.space == space) for space in ("single", "multi")]
    rows = [
        (language, *(value for setting in whole for value in _values(found.evaluations, setting, language)))
        for language in data.languages
    ]
    header = [f"{setting.space}{suffix}" for setting in whole for suffix in ("", " int8")[: len(found.precisions)]]
    return format_table((f"{_METRIC} by the question's language", *header), rows)


def _settings(evaluation: Evaluation) -> list[Setting]:
    """Single vectors from the widest on, then multi vectors from those that are not pooled on."""
    (data,) = evaluation.data
    found = dict.fromkeys(setting_of(score) for score in data.scores)
    return sorted(found, key=lambda setting: (setting.space != "single", -setting.dim, setting.pooled))


def _values(evaluations: Sequence[Evaluation], setting: Setting, language: str | None) -> Iterator[str]:
    for evaluation in evaluations:
        (data,) = evaluation.data
        yield f"{next(one.value for one in data.scores if _is(one, setting, language)):.3f}"


def _is(score: Score, setting: Setting, language: str | None) -> bool:
    is_asked = score.is_overall if language is None else score.language == language and not score.is_overall
    return score.metric == _METRIC and setting_of(score) == setting and is_asked


def _heat(found: PagesDemo) -> str:
    hottest = found.hottest
    if not hottest.pages:
        return "No question found a page that answers it first, so no heat map is judged."
    return (
        f"Heat maps: of {hottest.pages} pages that were found first and answer, the hottest image token holds the "
        f"heading or a fact that was\nasked for on {hottest.right / hottest.pages:.0%}; "
        f"{hottest.by_chance:.0%} of all image tokens do."
    )

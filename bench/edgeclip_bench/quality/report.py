"""An evaluation or a comparison as tables to read and as the JSON document that holds everything.

Figures are per cent with two decimals, as the model's authors print them, with their 95 % interval in
brackets. The JSON has them as they are, from 0 to 1.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgeclip_bench.measure.documents import make_document, to_json
from edgeclip_bench.measure.report_table import NONE, Columns, Table, make_table, render_table
from edgeclip_bench.quality.against import Agreement, Comparison, DataCloseness, Difference, WorstInput
from edgeclip_bench.quality.evaluate import BundleIdentity, Documented, Evaluation
from edgeclip_bench.quality.pages.averages import setting_of
from edgeclip_bench.quality.pages.report import collection_tables, is_whole, setting_words, task_tables
from edgeclip_bench.quality.percent import percent, with_interval
from edgeclip_bench.quality.published import AVERAGES, PUBLISHED_MODEL, kept_share_for, model_of
from edgeclip_bench.quality.scores import DataScores, Score
from edgeclip_bench.quality.searches import Direction

Row = TypeVar("Row", Score, Difference)

WAYS: dict[Direction | None, str] = {
    "text_to_image": "text to image",
    "image_to_text": "image to text",
    "query_to_document": "queries to documents",
    "query_to_page": "queries to pages",
    "image_to_class": "images to classes",
    None: "pairs of sentences",
}
# What "overall" is over where there are several languages.
_OVERALL: dict[Direction | None, str] = {
    "text_to_image": "all captions together",
    "image_to_text": "mean over languages",
}
_INTERVALS = "In brackets: 95 % intervals, from resampling the queries (all captions of an image at once)."
_SEARCHED = "An image searches the captions of one language at a time and is found with any of its own."
_PAIRED = "Differences are this bundle's less the other's on the same queries; intervals that hold 0 show none."
_AGREEMENT = "agreement@k: the share of the first k found that both bundles find."
_RANKS = "Ranks are of the best right one, from 1; before is the other bundle's."
_PUBLISHED = "published figures are {}'s on the whole test split; a part of it is another test"
# The packages that decide figures.
_DECIDING = ("edgeclip", "onnxruntime", "onnxruntime-gpu", "tokenizers", "numpy", "pillow")
_SHOWN = 56  # characters of an input in a table
_CLOSENESS: Columns[DataCloseness] = {
    "data": lambda one: one.data,
    "modality": lambda one: one.modality,
    "inputs": lambda one: str(one.samples),
    "worst": lambda one: f"{one.worst:.6f}",
    "1st percentile": lambda one: f"{one.first_percentile:.6f}",
    "mean": lambda one: f"{one.mean:.6f}",
}
_WORST: Columns[WorstInput] = {
    "input": lambda one: _shorten(one.input),
    "language": lambda one: one.language or NONE,
    "cosine": lambda one: f"{one.cosine:.6f}",
    "rank before": lambda one: NONE if one.reference_rank is None else str(one.reference_rank),
    "rank now": lambda one: NONE if one.rank is None else str(one.rank),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A title, facts about the run, tables, and notes on all of them."""

    title: str
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def make_report(found: Evaluation | Comparison) -> Report:
    """The report of an evaluation, or of a comparison with the bundle's own figures first."""
    if isinstance(found, Evaluation):
        tables = list(collection_tables(found.data, found.page_averages))
        tables += [table for data in found.data for table in _score_tables(data, found.dims, found.bundle.family)]
        has_images = any(score.direction == "image_to_text" for data in found.data for score in data.scores)
        return Report(
            title=f"Quality of {found.bundle.name}",
            facts=_facts(found),
            tables=tuple(tables),
            notes=(_INTERVALS, _SEARCHED) if has_images else (_INTERVALS,),
        )
    own = make_report(found.evaluation)
    reference = found.reference.bundle
    return Report(
        title=f"{own.title} against {reference.name}",
        facts=(*own.facts, f"against {_describe(reference)}"),
        tables=(*own.tables, *_difference_tables(found), *_closeness_tables(found)),
        notes=(*own.notes, _PAIRED, _AGREEMENT, _RANKS),
    )


def render_text(report: Report) -> str:
    """Render the report for a terminal."""
    head = "\n".join((report.title, *report.facts))
    return "\n\n".join((head, *map(render_table, report.tables), "\n".join(report.notes))) + "\n"


def render_markdown(report: Report) -> str:
    """Render the report as Markdown."""
    parts = [f"# {report.title}", "\n".join(f"- {fact}" for fact in report.facts)]
    for table in report.tables:
        lines = [table.header, ("---", *("---:" for _ in table.header[1:])), *table.rows]
        cells = [[cell.replace("\\", "\\\\").replace("|", "\\|") for cell in line] for line in lines]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in cells)]
        parts += [f"*{note}*" for note in table.notes]
    return "\n\n".join((*parts, *report.notes)) + "\n"


def render_json(found: Documented) -> str:
    """The JSON document with every figure, and what it depends on."""
    return to_json(make_document("edgeclip_bench.quality", found.as_dict()))


def _facts(found: Evaluation) -> tuple[str, ...]:
    versions = ", ".join(f"{name} {found.versions[name]}" for name in _DECIDING if name in found.versions)
    ran = f"on {found.device}, {found.machine['processor']}, {found.machine['threads']} processors; {versions}"
    return _describe(found.bundle), ran, *map(_describe_data, found.data)


def _describe_data(data: DataScores) -> str:
    """The data set's size, where its vectors came from, and its tasks."""
    counts = data.embedded
    words = [f"{data.label}: {data.kind}, {', '.join(f'{count} {what}' for what, count in data.sizes.items())}"]
    words += [f" in {', '.join(sorted(data.languages))}"] if data.languages else []
    words += [f"; of {counts.inputs} inputs {counts.computed} embedded, {counts.cached} from the cache"]
    words += [f", {counts.repeated} repeated"] if counts.repeated else []
    words += [f", {counts.cut} cut to the model's length"] if counts.cut else []
    words += [f"; task {data.task}"] if data.task else []
    words += [f", documents {data.item_task}"] if data.task and data.item_task not in (None, data.task) else []
    return "".join(words)


def _describe(bundle: BundleIdentity) -> str:
    revision = f" at {bundle.revision}" if bundle.revision else ""
    precisions = ", ".join(f"{graph} {precision}" for graph, precision in bundle.precision.items())
    return f"{bundle.name}: {bundle.source}{revision}, {precisions}, for {bundle.target}"


def _score_tables(data: DataScores, dims: Sequence[int], family: str) -> Iterator[Table]:
    """Yield for each direction a table of the languages at full width, where there are several, and one by dim."""
    if data.scores[0].direction == "query_to_page":
        yield from task_tables(data)
        return
    known = [share for dim in dims if (share := kept_share_for(dim))]
    kept = tuple(f"published: {k.dim} keep at least {k.at_least:.0%} on {k.tasks} ({k.source})" for k in known)
    model = model_of(family, dims[-1])
    for direction, languages, by_dim in _by_direction(data.scores, dims[-1]):
        title, over = f"{data.label}, {WAYS[direction]}", f", {_OVERALL[direction]}" if languages else ""
        if languages:
            words = f"{title}: languages at {dims[-1]} dimensions, per cent"
            yield _score_table(words, "language", languages, (f"overall: {_OVERALL[direction]}",), model)
        overall = [score for scores in by_dim.values() for score in scores]
        of_what = f"{overall[0].samples} {'queries' if direction else 'pairs'}"
        notes = (*kept, *_averages(overall)) if (family, dims[-1]) == PUBLISHED_MODEL else ()
        yield _score_table(f"{title}: {of_what}{over}, by truncate_dim, per cent", "dim", by_dim, notes, model)


def _by_direction(
    found: Sequence[Row], full: int
) -> Iterator[tuple[Direction | None, dict[str, list[Row]], dict[str, list[Row]]]]:
    """Yield each direction, its rows by language at full width (none for a single language), and those by dim."""
    for direction in dict.fromkeys(one.direction for one in found):
        of_way = [one for one in found if one.direction == direction]
        overall = [one for one in of_way if one.is_overall]
        at_full = [one for one in of_way if one.dim == full] if len(of_way) > len(overall) else []
        yield direction, _rows(at_full, key=_language), _rows(overall, key=lambda one: str(one.dim))


def _averages(scores: Sequence[Score]) -> Iterator[str]:
    """Yield the published averages of these metrics over many data sets."""
    for average in AVERAGES:
        if any(score.metric == average.metric for score in scores):
            over = f"the average over {average.sets} sets, comparable with no single one"
            yield f"published: {average.metric} {percent(average.value)}, {over} ({average.source})"


def _score_table(
    title: str, label: str, rows: dict[str, list[Score]], notes: tuple[str, ...], model: str | None
) -> Table:
    """Each row has one score of every metric, in the same order."""
    columns: list[tuple[str, list[str]]] = []
    if label == "language":
        columns.append(("samples", [str(scores[0].samples) for scores in rows.values()]))
    for scores in zip(*rows.values(), strict=True):
        columns.append((scores[0].metric, [with_interval(score.value, score.low, score.high) for score in scores]))
        if any(score.published is not None for score in scores):
            columns.append(("published", [percent(score.published) for score in scores]))
            columns.append(("difference", [percent(score.difference, "+") for score in scores]))
        if label == "dim":
            columns.append(("kept", [NONE if score.kept is None else f"{score.kept:.1%}" for score in scores]))
    sources = dict.fromkeys(
        score.published_source for scores in rows.values() for score in scores if score.published_source
    )
    published = (f"published: {', '.join(sources)}", _PUBLISHED.format(model)) if sources else ()
    return Table(
        title=title,
        header=(label, *(name for name, _ in columns)),
        rows=tuple(zip(rows, *(cells for _, cells in columns), strict=True)),
        notes=(*notes, *published),
    )


def _difference_tables(found: Comparison) -> Iterator[Table]:
    """Yield tables of differences like those of scores, with the agreement of what is found as the last column."""
    full = found.evaluation.dims[-1]
    for name in dict.fromkeys(one.data for one in found.differences):
        of_data = [one for one in found.differences if one.data == name]
        if of_data[0].direction == "query_to_page":
            yield from _page_difference_tables(name, of_data, [one for one in found.agreements if one.data == name])
            continue
        for direction, languages, by_dim in _by_direction(of_data, full):
            agreements = [one for one in found.agreements if (one.data, one.direction) == (name, direction)]
            title, over = f"{name}, {WAYS[direction]}: difference", f", {_OVERALL[direction]}" if languages else ""
            if languages:
                of_row = {_language(one): one for one in agreements if one.dim == full}
                yield _difference_table(f"{title} at {full} dimensions, in points", "language", languages, of_row)
            of_row = {str(one.dim): one for one in agreements if one.is_overall}
            yield _difference_table(f"{title}{over}, by truncate_dim, in points", "dim", by_dim, of_row)


def _page_difference_tables(
    name: str, differences: Sequence[Difference], agreements: Sequence[Agreement]
) -> Iterator[Table]:
    """Yield a table of all settings, and where pages have several languages one of these at each full width."""
    title = f"{name}, {WAYS['query_to_page']}: difference"
    settings = list(dict.fromkeys(map(setting_of, differences)))
    rows = {
        setting_words(setting): [one for one in differences if one.is_overall and setting_of(one) == setting]
        for setting in settings
    }
    shares = {setting_words(setting_of(one)): one for one in agreements if one.is_overall}
    yield _difference_table(f"{title}, in points", "vectors", rows, shares)
    for setting in (one for one in settings if is_whole(one, settings)):
        spoken = [one for one in differences if setting_of(one) == setting and not one.is_overall]
        rows = {str(language): [] for language in dict.fromkeys(one.language for one in spoken)}
        for one in spoken:
            rows[str(one.language)].append(one)
        shares = {str(one.language): one for one in agreements if setting_of(one) == setting}
        if rows:
            words = f"{title}, {setting_words(setting)}, in points"
            yield _difference_table(words, "language", rows, shares)


def _difference_table(
    title: str, label: str, rows: dict[str, list[Difference]], agreements: dict[str, Agreement]
) -> Table:
    header = [label, *(one.metric for one in next(iter(rows.values())))]
    header += list(dict.fromkeys(agreement.metric for agreement in agreements.values()))
    lines = [
        (
            name,
            *(f"{one.points:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" for one in of_row),
            *([f"{agreements[name].share:.2%}"] if agreements else []),
        )
        for name, of_row in rows.items()
    ]
    return Table(title=title, header=tuple(header), rows=tuple(lines))


def _closeness_tables(found: Comparison) -> Iterator[Table]:
    yield make_table("Cosine between both bundles' vectors of one input", found.closeness, _CLOSENESS)
    for name, modality in dict.fromkeys((one.data, one.modality) for one in found.worst):
        of_modality = [one for one in found.worst if (one.data, one.modality) == (name, modality)]
        yield make_table(f"{name}, {modality}: inputs with the lowest cosines", of_modality, _WORST)


def _rows(found: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    """Group figures into rows by label: languages by name, dims ascending, overall last."""
    rows: dict[str, list[Row]] = {}
    for one in sorted(found, key=lambda one: (one.dim, one.is_overall, one.language or "")):
        rows.setdefault(key(one), []).append(one)
    return rows


def _language(one: Score | Difference | Agreement) -> str:
    return "overall" if one.is_overall else str(one.language)


def _shorten(words: str) -> str:
    """Shorten a text to one line; of a long one the beginning and the end are kept."""
    line = " ".join(words.split())
    half = _SHOWN // 2
    return line if len(line) <= _SHOWN else f"{line[:half]} … {line[-half:]}"

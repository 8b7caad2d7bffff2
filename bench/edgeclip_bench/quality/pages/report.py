"""Tables of page retrieval: each task by setting and by language, and all tasks with their average."""

from collections.abc import Iterator, Sequence

from edgeclip_bench.measure.report_table import NONE, Table
from edgeclip_bench.quality.pages.averages import AVERAGED, PageAverage, setting_of
from edgeclip_bench.quality.pages.published import MAX_PIXELS, METRIC, SOURCE
from edgeclip_bench.quality.pages.search import Setting
from edgeclip_bench.quality.percent import percent, with_interval
from edgeclip_bench.quality.scores import DataScores, Score

_PUBLISHED = (
    f"published: {SOURCE}, at max_pixels {MAX_PIXELS}; no difference is given to a run with another",
    "published figures count one right page for each query; data with more have none beside them",
)


def task_tables(data: DataScores) -> Iterator[Table]:
    """Yield a table of all settings, over all languages, and where there are several one of each language."""
    overall = [score for score in data.scores if score.is_overall]
    metrics = list(dict.fromkeys(score.metric for score in overall))
    rows = {
        setting: {score.metric: score for score in overall if setting_of(score) == setting}
        for setting in dict.fromkeys(map(setting_of, overall))
    }
    over = f", mean over {len(data.languages)} languages" if len(data.languages) > 1 else ""
    title = f"{data.label}, queries to pages: {overall[0].samples} queries{over}, per cent"
    columns = [("vectors", [setting_words(setting) for setting in rows])]
    for metric in metrics:
        of_metric = [scores[metric] for scores in rows.values()]
        columns.append((metric, [with_interval(one.value, one.low, one.high) for one in of_metric]))
        if metric == METRIC:
            columns += _published_columns(of_metric)
            columns.append(("kept", [NONE if one.kept is None else f"{one.kept:.1%}" for one in of_metric]))
    yield _table(title, columns, overall)
    if spoken := [score for score in data.scores if not score.is_overall and score.language is not None]:
        for setting in (setting for setting in rows if is_whole(setting, list(rows))):
            yield _language_table(data, setting, [one for one in spoken if setting_of(one) == setting])


def collection_tables(data: Sequence[DataScores], averages: Sequence[PageAverage]) -> Iterator[Table]:
    """Yield for each collection a table of its tasks with their average, and one of the average at every setting."""
    for collection in dict.fromkeys(average.collection for average in averages):
        its = [average for average in averages if average.collection == collection]
        name = collection or "tasks of no known collection"
        known = f"{its[0].tasks} of {its[0].all_tasks} tasks" if its[0].all_tasks else f"{its[0].tasks} tasks"
        notes = [
            f"published over all {one.all_tasks} tasks, {one.space}: {percent(one.published_all)}"
            for one in its
            if one.published_all is not None and one.metric == METRIC
        ]
        columns = [("vectors", [setting_words(setting) for setting in dict.fromkeys(map(setting_of, its))])]
        for metric in AVERAGED:
            of_metric = [average for average in its if average.metric == metric]
            columns.append((metric, [with_interval(one.value, one.low, one.high) for one in of_metric]))
            if metric == METRIC and any(one.published is not None for one in of_metric):
                columns.append(("published", [percent(one.published) for one in of_metric]))
        rows = tuple(zip(*(cells for _, cells in columns), strict=True))
        header = tuple(name for name, _ in columns)
        yield Table(
            title=f"{name}: average over {known}, languages of a task first, per cent",
            header=header,
            rows=rows,
            notes=tuple(dict.fromkeys(notes)),
        )


def beside_table(sides: Sequence[tuple[str, DataScores]]) -> Table:
    """The main figure of several bundles on one data set, at every setting of full width, not pooled."""
    rows = []
    scores: list[Score] = []
    for name, data in sides:
        overall = [score for score in data.scores if score.is_overall and score.metric == METRIC]
        settings = list(map(setting_of, overall))
        for score, setting in zip(overall, settings, strict=True):
            if is_whole(setting, settings):
                here = with_interval(score.value, score.low, score.high)
                rows.append((name, setting_words(setting), here, percent(score.published)))
                scores.append(score)
    return Table(
        title=f"{sides[0][1].label}, queries to pages: {METRIC}, per cent",
        header=("bundle", "vectors", "here", "published"),
        rows=tuple(rows),
        notes=_notes(scores),
    )


def setting_words(setting: Setting) -> str:
    """A setting as the rows of tables are called: "single 512", "multi 128, pooled by 2, 401408 pixels"."""
    pooled = f", pooled by {setting.pooled}" if setting.pooled > 1 else ""
    pixels = f", {setting.max_pixels} pixels" if setting.max_pixels is not None else ""
    return f"{setting.space} {setting.dim}{pooled}{pixels}"


def is_whole(setting: Setting, settings: Sequence[Setting]) -> bool:
    """Whether a setting has the full width of its space, not pooled."""
    return setting.pooled == 1 and setting.dim == max(one.dim for one in settings if one.space == setting.space)


def _language_table(data: DataScores, setting: Setting, scores: Sequence[Score]) -> Table:
    languages = dict.fromkeys(score.language for score in scores)
    columns = [("language", [str(language) for language in languages])]
    for metric in dict.fromkeys(score.metric for score in scores):
        of_metric = [score for score in scores if score.metric == metric]
        if metric == METRIC:
            columns.append(("samples", [str(one.samples) for one in of_metric]))
        columns.append((metric, [with_interval(one.value, one.low, one.high) for one in of_metric]))
        columns += _published_columns(of_metric) if metric == METRIC else []
    return _table(f"{data.label}, queries to pages: languages, {setting_words(setting)}, per cent", columns, scores)


def _published_columns(scores: Sequence[Score]) -> list[tuple[str, list[str]]]:
    columns = []
    if any(score.published is not None for score in scores):
        columns.append(("published", [percent(score.published) for score in scores]))
    if any(score.difference is not None for score in scores):
        columns.append(("difference", [percent(score.difference, "+") for score in scores]))
    return columns


def _table(title: str, columns: Sequence[tuple[str, list[str]]], scores: Sequence[Score]) -> Table:
    return Table(
        title=title,
        header=tuple(name for name, _ in columns),
        rows=tuple(zip(*(cells for _, cells in columns), strict=True)),
        notes=_notes(scores),
    )


def _notes(scores: Sequence[Score]) -> tuple[str, ...]:
    return _PUBLISHED if any(score.published is not None for score in scores) else ()

"""Page retrieval from files to figures, on the golden jina-embeddings-v4 and as `edgeclip eval` reports it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytrec_eval
from numpy.typing import NDArray

from edgeclip import Encoder, InputError, MultiVectors
from edgeclip_bench.quality.against import compare
from edgeclip_bench.quality.beside import evaluate_beside, report_beside
from edgeclip_bench.quality.cache import EmbeddingCache, Entry, Space
from edgeclip_bench.quality.datasets import Data, PageData, PageQueries, Pages
from edgeclip_bench.quality.embeddings import Counts, Embedder
from edgeclip_bench.quality.evaluate import Evaluation, evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.pages.published import MAX_PIXELS, average_of, find_task, tasks_of
from edgeclip_bench.quality.pages.scoring import score_pages
from edgeclip_bench.quality.pages.search import FoundPages, PageOptions, PageSearch, Setting, rank, search_pages
from edgeclip_bench.quality.report import make_report, render_text
from edgeclip_bench.quality.scores import Score
from edgeclip_bench.quality.searches import Tasks
from tests.scenes.command import Captured, run
from tests.scenes.evaluation_data import sts
from tests.scenes.layout_files import write_lines
from tests.scenes.page_bundle import make_page_bundle
from tests.scenes.page_files import corpus, draw_page, embedded, qrels, queries, write_parquet

QUERY, PASSAGE = "retrieval.query", "retrieval.passage"
SHARD = "test-00000-of-00001.parquet"
SMALL = 3136
PAGES = 9
# Page 7 is page 3 again, so they tie.
NUMBERS = (0, 1, 2, 3, 4, 5, 6, 3, 8)
GRADES: Mapping[tuple[Any, Any], int] = {(0, 1): 1, (0, 2): 2, (1, 3): 1, (2, 4): 3, (2, 0): 1, (3, 7): 1}
ROUNDING = 1e-9


@pytest.fixture(scope="module")
def opened(v4_bundle: Path) -> Iterator[Encoder]:
    with Encoder.open(v4_bundle, device="cpu") as encoder:
        yield encoder


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Data, ...]:
    folder = tmp_path_factory.mktemp("sets") / "pages"
    rows = [{"corpus-id": place, "image": embedded(number)} for place, number in enumerate(NUMBERS)]
    write_parquet(folder / "corpus" / "test.parquet", rows, shards=2)
    write_parquet(folder / "queries" / SHARD, queries(range(5)))
    write_parquet(folder / "qrels" / SHARD, qrels(GRADES))
    return open_data(folder)


def by_pytrec_eval(scores: NDArray[np.float32], metric: str) -> float:
    """The mean over the judged queries."""
    wanted: dict[str, dict[str, int]] = {}
    for (query, page), grade in GRADES.items():
        wanted.setdefault(f"{query}", {})[f"{page}"] = grade
    run = {
        query: {f"{page}": float(score) for page, score in enumerate(scores[int(query)].tolist())} for query in wanted
    }
    name, _, k = metric.partition("@")
    name = {"ndcg": "ndcg_cut"}.get(name, name)
    found = pytrec_eval.RelevanceEvaluator(wanted, {f"{name}.{k}"}).evaluate(run)
    return float(np.mean([figures[f"{name}_{k}"] for figures in found.values()]))


def overall(found: Evaluation, **wanted: object) -> list[Score]:
    return [
        score
        for score in found.data[0].scores
        if score.is_overall and all(getattr(score, name) == value for name, value in wanted.items())
    ]


def test_every_figure_is_pytrec_evals_of_the_encoders_own_vectors(opened: Encoder, pages: tuple[Data, ...]) -> None:
    """Both spaces, every dimension, both sizes of images, and pooled vectors; equal pages tie by their ids."""
    found = evaluate(opened, pages, cache=None, max_pixels=[SMALL, 602_112], pooled=[2], progress=False)
    texts = [f"what is on page {number}" for number in range(5)]
    images = [draw_page(number) for number in NUMBERS]
    many = opened.encode_text_multivector(texts, task=QUERY)
    assert isinstance(many, MultiVectors)
    settings = set()
    for max_pixels in (SMALL, 602_112):
        options: dict[str, Any] = {"task": PASSAGE, "max_pixels": max_pixels, "batch_size": 1}
        of_pages = opened.encode_image_multivector(images, **options)
        assert isinstance(of_pages, MultiVectors)
        wanted: dict[tuple[str, int, int], NDArray[np.float32]] = {
            ("multi", many.dim, 1): many.maxsim(of_pages),
            ("multi", many.dim, 2): many.maxsim(of_pages.pooled(2)),
        }
        for dim in found.dims:
            single = opened.encode_text(texts, task=QUERY, truncate_dim=dim).astype(np.float64)
            its = opened.encode_image(images, truncate_dim=dim, **options).astype(np.float64)
            wanted["single", dim, 1] = (single @ its.T).astype(np.float32)
        for (space, dim, pooled), scores in wanted.items():
            scores[:, 7] = scores[:, 3]
            for score in overall(found, space=space, dim=dim, pooled=pooled, max_pixels=max_pixels):
                settings.add((space, dim, pooled, max_pixels))
                assert score.value == pytest.approx(by_pytrec_eval(scores, score.metric), abs=ROUNDING), score
                assert score.low <= score.value <= score.high and score.samples == 4
    assert len(settings) == 2 * (len(found.dims) + 2)
    assert {score.metric for score in found.data[0].scores} == {
        "ndcg@5",
        "ndcg@10",
        "recall@1",
        "recall@5",
        "recall@10",
    }
    assert found.data[0].embedded.repeated == 2  # page 7, at both sizes
    assert (found.data[0].task, found.data[0].item_task) == (QUERY, PASSAGE)


def test_both_spaces_come_from_one_run(opened: Encoder) -> None:
    """The vectors are those of two runs, for texts and images of several lengths."""
    items = [opened.prepare_image(draw_page(number), task=PASSAGE) for number in range(4)]
    items += opened.prepare_texts(["a", "a much longer text", "b"], task=QUERY).items
    single, multi = opened.run_items_both(items)
    assert np.abs(single - opened.run_items(items)).max() < 1e-5
    apart = opened.run_items_multi(items)
    assert np.array_equal(multi.starts, apart.starts) and np.abs(multi.rows - apart.rows).max() < 1e-5


def test_vectors_of_both_spaces_are_kept(opened: Encoder, pages: tuple[Data, ...], tmp_path: Path) -> None:
    first = evaluate(opened, pages, cache=tmp_path, progress=False)
    again = evaluate(opened, pages, cache=tmp_path, progress=False)
    assert (first.data[0].embedded.computed, again.data[0].embedded.computed) == (4 + 8, 0)
    assert [score.value for score in first.data[0].scores] == [score.value for score in again.data[0].scores]
    smaller = evaluate(opened, pages, cache=tmp_path, max_pixels=[SMALL], progress=False)
    assert (smaller.data[0].embedded.computed, smaller.data[0].embedded.cached) == (8, 4)


def test_the_cache_of_multi_vectors_has_a_bound(tmp_path: Path) -> None:
    """Pages that do not fit drop those unused for longest, and the size on the disk stays near the limit."""
    space = Space("facts", 128, is_multi=True)
    page = np.random.default_rng(0).standard_normal((768, 128)).astype(np.float32)
    limit = 4 * 10**6
    with EmbeddingCache(tmp_path, limit_bytes=limit) as cache:
        for number in range(60):
            cache.write(space, {bytes([number]) * 32: Entry(page, is_cut=False)})
        found = cache.read(space, [bytes([59]) * 32, bytes([0]) * 32])
    assert list(found) == [bytes([59]) * 32] and np.array_equal(found[bytes([59]) * 32].vector, page)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 2 * limit


def write_task(folder: Path, languages: Sequence[str], start: int = 0) -> None:
    for place, language in enumerate(languages):
        part = folder / language
        write_parquet(part / "corpus" / SHARD, corpus(range(start, start + 5)))
        write_parquet(part / "queries" / SHARD, queries(range(start, start + 2 + place)))
        write_parquet(
            part / "qrels" / SHARD, qrels({(number, number): 1 for number in range(start, start + 2 + place)})
        )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collections") / "jina-vdr"
    write_task(folder / "tqa_beir", ["default"])
    write_task(folder / "airbnb-synthetic-retrieval_beir", ["de", "jp"], 2)
    return folder


def test_languages_are_averaged_inside_a_task_and_then_tasks(opened: Encoder, collection: Path) -> None:
    """A language counts the same whatever its number of queries, and a task whatever its number of languages."""
    found = evaluate(opened, open_data(collection), truncate_dims=[], cache=None, progress=False)
    of_task = {data.name: data for data in found.data}
    airbnb = of_task["airbnb-synthetic-retrieval_beir"].scores
    for metric in ("ndcg@5", "ndcg@10"):
        for space in ("single", "multi"):
            its = [score for score in airbnb if (score.metric, score.space) == (metric, space)]
            spoken = {score.language: score.value for score in its if not score.is_overall}
            assert spoken.keys() == {"de", "jp"}
            (mean,) = (score.value for score in its if score.is_overall)
            assert mean == pytest.approx(sum(spoken.values()) / 2, abs=ROUNDING)
            (tqa,) = (
                score.value for score in of_task["tqa_beir"].scores if (score.metric, score.space) == (metric, space)
            )
            (average,) = (one for one in found.page_averages if (one.metric, one.space) == (metric, space))
            assert (average.collection, average.tasks, average.all_tasks) == ("Jina-VDR", 2, 43)
            assert average.value == pytest.approx((mean + tqa) / 2, abs=ROUNDING)
            assert 0 < average.low < average.value < average.high
    text = render_text(make_report(found))
    assert "Jina-VDR: average over 2 of 43 tasks, languages of a task first, per cent" in text


def test_published_figures_are_known_of_tasks_and_languages() -> None:
    task = find_task("airbnb-synthetic-retrieval_beir")
    assert task is not None and task is find_task("JinaVDRAirbnbSyntheticRetrieval")
    assert task.find("jina-embeddings-v4", "multi", "zh") == 0.6119
    assert task.find("jina-embeddings-v4", "single") == 0.0818
    assert find_task("vidore_v3_hr_mteb_format") is find_task("Vidore3HrOCRRetrieval")
    assert find_task("my own pages") is None
    assert [len(tasks_of(name)) for name in ("Jina-VDR", "ViDoRe v1", "ViDoRe v2", "ViDoRe v3")] == [43, 10, 4, 10]


@pytest.mark.parametrize("name", ["Jina-VDR", "ViDoRe v1"])
def test_averages_over_published_tasks_are_the_published_averages(name: str) -> None:
    """The mean over languages, then over 43 or 10 tasks, gives what table 3 of the paper prints."""
    for model, space in (
        ("jina-clip-v2", "single"),
        ("jina-embeddings-v4", "single"),
        ("jina-embeddings-v4", "multi"),
    ):
        figures = [
            task.find(model, space)
            for task in {id(one): one for one in map(find_task, tasks_of(name)) if one}.values()
        ]
        assert None not in figures
        assert np.mean([one for one in figures if one is not None]) == pytest.approx(
            average_of(name, model, space), abs=1.1e-4
        )


def test_texts_beside_pages_are_joined_as_mteb_joins_them(opened: Encoder, tmp_path: Path) -> None:
    """Single vectors are summed, multi vectors put together; a page without a text is its image."""
    texts = ["the first page", "", "a third page with words", None]
    rows = [{"id": place, "image": embedded(place), "text": text} for place, text in enumerate(texts)]
    write_parquet(tmp_path / "english-corpus" / SHARD, rows)
    write_parquet(tmp_path / "english-queries" / SHARD, queries(range(3), key="id", text="text"))
    write_parquet(tmp_path / "english-qrels" / SHARD, qrels({(0, 1): 1, (1, 2): 1, (2, 0): 2}))
    (data,) = open_data(tmp_path, with_text=True)
    assert isinstance(data, PageData)
    with EmbeddingCache(None) as cache:
        found = search_pages(Embedder(opened, cache), data, None, PageOptions(dims=(64,)))
    asked = [f"what is on page {number}" for number in range(3)]
    single, multi = opened.encode_text(asked, task=QUERY), opened.encode_text_multivector(asked, task=QUERY)
    pages, matrices = [], []
    for place, text in enumerate(texts):
        vector = opened.encode_image(draw_page(place), task=PASSAGE)
        matrix = opened.encode_image_multivector(draw_page(place), task=PASSAGE)
        assert isinstance(matrix, np.ndarray)
        if text:
            vector = vector + opened.encode_text(text, task=QUERY)
            matrix = np.concatenate((opened.encode_text_multivector(text, task=QUERY), matrix))
        pages.append(vector / np.linalg.norm(vector))
        matrices.append(matrix)
    assert np.abs(found.pages - np.array(pages)).max() < 1e-5
    assert isinstance(multi, MultiVectors)
    ids = ("0", "1", "2", "3")
    wanted = {"single": single @ np.array(pages).T, "multi": multi.maxsim(MultiVectors.of(matrices))}
    for setting, (search,) in found.searches.items():
        assert np.array_equal(search.top[:, :4], rank(wanted[setting.space], ids, 4))
    plain = open_data(tmp_path)
    with pytest.raises(InputError, match="--with-text is for pages with queries"):
        open_data(
            write_lines(tmp_path / "sts.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1}]), with_text=True
        )
    assert isinstance(plain[0], PageData) and {page.text for page in plain[0].parts[0].pages.images} == {""}


# Beside other bundles, and on the command line


def test_two_bundles_are_compared_query_by_query(opened: Encoder, pages: tuple[Data, ...]) -> None:
    """A bundle beside itself: no difference at any setting, full agreement, cosines of 1."""
    found = compare(opened, opened, pages, cache=None, pooled=[2], progress=False)
    assert {(one.space, one.pooled) for one in found.differences} == {("single", 1), ("multi", 1), ("multi", 2)}
    assert all(one.points == 0 and one.low <= 0 <= one.high for one in found.differences)
    assert {one.share for one in found.agreements} == {1.0}
    assert {one.modality: round(one.worst, 5) for one in found.closeness} == {"text": 1.0, "image": 1.0}
    text = render_text(make_report(found))
    assert "pages, queries to pages: difference, in points" in text
    assert "multi 16, pooled by 2 +0.00 [" in " ".join(text.split())


def test_bundles_of_several_models_stand_in_one_table(v4_bundle: Path, bundle: Path, pages: tuple[Data, ...]) -> None:
    """One has single vectors alone, and takes images of one size."""
    found = evaluate_beside([v4_bundle, bundle], pages, cache=None, device="cpu", progress=False)
    table = report_beside(found).tables[0]
    assert table.title == "pages, queries to pages: ndcg@5, per cent"
    assert [row[:2] for row in table.rows] == [
        (str(v4_bundle), "single 64"),
        (str(v4_bundle), "multi 16"),
        (str(bundle), f"single {found.evaluations[1].dims[-1]}"),
    ]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page_bundle(tmp_path_factory.mktemp("bundles") / "small")


@pytest.mark.filterwarnings("ignore::edgeclip.UnprovedWarning")
def test_the_command_reports_and_writes(small: Path, collection: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "out"
    sizes = ["--max-pixels", SMALL, "--max-pixels", 602_112]
    options = ["--no-cache", "--pooled", 2, *sizes, "--out", out]
    status, text, _ = run("eval", small, collection, *options, capsys=capsys)
    assert status == 0
    for words in (
        "tqa_beir: page retrieval, form beir, 5 pages, 2 queries, 2 judged queries",
        "queries to pages: 5 queries, mean over 2 languages, per cent",
        "\nmulti 16, pooled by 2, 3136 pixels ",
        "languages, single 64, 602112 pixels, per cent",
    ):
        assert words in text
    assert sorted(path.name for path in out.iterdir()) == ["curve.png", "curve.svg", "report.json", "report.md"]
    document = json.loads((out / "report.json").read_text())
    scores = document["data"][1]["scores"]
    assert {(one["space"], one["max_pixels"], one["pooled"]) for one in scores} == {
        (space, pixels, pooled)
        for pixels in (SMALL, 602_112)
        for space, pooled in (("single", 1), ("multi", 1), ("multi", 2))
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": [3]}, "max_pixels is 3, wanted an int from 784 on"),
        ({"pooled": [0]}, "--pooled is 0, wanted an int of 1 or more"),
        ({"truncate_dims": [7]}, "truncate_dim is 7, wanted one that the model was trained for"),
    ],
)
def test_options_that_cannot_be(
    opened: Encoder, pages: tuple[Data, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(opened, pages, cache=None, **options)


def test_options_that_a_model_or_data_do_not_have(opened: Encoder, bundle: Path, pages: tuple[Data, ...]) -> None:
    with pytest.raises(InputError, match="makes all images one size"):
        evaluate(bundle, pages, cache=None, max_pixels=[SMALL], device="cpu")
    with pytest.raises(InputError, match="no multi vectors"):
        evaluate(bundle, pages, cache=None, pooled=[2], device="cpu")
    with pytest.raises(InputError, match="--pooled 2 is for pages with queries"):
        evaluate(opened, [sts()], cache=None, pooled=[2])


# Published figures


def searched(name: str, grades: Sequence[tuple[int, int, int]], *, is_whole: bool = True) -> FoundPages:
    """Searches of three queries by jina-embeddings-v4 at its full and a smaller width, at two sizes of pages."""
    pages = Pages(form="beir", ids=("a", "b", "c"), images=[], documents=(0, 1, 2))
    part = PageQueries(
        language=None, pages=pages, query_ids=("x", "y", "z"), queries=("x", "y", "z"), grades=tuple(grades)
    )
    by_query: list[dict[int, int]] = [{}, {}, {}]
    for query, page, grade in grades:
        by_query[query][page] = grade
    search = PageSearch(
        language=None, groups=np.arange(3), top=np.tile([0, 1, 2, *[-1] * 7], (3, 1)), grades=by_query
    )
    settings = [
        Setting(space=space, dim=dim, max_pixels=pixels)
        for pixels in (None, MAX_PIXELS)
        for space, dim in (("single", 128), ("single", 2048), ("multi", 128))
    ]
    empty = np.empty((0, 2048), np.float32)
    return FoundPages(
        data=PageData(name=name, parts=(part,), is_whole=is_whole),
        tasks=Tasks(),
        counts=Counts(),
        model="jina-embeddings-v4",
        has_max_pixels=True,
        searches={setting: [search] for setting in settings},
        queries=empty,
        pages=empty,
    )


SINGLE_ANSWERS = ((0, 0, 1), (1, 1, 1), (2, 2, 1))


def test_what_is_comparable_stands_beside_its_published_figure() -> None:
    """nDCG@5 at full width has one; a difference is given where the pages have the published size alone."""
    scores = score_pages(searched("tqa_beir", SINGLE_ANSWERS)).scores
    known = {(score.space, score.max_pixels): score for score in scores if score.published is not None}
    assert {key: score.published for key, score in known.items()} == {
        ("single", None): 0.6544,
        ("multi", None): 0.6846,
        ("single", MAX_PIXELS): 0.6544,
        ("multi", MAX_PIXELS): 0.6846,
    }
    assert {(score.metric, score.dim) for score in known.values()} == {("ndcg@5", 2048), ("ndcg@5", 128)}
    assert known["single", None].difference is None
    same = known["single", MAX_PIXELS]
    assert same.difference == pytest.approx(same.value - 0.6544)


@pytest.mark.parametrize(
    "found",
    [
        searched("tqa_beir", [*SINGLE_ANSWERS, (0, 1, 1)]),  # two right pages for one query
        searched("tqa_beir", SINGLE_ANSWERS, is_whole=False),
        searched("my pages", SINGLE_ANSWERS),
        searched("biomedical_lectures_v2", SINGLE_ANSWERS),
        searched("airbnb-synthetic-retrieval", SINGLE_ANSWERS),  # published over ten languages
    ],
)
def test_what_is_not_comparable_has_none(found: FoundPages) -> None:
    assert all(score.published is None for score in score_pages(found).scores)

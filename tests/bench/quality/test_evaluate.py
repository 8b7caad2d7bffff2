"""Every figure is what the plainest numpy says of the encoder's vectors, at every dim, from one embedding."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import BundleError, DeviceError, Encoder, InputError, TruncationWarning
from edgeclip_bench.quality.cache import CacheWarning
from edgeclip_bench.quality.datasets import Caption, Data, ImageTextData
from edgeclip_bench.quality.embeddings import Counts
from edgeclip_bench.quality.evaluate import Evaluation, evaluate, score_data
from edgeclip_bench.quality.published import PUBLISHED, published_for
from edgeclip_bench.quality.samples import judge
from edgeclip_bench.quality.scores import Score
from edgeclip_bench.quality.searches import Embedded, searches
from tests.scenes.evaluation_data import PICTURES, classification, image_text, sts, text_retrieval

TASK = "retrieval.query"
# Sums of a few shares in another order.
ROUNDING = 1e-12
# Spearman of similarities that differ in the last bits.
SAME_RANKS = 1e-9


def cut(vectors: NDArray[np.float32], dim: int) -> NDArray[np.float64]:
    part = vectors[:, :dim].astype(np.float64)
    return part / np.linalg.norm(part, axis=1, keepdims=True)


def score_of(found: Evaluation, metric: str, dim: int, **wanted: object) -> Score:
    """The one score of that kind; overall unless a language is asked for."""
    wanted = {"is_overall": "language" not in wanted, **wanted}
    scores = [
        score
        for score in found.data[0].scores
        if (score.metric, score.dim) == (metric, dim)
        and all(getattr(score, name) == value for name, value in wanted.items())
    ]
    assert len(scores) == 1, scores
    assert scores[0].low <= scores[0].value <= scores[0].high
    return scores[0]


def is_hit(similarities: NDArray[np.float64], right: list[int], k: int) -> bool:
    """Whether one of `right` is among the k best; a tie counts against."""
    best = max(similarities[index] for index in right)
    others = [value for index, value in enumerate(similarities) if index not in right]
    return sum(value >= best for value in others) < k


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageTextData:
    return image_text(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def vectors(encoder: Encoder, pictures: ImageTextData) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Captions and images, as the encoder gives them."""
    texts = encoder.encode_text([caption.text for caption in pictures.captions])
    return texts, encoder.encode_image(list(pictures.images))


@pytest.fixture(scope="module")
def of_pictures(encoder: Encoder, pictures: ImageTextData) -> Evaluation:
    return evaluate(encoder, [pictures], cache=None)


@pytest.mark.parametrize("dim", [8, 48, 64])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_of_captions_that_search_images(
    of_pictures: Evaluation, pictures: ImageTextData, vectors: tuple[NDArray[np.float32], ...], dim: int, k: int
) -> None:
    """Overall is all captions together; the image without a caption is searched too."""
    captions, images = (cut(side, dim) for side in vectors)
    hits = [is_hit(text @ images.T, [c.image], k) for text, c in zip(captions, pictures.captions, strict=True)]
    options = {"direction": "text_to_image"}
    score = score_of(of_pictures, f"recall@{k}", dim, **options)
    assert (score.value, score.samples) == (pytest.approx(np.mean(hits), abs=ROUNDING), len(pictures.captions))
    for language in ("en", "zh", "ar"):
        its = [hit for hit, caption in zip(hits, pictures.captions, strict=True) if caption.language == language]
        score = score_of(of_pictures, f"recall@{k}", dim, language=language, **options)
        assert (score.value, score.samples) == (pytest.approx(np.mean(its), abs=ROUNDING), len(its))


@pytest.mark.parametrize("dim", [8, 48, 64])
@pytest.mark.parametrize("k", [1, 5, 10])
def test_recall_of_images_that_search_captions(
    of_pictures: Evaluation, pictures: ImageTextData, vectors: tuple[NDArray[np.float32], ...], dim: int, k: int
) -> None:
    """Captions of one language; any of an image's is a hit; overall is the mean over the languages."""
    captions, images = (cut(side, dim) for side in vectors)
    means, samples = [], 0
    for language in ("en", "zh", "ar"):
        rows = [row for row, caption in enumerate(pictures.captions) if caption.language == language]
        of_image = [pictures.captions[row].image for row in rows]
        hits = [
            is_hit(images[image] @ captions[rows].T, [i for i, other in enumerate(of_image) if other == image], k)
            for image in dict.fromkeys(of_image)
        ]
        score = score_of(of_pictures, f"recall@{k}", dim, language=language, direction="image_to_text")
        assert (score.value, score.samples) == (pytest.approx(np.mean(hits), abs=ROUNDING), len(hits))
        means.append(np.mean(hits))
        samples += len(hits)
    score = score_of(of_pictures, f"recall@{k}", dim, direction="image_to_text")
    assert (score.value, score.samples) == (pytest.approx(np.mean(means), abs=ROUNDING), samples)
    assert score.language is None


def test_the_figures_are_not_all_the_same(of_pictures: Evaluation) -> None:
    """Else the tests above would hold for anything."""
    values = [score.value for score in of_pictures.data[0].scores]
    assert len(set(values)) > 20 and any(0.2 < value < 0.8 for value in values)


def test_one_language_is_overall_itself(encoder: Encoder, pictures: ImageTextData) -> None:
    for language in ("zh", None):
        captions = tuple(
            dataclasses.replace(caption, language=language)
            for caption in pictures.captions
            if caption.language == "zh"
        )
        found = evaluate(encoder, [dataclasses.replace(pictures, captions=captions)], truncate_dims=[], cache=None)
        assert len(found.data[0].scores) == 6
        assert {(score.language, score.is_overall) for score in found.data[0].scores} == {(language, True)}
        assert found.data[0].label == ("pictures (zh)" if language else "pictures")


def test_captions_without_a_language_beside_others_are_undetermined(
    encoder: Encoder, pictures: ImageTextData
) -> None:
    captions = (*pictures.captions, Caption(text="no language", image=0))
    found = evaluate(encoder, [dataclasses.replace(pictures, captions=captions)], truncate_dims=[], cache=None)
    assert found.data[0].languages == ("en", "ar", "zh", "und")
    assert score_of(found, "recall@1", 64, language="und", direction="text_to_image").samples == 1


@pytest.mark.parametrize("dim", [16, 64])
def test_documents_are_judged_as_beir_does(encoder: Encoder, dim: int) -> None:
    """A query never judged is none, one without a right document is 0, a missing document counts in the ideal."""
    data = text_retrieval()
    found = evaluate(encoder, [data], truncate_dims=[dim], cache=None)
    queries, documents = (cut(encoder.encode_text(list(texts)), dim) for texts in (data.queries, data.corpus))
    ndcgs, recalls = [], []
    for query in range(6):
        grades = {document: grade for of, document, grade in data.grades if of == query}
        order = np.argsort(-(queries[query] @ documents.T), kind="stable")[:10].tolist()
        gain = sum(grades.get(document, 0) / math.log2(rank + 2) for rank, document in enumerate(order))
        ideal = sum(
            grade / math.log2(rank + 2)
            for rank, grade in enumerate(sorted((g for g in grades.values() if g > 0), reverse=True)[:10])
        )
        right = [document for document, grade in grades.items() if grade > 0]
        ndcgs.append(gain / ideal if ideal else 0.0)
        recalls.append(len(set(order) & set(right)) / len(right) if right else 0.0)
    assert score_of(found, "ndcg@10", dim).value == pytest.approx(np.mean(ndcgs), abs=ROUNDING)
    assert score_of(found, "recall@10", dim).value == pytest.approx(np.mean(recalls), abs=ROUNDING)
    assert score_of(found, "recall@100", dim).value == pytest.approx((3 + 2 / 3 + 1 + 0) / 6, abs=ROUNDING)
    assert {score.samples for score in found.data[0].scores} == {6}
    assert 0 < np.mean(recalls) < 1
    unanswered = 6 - len({query for query, _, grade in data.grades if grade > 0})
    assert unanswered and found.data[0].sizes == {
        "documents": 30,
        "queries": 7,
        "judged queries": 6,
        "of them without an answer, which count as 0": unanswered,
    }


def test_how_many_queries_leave_their_own_document_out_is_said(encoder: Encoder) -> None:
    """d3 and d4 are right for the queries of their ids, so they stay."""
    data = dataclasses.replace(text_retrieval(), query_ids=("d20", "d21", "q2", "d3", "d4", "q5", "q6"))
    found = evaluate(encoder, [data], truncate_dims=[], cache=None)
    assert found.data[0].sizes["queries that leave out the document of their own id"] == 2


def test_a_single_set_is_not_held_against_an_average_over_many(encoder: Encoder) -> None:
    data: list[Data] = [
        dataclasses.replace(sts(), name="mteb-sts"),
        dataclasses.replace(text_retrieval(), name="mteb-retrieval"),
    ]
    found = evaluate(encoder, data, truncate_dims=[], cache=None)
    assert {score.published for one in found.data for score in one.scores} == {None}


def test_a_task_goes_before_queries_and_captions_alone(encoder: Encoder, pictures: ImageTextData) -> None:
    data = text_retrieval()
    found = evaluate(encoder, [data, pictures, sts()], truncate_dims=[], task=TASK, cache=None)
    assert [one.task for one in found.data] == [TASK, TASK, None]
    queries = encoder.encode_text(list(data.queries), task=TASK).astype(np.float64)
    documents = encoder.encode_text(list(data.corpus)).astype(np.float64)
    top = np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:6, :10]
    right = [{d for q, d, grade in data.grades if q == query and grade > 0} for query in range(6)]
    shares = [len(set(row) & wanted) / max(1, len(wanted)) for row, wanted in zip(top.tolist(), right, strict=True)]
    assert score_of(found, "recall@10", 64).value == pytest.approx(np.mean(shares), abs=ROUNDING)
    captions = encoder.encode_text([caption.text for caption in pictures.captions], task=TASK).astype(np.float64)
    images = encoder.encode_image(list(pictures.images)).astype(np.float64)
    hits = [is_hit(text @ images.T, [c.image], 5) for text, c in zip(captions, pictures.captions, strict=True)]
    found = dataclasses.replace(found, data=found.data[1:])
    value = score_of(found, "recall@5", 64, direction="text_to_image").value
    assert value == pytest.approx(np.mean(hits), abs=ROUNDING)


@pytest.mark.parametrize("dim", [8, 64])
def test_sentence_pairs_are_correlated_by_rank(encoder: Encoder, dim: int) -> None:
    data = sts()
    found = evaluate(encoder, [data], truncate_dims=[dim], cache=None)
    first, second = (cut(encoder.encode_text(list(texts)), dim) for texts in (data.first, data.second))

    def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])

    wanted = np.corrcoef(ranks((first * second).sum(axis=1)), ranks(np.array(data.scores)))[0, 1]
    score = score_of(found, "spearman", dim)
    assert (score.value, score.samples) == (pytest.approx(wanted, abs=SAME_RANKS), 7)
    assert found.data[0].label == "pairs (en)"


@pytest.mark.parametrize("dim", [8, 64])
def test_classes_are_the_mean_of_their_prompts(encoder: Encoder, tmp_path: Path, dim: int) -> None:
    data = classification(tmp_path)
    found = evaluate(encoder, [data], truncate_dims=[dim], cache=None)
    names = [template.replace("{}", name) for name in data.classes for template in data.templates]
    assert "a photo of an {egg}" in names
    prompts = cut(encoder.encode_text(names), dim).reshape(7, 2, dim).mean(axis=1)
    classes = prompts / np.linalg.norm(prompts, axis=1, keepdims=True)
    images = cut(encoder.encode_image(list(data.images)), dim)
    order = np.argsort(-(images @ classes.T), axis=1)
    for k in (1, 5):
        wanted = np.mean([label in row[:k] for label, row in zip(data.labels, order, strict=True)])
        assert score_of(found, f"top-{k}", dim).value == pytest.approx(wanted, abs=ROUNDING)


def test_what_is_kept_is_held_against_the_full_width(of_pictures: Evaluation) -> None:
    for score in of_pictures.data[0].scores:
        wanted = {"language": score.language} if not score.is_overall else {}
        full = score_of(of_pictures, score.metric, 64, direction=score.direction, **wanted).value
        assert score.kept == (pytest.approx(score.value / full) if full else None)


def test_every_input_is_embedded_once_for_all_dims(of_pictures: Evaluation, pictures: ImageTextData) -> None:
    assert of_pictures.dims == (8, 16, 32, 48, 64)
    inputs = len(pictures.captions) + PICTURES
    assert of_pictures.data[0].embedded == Counts(inputs=inputs, computed=inputs)


def test_a_second_evaluation_computes_nothing(bundle: Path, pictures: ImageTextData, tmp_path: Path) -> None:
    data: list[Data] = [pictures, text_retrieval()]
    first, second = (evaluate(bundle, data, cache=tmp_path / "cache", device="cpu") for _ in range(2))
    assert [one.embedded.computed for one in second.data] == [0, 0]
    assert [one.scores for one in second.data] == [one.scores for one in first.data]
    other_dims = evaluate(bundle, data, truncate_dims=[7], cache=tmp_path / "cache", device="cpu")
    assert [one.embedded.computed for one in other_dims.data] == [0, 0]


def test_the_default_cache_is_the_users(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    evaluate(bundle, [sts()], device="cpu")
    assert [path.suffix for path in (tmp_path / "edgeclip" / "embeddings").iterdir()] == [".db"]


def test_a_cache_that_fails_changes_no_figure(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(CacheWarning) as told:
        found = evaluate(bundle, [sts()], cache=tmp_path / "file", device="cpu")
    assert len(told) == 1
    assert found.data[0].scores == evaluate(bundle, [sts()], cache=None, device="cpu").data[0].scores


def test_it_says_what_the_figures_depend_on(bundle: Path, encoder: Encoder) -> None:
    found = evaluate(bundle, [sts()], cache=None, device="cpu", threads=1)
    assert found.bundle.name == str(bundle)
    assert found.bundle.files == {file.name: file.sha256 for file in encoder.manifest.files}
    assert (found.bundle.precision, found.bundle.target) == ({"text": "fp32", "vision": "fp32"}, "cpu")
    assert found.device == "cpu"
    assert set(found.versions) >= {"edgeclip", "onnxruntime", "tokenizers", "numpy", "pillow"}
    assert found.machine["processor"] and found.machine["threads"]
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["data"][0]["scores"][0]["metric"] == "spearman"


@pytest.mark.parametrize(
    ("asked", "dims"),
    [(None, (8, 16, 32, 48, 64)), ([], (64,)), ([64], (64,)), ([9, 1, 9, 64], (1, 9, 64))],
)
def test_dims_are_sorted_and_the_full_width_is_always_one(
    encoder: Encoder, asked: list[int] | None, dims: tuple[int, ...]
) -> None:
    found = evaluate(encoder, [sts()], truncate_dims=asked, cache=None)
    assert found.dims == dims
    assert [score.dim for score in found.data[0].scores] == list(dims)


@pytest.mark.parametrize("dim", [0, -1, 65, 8.0, True, "8", None])
def test_a_dim_that_cannot_be_is_refused(encoder: Encoder, dim: object) -> None:
    with pytest.raises(InputError, match=r"truncate_dim is .*, wanted an int from 1 to 64"):
        evaluate(encoder, [sts()], truncate_dims=[16, dim], cache=None)  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: [], {}, "no data to evaluate on"),
        (
            lambda: [sts(), sts()],
            {},
            r"2 data sets are called pairs \(en\); evaluate one at a time, or rename the file or folder of one",
        ),
        (lambda: [ImageTextData(name="x", images=(), captions=())], {}, "x: holds no images"),
        (lambda: [dataclasses.replace(text_retrieval(), grades=())], {}, "documents: holds no judged queries"),
        (lambda: [sts()], {"task": TASK}, r"goes before captions and queries; pairs \(en\) has neither"),
        (lambda: [dataclasses.replace(sts(), scores=(1.0,) * 7)], {}, r"pairs \(en\): every pair has the score 1;"),
        (lambda: [text_retrieval()], {"task": "x"}, "task is 'x', wanted None or one that the model knows"),
    ],
)
def test_data_that_cannot_be_judged_are_refused(
    encoder: Encoder, make: Callable[[], list[Data]], options: dict[str, str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        evaluate(encoder, make(), cache=None, **options)  # type: ignore[arg-type]


def test_a_bundle_and_a_device_that_are_not_there_are_refused(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        evaluate(tmp_path / "none", [sts()], cache=None)
    with pytest.raises(DeviceError):
        evaluate(bundle, [sts()], cache=None, device="cuda")


def test_cut_texts_are_one_warning(encoder: Encoder) -> None:
    data = [dataclasses.replace(sts(), name=name, first=("a " * 9000, *sts().first[1:])) for name in ("x", "y")]
    with pytest.warns(TruncationWarning, match="^2 texts were cut to 8192 tokens$") as told:
        found = evaluate(encoder, data, truncate_dims=[], cache=None)
    assert len(told) == 1 and told[0].filename == __file__
    assert [one.embedded.cut for one in found.data] == [1, 1]


def wide(languages: dict[str | None, int], name: str | None) -> list[Score]:
    """Scores of random vectors as wide as jina-clip-v2's, with so many captions in each language."""
    captions = tuple(
        Caption(text="", image=index, language=language)
        for language, count in languages.items()
        for index in range(count)
    )
    draw = np.random.default_rng(0)
    queries, items = (draw.standard_normal((count, 1024)).astype(np.float32) for count in (len(captions), 4))
    data = ImageTextData(name="mine", images=tuple(map(Path, "abcd")), captions=captions, benchmark=name)
    embedded = Embedded(data=data, queries=queries, items=items, counts=Counts())
    samples = ((dim, sample) for dim in (128, 1024) for sample in judge(embedded, dim, searches(embedded, dim)))
    return list(score_data(embedded, samples).scores)


XM3600 = dict.fromkeys(
    (figure.language for figure in PUBLISHED if figure.dataset == "xm3600" and figure.language is not None), 4
)
XTD10 = dict.fromkeys(("de", "en", "es", "fr", "it", "ko", "pl", "ru", "tr", "zh"), 4)


@pytest.mark.parametrize(
    ("name", "languages", "of_languages", "is_overall"),
    [
        ("xtd10", XTD10, 10, True),
        ("xtd10", XTD10 | {"ja": 4}, 10, False),  # another mean
        ("xtd10", XTD10 | {"de": 3}, 10, False),  # all captions together are not the mean
        ("xtd10", {"de": 4, "en": 4}, 2, False),
        ("xtd10", {None: 4}, 0, False),
        ("flickr30k", {None: 4}, 0, True),
        ("flickr30k", {"de": 4, "en": 4}, 1, False),
        ("mine", XTD10, 0, False),
        (None, XTD10, 0, False),
        ("xm3600", XM3600, 26, True),
        ("xm3600", XM3600 | {"fil": 4}, 26, False),  # the file's 36 languages are not the 26 of the mean
    ],
)
def test_a_published_figure_stands_beside_one_of_its_kind(
    name: str | None, languages: dict[str | None, int], of_languages: int, is_overall: bool
) -> None:
    scores = [score for score in wide(languages, name) if score.direction == "text_to_image"]
    known = [score for score in scores if score.published is not None]
    assert {(score.metric, score.dim) for score in known} <= {("recall@5", 1024)}
    assert sum(not score.is_overall for score in known) == of_languages
    assert any(score.is_overall for score in known) is is_overall
    for score in known:
        wanted = published_for(name, "recall@5", "text_to_image", score.language, 1024)
        assert wanted is not None
        assert (score.published, score.published_source) == (wanted.value, wanted.source)
        assert score.difference == pytest.approx(score.value - wanted.value)

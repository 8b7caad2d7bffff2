"""A model that needs a task, in every evaluation: texts search as queries, images are found as passages.

The bundle is the golden jina-embeddings-v4; mteb also compares its multi vectors.
"""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder, Manifest, MultiVectors
from edgeclip.errors import InputError
from edgeclip_bench.quality.cache import EmbeddingCache
from edgeclip_bench.quality.datasets import Caption, ClassificationData, ImageTextData
from edgeclip_bench.quality.embeddings import Embedder
from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.mteb_model import BundleModel
from edgeclip_bench.quality.searches import embed, tasks_of
from edgeclip_bench.quality.tasks import document_task, mteb_task
from tests.scenes.mteb_tasks import ndcg_at_10, relevance

QUERY, PASSAGE = "retrieval.query", "retrieval.passage"
SAME = 1e-5
QUERIES = [f"what is on page {index}" for index in range(7)]
SIZES = ((56, 84), (112, 56), (84, 84), (56, 56), (140, 84), (84, 56), (56, 140), (84, 112), (112, 84))
PICTURES = [
    Image.fromarray(np.random.default_rng(index).integers(0, 256, (*SIZES[index % 9], 3), np.uint8))
    for index in range(12)
]


@pytest.fixture(scope="module")
def opened(v4_bundle: Path) -> Iterator[Encoder]:
    with Encoder.open(v4_bundle, device="cpu") as encoder:
        yield encoder


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{index}.png" for index in range(len(PICTURES))]
    for path, picture in zip(paths, PICTURES, strict=True):
        picture.save(path)
    return paths


def image_texts(files: list[Path]) -> ImageTextData:
    captions = tuple(Caption(text=text, image=index) for index, text in enumerate(QUERIES))
    return ImageTextData(name="pages", images=tuple(files), captions=captions)


def difference(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize(
    ("asked", "query", "passage"),
    [(None, QUERY, PASSAGE), ("code.query", "code.query", "code.passage"), ("text-matching", *["text-matching"] * 2)],
)
def test_captions_are_queries_and_images_passages(
    opened: Encoder, files: list[Path], asked: str | None, query: str, passage: str
) -> None:
    with EmbeddingCache(None) as cache:
        found = embed(Embedder(opened, cache), image_texts(files), asked)
    assert (found.tasks.queries, found.tasks.items) == (query, passage)
    assert difference(found.queries, opened.encode_text(QUERIES, task=query)) < SAME
    assert difference(found.items, opened.encode_image(files, task=passage)) < SAME


def test_classes_and_their_images_have_tasks(opened: Encoder, files: list[Path]) -> None:
    data = ClassificationData(
        name="kinds", images=tuple(files), labels=(0,) * 12, classes=("bill", "letter"), templates=("a {}",)
    )
    with EmbeddingCache(None) as cache:
        found = embed(Embedder(opened, cache), data, None)
    assert difference(found.queries, opened.encode_text(["a bill", "a letter"], task=QUERY)) < SAME
    assert difference(found.items, opened.encode_image(files, task=PASSAGE)) < SAME


def test_the_cache_tells_adapters_apart(opened: Encoder, files: list[Path], tmp_path: Path) -> None:
    """Vectors of one file with two adapters are two entries; those of two tasks with one adapter are one."""
    with EmbeddingCache(tmp_path / "cache") as cache:
        embedder = Embedder(opened, cache)
        first = embedder.images(files, task=PASSAGE)
        embedder.take_counts()
        other = embedder.images(files, task="code.passage")
        assert embedder.take_counts().computed == len(files) and difference(first, other) > 1e-3
        again = embedder.images(files, task=QUERY)
        assert embedder.take_counts().cached == len(files) and np.array_equal(first, again)


def test_an_evaluation_says_its_tasks(v4_bundle: Path, files: list[Path]) -> None:
    found = evaluate(v4_bundle, [image_texts(files)], device="cpu", cache=None)
    assert (found.data[0].task, found.data[0].item_task) == (QUERY, PASSAGE)


def test_a_model_without_adapters_has_no_task_for_images(bundle: Path, files: list[Path]) -> None:
    manifest = Manifest.read(bundle)
    assert tasks_of(image_texts(files), QUERY, manifest).items is None
    assert tasks_of(image_texts(files), None, manifest).queries is None


def test_tasks_of_documents_and_of_mteb(opened: Encoder) -> None:
    manifest = opened.manifest
    assert [document_task(manifest, task) for task in (None, QUERY, "code.query", "text-matching")] == [
        *(PASSAGE, PASSAGE),
        "code.passage",
        "text-matching",
    ]
    assert mteb_task(manifest, "STS", None) == mteb_task(manifest, "Clustering", None, "image") == "text-matching"
    assert mteb_task(manifest, "Any2AnyRetrieval", "document", "image") == PASSAGE
    assert mteb_task(manifest, "DocumentUnderstanding", "document", "image") == QUERY  # as mteb's own wrapper has it
    code = [mteb_task(manifest, "Retrieval", role, is_code=True) for role in ("query", "document", None)]
    assert code == ["code.query", "code.passage", "code.query"]
    assert mteb_task(manifest, "STS", None, is_code=True) == "code.query"


@pytest.mark.parametrize("about", [{"domains": ["Programming"]}, {"eval_langs": ["python-Code"]}])
def test_mteb_tasks_about_programs_use_the_adapter_of_code(
    mteb: ModuleType, v4_bundle: Path, opened: Encoder, about: dict[str, list[str]]
) -> None:
    from torch.utils.data import DataLoader

    task = make_task(mteb, "Retrieval", about=about)
    model = BundleModel(v4_bundle, device="cpu")
    with model.encoder:
        for role, name in (("query", "code.query"), ("document", "code.passage")):
            found = model.encode(
                DataLoader([{"text": text} for text in QUERIES], batch_size=4),
                task_metadata=task.metadata,
                hf_split="test",
                hf_subset="default",
                prompt_type=mteb.types.PromptType(role),
            )
            assert isinstance(found, np.ndarray)
            assert difference(found, opened.encode_text(QUERIES, task=name)) < SAME


@pytest.fixture(scope="module")
def mteb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MTEB_CACHE", "HF_HOME"):
            patch.setenv(name, str(folder / name))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("mteb")


def make_task(
    mteb: ModuleType,
    kind: str,
    ranked: dict[str, list[str]] | None = None,
    about: dict[str, list[str]] | None = None,
) -> Any:
    """Pages that are searched by texts; with `ranked` only those of each query, with `about` of these languages."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval

    found = {
        "queries": Dataset.from_dict({"id": [f"q{index}" for index in range(7)], "text": QUERIES}),
        "corpus": Dataset.from_dict({"id": [f"d{index}" for index in range(12)], "image": PICTURES}),
        "relevant_docs": relevance(7, 12),
        "top_ranked": ranked,
    }

    class Pages(AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(
            name="Pages",
            description="made in memory",
            type=kind,
            category="t2i",
            modalities=["text", "image"],
            eval_splits=["test"],
            main_score="ndcg_at_10",
            dataset={"path": "none", "revision": "none"},
            **{"eval_langs": ["eng-Latn"], **(about or {})},
        )
        dataset: Any = {"default": {"test": found}}  # noqa: RUF012 - as mteb has it
        data_loaded = True

    return Pages()


def score(mteb: ModuleType, model: BundleModel, task: Any) -> float:
    return float(mteb.evaluate(model, task, cache=None).task_results[0].get_score())


def test_mteb_compares_multi_vectors_by_exact_maxsim(mteb: ModuleType, v4_bundle: Path, opened: Encoder) -> None:
    task = make_task(mteb, "DocumentUnderstanding")
    queries = opened.encode_text_multivector(QUERIES, task=QUERY)
    pages = opened.encode_image_multivector(PICTURES, task=QUERY)
    assert isinstance(pages, MultiVectors)
    model = BundleModel(v4_bundle, device="cpu", multivector=True)
    with model.encoder:
        assert score(mteb, model, task) == pytest.approx(
            ndcg_at_10(queries.maxsim(pages).astype(np.float64)), abs=1e-6
        )
        meta = model.mteb_model_meta
        assert (meta.embed_dim, meta.similarity_fn_name) == (16, "MaxSim")
        pairs = np.asarray(model.similarity_pairwise(list(queries), list(pages[:7])))
        assert np.abs(pairs - np.diag(queries.maxsim(pages[:7]))).max() < 1e-5
        ranked = {f"q{query}": [f"d{document}" for document in range(query, query + 5)] for query in range(7)}
        assert 0 < score(mteb, model, make_task(mteb, "DocumentUnderstanding", ranked)) <= 1


def test_mteb_on_single_vectors_of_pages(mteb: ModuleType, v4_bundle: Path, opened: Encoder) -> None:
    task = make_task(mteb, "Any2AnyRetrieval")
    queries = opened.encode_text(QUERIES, task=QUERY, truncate_dim=32).astype(np.float64)
    pages = opened.encode_image(PICTURES, task=PASSAGE, truncate_dim=32, max_pixels=3136).astype(np.float64)
    model = BundleModel(v4_bundle, device="cpu", truncate_dim=32, max_pixels=3136)
    with model.encoder:
        assert score(mteb, model, task) == pytest.approx(ndcg_at_10(queries @ pages.T), abs=1e-6)


def test_options_that_cannot_be(mteb: ModuleType, v4_bundle: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="truncate_dim 32 is for single vectors"):
        BundleModel(v4_bundle, device="cpu", truncate_dim=32, multivector=True)
    with pytest.raises(InputError, match="no multi vectors"):
        BundleModel(bundle, device="cpu", multivector=True)

"""An encoder of pages: texts and images through two graphs, one adapter of several, single and multi vectors.

The bundle is `tests.scenes.page_bundle`, whose answers numpy repeats.
"""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder, MultiVectors
from edgeclip.bundle.selftest import run_selftest
from edgeclip.errors import BundleError, DeviceError, InputError, TruncationWarning
from edgeclip.inputs.image_stream import SkippedImage
from edgeclip.inputs.images import ImageInput
from edgeclip.manifest import Manifest
from tests.scenes.damage import reseal
from tests.scenes.page_bundle import DIM, MULTI_DIM, TASKS, WEIGHTS, answer_image, answer_text, make_page_bundle

# The graphs compute in float32, numpy in float64: 2.5e-7 was measured (x86, onnxruntime 1.31.1).
SAME = 2e-6
TASK = "retrieval.passage"
TEXTS = ["what is the capital of France", "x", "Paris", "", "what is what"]


def picture(rows: int, columns: int, seed: int = 1) -> NDArray[np.uint8]:
    """Noise that needs no resizing: so many tokens high and wide."""
    return np.random.default_rng(seed).integers(0, 256, (28 * rows, 28 * columns, 3), np.uint8)


PICTURES = [picture(5, 9), picture(3, 3), picture(9, 5, seed=2), picture(3, 3, seed=3), picture(2, 7)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_page_bundle(tmp_path_factory.mktemp("pages") / "bundle", max_length=64)


@pytest.fixture
def opened(pages: Path) -> Iterator[Encoder]:
    with Encoder.open(pages, device="cpu") as encoder:
        yield encoder


def worst(found: Any, wanted: Any) -> float:
    assert np.shape(found) == np.shape(wanted)
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("task", TASKS)
def test_texts_of_every_task(opened: Encoder, task: str) -> None:
    single, multi = opened.encode_text(TEXTS, task=task), opened.encode_text_multivector(TEXTS, task=task)
    assert isinstance(multi, MultiVectors) and multi.dim == MULTI_DIM and len(multi) == len(TEXTS)
    assert single.dtype == multi.rows.dtype == np.float32
    for text, one, many in zip(TEXTS, single, multi, strict=True):
        wanted, wanted_multi = answer_text(text, task)
        assert worst(one, wanted) <= SAME and worst(many, wanted_multi) <= SAME
        assert worst(opened.encode_text(text, task=task), one) <= SAME
        alone = opened.encode_text_multivector(text, task=task)
        assert isinstance(alone, np.ndarray) and worst(alone, many) <= SAME


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_images_of_every_size_and_task(opened: Encoder, task: str, batch_size: int | None) -> None:
    single = opened.encode_image(PICTURES, task=task, batch_size=batch_size)
    multi = opened.encode_image_multivector(PICTURES, task=task, batch_size=batch_size)
    assert isinstance(multi, MultiVectors)
    for pixels, one, many in zip(PICTURES, single, multi, strict=True):
        wanted, wanted_multi = answer_image(pixels, task)
        assert worst(one, wanted) <= SAME and worst(many, wanted_multi) <= SAME
    alone = opened.encode_image_multivector(PICTURES[2], task=task)
    assert isinstance(alone, np.ndarray) and worst(alone, multi[2]) <= SAME
    assert worst(opened.encode_image(Image.fromarray(PICTURES[2]), task=task), single[2]) <= SAME


def test_a_question_finds_its_page(opened: Encoder) -> None:
    queries = opened.encode_text_multivector(["total revenue", "x"], task="retrieval.query")
    found = opened.encode_image_multivector(PICTURES, task=TASK)
    assert isinstance(found, MultiVectors)
    scores = queries.maxsim(found)
    assert scores.shape == (2, len(PICTURES))
    assert scores[1, 3] == pytest.approx((queries[1] @ found[3].T).max(axis=1).sum(), abs=1e-5)


def test_an_images_features_are_computed_once(opened: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks and spaces are asked for; another limit of pixels makes another image."""
    runs: list[str] = []
    run_graph = opened._runner._run_graph

    def counted(graph: str, feed: Any, adapter: str | None) -> Any:
        runs.append(graph)
        return run_graph(graph, feed, adapter)

    monkeypatch.setattr(opened._runner, "_run_graph", counted)
    for task in TASKS:
        single = opened.encode_image(PICTURES[0], task=task)
        multi = opened.encode_image_multivector(PICTURES[0], task=task)
        wanted, wanted_multi = answer_image(PICTURES[0], task)
        assert worst(single, wanted) <= SAME and worst(multi, wanted_multi) <= SAME
    assert runs.count("vision") == 1 and runs.count("text") == 2 * len(TASKS)
    opened.encode_image([PICTURES[0], PICTURES[1], PICTURES[0]], task=TASK)
    assert runs.count("vision") == 2
    opened.encode_image(PICTURES[0], task=TASK, max_pixels=28 * 28 * 20)
    assert runs.count("vision") == 3


def test_a_closed_encoder_keeps_no_features(pages: Path) -> None:
    with Encoder.open(pages, device="cpu") as encoder:
        item = encoder.prepare_image(PICTURES[0], task=TASK)
        encoder.run_items([item])
        assert encoder._runner._kept.get(item.key) is not None
    assert encoder._runner._kept.get(item.key) is None


def test_a_limit_of_pixels(opened: Encoder) -> None:
    small = opened.encode_image_multivector(PICTURES[0], task=TASK, max_pixels=28 * 28 * 20)
    assert isinstance(small, np.ndarray) and len(small) == 3 * 6 + 13
    with pytest.raises(InputError, match="max_pixels is 100, wanted an int from 784 on"):
        opened.encode_image(PICTURES[0], task=TASK, max_pixels=100)


def test_only_listed_dimensions(opened: Encoder) -> None:
    whole = opened.encode_text(TEXTS, task=TASK)
    cut = opened.encode_text(TEXTS, task=TASK, truncate_dim=16)
    np.testing.assert_allclose(cut, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6)
    image = opened.encode_image(PICTURES[0], task=TASK, truncate_dim=8)
    assert image.shape == (8,) and np.linalg.norm(image) == pytest.approx(1, abs=1e-6)
    assert opened.encode_text(TEXTS, task=TASK, truncate_dim=DIM).shape == (5, DIM)
    for dim in (1, 12, 65, 0):
        with pytest.raises(InputError, match=f"truncate_dim is {dim}, wanted one of 8, 16, 32, 64"):
            opened.encode_text(TEXTS, task=TASK, truncate_dim=dim)


def test_a_text_that_is_too_long_is_cut_and_counted(opened: Encoder) -> None:
    long = "France " * 100
    for encode in (opened.encode_text, opened.encode_text_multivector):
        with pytest.warns(TruncationWarning, match="1 of 2 texts were cut to 64 tokens") as caught:
            encode(["x", long], task=TASK)
        assert caught[0].filename == __file__
    with pytest.warns(TruncationWarning):
        assert opened.encode_text_multivector(long, task=TASK, max_length=20).shape == (20, MULTI_DIM)


def test_what_is_missing_is_named(opened: Encoder) -> None:
    for encode in (opened.encode_text, opened.encode_text_multivector):
        with pytest.raises(InputError, match="this model needs a task"):
            encode("a")
    for encode_image in (opened.encode_image, opened.encode_image_multivector, opened.iter_images_multivector):
        with pytest.raises(InputError, match="this model needs a task"):
            encode_image(PICTURES[0])
        with pytest.raises(InputError, match="task is 'code', wanted one that"):
            encode_image(PICTURES[0], task="code")
    with pytest.raises(InputError, match="image 1: is 27 x 60 pixels, wanted 28 or more a side"):
        opened.encode_image_multivector([PICTURES[0], np.zeros((60, 27, 3), np.uint8)], task=TASK)
    with pytest.raises(InputError, match="image: is 27 x 60 pixels"):
        opened.encode_image_multivector(np.zeros((60, 27, 3), np.uint8), task=TASK)


def test_nothing_gives_nothing(opened: Encoder) -> None:
    texts, images = opened.encode_text_multivector([], task=TASK), opened.encode_image_multivector([], task=TASK)
    for found in (texts, images):
        assert isinstance(found, MultiVectors) and len(found) == 0 and found.dim == MULTI_DIM
    assert opened.encode_image([], task=TASK).shape == (0, DIM)


def test_pages_stream_and_broken_ones_are_skipped(opened: Encoder) -> None:
    images: list[ImageInput] = [PICTURES[0], b"no image", PICTURES[1], PICTURES[2]]
    skipped: list[SkippedImage] = []
    found: dict[int, NDArray[np.float32]] = {}
    for indices, vectors in opened.iter_images_multivector(images, task=TASK, on_error=skipped.append):
        found |= dict(zip(indices, vectors, strict=True))
    assert [image.index for image in skipped] == [1] and sorted(found) == [0, 2, 3]
    for index, pixels in ((0, PICTURES[0]), (2, PICTURES[1]), (3, PICTURES[2])):
        assert worst(found[index], answer_image(pixels, TASK)[1]) <= SAME
    kept = opened.encode_image(images, task=TASK, on_error="skip")
    assert kept.indices.tolist() == [0, 2, 3] and worst(kept.vectors[1], answer_image(PICTURES[1], TASK)[0]) <= SAME


def test_a_queue_runs_the_graphs_step_by_step(opened: Encoder) -> None:
    items = [opened.prepare_image(pixels, task=task) for pixels, task in ((PICTURES[1], TASK), (PICTURES[3], TASK))]
    following = opened.run_batch(items)
    assert isinstance(following, list) and {item.graph for item in following} == {"text"}
    single, multi = opened.run_batch(following), opened.run_batch(following, space="multi")
    assert isinstance(single, np.ndarray) and isinstance(multi, np.ndarray)
    for index, pixels in enumerate((PICTURES[1], PICTURES[3])):
        wanted, wanted_multi = answer_image(pixels, TASK)
        assert worst(single[index], wanted) <= SAME and worst(multi[index], wanted_multi) <= SAME


def test_the_selftest_asks_with_a_task_for_each_input(pages: Path, tmp_path: Path) -> None:
    """An image of this model needs a task as well, and a wrong adapter is found."""
    Encoder.open(pages, device="cpu", selftest=True).close()
    wrong = tmp_path / "wrong"
    shutil.copytree(pages, wrong)
    for one, other in (("code", "retrieval"), ("retrieval", "code")):
        shutil.copyfile(pages / f"{one}.adapter.npz", wrong / f"{other}.adapter.npz")
    reseal(wrong)
    with pytest.raises(DeviceError, match="self-test: the text graph on cpu differs from the checkpoint"):
        Encoder.open(wrong, device="cpu", selftest=True)
    with np.load(pages / "selftest.npz") as arrays:
        np.savez(wrong / "selftest.npz", **{**arrays, "image_tasks": np.array(["code.query", "code.query"])})
    reseal(wrong)
    with pytest.raises(BundleError, match="2 tasks for 1 images"):
        Encoder.open(wrong, device="cpu", selftest=True)


def test_the_selftest_sees_a_wrong_projector_of_multi_vectors(pages: Path, tmp_path: Path) -> None:
    """Single vectors do not show it. Bundles of older versions, whose self-test has no multi vectors, still open."""
    wrong = tmp_path / "wrong"
    shutil.copytree(pages, wrong)
    head, graph = WEIGHTS["multi_head"], (wrong / "text.onnx").read_bytes()
    moved = head + 1e-3 * np.eye(*head.shape, dtype=np.float32)
    assert graph.count(head.tobytes()) == 1
    (wrong / "text.onnx").write_bytes(graph.replace(head.tobytes(), moved.tobytes()))
    reseal(wrong)
    told = r"self-test: the text graph on cpu \(multi vectors of texts\) differs from the checkpoint by"
    with pytest.raises(DeviceError, match=told):
        Encoder.open(wrong, device="cpu", selftest=True)
    with np.load(pages / "selftest.npz") as arrays:
        kept = dict(arrays)
    np.savez(wrong / "selftest.npz", **{name: array for name, array in kept.items() if name != "image_multi"})
    reseal(wrong)
    with pytest.raises(BundleError, match="cannot be read"):
        Encoder.open(wrong, device="cpu", selftest=True)
    for change, refusal in (
        ({"text_multi": kept["text_multi"][:-1]}, "recorded were"),
        ({"text_multi": kept["text_multi"][:0]}, r"\(0, 16\) answers of texts for 1 inputs"),
        ({"image_multi": kept["image_multi"][:, :8]}, r"\(25, 8\) answers of images for 1 inputs"),
        ({"image_multi": np.float32(1)}, r"\(\) answers of images for 1 inputs"),
    ):
        np.savez(wrong / "selftest.npz", **{**kept, **change})
        reseal(wrong)
        with pytest.raises(BundleError, match=refusal):
            Encoder.open(wrong, device="cpu", selftest=True)
    np.savez(wrong / "selftest.npz", **{name: array for name, array in kept.items() if not name.endswith("_multi")})
    reseal(wrong)
    with Encoder.open(wrong, device="cpu", selftest=True) as older:
        results = run_selftest(older.manifest, older.ask, wrong, device="cpu")
    assert [(one.modality, one.space) for one in results] == [("text", "single"), ("image", "single")]


def test_a_bundle_without_multi_vectors_says_so(encoder: Encoder) -> None:
    """jina-clip-v2 gives single vectors alone."""
    for ask in (
        lambda: encoder.encode_text_multivector(["a"]),
        lambda: encoder.encode_image_multivector(PICTURES[0]),
        lambda: encoder.iter_images_multivector(PICTURES),
        lambda: encoder.run_items_multi([]),
        lambda: encoder.run_batch(encoder.prepare_texts("a").items, space="multi"),
    ):
        with pytest.raises(InputError, match="gives no multi vectors; it gives single vectors"):
            ask()


def test_only_unit_vectors_leave_the_library(pages: Path, tmp_path: Path) -> None:
    """Every token's vector is looked at."""
    broken = tmp_path / "broken"
    shutil.copytree(pages, broken)
    with np.load(pages / "code.adapter.npz") as arrays:
        np.savez(broken / "code.adapter.npz", **{name: np.full_like(array, np.nan) for name, array in arrays.items()})
    reseal(broken)
    with Encoder.open(broken, device="cpu") as opened, warnings.catch_warnings():
        warnings.simplefilter("error")
        opened.encode_text_multivector("a", task="retrieval.query")
        with pytest.raises(DeviceError, match="the text graph answered with NaN"):
            opened.encode_text_multivector("a", task="code.query")


def test_the_manifest_says_what_the_bundle_gives(pages: Path) -> None:
    manifest = Manifest.read(pages)
    assert manifest.modalities == ("text", "image") and manifest.need_multi().dim == MULTI_DIM
    assert manifest.dim("single") == DIM and manifest.dim("multi") == MULTI_DIM
    assert manifest.tasks_of("image") == tuple(TASKS)
    with pytest.raises(InputError, match="takes images of any size"):
        manifest.need_image()

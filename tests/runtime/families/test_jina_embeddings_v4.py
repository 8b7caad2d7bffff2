"""jina-embeddings-v4's items equal the reference's inputs: ids, M-RoPE positions, and the tokens that are pooled."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.families import open_family
from edgeclip.families.family import Item
from edgeclip.families.jina_embeddings_v4 import JinaEmbeddingsV4
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest
from tests.scenes.page_bundle import ADAPTERS, DATA, FACTS, IMAGE_ID, TASKS, WIDTH, make_page_bundle

TEXTS: dict[str, Any] = json.loads((DATA / "meta.json").read_text(encoding="utf-8"))["text"]
PROMPTS = {"query": "retrieval.query", "passage": "code.passage"}
QUERY = "text-matching"


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.read(make_page_bundle(tmp_path_factory.mktemp("v4") / "bundle"))


@pytest.fixture(scope="module")
def family(manifest: Manifest) -> JinaEmbeddingsV4:
    tokenizer = TextTokenizer(DATA / "checkpoint" / "tokenizer.json", manifest.need_text())
    found = open_family(manifest, lambda: tokenizer)
    assert isinstance(found, JinaEmbeddingsV4)
    return found


@pytest.fixture(scope="module")
def text_golden() -> dict[str, NDArray[Any]]:
    with np.load(DATA / "text.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def image_golden() -> dict[str, NDArray[Any]]:
    with np.load(DATA / "image.npz") as arrays:
        return dict(arrays)


def page(
    family: JinaEmbeddingsV4, index: int, task: str = "retrieval.passage", max_pixels: int | None = None
) -> Item:
    return family.image(DATA / "pictures" / f"{index}.png", task, max_pixels=max_pixels, label="page")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_texts_equal_the_reference(
    family: JinaEmbeddingsV4, text_golden: dict[str, NDArray[Any]], prompt: str
) -> None:
    task = PROMPTS[prompt]
    prepared = family.texts(TEXTS["texts"], task, None)
    assert prepared.cut == () and len(prepared.items) == 7
    for index, item in enumerate(prepared.items):
        count = int(text_golden[f"{prompt}/attention_mask"][index].sum())
        assert (item.graph, item.tokens, item.adapter) == ("text", count, TASKS[task].adapter)
        np.testing.assert_array_equal(item.arrays["input_ids"], text_golden[f"{prompt}/input_ids"][index, :count])
        wanted = text_golden[f"{prompt}/position_ids"][:, index, :count]
        np.testing.assert_array_equal(item.arrays["position_ids"], wanted)
        assert (item.arrays["pool_mask"] == 1).all() and (item.arrays["image_places"] == -1).all()
        assert item.arrays["image_features"].shape == (1, WIDTH) and not item.arrays["image_features"].any()


def test_long_texts_lose_their_end(family: JinaEmbeddingsV4, text_golden: dict[str, NDArray[Any]]) -> None:
    """The prompt counts, and no closing token is put in place of the last one."""
    length = TEXTS["mixed_max_length"]
    counts = text_golden["mixed/attention_mask"].sum(axis=1)
    prepared = family.texts(TEXTS["texts"], "retrieval.query", length)
    for item, ids, count in zip(prepared.items, text_golden["mixed/input_ids"], counts, strict=True):
        np.testing.assert_array_equal(item.arrays["input_ids"], ids[:count])
    whole = [
        len(ids) for ids in (item.arrays["input_ids"] for item in family.texts(TEXTS["texts"], QUERY, None).items)
    ]
    assert prepared.cut == tuple(index for index, count in enumerate(whole) if count > length)


@pytest.mark.parametrize("index", range(7))
def test_images_equal_the_reference(
    family: JinaEmbeddingsV4, image_golden: dict[str, NDArray[Any]], index: int
) -> None:
    item = page(family, index)
    np.testing.assert_array_equal(item.arrays["pixel_values"], image_golden[f"{index}/pixel_values"])
    features = np.random.default_rng(index).standard_normal((len(item.arrays["pixel_values"]) // 4, WIDTH))
    following = family.follow(item, {"image_features": features.astype(np.float32)})
    assert following is not None and family.follow(following, {}) is None
    ids, places = following.arrays["input_ids"], following.arrays["image_places"]
    np.testing.assert_array_equal(ids, image_golden[f"{index}/input_ids"][0])
    np.testing.assert_array_equal(following.arrays["position_ids"], image_golden[f"{index}/position_ids"][:, 0])
    np.testing.assert_array_equal(places[ids == IMAGE_ID], np.arange(len(features)))
    assert (places[ids != IMAGE_ID] == -1).all()
    np.testing.assert_array_equal(following.arrays["image_features"], features.astype(np.float32))
    start, end = FACTS.prompt_ids[3], FACTS.prompt_ids[5]  # the markers count, the other words do not
    assert ids[following.arrays["pool_mask"] == 1].tolist() == [start, *[IMAGE_ID] * len(features), end]
    assert set(following.arrays["pool_mask"].tolist()) == {0, 1}
    assert (following.tokens, following.adapter) == (len(ids), "retrieval")
    assert family.billed(item, (1, 1)) == family.billed(following, None) == len(ids)


def test_a_text_that_spells_markers_is_a_text(family: JinaEmbeddingsV4) -> None:
    """The official code pools a batch as images when its first text holds the marker before an image."""
    text = "<|vision_start|><|image_pad|><|vision_end|> and <|im_end|>"
    (item,) = family.texts([text], QUERY, None).items
    ids = item.arrays["input_ids"].tolist()
    assert {379, IMAGE_ID, 380, 372} <= set(ids)
    assert (item.arrays["pool_mask"] == 1).all() and (item.arrays["image_places"] == -1).all()
    np.testing.assert_array_equal(item.arrays["position_ids"], np.tile(np.arange(len(ids)), (3, 1)))


def test_items_of_one_shape_share_a_batch(family: JinaEmbeddingsV4) -> None:
    one, other, longer = family.texts(["a", "b", "what is that"], QUERY, None).items
    assert one.alike == other.alike != longer.alike
    feed = family.feed([one, other])
    assert {name: array.shape for name, array in feed.items()} == {
        "input_ids": (2, one.tokens),
        "position_ids": (2, 3, one.tokens),
        "image_features": (2, 1, WIDTH),
        "image_places": (2, one.tokens),
        "pool_mask": (2, one.tokens),
    }
    assert next(iter(feed)) == "input_ids"  # whose shape is the batch's
    pages = [page(family, index, task) for index, task in ((0, "code.query"), (0, "retrieval.query"))]
    assert pages[0].alike == pages[1].alike and pages[0].adapter is pages[1].adapter is None
    assert [one.next_adapter for one in pages] == ["code", "retrieval"]
    feed = family.feed(pages)
    assert feed["pixel_values"].shape == (2, 64, 588) and next(iter(feed)) == "pixel_values"
    assert feed["patch_positions"].shape == (64, 2)
    assert feed["windows"].shape == (1, 64) and feed["window_places"].shape == (64,)
    assert page(family, 1).alike != pages[0].alike


def test_the_key_of_an_image_is_its_content(family: JinaEmbeddingsV4) -> None:
    assert page(family, 6).key == page(family, 6, "code.query").key is not None
    assert page(family, 6).key != page(family, 6, max_pixels=15_680).key != page(family, 5).key
    wide = family.image(np.zeros((28, 112, 3), np.uint8), QUERY, max_pixels=None, label="image")
    tall = family.image(np.zeros((112, 28, 3), np.uint8), QUERY, max_pixels=None, label="image")
    assert wide.arrays["pixel_values"].tobytes() == tall.arrays["pixel_values"].tobytes() and wide.key != tall.key


def test_token_ids_hold_the_prompt(family: JinaEmbeddingsV4) -> None:
    (text,) = family.texts(["what is that"], QUERY, None).items
    ids = text.arrays["input_ids"].tolist()
    prepared = family.token_ids([ids, ids], QUERY, None)
    for item in prepared.items:
        assert item.adapter == "text-matching"
        np.testing.assert_array_equal(item.arrays["input_ids"], ids)
    cut = family.token_ids([ids], QUERY, len(ids) - 1)
    assert cut.cut == (0,) and cut.items[0].arrays["input_ids"].tolist() == ids[:-1]
    wrongs: tuple[list[int], ...] = (ids[1:], [], ids[:2])
    for wrong in wrongs:
        with pytest.raises(InputError, match="the ids of text 1 do not begin with .*'Query: ' of the task"):
            family.token_ids([ids, wrong], QUERY, None)


def test_a_task_is_needed(family: JinaEmbeddingsV4) -> None:
    for ask in (
        lambda task: family.texts(["a"], task, None),
        lambda task: family.token_ids([[1]], task, None),
        lambda task: page(family, 0, task),
    ):
        with pytest.raises(InputError, match=r"this model needs a task, one of 'retrieval\.query'"):
            ask(None)
        with pytest.raises(InputError, match="task is 'retrieval', wanted one that the model knows"):
            ask("retrieval")


def test_made_up_inputs(family: JinaEmbeddingsV4, manifest: Manifest) -> None:
    draw = np.random.default_rng(1)
    text = family.made_up(draw, "text", 40)
    assert text.arrays["input_ids"].shape == (40,) and text.arrays["input_ids"].max() < 370
    assert text.adapter in ADAPTERS
    image = family.made_up(draw, "image", 0)
    side = image.alike[0] if isinstance(image.alike, tuple) else 0
    assert image.alike == (side, side) and (14 * side) ** 2 <= FACTS.max_pixels < (14 * side + 28) ** 2
    assert image.arrays["pixel_values"].shape == (side * side, 588)
    names = {array.name for array in manifest.graphs["vision"].inputs}
    assert set(image.arrays) == names and set(text.arrays) == {one.name for one in manifest.graphs["text"].inputs}


def test_only_files_that_exist_are_pictures(family: JinaEmbeddingsV4, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"page \(.*absent\.png\): no such file"):
        family.image(tmp_path / "absent.png", QUERY, max_pixels=None, label="page")

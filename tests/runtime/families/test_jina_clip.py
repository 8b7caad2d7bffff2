"""jina-clip at run time: token ids for the graph "text", pixels of one size for the graph "vision"."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.families import open_family
from edgeclip.families.family import Family
from edgeclip.families.jina_clip import JinaClip
from edgeclip.inputs.square import preprocess_image
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest
from tests.conftest import DATA

FILE = DATA / "images" / "rgb_odd.png"


@pytest.fixture(scope="module")
def family(bundle: Path) -> Family:
    manifest = Manifest.read(bundle)
    facts = manifest.need_text()
    opened = open_family(manifest, lambda: TextTokenizer(bundle / facts.file, facts))
    assert isinstance(opened, JinaClip)
    return opened


def test_an_image_is_an_item_of_its_pixels(bundle: Path, family: Family) -> None:
    item = family.image(FILE, None, max_pixels=None, label="image")
    assert (item.graph, item.tokens, item.alike, item.adapter, item.needs_mask) == (
        "vision",
        1,
        (64, 64, 3),
        None,
        False,
    )
    ((name, pixels),) = item.arrays.items()
    assert name == "pixel_values"
    np.testing.assert_array_equal(pixels, preprocess_image(FILE, Manifest.read(bundle).need_image()))


def test_images_have_no_tasks(family: Family) -> None:
    """The model's instruction is for texts."""
    with pytest.raises(
        InputError, match="wanted None or one that the model knows: none, this model has no tasks for"
    ):
        family.image(FILE, "retrieval.query", max_pixels=None, label="image")


def test_a_wrong_image_is_named_by_its_label(family: Family) -> None:
    with pytest.raises(InputError, match="^page 7: "):
        family.image(b"no image", None, max_pixels=None, label="page 7")


def test_a_text_holding_a_literal_padding_token_needs_a_mask(family: Family) -> None:
    """As in the reference, where it is masked."""
    plain, padded = family.texts(["in text", "<pad> in text"], None, None).items
    assert (plain.needs_mask, padded.needs_mask) == (False, True)


def test_a_batch_is_the_items_arrays(family: Family) -> None:
    texts = family.token_ids([[5, 6], [7, 8], [9, 10]], None, None).items
    feed = family.feed(texts)
    assert list(feed) == ["input_ids"] and feed["input_ids"].dtype == np.int64
    assert feed["input_ids"].tolist() == [[0, 5, 6, 2], [0, 7, 8, 2], [0, 9, 10, 2]]
    images = [family.made_up(np.random.default_rng(seed), "image", 0) for seed in range(3)]
    feed = family.feed(images)
    assert list(feed) == ["pixel_values"] and feed["pixel_values"].dtype == np.uint8
    np.testing.assert_array_equal(feed["pixel_values"], [item.arrays["pixel_values"] for item in images])


def test_what_a_graph_gives_are_the_vectors(family: Family, encoder: Encoder) -> None:
    for item, graph in (
        (family.texts(["a cat"], None, None).items[0], "text"),
        (family.image(FILE, None, max_pixels=None, label="image"), "vision"),
    ):
        outputs = encoder.run_graph(graph, family.feed([item]))
        assert family.follow(item, outputs) is None
        assert outputs[family.output(graph, "single")].shape == (1, 64)


@pytest.mark.parametrize("tokens", [2, 16])
def test_made_up_inputs_run(family: Family, encoder: Encoder, tokens: int) -> None:
    """They are those that the graphs are warmed up, calibrated and measured with."""
    draw = np.random.default_rng(0)
    items = [family.made_up(draw, "text", tokens), family.made_up(draw, "image", tokens)]
    assert [item.tokens for item in items] == [tokens, 1]
    assert encoder.run_items(items).shape == (2, 64)
    pixels = items[1].arrays["pixel_values"]
    assert pixels.shape == (64, 64, 3) and np.ptp(pixels) > 200


def test_importing_loads_neither_pillow_nor_onnxruntime() -> None:
    code = "import sys, edgeclip.families; sys.exit(bool({'PIL', 'onnxruntime'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)

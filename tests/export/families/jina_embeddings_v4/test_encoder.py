"""From texts and pictures to the official code's vectors: the exported golden checkpoint, through `Encoder`."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder, MultiVectors
from edgeclip_export import export_checkpoint
from tests.conftest import made_once
from tests.scenes.v4_golden import CHECKPOINT, FOLDER, IMAGE, IMAGES, META, MULTI, SINGLE, TEXT

# By the API's task: the prompt and the adapter.
TASKS = {
    "retrieval.query": ("query", "retrieval"),
    "retrieval.passage": ("passage", "retrieval"),
    "text-matching": ("query", "text-matching"),
    "code.query": ("query", "code"),
    "code.passage": ("passage", "code"),
}
TEXTS: list[str] = META["text"]["texts"]
PICTURES = [FOLDER / "pictures" / f"{index}.png" for index in IMAGES]
# A text alone and among others.
ALONE = 5e-6


@pytest.fixture(scope="module")
def opened(shared: Path) -> Iterator[Encoder]:
    folder = made_once(
        shared / "v4-cpu-None", lambda out: export_checkpoint(CHECKPOINT, out, target="cpu", task=None)
    )
    with Encoder.open(folder, device="cpu", selftest=True) as encoder:
        yield encoder


def worst(found: Any, wanted: NDArray[np.float32]) -> float:
    assert np.shape(found) == wanted.shape
    return float(np.abs(found - wanted).max())


def normalised(rows: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    cut: NDArray[np.float32] = rows[:, :dim] / np.linalg.norm(rows[:, :dim], axis=1, keepdims=True)
    return cut


@pytest.mark.parametrize("task", TASKS)
def test_texts(opened: Encoder, task: str) -> None:
    prompt, adapter = TASKS[task]
    lengths = TEXT[f"{prompt}/attention_mask"].sum(axis=1)
    single, multi = opened.encode_text(TEXTS, task=task), opened.encode_text_multivector(TEXTS, task=task)
    assert isinstance(multi, MultiVectors) and multi.lengths.tolist() == lengths.tolist()
    assert worst(single, TEXT[f"{prompt}/{adapter}/expected_single"]) <= SINGLE
    for found, wanted, length in zip(multi, TEXT[f"{prompt}/{adapter}/expected_multi"], lengths, strict=True):
        assert worst(found, wanted[:length]) <= MULTI
    for dim in (8, 16, 32):
        found = opened.encode_text(TEXTS, task=task, truncate_dim=dim)
        assert worst(found, TEXT[f"{prompt}/{adapter}/expected_single_{dim}"]) <= SINGLE
    for text, vector in zip(TEXTS, single, strict=True):
        assert worst(opened.encode_text(text, task=task), vector) <= ALONE


@pytest.mark.parametrize("task", TASKS)
def test_pictures(opened: Encoder, task: str) -> None:
    adapter = TASKS[task][1]
    single, multi = opened.encode_image(PICTURES, task=task), opened.encode_image_multivector(PICTURES, task=task)
    for index in IMAGES:
        assert worst(single[index], IMAGE[f"{index}/{adapter}/expected_single"]) <= SINGLE
        assert worst(multi[index], IMAGE[f"{index}/{adapter}/expected_multi"]) <= MULTI
    cut = opened.encode_image(PICTURES, task=task, truncate_dim=16)
    assert worst(cut, normalised(single, 16)) <= 1e-6
    if adapter == "retrieval":
        assert worst(cut, np.stack([IMAGE[f"{index}/retrieval/expected_single_16"] for index in IMAGES])) <= SINGLE
    assert worst(single, IMAGE[f"batch/{adapter}/expected_single"]) <= SINGLE  # the reference's padded batch


def test_a_limit_of_pixels(opened: Encoder) -> None:
    index, limit = META["image"]["max_pixels_image_index"], META["image"]["max_pixels_override"]
    found = opened.encode_image(PICTURES[index], task="retrieval.passage", max_pixels=limit)
    assert worst(found, IMAGE["maxpix/expected_single"]) <= SINGLE


def test_cut_texts_of_several_tasks(opened: Encoder) -> None:
    """The reference has one batch of them; here each task is a call."""
    length, lengths = META["text"]["mixed_max_length"], TEXT["mixed/attention_mask"].sum(axis=1)
    tasks = {adapter: task for task, (prompt, adapter) in TASKS.items() if prompt == "query"}
    for index, adapter in enumerate(META["text"]["mixed_tasks"]):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = opened.encode_text(TEXTS[index], task=tasks[adapter], max_length=length)
            many = opened.encode_text_multivector(TEXTS[index], task=tasks[adapter], max_length=length)
        assert worst(one, TEXT["mixed/expected_single"][index]) <= SINGLE
        assert worst(many, TEXT["mixed/expected_multi"][index, : lengths[index]]) <= MULTI


def test_markers_in_a_text_switch_nothing(opened: Encoder) -> None:
    """The official code pools such a text as an image, and every text that shares its batch."""
    marked = "<|vision_start|><|image_pad|><|vision_end|> on the Seine"
    single = opened.encode_text([marked, *TEXTS], task="retrieval.query")
    assert worst(single[1:], TEXT["query/retrieval/expected_single"]) <= SINGLE
    assert worst(opened.encode_text(marked, task="retrieval.query"), single[0]) <= ALONE

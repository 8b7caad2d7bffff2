"""What a GPU is given at once is bounded, every batch fits a TensorRT profile, and the graphs are a finite set."""

import pytest

from edgeclip.buckets import (
    CAPTURED_IMAGES,
    CAPTURED_TOKENS,
    GPU_IMAGES_AT_ONCE,
    GPU_TOKEN_BUDGET,
    Shape,
    captured_shapes,
    is_captured,
    most_rows,
    profile_shapes,
    texts_at_once,
    texts_in_profile,
)
from edgeclip.encoder import Encoder
from edgeclip.manifest import TOWERS, Manifest


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    return encoder.manifest


def lies_within(shape: Shape, least: Shape, most: Shape) -> bool:
    return all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True))


@pytest.mark.parametrize("length", [2, 15, 16, 17, 64, 100, 512, 8192, 20000])
def test_a_batch_of_texts_stays_in_the_budget(length: int) -> None:
    count = texts_at_once(length)
    assert 1 <= count <= most_rows("text")
    assert count == 1 or count * length <= GPU_TOKEN_BUDGET
    assert (count + 1) * max(length, 16) > GPU_TOKEN_BUDGET


def test_every_batch_fits_a_profile(manifest: Manifest) -> None:
    """Of every length, of every number of texts that the plan puts together."""
    profiles = profile_shapes("text", manifest)
    ranges = list(zip(profiles.min, profiles.max, strict=True))
    for length in range(2, manifest.tokenizer.max_length + 1):
        for count in (1, texts_in_profile(length, manifest)):
            assert sum(lies_within((count, length), *ends) for ends in ranges) == 1, (count, length)
    size = manifest.image.size_px
    profiles = profile_shapes("vision", manifest)
    for count in range(1, GPU_IMAGES_AT_ONCE + 1):
        shape = (count, size, size, 3)
        assert any(lies_within(shape, *ends) for ends in zip(profiles.min, profiles.max, strict=True)), count


@pytest.mark.parametrize("tower", TOWERS)
def test_a_profile_is_best_somewhere_inside_it(tower: str, manifest: Manifest) -> None:
    profiles = profile_shapes("text" if tower == "text" else "vision", manifest)
    assert len(profiles.min) == len(profiles.opt) == len(profiles.max) >= 2
    for least, best, most in zip(profiles.min, profiles.opt, profiles.max, strict=True):
        assert lies_within(best, least, most)


def test_profiles_are_spelled_as_onnxruntime_wants_them(manifest: Manifest) -> None:
    """https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html#explicit-shape-range"""
    assert (
        profile_shapes("text", manifest).option("min", "input_ids") == "input_ids:1x2,input_ids:1x65,input_ids:1x513"
    )


def test_single_texts_and_a_few_image_batches_are_captured(manifest: Manifest) -> None:
    assert is_captured("text", (1, 2)) and is_captured("text", (1, CAPTURED_TOKENS))
    assert not is_captured("text", (1, CAPTURED_TOKENS + 1)) and not is_captured("text", (2, 16))
    assert is_captured("vision", (8, 56, 56, 3)) and not is_captured("vision", (9, 56, 56, 3))
    assert len(captured_shapes("text", manifest)) == CAPTURED_TOKENS - 1
    assert [shape[0] for shape in captured_shapes("vision", manifest)] == list(CAPTURED_IMAGES)
    for tower in TOWERS:
        assert all(is_captured(tower, shape) for shape in captured_shapes(tower, manifest))

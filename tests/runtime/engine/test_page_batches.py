"""Batches of images of any size are counted in patches; TensorRT plans no profiles of several inputs."""

import numpy as np
import pytest

from edgeclip.encoder import Encoder
from edgeclip.engine.batch_policy import (
    CPU_TOKENS,
    GPU_TOKENS,
    MOST_IMAGES,
    BatchPolicy,
    has_lone_input,
    is_captured,
    is_oversized,
)
from edgeclip.families.family import Item
from edgeclip.manifest import Manifest
from tests.scenes.page_bundle import make_page_bundle


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return Manifest.read(make_page_bundle(tmp_path_factory.mktemp("pages") / "bundle"))


def page(patches: int) -> Item:
    """An image of so many patches."""
    pixels = np.zeros((patches, 588), np.uint8)
    return Item(graph="vision", arrays={"pixel_values": pixels}, tokens=patches, alike=(2, patches // 2))


@pytest.mark.parametrize(
    ("kind", "patches", "batch_size", "size"),
    [
        ("cpu", 3072, None, 1),
        ("cpu", 3072, 32, 1),
        ("cpu", 64, 8, 8),
        ("cpu", 64, 32, CPU_TOKENS // 64),
        ("cuda", 3072, None, GPU_TOKENS // 3072),
        ("cuda", 64, None, MOST_IMAGES),
        ("cuda", 200_000, None, 1),
    ],
)
def test_pages_are_counted_in_patches(
    manifest: Manifest, kind: str, patches: int, batch_size: int | None, size: int
) -> None:
    policy = BatchPolicy.choose(kind, manifest, "throughput")
    batches = list(policy.plan([page(patches)] * 70, batch_size))
    assert {len(batch) for batch in batches[:-1]} == {size} and sum(map(len, batches)) == 70


def test_the_memory_of_a_large_page_is_freed() -> None:
    assert is_oversized("vision", (1, 3072, 588)) and not is_oversized("vision", (1, 256, 588))
    assert not is_captured("vision", (1, 3072, 588)) and not is_captured("vision", (1, 64, 588))


def test_graphs_of_several_inputs_have_neither_profiles_nor_bound_buffers(
    manifest: Manifest, encoder: Encoder
) -> None:
    assert not has_lone_input(manifest, "text") and not has_lone_input(manifest, "vision")
    assert has_lone_input(encoder.manifest, "text") and has_lone_input(encoder.manifest, "vision")
    policy = BatchPolicy.choose("tensorrt", manifest, "throughput")
    assert policy.profiles("text") is None and policy.profiles("vision") is None
    assert policy.parts("vision", (3, 3072, 588)) == [slice(0, 3)]

"""No batch that the service's lanes form lies outside a TensorRT profile."""

from pathlib import Path

import pytest

from edgeclip import Encoder
from edgeclip.engine.batch_policy import BatchPolicy, kind_of
from edgeclip.families.family import Item
from edgeclip.manifest import Manifest
from edgeclip.serve.app import lane_policy
from edgeclip.serve.queue.fair_queue import FairQueue
from edgeclip.serve.settings import Settings
from tests.runtime.engine.test_batch_policy import assert_fits, engine_profiles, image, text, text_rows


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    return encoder.manifest


def batches(policy: BatchPolicy, item: Item, waiting: int) -> set[int]:
    """The sizes of the batches that a lane makes of so many waiting items."""
    queue, kind = FairQueue(policy.rows), kind_of(item)
    queue.add(0, [kind] * waiting)
    sizes = set()
    while batch := queue.take():
        sizes.add(len(batch))
    return sizes


@pytest.mark.parametrize("max_batch", [None, 1, 7, 100_000])
def test_no_batch_of_the_service_lies_outside_a_profile(manifest: Manifest, max_batch: int | None) -> None:
    """Texts of every length, more of them than make a batch, and at each profile's ends every number of them."""
    settings = Settings(bundle=Path(), max_batch=max_batch)
    policy = lane_policy("tensorrt:0", manifest, settings)
    profiles = engine_profiles(manifest, "text")
    for length in range(2, 8193):
        for size in batches(policy, text(length), text_rows(policy, length) + 1):
            assert_fits((size, length), profiles)
    for length in (2, 64, 65, 512, 513, 8192):
        for waiting in range(1, 2 * text_rows(policy, length) + 2):
            for size in batches(policy, text(length), waiting):
                assert_fits((size, length), profiles)
    burst = batches(policy, text(2), settings.max_queued_texts)
    assert max(burst) <= min(256, max_batch or 256)
    profiles, side = engine_profiles(manifest, "vision"), manifest.need_image().size_px
    for waiting in range(1, settings.max_queued_images + 1):
        for size in batches(policy, image(side), waiting):
            assert_fits((size, side, side, 3), profiles)

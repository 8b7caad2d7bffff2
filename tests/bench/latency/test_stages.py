"""Steps apart: each that there is is measured, none that there is not, and compute is what the copies leave."""

from pathlib import Path

import numpy as np

from edgeclip import Encoder
from edgeclip_bench.latency.cases import make_image
from edgeclip_bench.latency.stages import LEAST_ROUNDS, measure_image_stages, measure_text_stages, medians


def test_a_text_is_tokenised_and_computed(encoder: Encoder) -> None:
    stages, items = measure_text_stages(encoder, ["a red bicycle"] * 3, 0.0)
    assert stages.rounds == LEAST_ROUNDS
    assert stages.tokenise_ms is not None and stages.tokenise_ms > 0
    assert stages.compute_ms is not None and stages.compute_ms > 0
    absent = (stages.read_ms, stages.decode_ms, stages.resize_ms, stages.queue_ms)
    assert (*absent, stages.host_to_device_ms, stages.device_to_host_ms) == (None,) * 6
    (wanted,) = encoder.prepare_texts("a red bicycle").items
    np.testing.assert_array_equal(items[0].arrays["input_ids"], wanted.arrays["input_ids"])
    assert len(items) == 3


def test_an_image_is_read_decoded_resized_and_computed(encoder: Encoder, tmp_path: Path) -> None:
    path = make_image(tmp_path, 80)
    stages, items = measure_image_stages(encoder, [path, path], 0.0)
    steps = (stages.read_ms, stages.decode_ms, stages.resize_ms, stages.compute_ms)
    assert all(step is not None and step > 0 for step in steps)
    assert stages.tokenise_ms is None
    wanted = encoder.prepare_image(path)
    np.testing.assert_array_equal(items[1].arrays["pixel_values"], wanted.arrays["pixel_values"])


def test_compute_is_the_run_without_its_copies() -> None:
    times = {"run": [9.0, 10.0, 30.0], "host_to_device": [2.0], "device_to_host": [1.0], "tokenise": [4.0, 6.0]}
    stages = medians(times)
    assert (stages.compute_ms, stages.host_to_device_ms, stages.tokenise_ms, stages.rounds) == (7.0, 2.0, 5.0, 3)

"""The three ways encode the same files, and the figures are of the times that are kept."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgeclip_bench.latency.image_folder import write_photos
from tests.scenes.command import bench


def test_photos_are_as_large_as_photos_and_not_noise(tmp_path: Path) -> None:
    paths = write_photos(tmp_path, 5)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "JPEG"
            bits = 8 * path.stat().st_size / (image.width * image.height)
            assert 1e6 <= image.width * image.height <= 2e6
            assert 0.5 < bits < 5  # a photo's; measured 4.0, noise has 8 and more


def test_ratios_are_to_the_pixels_alone(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folder.json"
    assert bench("image-folder", str(bundle), "--images", "3", "--rounds", "2", "--out", str(out)) == 0
    ways = json.loads(out.read_text(encoding="utf-8"))["ways"]
    pure, ahead, alone = ways.values()
    assert pure["ratio_median"] == 1
    for way in (ahead, alone):
        assert way["ratio_median"] == pytest.approx(np.median(np.divide(way["seconds"], pure["seconds"])))
        assert way["images_per_s"] == pytest.approx(3 / np.median(way["seconds"]))
    assert len(capsys.readouterr().out.splitlines()) == 4

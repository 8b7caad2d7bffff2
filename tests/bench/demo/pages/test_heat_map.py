"""A heat map is hot where image tokens are like the question's, and is drawn over the page."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from edgeclip import Manifest
from edgeclip_bench.demo.contact_sheet import RIGHT
from edgeclip_bench.demo.pages.heat_map import Finding, draw_findings, heat_of


def test_heat_is_where_the_products_are(v4_bundle: Path) -> None:
    """Of 3 rows and 2 columns of image tokens behind the prompt's first tokens."""
    manifest = Manifest.read(v4_bundle)
    facts = manifest.need_patches()
    first = facts.prompt_ids.index(facts.image_id)
    page = np.zeros((len(facts.prompt_ids) - 1 + 6, 4), np.float32)
    page[first + 3, 0] = 1  # the second row, the second column
    page[first + 4, 1] = 0.5
    page[0, 0] = 9  # no image token
    question = np.eye(4, dtype=np.float32)
    heat = heat_of(question, page, manifest, (2 * facts.token_px, 3 * facts.token_px))
    assert heat.shape == (3, 2)
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 1)
    # Two tokens of the question are like one image token each, and two like all.
    assert heat[1, 1] == 1 and 0.9 < heat[2, 0] < 1
    others = np.delete(heat.ravel(), [3, 4])
    assert others.max() < 0.4 and np.ptp(others) < 1e-6


def test_a_picture_shows_every_finding(tmp_path: Path) -> None:
    Image.new("RGB", (90, 120), "white").save(tmp_path / "00000.png")
    heat = np.zeros((4, 3), np.float32)
    heat[3, 2] = 1
    finding = Finding(
        asked="asked in English", question="a word " * 30, page=tmp_path / "00000.png", is_right=True, heat=heat
    )
    one = draw_findings([finding], title="Title", note="Note")
    two = draw_findings([finding, replace(finding, is_right=False)], title="Title", note="Note")
    assert two.width == one.width and two.height > one.height + 200
    pixels = np.asarray(one).astype(int)
    frame = list(bytes.fromhex(RIGHT.removeprefix("#")))
    assert (pixels == frame).all(axis=2).sum() > 500
    red = pixels[..., 0] - pixels[..., 2] > 100
    rows, columns = np.nonzero(red)
    assert rows.min() > 150 and columns.min() > 300  # the lower right of the second picture

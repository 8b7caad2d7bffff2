"""nllb-clip-siglip is narrowed for every target, proved with its languages, and still takes each text's own."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder, Manifest
from edgeclip.manifest import Precision, Target
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle
from tests.conftest import DATA, made_once
from tests.scenes.nllb_goldens import CHECKPOINT, TEXT, TEXTS, VISION, unit

# Worst cosine to the reference's vectors, which a tiny tower of random weights keeps worse than a trained one.
WORST_COSINE = 0.9
FILE = "rgb_tall.png"


@pytest.fixture(scope="module", autouse=True)
def _no_pauses() -> Iterator[None]:
    """What a timing waits for before each run is nothing to wait for here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("edgeclip.engine.paired_timing.PAUSE_S", 0)
        yield


@pytest.mark.parametrize(
    ("target", "to"),
    [
        ("cpu", "int8"),
        ("cpu", "int4"),
        ("cuda", "fp16"),
        ("tensorrt", "int8"),
    ],
)
def test_a_narrow_bundle_is_close_in_every_language(
    shared: Path, tmp_path: Path, target: Target, to: Precision
) -> None:
    source = made_once(shared / "nllb" / target, lambda out: export_checkpoint(CHECKPOINT, out, target=target))
    quantize_bundle(source, tmp_path / "narrow", to=to)
    manifest = Manifest.read(tmp_path / "narrow")
    assert manifest.task_required and manifest.tasks == Manifest.read(source).tasks
    if target != "cpu":  # their kernels are not here
        return
    with Encoder.open(tmp_path / "narrow", device="cpu", selftest=True) as encoder:
        for code in ("eng_Latn", "deu_Latn", "rus_Cyrl"):
            found = encoder.encode_text(TEXTS[code], task=code)
            assert np.sum(found * unit(TEXT[f"{code}/features"]), axis=1).min() >= WORST_COSINE
        found = encoder.encode_image(DATA / "images" / FILE)
        assert found @ unit(VISION[f"{FILE}/features"]) >= WORST_COSINE

"""Run by .ci/run in a venv that holds the wheel with [cpu] and nothing else: the lean runtime alone.

python tests/scenes/lean_wheel.py BUNDLE
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgeclip import Encoder, MissingExtraError


def main(bundle: str) -> None:
    """Encode texts and arrays, and see that what is not installed is asked for by name."""
    there = [name for name in ("torch", "onnx", "onnxscript", "PIL", "safetensors") if importlib.util.find_spec(name)]
    assert not there, f"{there} installed, so this proves nothing"
    with Encoder.open(bundle) as encoder:
        texts = encoder.encode_text(["a red bicycle", "ein rotes Fahrrad"])
        picture = np.random.default_rng(0).integers(0, 256, (37, 61, 3), dtype=np.uint8)
        image = encoder.encode_image(picture)
        assert texts.shape == (2, encoder.manifest.embedding_dim) and image.shape == texts[0].shape
        np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1.0, atol=1e-6)
        try:
            encoder.encode_image(Path("picture.png").name.encode())
        except MissingExtraError as error:
            assert ".whl[images]" in str(error)
        else:
            raise AssertionError("bytes were decoded without Pillow")
    edgeclip = str(Path(sys.executable).with_name("edgeclip"))
    checked = subprocess.run([edgeclip, "check", bundle], check=True, capture_output=True, text=True)
    assert "every sha256 as exported" in checked.stdout
    refused = subprocess.run([edgeclip, "export", bundle, "out"], capture_output=True, text=True)
    assert refused.returncode == 1 and ".whl[export]" in refused.stderr and refused.stderr.count("\n") == 1
    print("the lean wheel runs: texts, arrays, check")


if __name__ == "__main__":
    main(sys.argv[1])

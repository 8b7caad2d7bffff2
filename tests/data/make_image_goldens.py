"""Makes tests/data/images from the reference's golden set: python make_image_goldens.py GOLDEN_FOLDER

The goldens hold float tensors of 3 MB an image. Here they are kept as what they were made of, uint8
pixels, and as the sha256 of the float tensor; the script stops unless normalising the pixels gives
the tensor bit for bit.

images/<file>          the source images
images/expected.npz    <file>|64: pixels at 64 px; <file>|<mode>|<interpolation>: the same in other
                       modes; <file>|decoded: RGB of the JPEGs, as decoders differ (the small ones)
images/expected.json   sha256 of the RGB array and of the float tensors at 64 and 512 px
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
DECODED_BYTES = 80_000  # a larger RGB array is kept as its sha256 only


def main(golden: Path, out: Path) -> None:
    """Read the goldens' images folder and write `out`."""
    source = golden / "images"
    index = json.loads((source / "_index.json").read_text())
    arrays: dict[str, NDArray[np.uint8]] = {}
    images: dict[str, dict[str, str]] = {}
    out.mkdir(exist_ok=True)
    for name in sorted(index):
        shutil.copyfile(source / name, out / name)
        with np.load(source / f"{name}.npz") as expected:
            decoded = expected["decoded_rgb"]
            tensors = {64: expected["encode_image_tiny"], 512: expected["encode_image_512"]}
        arrays[f"{name}|64"] = _pixels(tensors[64])
        _pixels(tensors[512])
        if name.endswith(".jpg") and decoded.nbytes <= DECODED_BYTES:
            arrays[f"{name}|decoded"] = decoded
        images[name] = {"decoded": _sha256(decoded)} | {
            str(size): _sha256(tensor) for size, tensor in tensors.items()
        }
    with np.load(source / "_other_modes_tiny.npz") as modes:
        for key in sorted(modes):
            arrays[key] = _pixels(modes[key])
    np.savez_compressed(out / "expected.npz", allow_pickle=False, **arrays)
    (out / "expected.json").write_text(json.dumps(images, indent=1) + "\n")


def _pixels(tensor: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The (height, width, 3) uint8 that a (3, height, width) float32 tensor was normalised from."""
    pixels: NDArray[np.uint8] = np.rint((np.moveaxis(tensor, 0, -1) * STD + MEAN) * 255).astype(np.uint8)
    again = np.moveaxis((pixels.astype(np.float32) / np.float32(255) - MEAN) / STD, -1, 0)
    if again.tobytes() != tensor.tobytes():
        raise SystemExit("a golden tensor is not what its pixels normalise to")
    return pixels


def _sha256(array: NDArray[Any]) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent / "images")

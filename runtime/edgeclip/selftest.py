"""The bundle's own test: its texts and images again, on this device, against the checkpoint's answers.

It goes the user's way, from str and array to vector, so it also sees a tokenizer, a resize or a crop
that is not what it was.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.encoder import Encoder
from edgeclip.errors import BundleError, DeviceError
from edgeclip.manifest import Precision, TowerName

# Largest difference of a unit vector's elements. fp32: measured 4e-7, and other processors sum in
# other orders; the smallest known mistake (tanh for erf in GELU) moves them by 1e-4.
TOLERANCE: dict[Precision, float] = {"fp32": 5e-6}
# The least cosine to the checkpoint's answer, for a precision that rounds. A bundle is written only above 0.99
# (`edgeclip_quant`); other processors' integer kernels round the same numbers, so what is left is a margin.
WORST_COSINE: dict[Precision, float] = {"int8": 0.985}
# Vectors of different inputs that differ by less than this are one constant vector.
_DISTINCT = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTestResult:
    """How one tower answered, beside what the checkpoint answered."""

    tower: TowerName
    samples: int
    worst_cosine: float
    largest_difference: float


def run_selftest(encoder: Encoder, folder: Path) -> tuple[SelfTestResult, ...]:
    """Encode the bundle's self-test; DeviceError for NaN, a constant or a wrong vector.

    Raises BundleError when the self-test itself cannot be read.
    """
    path = folder / encoder.manifest.selftest
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            texts = [str(text) for text in arrays["texts"]]
            images = [arrays[f"image_{index}"] for index in range(len(arrays["image_embeds"]))]
            wanted = {"text": arrays["text_embeds"], "vision": arrays["image_embeds"]}
    except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
        raise BundleError(f"{path}: cannot be read ({error})") from error
    for name, count in (("text", len(texts)), ("vision", len(images))):
        if not count or wanted[name].shape != (count, encoder.manifest.embedding_dim):
            raise BundleError(f"{path}: {wanted[name].shape} answers of the {name} tower for {count} inputs")
    found = {
        "text": encoder.encode_text(texts, progress=False),
        "vision": encoder.encode_image(images, progress=False),
    }
    towers: tuple[TowerName, TowerName] = ("text", "vision")
    return tuple(_judge(tower, encoder, found[tower], wanted[tower]) for tower in towers)


def _judge(
    tower: TowerName, encoder: Encoder, found: NDArray[np.float32], wanted: NDArray[np.float32]
) -> SelfTestResult:
    where = f"self-test: the {tower} tower on {encoder.device}"
    if np.abs(found - found[:1]).max() < _DISTINCT <= np.abs(wanted - wanted[:1]).max():
        raise DeviceError(f"{where} gives one constant vector for different inputs")
    precision = encoder.manifest.tower(tower).precision
    if precision not in TOLERANCE and precision not in WORST_COSINE:
        raise BundleError(f"{where} is {precision}, which this edgeclip cannot judge; upgrade it")
    difference = float(np.abs(found - wanted).max())
    cosine = float((found.astype(np.float64) * wanted).sum(axis=1).min())
    advice = "another device or onnxruntime version may do better"
    if precision in TOLERANCE and not difference <= TOLERANCE[precision]:
        raise DeviceError(
            f"{where} differs from the checkpoint by {difference:.1e}, allowed at {precision} is "
            f"{TOLERANCE[precision]:.0e}; {advice}"
        )
    if precision in WORST_COSINE and not cosine >= WORST_COSINE[precision]:
        raise DeviceError(
            f"{where} has a cosine of {cosine:.4f} to the checkpoint, wanted at {precision} is "
            f"{WORST_COSINE[precision]}; {advice}"
        )
    return SelfTestResult(tower=tower, samples=len(found), worst_cosine=cosine, largest_difference=difference)

"""The bundle's own tests, on this device: what was measured when it was written, measured again.

The self-test goes the user's way, from str and array to vector, so it also sees a tokenizer, a resize or a crop that
is not what it was; its answers are the checkpoint's. The proof of a narrowed bundle gives the graphs the ids and
pixels that they were proved on; its answers are the fp32 bundle's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import BundleError, DeviceError
from edgeclip.manifest import PROOF_DATA, SELFTEST_DATA, TOWERS, Manifest, Precision, Reference, TowerName

if TYPE_CHECKING:
    from edgeclip.encoder import Encoder

# Largest difference of a unit vector's elements. fp32: measured 4e-7, and other processors sum in
# other orders; the smallest known mistake (tanh for erf in GELU) moves them by 1e-4.
TOLERANCE: dict[Precision, float] = {"fp32": 5e-6}
# A precision that rounds may lose (1 - cosine) so many times what was recorded. Other kernels sum in another order,
# which moves single values over the edge between two levels: the same rounding, drawn anew. With every constant moved
# by 1e-7 to 1e-5 of itself, the small trained model's worst loss as int8 was 0.8 to 1.3 times the recorded one.
LOSS_RATIO = 2.0
# A loss that is allowed whatever was recorded: a fiftieth of fp16's budget, where sums alone may double a loss.
HARMLESS_LOSS = 1e-5
# Vectors of different inputs that differ by less than this are one constant vector.
_DISTINCT = 1e-4

_Arrays = Mapping[str, NDArray[Any]]
_Answers = Mapping[TowerName, NDArray[Any]]
_Taken = TypeVar("_Taken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """One tower's answers here beside the wanted ones; `recorded_cosine` is the manifest's worst, None without."""

    tower: TowerName
    against: Reference
    data: str
    samples: int
    recorded_cosine: float | None
    worst_cosine: float
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """A bundle's self-test: texts, images (H, W, 3) uint8, and the checkpoint's vectors (N, D) of both."""

    texts: Sequence[str]
    images: Sequence[NDArray[np.uint8]]
    wanted: Mapping[TowerName, NDArray[np.float32]]


def read_selftest(manifest: Manifest, folder: Path) -> SelfTest:
    """The self-test of the bundle in a folder; BundleError when it cannot be read."""

    def take(arrays: _Arrays) -> SelfTest:
        return SelfTest(
            texts=[str(text) for text in arrays["texts"]],
            images=[arrays[f"image_{index}"] for index in range(len(arrays["image_embeds"]))],
            wanted=_answers(arrays),
        )

    path = folder / manifest.selftest
    test = _read(path, take)
    counts: dict[TowerName, int] = {"text": len(test.texts), "vision": len(test.images)}
    _check_answers(path, test.wanted, counts, manifest.embedding_dim)
    return test


def run_selftest(encoder: "Encoder", test: Path | SelfTest) -> tuple[Repeated, ...]:
    """Encode a self-test, or that of the bundle in a folder; DeviceError for NaN, a constant or a wrong vector.

    fp32 is wrong beyond TOLERANCE, a precision that rounds below `least_cosine` of what was recorded. Raises
    BundleError when the self-test cannot be read, or such a tower's record is missing.
    """
    if isinstance(test, Path):
        test = read_selftest(encoder.manifest, test)
    found = {
        "text": encoder.encode_text(test.texts, progress=False),
        "vision": encoder.encode_image(test.images, progress=False),
    }
    return tuple(
        _judge(encoder, tower, "fp32 checkpoint", SELFTEST_DATA, found[tower], test.wanted[tower]) for tower in TOWERS
    )


def repeat_proof(encoder: "Encoder", folder: Path) -> tuple[Repeated, ...]:
    """Run the narrowed towers on what they were proved on; none in a bundle without a proof.

    DeviceError for a tower that answers worse than `least_cosine` of what was recorded, BundleError for a proof that
    cannot be read or has no record.
    """
    manifest = encoder.manifest
    if manifest.proof is None:
        return ()

    def take(arrays: _Arrays) -> tuple[dict[TowerName, list[Any]], _Answers]:
        ids = [arrays[f"input_ids_{index}"] for index in range(len(arrays["text_embeds"]))]
        return {"text": ids, "vision": list(arrays["pixel_values"][:, None])}, _answers(arrays)

    path = folder / manifest.proof
    inputs, wanted = _read(path, take)
    _check_answers(path, wanted, {name: len(inputs[name]) for name in TOWERS}, manifest.embedding_dim)
    return tuple(
        _judge(
            encoder,
            tower,
            "fp32 bundle",
            PROOF_DATA,
            np.concatenate([encoder.run_tower(tower, batch) for batch in inputs[tower]]),
            wanted[tower],
        )
        for tower in TOWERS
        if manifest.tower(tower).precision not in TOLERANCE
    )


def least_cosine(recorded: float) -> float:
    """The least worst cosine that may be found where `recorded` was."""
    return 1 - max(LOSS_RATIO * (1 - recorded), HARMLESS_LOSS)


def _judge(
    encoder: "Encoder",
    tower: TowerName,
    against: Reference,
    data: str,
    found: NDArray[np.float32],
    wanted: NDArray[np.float32],
) -> Repeated:
    test = "self-test" if against == "fp32 checkpoint" else "proof"
    where = f"{test}: the {tower} tower on {encoder.device}"
    if np.abs(found - found[:1]).max() < _DISTINCT <= np.abs(wanted - wanted[:1]).max():
        raise DeviceError(f"{where} gives one constant vector for different inputs")
    precision = encoder.manifest.tower(tower).precision
    record = encoder.manifest.measurement(tower, against, data)
    difference = float(np.abs(found - wanted).max())
    worst = float(_cosines(found, wanted).min())
    advice = "another device or onnxruntime version may do better"
    if precision in TOLERANCE:
        if not difference <= TOLERANCE[precision]:
            raise DeviceError(
                f"{where} differs from the checkpoint by {difference:.1e}, allowed at {precision} is "
                f"{TOLERANCE[precision]:.0e}; {advice}"
            )
    elif record is None:
        raise BundleError(
            f"{where} is {precision}, and the manifest does not say what it gave when written; quantise it again"
        )
    elif not worst >= (least := least_cosine(record.worst_cosine)):  # NaN fails too
        raise DeviceError(
            f"{where} has a worst cosine of {worst:.6f} to the {against}, wanted {least:.6f} or more: "
            f"{record.worst_cosine:.6f} was measured when it was written; {advice}"
        )
    return Repeated(
        tower=tower,
        against=against,
        data=data,
        samples=len(found),
        recorded_cosine=None if record is None else record.worst_cosine,
        worst_cosine=worst,
        largest_difference=difference,
    )


def _cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    """Row by row; NaN for a row of zeros."""
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        cosines: NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return cosines


def _read(path: Path, take: Callable[[_Arrays], _Taken]) -> _Taken:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return take(arrays)
    except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
        raise BundleError(f"{path}: cannot be read ({error})") from error


def _answers(arrays: _Arrays) -> _Answers:
    return {"text": arrays["text_embeds"], "vision": arrays["image_embeds"]}


def _check_answers(path: Path, wanted: _Answers, counts: Mapping[TowerName, int], dim: int) -> None:
    for name, count in counts.items():
        if not count or wanted[name].shape != (count, dim):
            raise BundleError(f"{path}: {wanted[name].shape} answers of the {name} tower for {count} inputs")

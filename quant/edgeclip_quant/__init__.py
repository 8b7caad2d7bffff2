"""Bundle in, smaller bundle out, with the proof of what that cost.

`quantize_bundle` is the whole way. The modules behind it, in the order a tower passes them: `samples`, `plain`,
`linear`, `calibration`, `smoothing`, `kernels`, `table`, `quantize`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeclip.errors import MissingExtraError
from edgeclip.manifest import Manifest

if TYPE_CHECKING:
    from edgeclip_quant.samples import Samples

# What proves an int8 bundle unless more is asked for.
WORST_COSINE = 0.99
_TEXTS, _IMAGES = 64, 16


def quantize_bundle(
    bundle: str | Path,
    out: str | Path,
    *,
    samples: "Samples | None" = None,
    worst_cosine: float = WORST_COSINE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Write the int8 bundle of an fp32 bundle for the CPU to `out`, and leave the source as it is.

    Every other one of `samples` (made up without any) calibrates, the rest proves: each of a tower's vectors has a
    cosine of at least `worst_cosine` to the source's. Raises BuildError, with nothing left at `out`, when one has
    not, when the source is not fp32 for cpu, or when `out` exists or cannot be written; MissingExtraError when
    the extra `quant`, or an onnxruntime, is missing.
    """
    try:
        from edgeclip_quant.quantize import quantize
        from edgeclip_quant.samples import made_up_samples
    except ModuleNotFoundError as error:
        package = str(error.name).split(".")[0]
        extra = "cpu" if package == "onnxruntime" else "quant"
        raise MissingExtraError(f"{package} is not installed: `pip install edgeclip[{extra}]`") from error

    if samples is None:
        samples = made_up_samples(Path(bundle), Manifest.read(bundle), texts=_TEXTS, images=_IMAGES)
    calibration, proof = samples.halves()
    report = progress or (lambda what, done, total: None)
    return quantize(Path(bundle), Path(out), calibration, proof, worst_cosine, report)


__all__ = ["WORST_COSINE", "quantize_bundle"]

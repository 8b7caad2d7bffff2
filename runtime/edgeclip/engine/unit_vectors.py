"""Check that vectors have length 1 before they leave the library, and cut them to fewer dimensions.

Both towers' graphs end with a normalisation, so a length that is not 1 means broken weights or a broken device.
"""

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

# How far from 1 a length may be. The largest difference that was measured, of 302 texts and 62 images on
# the golden and the trained small checkpoint (onnxruntime 1.31.1, CPU): fp32 3.4e-7, int8 3.9e-7, int4 3.5e-7, fp16
# 5.4e-7, for all of them normalise in fp32. A GPU that rounds the quotients to fp16 would be off by 4.9e-4 at most.
LENGTH_TOLERANCE = 1e-3
# The shortest vector that has a direction; torch.nn.functional.normalize divides by no less.
_SHORTEST = 1e-12


def find_fault(vectors: Vectors, dim: int) -> str | None:
    """What is wrong with rows (N, D) that should be unit vectors, also when cut to `dim`; None if nothing is."""
    if dim == vectors.shape[1] and _are_surely_units(vectors):
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors, axis=1)
    if not np.isfinite(lengths).all():
        return "NaN or infinity"
    if len(lengths) and abs(worst := lengths[np.abs(lengths - 1).argmax()] - 1) > LENGTH_TOLERANCE:
        return f"a vector of length {worst + 1:.4g}, wanted 1"
    if dim < vectors.shape[1] and not (np.linalg.norm(vectors[:, :dim], axis=1) > _SHORTEST).all():
        return f"a vector whose first {dim} dimensions are all 0"
    return None


def _are_surely_units(vectors: Vectors) -> bool:
    """Whether every row's squared length is within LENGTH_TOLERANCE of 1, so its length is nearer; False for NaN.

    A run of a tower leaves the processor's caches without numpy's code, so each of its functions costs some 60 µs
    after one: norm, isfinite and argmax together took 175 µs for a row of 1024, and vdot 73 (two cores of an Intel
    Xeon with AMX). vdot warns of no overflow, where dot does.
    """
    return all(abs(float(np.vdot(row, row)) - 1) <= LENGTH_TOLERANCE for row in vectors)


def shorten(vectors: Vectors, dim: int) -> Vectors:
    """The first `dim` values of each unit vector (N, D), normalised again: (N, dim). `find_fault` must have passed
    them.
    """
    if dim == vectors.shape[1]:
        return vectors
    cut = vectors[:, :dim]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True).clip(min=_SHORTEST)
    unit: Vectors = cut / lengths.astype(np.float32)
    return unit

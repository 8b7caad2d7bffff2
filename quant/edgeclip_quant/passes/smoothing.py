"""Move outlier channels from a layer's input into its weights, exactly (SmoothQuant, arXiv:2211.10438).

    x W = (x / s) (s W),      s_j = max|x_j|^a / max|W_j|^(1-a)

A row is rounded with one scale, so one channel a hundred times larger than the rest leaves the rest one level of 127.
Divided by s, all channels are of similar size. Where the input comes from a norm that feeds this layer alone, 1/s
goes into the norm's own scale and shift and costs nothing; elsewhere it is one multiplication of the input.

That evens all channels out. A trained vision graph also has single channels that are huge in the class token's row
alone, and nearly the same for every image ("massive activations", arXiv:2402.17762): the differences between images
are rounded away beside a constant. `levelling_factors` brings those channels down and leaves the others as they are.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.frame import array_of, constant, input_of

# Half of the spread stays with the activations. The paper's default for most models.
STRENGTH = 0.5
_SMALLEST = 1e-5


def smoothing_factors(
    largest: NDArray[np.float32], weight: NDArray[np.float32], strength: float = STRENGTH
) -> NDArray[np.float32]:
    """s (in,) for inputs with these largest magnitudes (in,) and a weight (in, out).

    Scaled so that their geometric mean is 1; a channel that is always 0 gets 1.
    """
    inputs = np.maximum(largest.astype(np.float64), _SMALLEST)
    weights = np.maximum(np.abs(weight).max(axis=1).astype(np.float64), _SMALLEST)
    factors = inputs**strength / weights ** (1 - strength)
    factors /= np.exp(np.log(factors).mean())
    factors[largest == 0] = 1.0
    rounded: NDArray[np.float32] = factors.astype(np.float32)
    return rounded


def levelling_factors(leading: NDArray[np.float32], halvings: int) -> NDArray[np.float32]:
    """s (in,), at least 1, for first rows (samples, in): no channel is left above 2^-halvings of the largest."""
    largest = np.abs(leading).max(axis=0)
    reach = max(float(largest.max()) / 2**halvings, _SMALLEST)
    factors: NDArray[np.float32] = np.maximum(largest / np.float32(reach), np.float32(1.0))
    return factors


def stems_from_norm(x: ir.Value) -> bool:
    """Whether x is the output of a LayerNormalization."""
    producer = x.producer()
    return producer is not None and producer.op_type == "LayerNormalization"


def is_fed_by_norm(x: ir.Value) -> bool:
    """Whether x is the output of a LayerNormalization with a shift and has one user: then the norm can be changed."""
    producer = x.producer()
    return producer is not None and stems_from_norm(x) and len(producer.inputs) == 3 and len(list(x.uses())) == 1


def fold_into_norm(graph: ir.Graph, x: ir.Value, factors: NDArray[np.float32]) -> None:
    """Divide the output of the norm that gives x by `factors` (in,)."""
    norm = x.producer()
    assert norm is not None
    for index in (1, 2):
        value = input_of(norm, index)
        array = (array_of(value) / factors).astype(np.float32)
        smoothed = constant(graph, f"{value.name}_smoothed", array)
        norm.replace_input_with(index, smoothed)

"""Observe the inputs of a graph's linear layers, by running the graph on samples with more outputs.

Three things are kept of every layer: the largest magnitude of each input channel over all samples, which smoothing
divides by, some rows of the input as they are, on which kernels are tried, and each sample's first row.
"""

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.engine.ort import start_session
from edgeclip.families.family import Arrays
from edgeclip_graph.frame import constant
from edgeclip_graph.linear import LinearLayer, linear_layers

Progress = Callable[[str, int, int], None]

# Rows kept of each layer: enough for an error to be known within a few per cent.
ROWS = 256
_ROWS_OF_SAMPLE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """The inputs of one layer: `largest` (in,), the greatest magnitude by channel, and `rows` (R, in).

    `leading` (samples, in) is the first row of every sample (an image's class token), None where it was not kept.
    """

    largest: NDArray[np.float32]
    rows: NDArray[np.float32]
    leading: NDArray[np.float32] | None = None


def observe(
    model: ir.Model, samples: Sequence[Arrays], folder: Path, progress: Progress, threads: int | None = None
) -> tuple[Mapping[str, Observation], NDArray[np.float32]]:
    """Run a graph on every sample (a feed); return each linear layer's observation, and the rows of the first output
    (N, D).

    `folder` holds a copy of the graph with more outputs meanwhile, which takes as much room as the weights. The graph
    itself is not changed.
    """
    copy = model.clone()
    layers = linear_layers(copy.graph)
    outputs = [str(copy.graph.outputs[0].name), *_look_at_inputs(copy.graph, layers)]
    vectors = []
    largest: dict[str, NDArray[np.float32]] = {}
    rows: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in layers}
    leading: dict[str, list[NDArray[np.float32]]] = {layer.name: [] for layer in layers}
    with tempfile.TemporaryDirectory(dir=folder, prefix="calibration-") as place:
        path = Path(place) / "observed.onnx"
        ir.save(copy, path, external_data=f"{path.name}_data")
        del copy
        session = start_session(path, threads=threads)
        for done, sample in enumerate(samples):
            progress("calibrating", done, len(samples))
            answer, *found = session.run(outputs, dict(sample))
            vectors.append(answer.reshape(-1, answer.shape[-1]))
            for layer, top, some in zip(layers, found[::2], found[1::2], strict=True):
                before = largest.get(layer.name)
                largest[layer.name] = top if before is None else np.maximum(before, top)
                rows[layer.name].append(_some(some, _ROWS_OF_SAMPLE))
                leading[layer.name].append(some[:1].copy())  # a view would keep all of it
    seen = {
        layer.name: Observation(
            largest=largest[layer.name],
            rows=_some(np.concatenate(rows[layer.name]), ROWS),
            leading=_some(np.concatenate(leading[layer.name]), ROWS),
        )
        for layer in layers
    }
    return seen, np.concatenate(vectors)


def _some(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    some: NDArray[np.float32] = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    return some


def _look_at_inputs(graph: ir.Graph, layers: Iterable[LinearLayer]) -> list[str]:
    """Add two outputs to the graph for each layer: its channels' largest magnitudes, and its rows."""
    names = []
    tape = ir.tape.Tape()
    first = constant(graph, "observed_axis", np.array([0], np.int64))
    for number, layer in enumerate(layers):
        width = len(layer.weight)
        shape = constant(graph, f"observed_shape_{width}", np.array([-1, width], np.int64))
        rows = tape.op("Reshape", [layer.x, shape])
        top = tape.op("ReduceMax", [tape.op("Abs", [rows]), first], {"keepdims": 0})
        for value, name in ((top, f"observed_largest_{number}"), (rows, f"observed_rows_{number}")):
            value.name, value.dtype = name, ir.DataType.FLOAT
            graph.outputs.append(value)
            names.append(name)
    graph.extend(tape.nodes)
    return names

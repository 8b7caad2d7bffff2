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
from edgeclip_graph.frame import Recorder
from edgeclip_graph.linear import LinearLayer, linear_layers

Progress = Callable[[str, int, int], None]

# Rows kept of each layer: enough for an error to be known within a few per cent.
ROWS = 256
_ROWS_OF_SAMPLE = 64


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
) -> tuple[Mapping[str, Observation], list[NDArray[np.float32]]]:
    """Run a graph on every sample (a feed); return each linear layer's observation, and the rows of each output
    (N, D), in their order.

    `folder` holds a copy of the graph with more outputs meanwhile, which takes as much room as the weights. The graph
    itself is not changed.
    """
    copy = model.clone()
    layers = linear_layers(copy.graph)
    own = len(copy.graph.outputs)
    outputs = [*(str(value.name) for value in copy.graph.outputs), *_look_at_inputs(copy.graph, layers)]
    vectors: list[list[NDArray[np.float32]]] = [[] for _ in range(own)]
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
            found = session.run(outputs, dict(sample))
            for answers, answer in zip(vectors, found, strict=False):
                answers.append(answer.reshape(-1, answer.shape[-1]))
            del found[:own]
            for layer, top, some in zip(layers, found[::2], found[1::2], strict=True):
                before = largest.get(layer.name)
                largest[layer.name] = top if before is None else np.maximum(before, top)
                rows[layer.name].append(some)
                leading[layer.name].append(some[:1])
    seen = {
        layer.name: Observation(
            largest=largest[layer.name],
            rows=_some(np.concatenate(rows[layer.name]), ROWS),
            leading=_some(np.concatenate(leading[layer.name]), ROWS),
        )
        for layer in layers
    }
    return seen, [np.concatenate(answers) for answers in vectors]


def _some(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """At most `count` rows, evenly spaced."""
    if len(rows) <= count:
        return rows
    some: NDArray[np.float32] = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    return some


def _look_at_inputs(graph: ir.Graph, layers: Iterable[LinearLayer]) -> list[str]:
    """Add two outputs to the graph for each layer: its channels' largest magnitudes, and some of its rows.

    Rows are chosen in the graph: all of them would be 14 GB for a page of 3,072 patches in a tower of 32 blocks.
    """
    names = []
    record = Recorder(graph)
    first = record.integers(0)
    for number, layer in enumerate(layers):
        rows = record.op("Reshape", layer.x, record.integers(-1, layer.shape[0]))
        top = record.op("ReduceMax", record.op("Abs", rows), first, keepdims=0)
        for value, name in (
            (top, f"observed_largest_{number}"),
            (_some_rows(record, rows), f"observed_rows_{number}"),
        ):
            value.name, value.dtype = name, ir.DataType.FLOAT
            graph.outputs.append(value)
            names.append(name)
    graph.extend(record.take())
    return names


def _some_rows(record: Recorder, rows: ir.Value) -> ir.Value:
    """At most `_ROWS_OF_SAMPLE` rows, evenly spaced, the first and the last among them."""
    zero, one, most = (record.constant(f"rows_{count}", np.array(count)) for count in (0, 1, _ROWS_OF_SAMPLE))
    total = record.op("Squeeze", record.op("Shape", rows, start=0, end=1))
    count = record.op("Min", total, most)
    steps = record.op("Max", record.op("Sub", count, one), one)
    spread = record.op("Mul", record.op("Range", zero, count, one), record.op("Sub", total, one))
    return record.op("Gather", rows, record.op("Div", spread, steps), axis=0)

"""Graphs of one linear layer behind what a tower has before it, run by onnxruntime."""

from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime
from numpy.typing import NDArray
from onnx_ir.passes import common

from edgeclip.engine.products import adds_in_16_bits
from edgeclip_graph.frame import constant
from edgeclip_graph.linear import LinearLayer, linear_layers

Array = NDArray[np.float32]
# What gives the layer its input: the graph's input, a norm that feeds it alone, one that feeds a residual too, one
# without a shift, a GELU, or rows taken out of a norm's.
Source = Literal["input", "norm", "shared norm", "norm without shift", "gelu", "slice"]
SOURCES: tuple[Source, ...] = ("input", "norm", "shared norm", "norm without shift", "gelu", "slice")

_FLOAT = ir.DataType.FLOAT


def layer_model(
    weight: Array,
    bias: Array,
    source: Source = "input",
    *,
    gain: Array | None = None,
    shift: Array | None = None,
    parts: tuple[int, ...] = (),
    axis: int = -1,
) -> ir.Model:
    """x (rows, in) -> y = source(x) W + b (rows, out); `parts` are widths that it is split into: outputs y0, y1, ...

    `gain` and `shift` are the norm's, ones and zeros where not given.
    """
    inputs, outputs = weight.shape
    x = ir.Value(name="x", type=ir.TensorType(_FLOAT), shape=ir.Shape(["rows", inputs]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="layer")
    tape = ir.tape.Tape()
    read = _source(graph, tape, x, source, inputs, gain, shift)
    product = tape.op("MatMul", [read, constant(graph, "weight", weight)])
    y = tape.op("Add", [product, constant(graph, "bias", bias)])
    y.name, y.dtype, y.shape = "y", _FLOAT, ir.Shape(["rows", outputs])
    results = [y]
    if parts:
        sizes = constant(graph, "parts", np.array(parts, np.int64))
        results = list(tape.op_multi_out("Split", [y, sizes], {"axis": axis}, num_outputs=len(parts)))
        for number, (value, width) in enumerate(zip(results, parts, strict=True)):
            value.name, value.dtype, value.shape = f"y{number}", _FLOAT, ir.Shape(["rows", width])
    if source == "shared norm":
        residual = tape.op("Add", [read, x])
        residual.name, residual.dtype = "residual", _FLOAT
        results.append(residual)
    graph.extend(tape.nodes)
    graph.outputs.extend(results)
    return ir.Model(graph, ir_version=10)


def _source(
    graph: ir.Graph, tape: ir.tape.Tape, x: ir.Value, source: Source, width: int, gain: Any, shift: Any
) -> ir.Value:
    if source == "input":
        return x
    if source == "gelu":
        return tape.op("Gelu", [x])
    scale = constant(graph, "gain", np.ones(width, np.float32) if gain is None else gain)
    offset = constant(graph, "shift", np.zeros(width, np.float32) if shift is None else shift)
    norm = tape.op("LayerNormalization", [x, scale] if source == "norm without shift" else [x, scale, offset])
    if source != "slice":
        return norm
    first, end, zero = (constant(graph, f"at_{at}", np.array([at], np.int64)) for at in (0, 4, 0))
    return tape.op("Slice", [norm, first, end, zero])


def only_layer(model: ir.Model) -> LinearLayer:
    """The model's one linear layer."""
    (layer,) = linear_layers(model.graph)
    return layer


def run_model(model: ir.Model, rows: Array) -> list[Array]:
    """Its outputs."""
    for step in (common.RemoveUnusedNodesPass(), common.TopologicalSortPass()):
        step(model)
    return run_graph(model.graph, rows)


def run_graph(graph: ir.Graph, x: NDArray[Any]) -> list[Array]:
    """The outputs of a graph with one input, x; without onnxruntime's own optimisations, but where integer products
    overflow without one of them.
    """
    for number, value in enumerate(graph.outputs):  # a value that took another's place has no name yet
        value.name = value.name or f"output_{number}"
    options = onnxruntime.SessionOptions()
    if adds_in_16_bits():
        options.add_session_config_entry("session.x64quantprecision", "1")
    else:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # initializers that nothing reads any more
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {"x": x})
    return found


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator stands in it."""
    names = [node.op_type for node in model.graph]
    return {name: names.count(name) for name in sorted(set(names))}

"""Graphs of linear layers to make int8 for TensorRT of, and onnxruntime to run them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip import Manifest
from edgeclip.engine.devices import Device
from edgeclip.engine.ort import start_session
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.engine.providers import plan_session
from edgeclip.families.family import Arrays
from edgeclip_quant.inputs.layer_inputs import Observation
from edgeclip_quant.passes.qdq import plan_pairs, quantize_for_tensorrt


def path_of(bundle: Path, graph: str) -> Path:
    """The file of a bundle's graph."""
    return bundle / Manifest.read(bundle).graphs[graph].file


def run_graph(path: Path | bytes, batches: Sequence[Arrays], *, is_optimised: bool = False) -> NDArray[np.float32]:
    """What the graph gives for each feed, in one array."""
    is_guarded = adds_in_16_bits()  # an optimisation, as the runtime's plan has it
    plan = plan_session(Device(kind="cpu"), "fp32", threads=1, adds_in_16_bits=is_guarded)
    session = start_session(path, plan=plan, threads=1, optimise="all" if is_optimised or is_guarded else "none")
    return np.concatenate([session.run(None, dict(batch))[0] for batch in batches])


def layer_model(weights: Sequence[NDArray[np.float32]], *, has_norm: bool = False) -> ir.Model:
    """x (rows, in), through a norm if there is one, times each of the weights, plus ones; the sum of the products."""
    width = len(weights[0])
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", width]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 20}, name="layers")

    def number(name: str, array: NDArray[np.generic]) -> ir.Value:
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
        graph.register_initializer(value)
        return value

    tape = ir.tape.Tape()
    if has_norm:
        scale, shift = number("scale", np.full(width, 2, np.float32)), number("shift", np.ones(width, np.float32))
        x = tape.op("LayerNormalization", [x, scale, shift], {"axis": -1})
    bias = number("bias", np.ones(weights[0].shape[1], np.float32))
    products = [
        tape.op("Add", [tape.op("MatMul", [x, number(f"w{index}", weight)]), bias])
        for index, weight in enumerate(weights)
    ]
    y = products[0] if len(products) == 1 else tape.op("Add", products)
    y.name, y.dtype = "y", ir.DataType.FLOAT
    graph.extend(tape.nodes)
    graph.outputs.append(y)
    return ir.Model(graph, ir_version=10)


def narrow(model: ir.Model, seen: Mapping[str, Observation], **options: float) -> dict[str, float]:
    """Make a graph int8 as it is first planned; the errors of its layers that are."""
    first = {name: some[0] for name, some in plan_pairs(model, seen, **options).items()}
    quantize_for_tensorrt(model, first)
    return {name: plan.error for name, plan in first.items() if plan.kernel != "fp32"}


def drawn(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    """Numbers from -1 to 1."""
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def observed(rows: NDArray[np.float32]) -> Observation:
    """What calibrating on these rows (N, in) sees."""
    return Observation(largest=np.abs(rows).max(axis=0), rows=rows)

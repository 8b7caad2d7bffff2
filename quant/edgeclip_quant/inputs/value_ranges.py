"""Measure how large a graph's values grow: the largest magnitude of each over samples, in fp32.

Only scalars leave the session. Two facts decide how they are computed. onnxruntime's ReduceMax ignores a NaN that
does not come first, so a sum, which ignores none, is added to it zero times. And a fused attention does not show its
scores q k^T, which onnxruntime's CUDA kernel stores as fp16 where there is a mask: the bound |q| |k| of Cauchy and
Schwarz stands for them.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from edgeclip.engine.ort import start_session
from edgeclip.errors import BuildError
from edgeclip.families.family import Arrays
from edgeclip_graph.frame import constant
from edgeclip_graph.operators import FUSED_ATTENTION
from edgeclip_quant.inputs.layer_inputs import Progress
from edgeclip_quant.passes.operator_types import FillTypes

_NAMED = 5


def scores_of(attention: ir.Node) -> str:
    """The name under which `measure_ranges` gives the bound of a fused attention's scores."""
    return f"{attention.outputs[0].name}/scores"


def measure_ranges(
    model: ir.Model, samples: Sequence[Arrays], folder: Path, progress: Progress, threads: int | None = None
) -> Mapping[str, float]:
    """The largest magnitude of every float32 value over the samples (feeds of the graph), by name.

    Values are the graph's inputs and its nodes' outputs, also inside an If: 0 for a branch that no sample took. Under
    `scores_of` an attention has a bound of its scores. `folder` holds a copy of the graph meanwhile, which takes as
    much room as the weights. The graph itself is not changed. BuildError when a value is NaN or infinite.
    """
    copy = FillTypes()(model.clone()).model
    looks = _look(copy.graph, copy.graph)
    for number, value in enumerate(looks.values()):
        value.name, value.dtype, value.shape = f"look_{number}", ir.DataType.FLOAT, ir.Shape([])
        copy.graph.outputs.append(value)
    copy = common.NameFixPass()(copy).model
    ranges = dict.fromkeys(looks, 0.0)
    outputs = [str(value.name) for value in looks.values()]
    with tempfile.TemporaryDirectory(dir=folder, prefix="ranges-") as place:
        path = Path(place) / "observed.onnx"
        ir.save(copy, path, external_data=f"{path.name}_data")
        del copy, looks
        # In the graph's own order, else every value waits for its look: 7 GB for one picture at full size, not 1.5.
        session = start_session(path, threads=threads, by_priority=True)
        for done, sample in enumerate(samples):
            progress("measuring ranges", done, len(samples))
            found = dict(zip(ranges, session.run(outputs, dict(sample)), strict=True))
            if spoilt := [name for name, largest in found.items() if not np.isfinite(largest)]:
                raise BuildError(
                    f"the fp32 graph gives NaN or infinity for sample {done}, in {len(spoilt)} values, "
                    f"the first of them {', '.join(spoilt[:_NAMED])}; export the bundle again from a sound checkpoint"
                )
            ranges = {name: max(largest, float(found[name])) for name, largest in ranges.items()}
    return ranges


def _look(graph: ir.Graph, main: ir.Graph) -> dict[str, ir.Value]:
    """Add the nodes that compute each float value's largest magnitude; their outputs, by the value's name.

    They stand right behind the node that gives the value, so that its memory can be freed.
    """
    looks = {}
    for value in graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            tape = ir.tape.Tape()
            looks[str(value.name)] = _largest(tape, main, tape.op("Abs", [value]))
            graph.insert_before(graph[0], tape.nodes)
    for node in list(graph):
        tape = ir.tape.Tape()
        outputs = [value for value in node.outputs if value.dtype == ir.DataType.FLOAT]
        if node.op_type == "If":
            looks.update(_look_into(node, main))
        elif node.op_type == FUSED_ATTENTION:
            looks[scores_of(node)] = _score_bound(tape, node, main)
        for value in outputs:
            looks[str(value.name)] = _largest(tape, main, tape.op("Abs", [value]))
        graph.insert_after(node, tape.nodes)
    return looks


def _look_into(choice: ir.Node, main: ir.Graph) -> dict[str, ir.Value]:
    """Add outputs to an If: the largest magnitudes of the values in either branch, which are 0 in the other."""
    branches = [choice.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    found = [_look(branch, main) for branch in branches]
    looks = {}
    zero = _zero(main)
    for name in [name for looked in found for name in looked]:
        for branch, looked in zip(branches, found, strict=True):
            tape = ir.tape.Tape()
            result = tape.op("Identity", [looked.get(name, zero)])
            result.name, result.dtype, result.shape = f"{branch.name} {name}", ir.DataType.FLOAT, ir.Shape([])
            branch.extend(tape.nodes)
            branch.outputs.append(result)
        choice.resize_outputs(len(choice.outputs) + 1)
        looks[name] = choice.outputs[-1]
    return looks


def _zero(main: ir.Graph) -> ir.Value:
    return constant(main, "look_zero", np.array(0, np.float32))


def _largest(tape: ir.tape.Tape, main: ir.Graph, magnitudes: ir.Value) -> ir.Value:
    """The largest magnitude as a scalar; NaN if any value is NaN or infinite."""
    largest, total = (tape.op(op, [magnitudes], {"keepdims": 0}) for op in ("ReduceMax", "ReduceSum"))
    return tape.op("Add", [largest, tape.op("Mul", [total, _zero(main)])])


def _score_bound(tape: ir.tape.Tape, attention: ir.Node, main: ir.Graph) -> ir.Value:
    """The longest query times the longest key: (B, T, H*D) each, as vectors of D."""
    heads = attention.attributes["num_heads"].as_int()
    shape = constant(main, f"look_heads_{heads}", np.array([0, 0, heads, -1], np.int64))
    last = constant(main, "look_last", np.array([-1], np.int64))
    lengths = [
        tape.op("ReduceL2", [tape.op("Reshape", [vectors, shape]), last], {"keepdims": 0})
        for vectors in attention.inputs[:2]
    ]
    bound = tape.op("Mul", [_largest(tape, main, length) for length in lengths])
    scale = attention.attributes["scale"].as_float()
    return tape.op("Mul", [bound, constant(main, f"look_scale_{scale}", np.array(abs(scale), np.float32))])

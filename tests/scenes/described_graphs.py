"""A graph as the text that tests/data/graphs holds, which a reviewer reads when a graph changes."""

import onnx_ir as ir

from edgeclip_graph.census import count_operators


def describe(model: ir.Model) -> str:
    """The graph's opsets, inputs and outputs with types and shapes, and operators: counted, then in their order."""

    def line(value: ir.Value) -> str:
        return f"{value.name} {value.dtype} {value.shape}"

    lines = [f"opset {dict(sorted(model.graph.opset_imports.items()))}"]
    lines += [f"input {line(value)}" for value in model.graph.inputs]
    lines += [f"output {line(value)}" for value in model.graph.outputs]
    lines += [f"{count:5d} {name}" for name, count in count_operators(model).items()]
    lines += ["in order:"]
    lines += [f"  {node.op_type}" for node in model.graph]
    return "\n".join(lines) + "\n"

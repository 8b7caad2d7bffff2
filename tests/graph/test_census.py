"""The operators of a graph are counted with those of its subgraphs, and named with their domain."""

import onnx
import onnx_ir as ir

from edgeclip_graph.census import count_operators


def test_operators_are_counted_in_subgraphs_too_and_sorted_by_name() -> None:
    text = """<ir_version: 10, opset_import: ["": 23, "com.microsoft": 1]>
    g (bool c, float[2] x) => (float[2] z) {
        y = com.microsoft.Gelu(x)
        z = If (c) <then_branch = few () => (float[2] a) { a = Gelu(y) },
                    else_branch = many () => (float[2] b) { d = Gelu(y) b = Add(d, y) }>
    }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert list(count_operators(model).items()) == [("Add", 1), ("Gelu", 2), ("If", 1), ("com.microsoft.Gelu", 1)]

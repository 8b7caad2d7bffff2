"""Attention: onnxruntime's fused kernel, or three standard ops for TensorRT.

On the CPU the fused kernel is a flash kernel (Dao et al. 2022, arXiv:2205.14135) only when it is
given no mask: with one, a text of 8192 tokens takes 4.6 GB instead of 0.3. So a masked attention
becomes a choice at run time, and texts without padding never pay for a mask.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import onnx_ir as ir

from edgeclip_graph.frame import LowerOperator, Recorder, heads_of, input_of
from edgeclip_graph.operators import ATTENTION, CONTRIB, FUSED_ATTENTION, MASKED_SCORE
from edgeclip_graph.passes.alibi import sliced_attention, slopes_of, whole_bias

# The name of the branch of an If that is taken where nothing is masked.
UNMASKED = "unmasked"


class FuseAttention(LowerOperator):
    """com.microsoft MultiHeadAttention. `masks` says what becomes of a mask.

    "choose" leaves it out at run time when it hides nothing, by an If around every attention;
    "always" applies it; "never" drops it, for graphs that are not given padding. With `slices` attention with ALiBi,
    which has no flash kernel to lose by a mask, always applies it instead of choosing (`passes.alibi`).
    """

    operator = ATTENTION

    def __init__(self, masks: Literal["choose", "always", "never"] = "choose", *, slices: bool = False) -> None:
        super().__init__()
        self._masks, self._slices = masks, slices

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record one node, or one If with one node in either branch."""
        qkv = [input_of(node, index) for index in range(3)]
        attributes = {"num_heads": heads_of(node), "scale": 1.0}
        mask = node.inputs[3] if len(node.inputs) > 3 and self._masks != "never" else None
        seen = mask and record.shared((mask.name, "int32"), lambda: record.op("Cast", mask, to=ir.DataType.INT32))
        masked = {**attributes, "mask_filter_value": MASKED_SCORE}
        slopes = slopes_of(node)
        if slopes is not None and self._slices:
            return sliced_attention(record, qkv, slopes, seen, **(masked if seen else attributes))
        bias = [] if slopes is None else [whole_bias(record, qkv[0], slopes)]
        unmasked = [*qkv, None, None, *bias] if bias else qkv
        if mask is None or seen is None:
            return record.op(FUSED_ATTENTION, *unmasked, domain=CONTRIB, **attributes)
        if self._masks == "always":
            return record.op(FUSED_ATTENTION, *qkv, None, seen, *bias, domain=CONTRIB, **masked)
        all_seen = record.shared((mask.name, "all"), lambda: _all(record, seen))
        output = node.outputs[0]
        without, with_mask = (
            _branch(UNMASKED, unmasked, attributes, output),
            _branch("masked", [*qkv, None, seen, *bias], masked, output),
        )
        return record.op("If", all_seen, then_branch=without, else_branch=with_mask)


class SpellOutAttention(LowerOperator):
    """MatMul, Softmax, MatMul."""

    operator = ATTENTION

    def lower(self, record: Recorder, node: ir.Node) -> ir.Value:
        """Record the three, with the transposes in and out of (B, H, T, D)."""
        q, k, v = (
            record.op("Reshape", input_of(node, index), record.integers(0, 0, heads_of(node), -1))
            for index in range(3)
        )
        scores = record.op(
            "MatMul",
            record.op("Transpose", q, perm=[0, 2, 1, 3]),
            record.op("Transpose", k, perm=[0, 2, 3, 1]),
        )  # (B, H, Tq, T)
        if (slopes := slopes_of(node)) is not None:
            scores = record.op("Add", scores, whole_bias(record, input_of(node, 0), slopes))
        mask = node.inputs[3] if len(node.inputs) > 3 else None
        if mask is not None:
            scores = record.op("Add", scores, record.shared((mask.name, "bias"), lambda: _bias(record, mask)))
        weights = record.op("Softmax", scores, axis=-1)
        out = record.op("MatMul", weights, record.op("Transpose", v, perm=[0, 2, 1, 3]))  # (B, H, Tq, D)
        return record.op("Reshape", record.op("Transpose", out, perm=[0, 2, 1, 3]), record.integers(0, 0, -1))


def _all(record: Recorder, seen: ir.Value) -> ir.Value:
    smallest = record.op("ReduceMin", seen, record.integers(0, 1), keepdims=0)
    return record.op("Cast", smallest, to=ir.DataType.BOOL)


def _bias(record: Recorder, mask: ir.Value) -> ir.Value:
    """0 where the key may be seen, MASKED_SCORE where it may not, as (B, 1, 1, T)."""
    seen, hidden = (record.constant(f"score_{value:g}", np.array(value, np.float32)) for value in (0.0, MASKED_SCORE))
    return record.op("Unsqueeze", record.op("Where", mask, seen, hidden), record.integers(1, 2))


def _branch(name: str, inputs: Sequence[ir.Value | None], attributes: dict[str, float], output: ir.Value) -> ir.Graph:
    """One MultiHeadAttention on values of the graph outside. Its inputs: q, k, v, bias, mask, what is added."""
    node = ir.node(FUSED_ATTENTION, inputs, attributes, domain=CONTRIB)
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{output.name}_{name}", output.type, output.shape
    return ir.Graph([], [result], nodes=[node], name=name)

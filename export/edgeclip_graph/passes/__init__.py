"""From the trace to what one target runs: a list of graph passes, each with a postcondition.

| target   | attention                        | rotary             | linear layers                                |
| -------- | -------------------------------- | ------------------ | -------------------------------------------- |
| cpu      | com.microsoft MultiHeadAttention | RotaryEmbedding    | by `Traits`: `mask_choice` or `split_linear` |
| cuda     | com.microsoft MultiHeadAttention | RotaryEmbedding    | MatMul, Add                                  |
| tensorrt | MatMul, Softmax, MatMul          | Split, Mul, Concat | MatMul, Add                                  |

A tensorrt graph holds standard ONNX operators alone: both of onnxruntime's TensorRT providers were
reported to miscompute the Attention operator for a single query row, which is just what the vision
tower's last block is.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import PassBase, PassError, common

from edgeclip.errors import BuildError
from edgeclip.manifest import Target
from edgeclip_graph.passes.activation import FuseSilu
from edgeclip_graph.passes.attention import FuseAttention, SpellOutAttention
from edgeclip_graph.passes.gemm import WeightsFirst, WeightsInPlace
from edgeclip_graph.passes.mask_choice import ChooseByRows
from edgeclip_graph.passes.rotary import FuseRotary, SpellOutRotary
from edgeclip_graph.passes.split_linear import SeparateParts
from edgeclip_graph.passes.standard import RequireStandardOps
from edgeclip_graph.traits import Traits

# What TensorRT 10's parser reads; the first opset with Gelu.
TENSORRT_OPSET = 20


def lower(model: ir.Model, target: Target, name: str, traits: Traits) -> ir.Model:
    """Turn the trace of one graph into what `target` runs, in place; BuildError, which names it, if a pass failed."""
    for step in (*_passes(target, traits), *_tidying()):
        try:
            model = step(model).model
        except (ir.passes.InvariantError, PassError) as error:
            raise BuildError(
                f"{type(step).__name__} on the {name} graph for {target}: {error.__cause__ or error}"
            ) from error
    return model


def _passes(target: Target, traits: Traits) -> Sequence[PassBase]:
    if target == "tensorrt":
        return SpellOutRotary(), SpellOutAttention(), RequireStandardOps(TENSORRT_OPSET)
    if target == "cpu" and traits.chooses_by_rows:
        few = (FuseAttention("always"), WeightsFirst())
        many = (FuseAttention("never"),)
        return FuseRotary(), WeightsInPlace(), ChooseByRows(few, many)
    silu = (FuseSilu(),) if traits.has_silu else ()
    parts = (SeparateParts(),) if target == "cpu" and traits.splits_many_rows else ()
    return FuseRotary(), FuseAttention(), *silu, *parts


def _tidying() -> Sequence[PassBase]:
    return (
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
        common.TopologicalSortPass(),
    )

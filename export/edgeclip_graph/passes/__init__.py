"""From the trace to what one target runs: a list of graph passes, each with a postcondition.

| target   | attention; causal                       | rotary          | RMSNorm          | linear layers           |
| -------- | --------------------------------------- | --------------- | ---------------- | ----------------------- |
| cpu      | MultiHeadAttention; GroupQueryAttention | RotaryEmbedding | RMSNormalization | by `Traits`             |
| cuda     | MultiHeadAttention, repeated heads      | RotaryEmbedding | RMSNormalization | MatMul, Add             |
| tensorrt | MatMul, Softmax, MatMul                 | Split, Mul, ... | Mul, Div, ...    | MatMul, Add             |

A tensorrt graph holds standard ONNX operators alone: both of onnxruntime's TensorRT providers were
reported to miscompute the Attention operator for a single query row, which is just what the vision
tower's last block is.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes import PassBase, PassError, common

from edgeclip.errors import BuildError
from edgeclip.manifest import Target
from edgeclip_graph.operators import ATTENTION, CAUSAL_ATTENTION, DOMAIN, RMS_NORM, ROTARY
from edgeclip_graph.passes.activation import FuseSilu
from edgeclip_graph.passes.adapters import AddInProduct, adapter_sums
from edgeclip_graph.passes.attention import FuseAttention, SpellOutAttention
from edgeclip_graph.passes.causal_attention import (
    FuseCausalAttention,
    RepeatCausalAttention,
    SpellOutCausalAttention,
)
from edgeclip_graph.passes.gemm import WeightsFirst, WeightsInPlace
from edgeclip_graph.passes.mask_choice import ChooseByRows
from edgeclip_graph.passes.mlp_parts import DivideMlp
from edgeclip_graph.passes.rms_norm import FuseRmsNorm, SpellOutRmsNorm
from edgeclip_graph.passes.rotary import FuseRotary, SpellOutRotary
from edgeclip_graph.passes.split_linear import SeparateParts, split_layers
from edgeclip_graph.passes.standard import MeasureAfterCast, RequireStandardOps
from edgeclip_graph.portable import load_portable, portable_path
from edgeclip_graph.traits import Traits

# What TensorRT 10's parser reads; the first opset with Gelu.
TENSORRT_OPSET = 20
Layers = Literal["fastest", "plain", "divided"]


def lower(model: ir.Model, target: Target, name: str, traits: Traits, *, layers: Layers = "fastest") -> ir.Model:
    """Turn the trace of one graph into what `target` runs, in place; BuildError, which names it, if a pass failed.

    Linear layers take the form that is fastest in fp32, or stay MatMul and Add ("plain"; "divided": with the MLP in
    parts, if a long text needs that).
    """
    if layers != "fastest":
        parts = traits.mlp_parts if layers == "divided" else 1
        traits = replace(traits, chooses_by_rows=False, splits_many_rows=False, reads_in_place=False, mlp_parts=parts)
    traced = {node.op_type for node in model.graph if node.domain == DOMAIN}
    is_adapted, is_split = bool(adapter_sums(model.graph)), bool(split_layers(model.graph))
    for step in (*_passes(target, traits, traced, is_adapted=is_adapted, is_split=is_split), *_tidying()):
        try:
            model = step(model).model
        except (ir.passes.InvariantError, PassError) as error:
            raise BuildError(
                f"{type(step).__name__} on the {name} graph for {target}: {error.__cause__ or error}"
            ) from error
    return model


def read_portable(graph: Path) -> tuple[ir.Model, Traits]:
    """The portable form beside a bundle's graph, as `load_portable`; BuildError for a bundle without it."""
    path = portable_path(graph)
    if not path.exists():
        raise BuildError(f"{path} is missing, without which no graph is rewritten; export the bundle again")
    return load_portable(path)


def lower_portable(name: str, graph: Path, target: Target, *, layers: Layers = "fastest") -> ir.Model:
    """Read the portable form beside a bundle's graph (`read_portable`) and lower it, as `lower` does."""
    model, traits = read_portable(graph)
    return lower(model, target, name, traits, layers=layers)


def _passes(
    target: Target, traits: Traits, traced: Collection[str], *, is_adapted: bool, is_split: bool
) -> Sequence[PassBase]:
    """The passes of a graph that holds the operators `traced` of our own, adapters or none, split layers or none."""
    if target == "tensorrt":
        spelled: Mapping[str, PassBase] = {
            ROTARY: SpellOutRotary(),
            ATTENTION: SpellOutAttention(),
            CAUSAL_ATTENTION: SpellOutCausalAttention(),
            RMS_NORM: SpellOutRmsNorm(),
        }
        return *_of(spelled, traced), MeasureAfterCast(), RequireStandardOps(TENSORRT_OPSET)
    if target == "cpu" and traits.chooses_by_rows:
        few = (FuseAttention("always", slices=True), WeightsFirst())
        many = (FuseAttention("never", slices=True), *((AddInProduct(turns=False),) if is_adapted else ()))
        parts = (SeparateParts(),) if is_split else ()
        return *_of({ROTARY: FuseRotary()}, traced), *parts, WeightsInPlace(), ChooseByRows(few, many)
    fused: Mapping[str, PassBase] = {
        ROTARY: FuseRotary(),
        ATTENTION: FuseAttention("always" if traits.always_masks else "choose", slices=target == "cpu"),
        CAUSAL_ATTENTION: FuseCausalAttention() if target == "cpu" else RepeatCausalAttention(),
        RMS_NORM: FuseRmsNorm(),
    }
    silu = (FuseSilu(),) if traits.has_silu else ()
    layers: list[PassBase] = []
    if target == "cpu":
        layers += [SeparateParts()] if traits.splits_many_rows else []
        layers += [DivideMlp(traits.mlp_parts)] if traits.mlp_parts > 1 else []
        layers += [AddInProduct(turns=True)] if is_adapted else []
        layers += [WeightsInPlace()] if traits.reads_in_place else []
    return *_of(fused, traced), *silu, *layers


def _of(passes: Mapping[str, PassBase], traced: Collection[str]) -> Sequence[PassBase]:
    """The passes of the operators that are there."""
    return [step for operator, step in passes.items() if operator in traced]


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

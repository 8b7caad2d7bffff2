"""Choose each layer's kernel: the fastest whose error, tried on the layer's observed inputs, is small enough.

A layer's error alone does not say what a graph loses. So a layer has a row of plans, from the fastest to fp32, and
starts at the first that is good enough by itself; when the whole graph lost too much, the layers with the largest
errors move one plan on (`raise_worst`), and the graph is tried again.

Kernels are tried on some of a weight's columns (outputs), because an error is a sum over many.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip_graph.linear import LinearLayer
from edgeclip_graph.operators import CAUSAL_ATTENTION
from edgeclip_graph.passes.mlp_parts import whole_weight
from edgeclip_quant.inputs.layer_inputs import Observation
from edgeclip_quant.kernels import PER_ROW, STATIC, Kernel, Plan, lowest, product
from edgeclip_quant.passes.smoothing import is_fed_by_norm, levelling_factors, smoothing_factors, stems_from_norm
from edgeclip_quant.recipes import Recipe

Array = NDArray[np.float32]

# Evenly spaced columns of a weight that a kernel is tried on. Of 4096 columns they give an error within 3 %.
_COLUMNS = 512
# What smoothing must bring a layer's error down to. With samples that are like what will come, anything where a norm
# takes it in, for then it is free, and 0.8 where it costs a multiplication. Made-up samples overrate it (worst cosine
# on pictures 0.9992 where they found 0.8, 0.9997 without), but never by the tenfold that it saves with real outliers.
_WORTH_FREE, _WORTH_PAID, _WORTH_MADE_UP = 1.0, 0.8, 0.5
# What halving the reach of the first rows' largest channels once more must bring an error down to.
_WORTH_HALVING = 0.9
# What an error in a decoder costs, beside one of `o` in the first block (`sensitivities`): of q and k, of the token
# table, and by the number of the block.
_FOR_SCORES, _FOR_TABLE, _BY_BLOCK = 1.2, 2.3, -0.75
# Blocks of a decoder that keep 8 bits, and the share of them whose q, k and o do (`sensitive_layers`).
FIRST_BLOCKS, _EARLY = 2, 1 / 4
# Inputs of causal attention.
_QUERIES, _KEYS, _VALUES = range(3)
_ATTENTIONS = (CAUSAL_ATTENTION, "GroupQueryAttention")  # in a trace, and in a graph for the CPU
# What a slower kernel's error must be of a faster one's, for a layer to move to it where its graph loses too much.
_WORTH_MOVING = 0.9
# Of the largest error, one that counts beside it: what a fifth of it adds to a loss is a 25th.
_COUNTS = 0.2
# What a static scale's error may be of a row's own: 1.1 where rows are alike, 1.4 on the products inside SwiGLU,
# which have long tails and most of a graph's error.
_SLACK = 1.25


def plan_layer(layer: LinearLayer, seen: Observation, recipe: Recipe, *, may_fix: bool) -> list[Plan]:
    """A layer's plans, the one to begin with first, the last fp32.

    `may_fix` lets inputs that a norm gives have a fixed scale. Values beyond it are cut off, so that is for samples
    that are like the inputs to come, not for made-up ones. For the same reason a fixed scale is never smoothed: a
    channel would be cut off where samples did not happen to fill it (on the trained small model, made-up samples and
    pictures of another kind, that took the worst cosine from 0.9988 to 0.97).
    """
    if not recipe.kernels:
        return [Plan(kernel="fp32")]
    trial = _trial(layer, seen)
    worth = (_WORTH_FREE if is_fed_by_norm(layer.x) else _WORTH_PAID) if may_fix else _WORTH_MADE_UP
    shift = lowest(layer.x)
    plans: list[Plan] = []
    for kernel in reversed(recipe.kernels):
        is_static = kernel in STATIC
        if is_static and not recipe.static_anywhere and not (may_fix and stems_from_norm(layer.x)):
            continue
        plan = trial.of(kernel, shift=shift if kernel in PER_ROW else 0.0)
        if recipe.smooths and not is_static:
            plan = _levelled(plan, layer, trial)
            smoothed = trial.of(kernel, factors=smoothing_factors(seen.largest, trial.whole))
            plan = smoothed if smoothed.loss < worth * plan.loss else plan
        is_near = not is_static or not plans or plan.loss <= _SLACK * plans[0].loss
        if plan.error <= recipe.max_error and is_near:
            plans.insert(0, plan)
    return [*plans, Plan(kernel="fp32")]


def kernels_of(
    layers: Sequence[LinearLayer], recipe: Recipe, blocks: int = FIRST_BLOCKS
) -> dict[str, tuple[Kernel, ...]]:
    """The kernels that a recipe has for each layer, the fastest first, and fp32 behind them; `blocks` as in
    `sensitive_layers`.

    What reads pixels stays fp32: it is a thousandth of the work, and pixels are no small deviations around zero.
    """
    sensitive = sensitive_layers(layers, blocks) if recipe.finer_kernels else set()
    found: dict[str, tuple[Kernel, ...]] = {}
    for layer in layers:
        kernels = recipe.finer_kernels if layer.name in sensitive else recipe.kernels
        found[layer.name] = () if reads_pixels(layer.x) else kernels
    return found


def sensitive_layers(layers: Sequence[LinearLayer], blocks: int = FIRST_BLOCKS) -> set[str]:
    """The layers of a decoder that keep 8 bits where others have 4: all of the first `blocks`, q, k and o of the
    first quarter, every v, and the last layer, which gives vectors. None in a graph without causal attention.

    That is where a byte saves most of the error that `sensitivities` describes, as far as jina-embeddings-v4 stays
    below 2.6 GB. Had the first block 8 bits, and q, k and v of all (as many bytes), the single vectors of a decoder
    of 36 blocks with random weights would lose 0.039 (1 - mean cosine) instead of 0.022, the tokens of the trained
    page model 0.0045 instead of 0.0027.
    """
    numbers = decoder_blocks(layers)
    if not numbers:
        return set()
    first = {name for name, number in numbers.items() if number < blocks}
    early = math.ceil(_EARLY * (1 + max(numbers.values())))
    around = {
        layer.name
        for layer in layers
        if (read := _attention_input(layer.output)) == _VALUES
        or ((read is not None or _gives_attention(layer.x)) and numbers[layer.name] < early)
    }
    return {*first, *around, *(name for name in numbers if whole_weight(name) == whole_weight(layers[-1].name))}


def decoder_blocks(layers: Sequence[LinearLayer]) -> dict[str, int]:
    """The block of each layer: the number of the causal attention that it stands before or behind; empty without one.

    Layers are in the order of the graph's nodes.
    """
    attentions: list[ir.Node] = []
    numbers: dict[str, int] = {}
    for layer in layers:
        read = _causal_attention(layer.output)
        if read is not None and read[0] not in attentions:
            attentions.append(read[0])
        numbers[layer.name] = max(0, len(attentions) - 1)
    return numbers if attentions else {}


def table_bits_of(layers: Sequence[LinearLayer], recipe: Recipe) -> int:
    """The bits of a recipe's token table: 8 at least for a decoder.

    On the golden jina-embeddings-v4, 4 bits of the table alone take the worst token to 0.37, 8 bits to 0.994.
    """
    return max(8, recipe.table_bits) if decoder_blocks(layers) else recipe.table_bits


def sensitivities(layers: Sequence[LinearLayer]) -> dict[str, float]:
    """How much a layer's error counts beside others' in what the graph gives; 1 for all without causal attention.

    A decoder's stream grows from block to block, so an error of the same share of a block's output is ever less of
    it, and fewer blocks enlarge it. What one layer in 8 bits moves tokens by (1 - mean cosine, by the square of its
    error), beside `o` of the first block: on the golden jina-embeddings-v4, the trained page model and 16 random
    blocks, the token table 6, 6.4 and 4.4; q and k of the first block 2, 1.1 and 0.4; each of the MLP's three 0.6 to
    0.9, a part of it as much by the number of parts; `o` of block b (b + 1)^-2.3, ^-3.2 and ^-1.15; the projector
    0.4 to 1. So the root of that is taken, with (b + 1)^-0.75.
    """
    numbers = decoder_blocks(layers)
    if not numbers:
        return {layer.name: 1.0 for layer in layers}
    parts, last = Counter(whole_weight(layer.name) for layer in layers), whole_weight(layers[-1].name)
    found: dict[str, float] = {}
    for layer in layers:
        whole = whole_weight(layer.name)
        scores = _FOR_SCORES if _attention_input(layer.output) in (_QUERIES, _KEYS) else 1.0
        depth = 1.0 if whole == last else (1 + numbers[layer.name]) ** _BY_BLOCK
        found[layer.name] = scores * depth / math.sqrt(parts[whole])
    return found


def table_sensitivity(layers: Sequence[LinearLayer]) -> float:
    """How much the token table's error counts beside those of `sensitivities`."""
    return _FOR_TABLE if decoder_blocks(layers) else 1.0


def read_by_attention(layers: Sequence[LinearLayer]) -> set[str]:
    """The layers whose output causal attention reads: q, k and v."""
    return {layer.name for layer in layers if _causal_attention(layer.output) is not None}


def _attention_input(value: ir.Value) -> int | None:
    """Which input of causal attention a value is; None where it is none."""
    read = _causal_attention(value)
    return None if read is None else read[1]


def _causal_attention(value: ir.Value) -> tuple[ir.Node, int] | None:
    """The causal attention that takes a value as it is, turned by positions or with something added, and as which
    input.
    """
    waiting, seen = [value], set[ir.Value]()
    while waiting:
        one = waiting.pop()
        for user, place in one.uses():
            if user.op_type in _ATTENTIONS:
                return user, place
            if user.op_type in ("Add", "Gemm", "RotaryEmbedding", "Reshape", "Unsqueeze") and one not in seen:
                waiting += user.outputs
        seen.add(one)
    return None


def _gives_attention(value: ir.Value) -> bool:
    """Whether a value is what causal attention gives."""
    producer = value.producer()
    while producer is not None and producer.op_type == "Reshape":
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    return producer is not None and producer.op_type in _ATTENTIONS


def reads_pixels(x: ir.Value) -> bool:
    """Whether a value is an integer input of the graph as floats."""
    cast = x.producer()
    source = cast.inputs[0] if cast is not None and cast.op_type == "Cast" else None
    return source is not None and source.is_graph_input()


def raise_worst(
    plans: Mapping[str, Sequence[Plan]], share: float, weights: Mapping[str, float] | None = None
) -> dict[str, Sequence[Plan]]:
    """Move at most `share` of the layers, those with the largest errors times their weights, on to a plan that loses
    less; no layer whose error is small beside the largest.
    """
    errors = _weighed(plans, weights)
    ranked = list(errors)[: max(1, round(share * len(errors)))]
    raised = {name for name in ranked if errors[name] >= _COUNTS * errors[ranked[0]]}
    return {name: _finer(left) if name in raised else left for name, left in plans.items()}


def share_to_raise(
    plans: Mapping[str, Sequence[Plan]], left: float, weights: Mapping[str, float] | None = None
) -> float:
    """The share of the layers that `raise_worst` must move on so that a graph loses `left` times what it does.

    What a graph loses (1 - cosine) goes with the sum of the squares of its layers' errors.
    """
    errors = _weighed(plans, weights)
    finer = _weighed({name: _finer(some) for name, some in plans.items()}, weights)
    total = most = sum(error**2 for error in errors.values())
    for count, (name, error) in enumerate(errors.items(), start=1):
        total += finer[name] ** 2 - error**2
        if total <= left * most:
            return count / len(errors)
    return 1.0


def _weighed(plans: Mapping[str, Sequence[Plan]], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Each layer's error times its weight, the largest first."""
    errors = {name: some[0].error * (weights or {}).get(name, 1.0) for name, some in plans.items()}
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def _finer(plans: Sequence[Plan]) -> Sequence[Plan]:
    """The plans from the next on that loses less; a slower one that loses as much is passed over."""
    left = plans[1:]
    while len(left) > 1 and left[0].error > _WORTH_MOVING * plans[0].error:
        left = left[1:]
    return left or plans


def _levelled(plan: Plan, layer: LinearLayer, trial: "_Trial") -> Plan:
    """The plan with the first rows' largest channels brought down as far as it pays, where a norm does that at no
    cost.
    """
    leading = trial.seen.leading
    if leading is None or not is_fed_by_norm(layer.x):
        return plan
    halvings = 1
    while True:
        further = trial.of(plan.kernel, factors=levelling_factors(leading, halvings))
        if not further.loss < _WORTH_HALVING * plan.loss:
            return plan
        plan, halvings = further, halvings + 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Trial:
    """A layer's numbers, each read once, and what its kernels are tried on: `rows`, some columns of the `whole`
    weight (`weight`, `bias`), and their exact product.
    """

    whole: Array
    weight: Array
    bias: Array
    seen: Observation
    rows: Array
    exact: Array

    def of(self, kernel: Kernel, *, factors: Array | None = None, shift: float = 0.0) -> Plan:
        """The plan for a kernel, with its error and its loss."""
        seen, exact, bias = self.seen, self.exact, self.bias
        smooth = np.ones(len(self.weight), np.float32) if factors is None else factors
        weight, top = self.weight * smooth[:, None], seen.largest / smooth
        largest = float(top.max()) if kernel in STATIC else 0.0
        found = product(kernel, self.rows / smooth, weight, largest=largest, shift=shift)

        def error_of(which: slice) -> float:
            # A channel that is far from zero whatever the input, as post-norm graphs have some, makes the product
            # large, and the bias takes that back: beside the product an error looks small that is most of what is
            # left.
            got, wanted = found[which], exact[which]
            return max(relative_error(got, wanted), relative_error(got + bias, wanted + bias))

        error = error_of(slice(len(seen.rows)))
        # The class token alone leaves the vision graph: in the trained small model 96 % of what rounding the inputs
        # of `mlp.down` costs (1 - cosine) comes through its row. So that row counts as much as all others.
        loss = math.hypot(error, error if seen.leading is None else error_of(slice(len(seen.rows), None)))
        return Plan(kernel=kernel, factors=factors, largest=largest, shift=shift, error=error, loss=loss)


def _trial(layer: LinearLayer, seen: Observation) -> _Trial:
    """Kernels are tried on some of all samples' rows, and then on their first rows."""
    rows = seen.rows if seen.leading is None else np.concatenate((seen.rows, seen.leading))
    whole, columns = layer.weight, layer.shape[1]
    some = np.linspace(0, columns - 1, min(columns, _COLUMNS)).astype(int)
    weight = np.ascontiguousarray(whole[:, some])
    return _Trial(whole=whole, weight=weight, bias=layer.bias[some], seen=seen, rows=rows, exact=rows @ weight)


def relative_error(found: Array, exact: Array) -> float:
    """|found - exact| / |exact|, Frobenius."""
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(found - exact)) / size if size else 0.0

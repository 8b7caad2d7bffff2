"""What becomes of the XLM-RoBERTa tower's official tensors: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- LoRA that is always on: W + alpha/rank * B A, in fp32 (merging in half precision costs 5e-3 and more).
- LoRA that is chosen with each call: factors with the scale inside B, arrays for each layer.
- The one token-type row is added into the token table; the reference adds the same two numbers.
- 1/sqrt(D) goes into the query weights (for heads of 64 it is a power of two, so not a bit changes).
"""

import math
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeclip_export.towers.lora import Adapter, read_linear, read_table
from edgeclip_export.towers.weights import LazyWeight, Read, Weights, lazy_linear, lazy_norm
from edgeclip_export.towers.xlmr import rotary_tables
from edgeclip_export.towers.xlmr_layout import LINEARS, TOKEN_TABLE, TYPE_TABLE, XlmrConfig, linear_sizes


def fold_xlmr(config: XlmrConfig, prefix: str, read: Read, base: Read, adapter: Adapter | None) -> Weights:
    """The weights of an `XlmrTower`; `adapter` is merged into them.

    `read` gives a tensor by its official name. `base` gives the weight of a layer or table by the layer's name,
    without any adapter.
    """
    width, sizes = config.width, linear_sizes(config)

    def tokens() -> Tensor:
        table = read_table(f"{prefix}{TOKEN_TABLE}", base, adapter)
        table += read_table(f"{prefix}{TYPE_TABLE}", base, adapter)
        return table

    def linear(name: str, source: str) -> Weights:
        is_scaled = name.endswith("qkv")

        def weight() -> Tensor:
            found = read_linear(source, base, adapter)
            return _scale_queries(config, found) if is_scaled else found

        def bias() -> Tensor:
            found = read(f"{source}.bias")
            return _scale_queries(config, found) if is_scaled else found

        inputs, outputs = sizes[name.rpartition(".")[2]]
        return lazy_linear(name, inputs, outputs, weight, bias)

    # Computed once: the last bit of a frequency, which torch does not promise to repeat, is 1e-5 in a long text's
    # vector, and the graph must have the tables that the reference answered with.
    tables = cache(lambda: rotary_tables(config))
    table_shape = (config.max_tokens, config.head_width // 2)
    weights: dict[str, LazyWeight] = {
        "tokens": LazyWeight((config.vocab_size, width), tokens),
        "cos": LazyWeight(table_shape, lambda: tables()[0].clone()),
        "sin": LazyWeight(table_shape, lambda: tables()[1].clone()),
        **lazy_norm("norm", width, f"{prefix}emb_ln", read),
    }
    for layer in range(config.layers):
        source, block = f"{prefix}encoder.layers.{layer}.", f"blocks.{layer}."
        for name, official in LINEARS.items():
            weights |= linear(f"{block}{name}", f"{source}{official}")
        for name in ("norm1", "norm2"):
            weights |= lazy_norm(f"{block}{name}", width, f"{source}{name}", read)
    return weights


def pack_adapter(config: XlmrConfig, prefix: str, adapter: Adapter) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Functions that read the arrays that the tower takes (`xlmr_layout.adapter_shapes`)."""
    scale = adapter.scale

    def tokens_a() -> Tensor:
        a, _ = adapter.factors(f"{prefix}{TOKEN_TABLE}")
        return torch.cat((a, torch.ones(len(a), 1)), dim=1)  # (V, r + 1)

    def tokens_b() -> Tensor:
        _, b = adapter.factors(f"{prefix}{TOKEN_TABLE}")
        type_a, type_b = adapter.factors(f"{prefix}{TYPE_TABLE}")
        return torch.cat((scale * b, scale * (type_a @ type_b)))  # (r + 1, W)

    def layer_a(source: str) -> Tensor:
        return adapter.factors(source)[0].T  # (in, r)

    def layer_b(source: str, name: str) -> Tensor:
        _, b = adapter.factors(source)
        return scale * (_scale_queries(config, b) if name == "qkv" else b).T  # (r, out)

    arrays: dict[str, Callable[[], Tensor]] = {"lora_tokens_a": tokens_a, "lora_tokens_b": tokens_b}
    for layer in range(config.layers):
        for name, official in LINEARS.items():
            source = f"{prefix}encoder.layers.{layer}.{official}"
            arrays[f"lora_{layer}_{name}_a"] = partial(layer_a, source)
            arrays[f"lora_{layer}_{name}_b"] = partial(layer_b, source, name)

    def read(compute: Callable[[], Tensor]) -> NDArray[np.float32]:
        return compute().contiguous().numpy()

    return {name: partial(read, compute) for name, compute in arrays.items()}


def _scale_queries(config: XlmrConfig, rows: Tensor) -> Tensor:
    """The attention scale on the rows of q, in place."""
    rows[: config.width] *= 1.0 / math.sqrt(config.head_width)
    return rows

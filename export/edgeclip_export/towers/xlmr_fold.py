"""What becomes of the XLM-RoBERTa tower's official tensors: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- LoRA that is always on: W + alpha/rank * B A, in fp32 (merging in half precision costs 5e-3 and more).
- LoRA that is chosen with each call: factors with the scale inside B, arrays for each layer.
- The one token-type row is added into the token table; the reference adds the same two numbers.
- 1/sqrt(D) goes into the query weights (for heads of 64 it is a power of two, so not a bit changes).
"""

import math
from functools import cache

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


def pack_adapter(config: XlmrConfig, prefix: str, adapter: Adapter) -> dict[str, NDArray[np.float32]]:
    """One adapter as the arrays that the tower takes (`edgeclip_export.towers.xlmr_layout.adapter_shapes`)."""
    scale = adapter.scale
    a, b = adapter.factors(f"{prefix}{TOKEN_TABLE}")
    type_a, type_b = adapter.factors(f"{prefix}{TYPE_TABLE}")
    arrays = {
        "lora_tokens_a": torch.cat((a, torch.ones(len(a), 1)), dim=1),  # (V, r + 1)
        "lora_tokens_b": torch.cat((scale * b, scale * (type_a @ type_b))),  # (r + 1, W)
    }
    for layer in range(config.layers):
        for name, official in LINEARS.items():
            a, b = adapter.factors(f"{prefix}encoder.layers.{layer}.{official}")
            if name == "qkv":
                b = _scale_queries(config, b)
            arrays[f"lora_{layer}_{name}_a"] = a.T  # (in, r)
            arrays[f"lora_{layer}_{name}_b"] = scale * b.T  # (r, out)
    return {name: array.contiguous().numpy() for name, array in arrays.items()}


def _scale_queries(config: XlmrConfig, rows: Tensor) -> Tensor:
    """The attention scale on the rows of q, in place."""
    rows[: config.width] *= 1.0 / math.sqrt(config.head_width)
    return rows

"""What becomes of the decoder's official tensors: everything that can be computed once is computed here.

Each fold leaves the tower's answer what it was, in exact arithmetic:

- LoRA that is always on: W + alpha/rank * B A, in fp32.
- LoRA that is chosen with each call: factors with the scale inside B; the A of layers with one input side by side.
- 1/sqrt(D) goes into the query weights, their bias and their B.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeclip_export.towers.decoder_layout import (
    BIASED,
    LAYERS,
    LINEARS,
    NORM,
    NORMS,
    PROJECTOR,
    SHARED_INPUTS,
    TABLE,
    DecoderConfig,
    linear_sizes,
)
from edgeclip_export.towers.lora import Adapter, read_linear
from edgeclip_export.towers.weights import LazyWeight, Read, Table, Weights


def fold_decoder(
    config: DecoderConfig, read: Read, adapter: Adapter | None, table: Callable[[str], Table] | None = None
) -> Weights:
    """The weights of a `DecoderTower`; `adapter` is merged into them.

    `read` gives a tensor by its official name, `table` the one of tokens without reading it.
    """

    def base(layer: str) -> Tensor:
        return read(f"{layer}.weight")

    def linear(name: str, source: str, inputs: int, outputs: int, *, scale: float, bias: bool) -> Weights:
        def weight() -> Tensor:
            found = read_linear(source, base, adapter)
            return (found if scale == 1.0 else found.mul_(scale)).T

        weights = {f"{name}.weight": LazyWeight((inputs, outputs), weight)}
        if bias:
            weights[f"{name}.bias"] = LazyWeight((outputs,), lambda: read(f"{source}.bias") * scale)
        return weights

    turns = cache(lambda: frequencies(config))  # once, as in `xlmr_fold`
    weights: dict[str, LazyWeight] = {
        "tokens": LazyWeight(
            (config.vocab_size, config.width),
            lambda: read(f"{TABLE}.weight"),
            None if table is None else table(f"{TABLE}.weight"),
        ),
        "frequencies": LazyWeight((config.head_width // 2,), lambda: turns().clone()),
        **_norm("norm", config.width, NORM, read),
        **linear("projector", PROJECTOR, config.width, config.multi_dim, scale=1.0, bias=True),
    }
    sizes = linear_sizes(config)
    for layer in range(config.layers):
        source, block = f"{LAYERS}{layer}.", f"blocks.{layer}."
        for name, official in LINEARS.items():
            scale = query_scale(config) if name == "q" else 1.0
            weights |= linear(f"{block}{name}", f"{source}{official}", *sizes[name], scale=scale, bias=name in BIASED)
        for name, official in NORMS.items():
            weights |= _norm(f"{block}{name}", config.width, f"{source}{official}", read)
    return weights


def pack_adapter(config: DecoderConfig, adapter: Adapter) -> dict[str, Callable[[], NDArray[np.float32]]]:
    """Functions that read the arrays that the tower takes (`decoder_layout.adapter_shapes`)."""

    def first(sources: Sequence[str]) -> NDArray[np.float32]:
        return torch.cat([adapter.factors(source)[0].T for source in sources], dim=1).contiguous().numpy()

    def second(source: str, scale: float) -> NDArray[np.float32]:
        return (adapter.scale * scale * adapter.factors(source)[1].T).contiguous().numpy()

    arrays: dict[str, Callable[[], NDArray[np.float32]]] = {}
    for layer in range(config.layers):
        for group, names in SHARED_INPUTS.items():
            sources = [f"{LAYERS}{layer}.{LINEARS[name]}" for name in names]
            arrays[f"lora_{layer}_{group}_a"] = partial(first, sources)
            for name, source in zip(names, sources, strict=True):
                scale = query_scale(config) if name == "q" else 1.0
                arrays[f"lora_{layer}_{name}_b"] = partial(second, source, scale)
    arrays |= {"lora_projector_a": partial(first, [PROJECTOR]), "lora_projector_b": partial(second, PROJECTOR, 1.0)}
    return arrays


def frequencies(config: DecoderConfig) -> Tensor:
    """base^(-2i/D) for i in [0, D/2), in fp32 as the reference has them."""
    half = torch.arange(0, config.head_width, 2, dtype=torch.float32)
    return 1.0 / (config.rotary_base ** (half / config.head_width))


def query_scale(config: DecoderConfig) -> float:
    """1/sqrt(D)."""
    return 1.0 / math.sqrt(config.head_width)


def _norm(name: str, width: int, source: str, read: Read) -> Weights:
    return {f"{name}.weight": LazyWeight((width,), lambda: read(f"{source}.weight"))}

"""What becomes of the ALiBi BERT tower's official tensors; in exact arithmetic no fold changes the tower's answer.

- The row of the one token type that occurs is added into the token table; the reference adds the same two numbers.
- 1/sqrt(D) goes into the query weights. The slopes are added to scaled scores, so they stay as they are.
"""

import math

from torch import Tensor

from edgeclip_export.towers.alibi_bert_layout import AlibiBertConfig
from edgeclip_export.towers.weights import LazyWeight, Read, Weights, lazy_linear, lazy_norm
from edgeclip_export.towers.xlmr_layout import TOKEN_TABLE, TYPE_TABLE


def fold_alibi_bert(config: AlibiBertConfig, prefix: str, read: Read) -> Weights:
    """The weights of an `AlibiBertTower`; `read` gives a tensor by its official name."""
    width = config.width

    def tokens() -> Tensor:
        return read(f"{prefix}{TOKEN_TABLE}.weight").add_(read(f"{prefix}{TYPE_TABLE}.weight")[0])

    weights: dict[str, LazyWeight] = {
        "tokens": LazyWeight((config.vocab_size, width), tokens),
        **lazy_norm("norm", width, f"{prefix}emb_ln", read),
    }
    for layer in range(config.layers):
        weights |= _fold_block(config, f"{prefix}encoder.layers.{layer}.", f"blocks.{layer}.", read)
    return weights


def _fold_block(config: AlibiBertConfig, source: str, block: str, read: Read) -> Weights:
    width, mlp = config.width, config.mlp_width

    def scaled(part: str) -> Tensor:
        rows = read(f"{source}mixer.Wqkv.{part}")
        rows[:width] *= 1.0 / math.sqrt(config.head_width)
        return rows

    def linear(name: str, inputs: int, outputs: int, origin: str) -> Weights:
        weight, bias = (lambda: read(f"{source}{origin}.weight")), (lambda: read(f"{source}{origin}.bias"))
        return lazy_linear(f"{block}{name}", inputs, outputs, weight, bias)

    gated = f"{source}mlp.gated_layers.weight"
    return {
        **lazy_linear(f"{block}qkv", width, 3 * width, lambda: scaled("weight"), lambda: scaled("bias")),
        **linear("out", width, width, "mixer.out_proj"),
        **lazy_norm(f"{block}norm1", width, f"{source}norm1", read),
        **lazy_linear(f"{block}gate_up", width, 2 * mlp, lambda: read(gated), None),
        **linear("down", mlp, width, "mlp.wo"),
        **lazy_norm(f"{block}norm2", width, f"{source}norm2", read),
    }

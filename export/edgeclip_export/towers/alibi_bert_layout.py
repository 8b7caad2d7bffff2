"""The ALiBi BERT tower in a checkpoint's official layout: every tensor's name and shape. Needs no torch."""

import dataclasses

from edgeclip.errors import BuildError
from edgeclip_export.towers.xlmr_layout import TOKEN_TABLE, TYPE_TABLE, Shapes


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AlibiBertConfig:
    """The numbers that the tower is built from. `max_tokens` is a limit alone: no table has that many rows."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    token_types: int
    max_tokens: int
    layer_norm_eps: float

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise BuildError(f"config.json: a text width of {self.width} does not split into {self.heads} heads")

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads

    @property
    def slopes(self) -> tuple[float, ...]:
        """What each head takes from a score for each token between query and key (arXiv:2108.12409).

        2^(-8k/n) for k from 1 to n, where n is a power of two. For another n, those of the largest power of two below
        it come first, then every second one of the next power, beginning with its first.
        """
        below = 1 << (self.heads.bit_length() - 1)
        return (*_slopes(below), *_slopes(2 * below)[::2])[: self.heads]


def alibi_bert_shapes(config: AlibiBertConfig, prefix: str) -> Shapes:
    """Name and shape of every tensor of the tower."""
    width, mlp = config.width, config.mlp_width
    shapes: Shapes = {
        f"{prefix}{TOKEN_TABLE}.weight": (config.vocab_size, width),
        f"{prefix}{TYPE_TABLE}.weight": (config.token_types, width),
        **_norm(f"{prefix}emb_ln", width),
    }
    for layer in range(config.layers):
        block = f"{prefix}encoder.layers.{layer}."
        shapes |= _linear(f"{block}mixer.Wqkv", 3 * width, width)
        shapes |= _linear(f"{block}mixer.out_proj", width, width)
        shapes |= _norm(f"{block}norm1", width)
        shapes |= {f"{block}mlp.gated_layers.weight": (2 * mlp, width)}
        shapes |= _linear(f"{block}mlp.wo", width, mlp)
        shapes |= _norm(f"{block}norm2", width)
    return shapes


def _slopes(heads: int) -> list[float]:
    return [2.0 ** (-8.0 * (head + 1) / heads) for head in range(heads)]


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, rows: int, columns: int) -> Shapes:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}

"""The XLM-RoBERTa tower and LoRA in a checkpoint's official layout: every tensor's name and shape. Needs no torch.

A weight that has adapters is stored as `NAME.parametrizations.weight.original`, its adapters as two banks whose first
axis is the adapter: A (adapters, rank, in) and B (adapters, out, rank) of a linear layer, A (adapters, rows, rank)
and B (adapters, rank, width) of a table. Without adapters it is `NAME.weight`.
"""

import dataclasses

from edgeclip.errors import BuildError

Shapes = dict[str, tuple[int, ...]]

# In the names of a weight that has adapters, and of the adapters.
PARAMETRIZED = ".parametrizations.weight."
# Official names below the tower's prefix: the two tables, and the linear layers of a block that have adapters.
TOKEN_TABLE, TYPE_TABLE = "embeddings.word_embeddings", "embeddings.token_type_embeddings"
LINEARS = {"qkv": "mixer.Wqkv", "out": "mixer.out_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoraSizes:
    """How many adapters a checkpoint stores beside its weights, and their rank and alpha. None, where it stores 0."""

    rank: int
    alpha: float
    adapters: int

    @property
    def scale(self) -> float:
        """What B A is multiplied by before it is added."""
        return self.alpha / self.rank


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class XlmrConfig:
    """The numbers that the tower is built from."""

    width: int
    layers: int
    heads: int
    mlp_width: int
    vocab_size: int
    max_tokens: int
    layer_norm_eps: float
    rotary_base: float

    def __post_init__(self) -> None:
        if self.width % self.heads or self.head_width % 2:
            raise BuildError(
                f"config.json: a text width of {self.width} does not split into {self.heads} heads of even width"
            )

    @property
    def head_width(self) -> int:
        """D, the width of one head."""
        return self.width // self.heads


def xlmr_shapes(config: XlmrConfig, lora: LoraSizes, prefix: str) -> Shapes:
    """Name and shape of every tensor of the tower; adapters are among them if there are any."""
    width = config.width
    shapes = adapted_table(lora, f"{prefix}{TOKEN_TABLE}", config.vocab_size, width)
    shapes |= adapted_table(lora, f"{prefix}{TYPE_TABLE}", 1, width)
    shapes |= _norm_shapes(f"{prefix}emb_ln", width)
    for layer in range(config.layers):
        block = f"{prefix}encoder.layers.{layer}."
        for name, (inputs, outputs) in linear_sizes(config).items():
            shapes |= adapted_linear(lora, f"{block}{LINEARS[name]}", outputs, inputs)
        shapes |= _norm_shapes(f"{block}norm1", width)
        shapes |= _norm_shapes(f"{block}norm2", width)
    return shapes


def linear_sizes(config: XlmrConfig) -> dict[str, tuple[int, int]]:
    """The numbers of inputs and outputs of each of LINEARS."""
    width, mlp = config.width, config.mlp_width
    return {"qkv": (width, 3 * width), "out": (width, width), "fc1": (width, mlp), "fc2": (mlp, width)}


def adapter_shapes(config: XlmrConfig, rank: int) -> Shapes:
    """The names and shapes of the arrays of one adapter of that rank, in the order in which the tower takes them.

    `..._a` are (in, rank) and `..._b` are (rank, out). The table's factors have one rank more: the last column of A
    is all ones and the last row of B is what the adapter adds to the token-type row. Arrays of zeros are no adapter.

    Each layer has arrays of its own: one Split of an array of all layers copies 6 MB with every text, which is 5 % of
    the time of a short one in fp32 and twice that in int8.
    """
    shapes: Shapes = {
        "lora_tokens_a": (config.vocab_size, rank + 1),
        "lora_tokens_b": (rank + 1, config.width),
    }
    for layer in range(config.layers):
        for name, (inputs, outputs) in linear_sizes(config).items():
            shapes |= {f"lora_{layer}_{name}_a": (inputs, rank), f"lora_{layer}_{name}_b": (rank, outputs)}
    return shapes


def adapted_linear(sizes: LoraSizes, name: str, rows: int, columns: int) -> Shapes:
    """The tensors of a linear layer (out, in) with its adapters and its bias."""
    weight = f"{name}{PARAMETRIZED}"
    if not sizes.adapters:
        return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    return {
        f"{name}.bias": (rows,),
        f"{weight}original": (rows, columns),
        f"{weight}0.lora_A": (sizes.adapters, sizes.rank, columns),
        f"{weight}0.lora_B": (sizes.adapters, rows, sizes.rank),
    }


def adapted_table(sizes: LoraSizes, name: str, rows: int, width: int) -> Shapes:
    """The tensors of an embedding table with its adapters: A has the rows and B the columns, unlike a linear's."""
    weight = f"{name}{PARAMETRIZED}"
    if not sizes.adapters:
        return {f"{name}.weight": (rows, width)}
    return {
        f"{weight}original": (rows, width),
        f"{weight}0.lora_A": (sizes.adapters, rows, sizes.rank),
        f"{weight}0.lora_B": (sizes.adapters, sizes.rank, width),
    }


def base_weight(sizes: LoraSizes, name: str) -> str:
    """The official name of the weight of a layer or table, without its adapters."""
    return f"{name}{PARAMETRIZED}original" if sizes.adapters else f"{name}.weight"


def _norm_shapes(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

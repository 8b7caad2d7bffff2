"""The decoder in a checkpoint's official layout: the name and shape of every tensor and adapter. Needs no torch.

The names are those of Qwen2 with a projector for multi vectors, `model.layers.N.self_attn.q_proj.weight`. A LoRA
adapter (Hu et al. 2021, arXiv:2106.09685) has two factors for every linear layer, A (rank, in) and B (out, rank).
"""

import dataclasses

from edgeclip.errors import BuildError

Shapes = dict[str, tuple[int, ...]]

# The official names of a layer's linear layers below the layer's own, and of its two norms.
LINEARS = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}
BIASED = ("q", "k", "v")
LAYERS, TABLE, NORM, PROJECTOR = "model.layers.", "model.embed_tokens", "model.norm", "multi_vector_projector"
# Linear layers that multiply the same rows: their A stand side by side in one array, so they are one product.
SHARED_INPUTS = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DecoderConfig:
    """The numbers that the tower is built from.

    `sections` says how many of a head's frequencies turn with each row of the positions: time, height, width.
    `multi_dim` is the dimension of multi vectors.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocab_size: int
    norm_eps: float
    rotary_base: float
    sections: tuple[int, ...]
    multi_dim: int

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise BuildError(
                f"config.json: {self.heads} attention heads do not share {self.kv_heads} heads of keys evenly"
            )
        if 2 * sum(self.sections) != self.head_width:
            raise BuildError(
                f"config.json: mrope_section {list(self.sections)} does not add up to half of the width of a head, "
                f"{self.head_width}"
            )


def linear_sizes(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The numbers of inputs and outputs of each of LINEARS."""
    width, queries, keys = config.width, config.heads * config.head_width, config.kv_heads * config.head_width
    return {
        "q": (width, queries),
        "k": (width, keys),
        "v": (width, keys),
        "o": (queries, width),
        "gate": (width, config.mlp_width),
        "up": (width, config.mlp_width),
        "down": (config.mlp_width, width),
    }


def decoder_shapes(config: DecoderConfig) -> Shapes:
    """Name and shape of every tensor of the tower and its projector."""
    width = config.width
    shapes: Shapes = {f"{TABLE}.weight": (config.vocab_size, width), f"{NORM}.weight": (width,)}
    for layer in range(config.layers):
        for name, (inputs, outputs) in linear_sizes(config).items():
            shapes[f"{LAYERS}{layer}.{LINEARS[name]}.weight"] = (outputs, inputs)
            if name in BIASED:
                shapes[f"{LAYERS}{layer}.{LINEARS[name]}.bias"] = (outputs,)
        shapes |= {f"{LAYERS}{layer}.{name}.weight": (width,) for name in NORMS.values()}
    return shapes | {f"{PROJECTOR}.weight": (config.multi_dim, width), f"{PROJECTOR}.bias": (config.multi_dim,)}


def adapted_layers(config: DecoderConfig) -> dict[str, tuple[int, int]]:
    """The numbers of inputs and outputs of every linear layer that an adapter changes, by its official name."""
    sizes = linear_sizes(config)
    layers = {
        f"{LAYERS}{layer}.{official}": sizes[name]
        for layer in range(config.layers)
        for name, official in LINEARS.items()
    }
    return {**layers, PROJECTOR: (config.width, config.multi_dim)}


def adapter_shapes(config: DecoderConfig, rank: int) -> Shapes:
    """The names and shapes of the arrays of one adapter of that rank, in the order in which the tower takes them.

    `..._a` are (in, rank) for each layer of the group, side by side; `..._b` are (rank, out). Zeros are no adapter.
    """
    sizes = linear_sizes(config)
    shapes: Shapes = {}
    for layer in range(config.layers):
        for group, names in SHARED_INPUTS.items():
            shapes[f"lora_{layer}_{group}_a"] = (sizes[names[0]][0], rank * len(names))
            shapes |= {f"lora_{layer}_{name}_b": (rank, sizes[name][1]) for name in names}
    return shapes | {"lora_projector_a": (config.width, rank), "lora_projector_b": (rank, config.multi_dim)}

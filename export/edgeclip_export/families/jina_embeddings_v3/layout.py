"""The two layouts of a jina-embeddings-v3 checkpoint: every tensor's name and shape. Needs no torch.

Official (jinaai/jina-embeddings-v3): one file with 492 tensors at full size, the adapters of all tasks in banks
beside each weight (`edgeclip_export.towers.xlmr_layout`). Converted (jinaai/jina-embeddings-v3-hf): 294 plain
tensors, and for each task a folder of PEFT's with 294 more, in which q, k and v are apart and tables are turned.
Reading is strict against these tables. The pooler is in both, and no embedding uses it.
"""

from edgeclip_export.families.jina_embeddings_v3.config import TextConfig
from edgeclip_export.towers.xlmr_layout import (
    LINEARS,
    TOKEN_TABLE,
    TYPE_TABLE,
    LoraSizes,
    Shapes,
    XlmrConfig,
    adapted_linear,
    linear_sizes,
    xlmr_shapes,
)

PREFIX = "roberta."
TOKENIZER_CONFIG = "tokenizer_config.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# How the names of buffers end that a file may hold; the tower computes them.
BUFFERS = (".inv_freq", ".position_ids")
_POOLER = f"{PREFIX}pooler.dense"
_PARTS = tuple(f"self_attn.{name}_proj" for name in "qkv")


def adapter_files(task: str) -> tuple[str, str]:
    """The two files of a task's folder in the converted layout, below the checkpoint's."""
    folder = task.replace(".", "_").replace("-", "_")
    return f"{folder}/{ADAPTER_CONFIG}", f"{folder}/{ADAPTER_WEIGHTS}"


def official_shapes(config: TextConfig) -> Shapes:
    """The official layout's one file."""
    return _file_shapes(config, config.lora)


def base_shapes(config: TextConfig) -> Shapes:
    """The converted layout's file at the top."""
    return _file_shapes(config, LoraSizes(rank=1, alpha=1.0, adapters=0))


def adapter_shapes(config: XlmrConfig, rank: int) -> Shapes:
    """The file of one adapter in the converted layout."""
    width = config.width
    shapes: Shapes = {}
    for table, rows in ((TOKEN_TABLE, config.vocab_size), (TYPE_TABLE, 1)):
        shapes[f"{PREFIX}{table}.lora_embedding_A"] = (rank, rows)
        shapes[f"{PREFIX}{table}.lora_embedding_B"] = (width, rank)
    layers = {_POOLER: (width, width)}
    for layer in range(config.layers):
        for name, (inputs, outputs) in linear_sizes(config).items():
            for part in converted_parts(f"{PREFIX}encoder.layers.{layer}.{LINEARS[name]}"):
                layers[part] = (inputs, width if name == "qkv" else outputs)
    for name, (inputs, outputs) in layers.items():
        shapes |= {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}
    return shapes


def converted_parts(name: str) -> list[str]:
    """The names, in the files of adapters, of the layers that an official linear layer is there."""
    stem = name.removesuffix(LINEARS["qkv"])
    return [f"{stem}{part}" for part in _PARTS] if stem != name else [name]


def is_table(name: str) -> bool:
    """Whether an official name is that of a table."""
    return name in (f"{PREFIX}{TOKEN_TABLE}", f"{PREFIX}{TYPE_TABLE}")


def _file_shapes(config: TextConfig, lora: LoraSizes) -> Shapes:
    return xlmr_shapes(config, lora, PREFIX) | adapted_linear(lora, _POOLER, config.width, config.width)

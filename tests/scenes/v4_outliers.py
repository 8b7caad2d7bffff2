"""The golden jina-embeddings-v4 with values far larger than the rest, as trained decoders have them.

`channels`: channels of RMSNorms, of values and of products are three hundred times the others, which the next
weights take back: the answers stay. `massive`: the first tokens of a prompt drive one product of the first MLP to
thousands, so that the residual stream of these tokens holds little else from there on, as in Qwen2
(arXiv:2402.17762).
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from edgeclip_export.families.jina_embeddings_v4.adapters import FILE, adapter_tensor
from tests.scenes.v4_golden import CHECKPOINT, CONFIG

FACTOR = 300.0
# The largest product that `down` takes, at a prompt's first token.
MASSIVE = 3000.0
_CHANNELS = 3
_FIRST_TOKENS = ("Query: ", "Passage: ", "<|im_start|>")
Tensors = dict[str, Tensor]


def write_outliers(folder: Path, *, channels: bool = False, massive: bool = False) -> Path:
    """A copy of the golden checkpoint at `folder`, changed as asked."""
    shutil.copytree(CHECKPOINT, folder)
    draw = np.random.default_rng(0)
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    files = {file: load_file(folder / file) for file in (*sorted(set(places.values())), FILE)}
    tensors = {name: tensor.float() for file in files.values() for name, tensor in file.items()}
    if channels:
        _enlarge_channels(tensors, draw)
    if massive:
        _add_massive(tensors, draw)
    for file, old in files.items():
        (folder / file).chmod(0o644)
        save_file({name: tensors[name].contiguous() for name in old}, folder / file)
    return folder


def _enlarge_channels(tensors: Tensors, draw: np.random.Generator) -> None:
    decoder = CONFIG.decoder
    for layer in range(decoder.layers):
        block = f"model.layers.{layer}."
        attention, mlp = f"{block}self_attn.", f"{block}mlp."
        for norm, readers in (
            ("input_layernorm", [f"{attention}{name}_proj" for name in "qkv"]),
            ("post_attention_layernorm", [f"{mlp}{name}_proj" for name in ("gate", "up")]),
        ):
            chosen = draw.choice(decoder.width, _CHANNELS, replace=False)
            tensors[f"{block}{norm}.weight"][chosen] *= FACTOR
            for reader in readers:
                _scale_inputs(tensors, reader, chosen)
        chosen = draw.choice(decoder.mlp_width, _CHANNELS, replace=False)
        _scale_outputs(tensors, f"{mlp}up_proj", chosen)
        _scale_inputs(tensors, f"{mlp}down_proj", chosen)
        head, group = decoder.head_width, decoder.heads // decoder.kv_heads
        chosen = draw.choice(decoder.kv_heads * head, _CHANNELS, replace=False)
        _scale_outputs(tensors, f"{attention}v_proj", chosen)
        read = [
            (one // head * group + other) * head + one % head for one in chosen.tolist() for other in range(group)
        ]
        _scale_inputs(tensors, f"{attention}o_proj", np.array(read))
    for layer in range(CONFIG.vision.layers):
        block = f"visual.blocks.{layer}."
        chosen = draw.choice(CONFIG.vision.width, _CHANNELS, replace=False)
        tensors[f"{block}norm1.weight"][chosen] *= FACTOR
        _scale_inputs(tensors, f"{block}attn.qkv", chosen)
        chosen = draw.choice(CONFIG.vision.mlp_width, _CHANNELS, replace=False)
        _scale_outputs(tensors, f"{block}mlp.up_proj", chosen)
        _scale_inputs(tensors, f"{block}mlp.down_proj", chosen)


def _scale_inputs(tensors: Tensors, layer: str, chosen: NDArray[np.int64]) -> None:
    """Weights of the chosen inputs over the factor, an adapter's too."""
    for name in (f"{layer}.weight", *(adapter_tensor(layer, "A", task) for task in CONFIG.adapters)):
        if name in tensors:
            tensors[name][:, chosen] /= FACTOR


def _scale_outputs(tensors: Tensors, layer: str, chosen: NDArray[np.int64]) -> None:
    """Weights of the chosen outputs times the factor, an adapter's too."""
    names = f"{layer}.weight", f"{layer}.bias", *(adapter_tensor(layer, "B", task) for task in CONFIG.adapters)
    for name in names:
        if name in tensors:
            tensors[name][chosen] *= FACTOR


def _add_massive(tensors: Tensors, draw: np.random.Generator) -> None:
    """One product of the first MLP that the first tokens alone drive, into one channel of the residual stream."""
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    firsts = sorted({tokenizer.encode(text).ids[0] for text in _FIRST_TOKENS})
    table, block = tensors["model.embed_tokens.weight"], "model.layers.0."
    neurons = draw.choice(CONFIG.decoder.mlp_width, len(firsts), replace=False).tolist()
    gain = tensors[f"{block}post_attention_layernorm.weight"]
    for token, neuron in zip(firsts, neurons, strict=True):
        # The attention is not so strong that the direction of the embedding is lost behind it.
        table[token] *= 20
        length = table[token].norm()
        unit = table[token] / length * gain.sign()
        reach = (unit.abs() * gain.abs()).norm() * CONFIG.decoder.width**0.5
        for name in ("gate_proj", "up_proj"):
            tensors[f"{block}mlp.{name}.weight"][neuron] = unit * (MASSIVE**0.5 / reach)
        down = tensors[f"{block}mlp.down_proj.weight"]
        down[:, neuron] = torch.from_numpy(draw.normal(0, 0.02, len(down))).float()
        down[neurons[0] % len(down), neuron] = 1.0

"""PyTorch as a rival: the plain towers with scaled_dot_product_attention, eager and compiled.

They are the plain towers (`edgeclip_bench.rivals.plain_towers`) without two handicaps: there is no mask for texts
without padding, so that the flash kernel is used, and rotary tables are made once. On a GPU they are fp16 and read
from the checkpoint; on the CPU they are rivals of `edgeclip_bench.rivals.run`, fp32 or bfloat16, with LoRA merged
before.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from edgeclip.families.jina_clip import normalize_pixels
from edgeclip.manifest import ImageFacts, TowerName
from edgeclip_bench.rivals.plain_towers import PlainTextTower, PlainVisionTower, load_plain_text, load_plain_vision
from edgeclip_export.checkpoint import CONFIG, read_json
from edgeclip_export.families.jina_clip.config import parse_config

Mode = Literal["eager", "compile", "compile, reduce-overhead"]
MODES: tuple[Mode, ...] = ("eager", "compile, reduce-overhead", "compile")
CpuWay = Literal["torch", "torch-bf16", "torch-compiled"]
_TOWER = "tower.safetensors"


class UnmaskedText(nn.Module):
    """(B, T) ids without padding -> (B, D) unit rows."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: PlainTextTower, longest: int) -> None:
        super().__init__()
        self.tower = tower
        width = tower.config.head_width
        half = torch.arange(0, width, 2, dtype=torch.float32)
        angles = torch.outer(torch.arange(longest, dtype=torch.float32), tower.config.rotary_base ** (-half / width))
        angles = torch.cat((angles, angles), dim=-1)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, input_ids: Tensor) -> Tensor:
        """The plain tower's forward, without a mask."""
        tower, tokens = self.tower, input_ids.shape[1]
        words, types = tower.embeddings["word_embeddings"], tower.embeddings["token_type_embeddings"]
        h = tower.emb_ln(words(input_ids) + types(torch.zeros_like(input_ids)))
        for layer in tower.encoder.layers:
            h = layer(h, self.cos[:tokens], self.sin[:tokens], None)
        return F.normalize(h.mean(dim=1).float(), dim=-1)


class TabledVision(nn.Module):
    """(B, 3, S, S) normalised pixels -> (B, D) unit rows."""

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: PlainVisionTower) -> None:
        super().__init__()
        self.tower = tower
        angles = tower._angles()
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """The plain tower's forward, with tables that were made before."""
        tower = self.tower
        patches = tower.patch_embed["proj"](pixel_values).flatten(2).transpose(1, 2)
        x = torch.cat((tower.cls_token.expand(patches.shape[0], -1, -1), patches), dim=1) + tower.pos_embed
        for block in tower.blocks:
            x = block(x, self.cos, self.sin)
        return F.normalize(tower.norm(x)[:, 0].float(), dim=-1)


def open_rival(checkpoint: Path, tower: TowerName, device: str, longest: int) -> nn.Module:
    """Open a tower, at fp16 on a GPU, at fp32 on the CPU."""
    module: nn.Module
    if tower == "text":
        module = UnmaskedText(load_plain_text(checkpoint), longest)
    else:
        module = TabledVision(load_plain_vision(checkpoint))
    dtype = torch.float32 if device == "cpu" else torch.float16
    return module.eval().requires_grad_(False).to(device=device, dtype=dtype)


def compiled(module: nn.Module, mode: Mode) -> Callable[[Tensor], Tensor]:
    """The module compiled in this mode, for the one shape that it then gets."""
    if mode == "eager":
        return module
    options: dict[str, Any] = {"mode": "reduce-overhead"} if mode.endswith("reduce-overhead") else {}
    run: Callable[[Tensor], Tensor] = torch.compile(module, dynamic=False, **options)
    return run


def feed(batch: NDArray[Any], tower: TowerName, image: ImageFacts, device: str) -> Tensor:
    """A bundle's batch, ids (B, T) or pixels (B, S, S, 3), as the rival takes it, in page-locked memory."""
    if tower == "text":
        tensor = torch.from_numpy(batch)
    else:
        floats = torch.from_numpy(np.ascontiguousarray(normalize_pixels(batch, image)))
        tensor = floats if device == "cpu" else floats.half()
    return tensor if device == "cpu" else tensor.pin_memory()


def runner(run: Callable[[Tensor], Tensor], inputs: Tensor, device: str) -> Callable[[], NDArray[np.float32]]:
    """A function that goes from the host's inputs to the host's rows in one call, as a bundle is measured."""

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            rows: NDArray[np.float32] = run(inputs.to(device, non_blocking=True)).cpu().numpy()
        return rows

    return call


def save_tower(checkpoint: Path, tower: TowerName, folder: Path) -> Path:
    """Write a tower's weights at fp32 into `folder`, LoRA merged, with the config beside them."""
    load = load_plain_text if tower == "text" else load_plain_vision
    weights = {name: weight.contiguous() for name, weight in load(checkpoint).state_dict().items()}
    shutil.copyfile(checkpoint / CONFIG, folder / CONFIG)
    save_file(weights, folder / _TOWER)
    return folder / _TOWER


def open_on_cpu(
    weights: Path, tower: TowerName, way: CpuWay, threads: int
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Open a tower of `save_tower`; it takes ids (B, T) or normalised pixels (B, 3, S, S) and gives rows (B, D).

    torch's number of threads is the process's. A compiled module is compiled with the first batch, a text's for any
    length: raises torch's errors where there is no C++ compiler.
    """
    torch.set_num_threads(threads)
    config = parse_config(read_json(weights.with_name(CONFIG)))
    module: nn.Module
    with torch.device("meta"):
        plain = PlainTextTower(config.text) if tower == "text" else PlainVisionTower(config.vision)
    plain.load_state_dict(load_file(weights), assign=True)
    module = UnmaskedText(plain, config.text.max_tokens) if isinstance(plain, PlainTextTower) else TabledVision(plain)
    dtype = torch.bfloat16 if way == "torch-bf16" else torch.float32
    module = module.eval().requires_grad_(False).to(dtype)
    call: Callable[[Tensor], Tensor] = module
    if way == "torch-compiled":
        call = torch.compile(module, dynamic=tower == "text")

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(np.ascontiguousarray(batch))
        with torch.inference_mode():
            rows: NDArray[np.float32] = call(inputs if tower == "text" else inputs.to(dtype)).numpy()
        return rows

    return run

"""PyTorch as a rival: the plain towers with scaled_dot_product_attention, eager and compiled.

They are the plain towers without two handicaps: there is no mask for texts without padding, so that the flash kernel
is used, and rotary tables are made once. On a GPU they are fp16 and read from the checkpoint; on the CPU they are
fp32 or bfloat16, with LoRA merged before.
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

from edgeclip_bench.rivals.plain_towers import PlainTextTower, PlainVisionTower, empty_tower, fill, load_plain
from edgeclip_export.checkpoint import CONFIG, read_json
from edgeclip_export.families.jina_clip.config import parse_config

Mode = Literal["eager", "compile", "compile, reduce-overhead"]
MODES: tuple[Mode, ...] = ("eager", "compile, reduce-overhead", "compile")
CpuWay = Literal["torch", "torch-bf16", "torch-compiled"]
_TOWER = "tower.safetensors"


class Tabled(nn.Module):
    """A plain tower with tables of its positions: ids (B, T) or normalised pixels (B, 3, S, S) -> unit rows."""

    def __init__(self, tower: PlainTextTower | PlainVisionTower, longest: int) -> None:
        super().__init__()
        self.tower = tower
        tables = {f"table_{index}": table for index, table in enumerate(tower.tables(longest))}
        for name, table in tables.items():
            self.register_buffer(name, table)
        self._names = tuple(tables)

    def forward(self, inputs: Tensor) -> Tensor:
        """The plain tower's forward without a mask, for texts without padding."""
        return F.normalize(self.tower.tabled_features(inputs, *map(self.get_buffer, self._names)).float(), dim=-1)


def open_rival(checkpoint: Path, graph: str, device: str, longest: int) -> nn.Module:
    """Open a tower, at fp16 on a GPU, at fp32 on the CPU."""
    dtype = torch.float32 if device == "cpu" else torch.float16
    module = Tabled(load_plain(checkpoint, graph), longest)
    return module.eval().requires_grad_(False).to(device=device, dtype=dtype)


def compiled(module: nn.Module, mode: Mode) -> Callable[[Tensor], Tensor]:
    """The module compiled in this mode, for the one shape that it then gets."""
    if mode == "eager":
        return module
    return torch.compile(module, dynamic=False, mode="reduce-overhead" if mode.endswith("overhead") else None)


def feed(batch: NDArray[Any], device: str) -> Tensor:
    """A batch as `plain_inputs` gives it, in page-locked memory for a GPU, where pixels are fp16."""
    tensor = torch.from_numpy(np.ascontiguousarray(batch))
    if device == "cpu":
        return tensor
    return (tensor.half() if tensor.is_floating_point() else tensor).pin_memory()


def runner(run: Callable[[Tensor], Tensor], inputs: Tensor, device: str) -> Callable[[], NDArray[np.float32]]:
    """A function that goes from the host's inputs to the host's rows in one call, as a bundle is measured."""

    def call() -> NDArray[np.float32]:
        with torch.inference_mode():
            rows: NDArray[np.float32] = run(inputs.to(device, non_blocking=True)).cpu().numpy()
        return rows

    return call


def save_tower(checkpoint: Path, graph: str, folder: Path) -> Path:
    """Write a tower's weights at fp32 into `folder`, LoRA merged, with the config beside them."""
    weights = {name: weight.contiguous() for name, weight in load_plain(checkpoint, graph).state_dict().items()}
    shutil.copyfile(checkpoint / CONFIG, folder / CONFIG)
    save_file(weights, folder / _TOWER)
    return folder / _TOWER


def open_on_cpu(
    weights: Path, graph: str, way: CpuWay, threads: int
) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
    """Open a tower of `save_tower`; it takes ids (B, T) or normalised pixels (B, 3, S, S) and gives rows (B, D).

    torch's number of threads is the process's. A compiled module is compiled with the first batch, a text's for any
    length: raises torch's errors where there is no C++ compiler.
    """
    torch.set_num_threads(threads)
    config = parse_config(read_json(weights.with_name(CONFIG)))
    plain = fill(empty_tower(config, graph), load_file(weights))
    dtype = torch.bfloat16 if way == "torch-bf16" else torch.float32
    module = Tabled(plain, config.text.max_tokens).eval().requires_grad_(False).to(dtype)
    call: Callable[[Tensor], Tensor] = module
    if way == "torch-compiled":
        call = torch.compile(module, dynamic=graph == "text")

    def run(batch: NDArray[Any]) -> NDArray[np.float32]:
        inputs = feed(batch, "cpu")
        return runner(call, inputs if graph == "text" else inputs.to(dtype), "cpu")()

    return run

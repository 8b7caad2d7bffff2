"""What is said of a family so that a checkpoint of random weights can be written in its official layout."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip_export import tensor_shapes

Config = dict[str, Any]
# The shapes of a file's tensors by their official names, in the order in which they are written.
Shapes = Mapping[str, tuple[int, ...]]


def in_one_file(name: str) -> Callable[[Config], Mapping[str, Shapes]]:
    """`Layout.files` of a family with all tensors in one safetensors file."""
    return lambda config: {name: tensor_shapes(config)}


_MODEL = in_one_file("model.safetensors")


def write_json(path: Path, document: Config) -> None:
    """Write a JSON file as the official ones are written."""
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A family's checkpoint: its configuration at full size and tiny, safetensors files, and all others.

    `files` gives the tensors of each safetensors file of a checkpoint with this config.json; `write_others` writes
    into a folder what is no safetensors file and not config.json. `dtype` is the type of the weights. A family may
    have another name for config.json.
    """

    full_config: Callable[[], Config]
    tiny_config: Callable[[], Config]
    dtype: str
    write_others: Callable[[Path, Config], None]
    files: Callable[[Config], Mapping[str, Shapes]] = _MODEL
    config_file: str = "config.json"

"""What is said of a family so that a checkpoint of random weights can be written in its official layout."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Config = dict[str, Any]
# The shapes of a file's tensors by their official names, in the order in which they are written.
Shapes = Mapping[str, tuple[int, ...]]


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
    files: Callable[[Config], Mapping[str, Shapes]]
    write_others: Callable[[Path, Config], None]
    config_file: str = "config.json"

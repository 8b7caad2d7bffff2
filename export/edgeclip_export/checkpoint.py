"""A checkpoint's folder: the names of its files, its small JSON files, and the hash of its weights.

Weights lie in one safetensors file or in the shards that an index names (`edgeclip_export.tensors`); adapters may lie
in folders of their own. Pickled weights are never opened (they can run code), nor is any code a checkpoint names.
Whether a folder is a checkpoint, and of which family, `edgeclip_export.opening` finds out.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.errors import BuildError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
# Files of which one says what model a folder holds: the usual one, and open_clip's.
CONFIGS = (CONFIG, "open_clip_config.json")
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
CARD = "README.md"
_LISTED = 3  # names shown before "and n more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder with all that an export reads, and its parsed config.json or what it has instead.

    `weights` are one safetensors file, or its shards by name; `adapters` are the safetensors files below the folder
    that hold an adapter each.
    """

    folder: Path
    config: Mapping[str, Any]
    weights: tuple[Path, ...]
    adapters: tuple[Path, ...] = ()

    @property
    def where(self) -> Path:
        """The file of the weights, or the folder of several: what messages about them name."""
        return self.weights[0] if len(self.weights) == 1 else self.folder

    def hash_weights(self) -> str:
        """sha256 in hexadecimal: of the one file, or of the lines "sha256  name" of several, in their order."""
        paths = (*self.weights, *self.adapters)
        hashes = [hash_file(path) for path in paths]
        if len(hashes) == 1:
            return hashes[0]
        names = (path.relative_to(self.folder).as_posix() for path in paths)
        lines = (f"{digest}  {name}\n" for digest, name in zip(hashes, names, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_shards(index: Path) -> dict[str, set[str]]:
    """The shards that an index names, in the order of their names, and the tensors that it says are in each."""
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise BuildError(f"{index}: has no weight_map that names tensors; save the model again")
    shards: dict[str, set[str]] = {}
    for tensor, name in found.items():
        # A name may come from the Hub: nothing outside the folder is opened.
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name or "\\" in name:
            raise BuildError(f"{index}: {tensor} lies in {name!r}, wanted the name of a safetensors file beside it")
        shards.setdefault(name, set()).add(tensor)
    return dict(sorted(shards.items()))


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file of the checkpoint."""
    try:
        document = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise BuildError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise BuildError(f"{path}: wanted a JSON object")
    return document


def hash_file(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_names(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

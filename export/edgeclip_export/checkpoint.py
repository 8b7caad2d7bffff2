"""A checkpoint's folder: which files are needed, whether they are there, and its small JSON files.

Weights lie in one safetensors file or in the shards that an index names (`edgeclip_export.tensors`). Preprocessing
stands in preprocessor_config.json, or since transformers 5 inside processor_config.json. Pickled weights are never
opened (they can run code), nor is any code a checkpoint names. Bringing a checkpoint here from the Hub is
`edgeclip_export.hub`'s work; what a folder is that is no checkpoint, `edgeclip_export.recognition` says.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.families.jina_clip.config import check_model
from edgeclip_export.recognition import Missing, check_content, describe_absence, find_inner, recognise

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
# The official layout.
FILES = (CONFIG, WEIGHTS, TOKENIZER, PREPROCESSOR)
# Each is needed in one of these forms.
_FORMS: tuple[tuple[str, ...], ...] = ((CONFIG,), (WEIGHTS, INDEX), (TOKENIZER,), (PREPROCESSOR, PROCESSOR))
_MOST_LISTED, _DEPTH = 5000, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A folder with all that an export reads; `weights` are one safetensors file, or its shards by name."""

    folder: Path
    weights: tuple[Path, ...]

    def hash_weights(self) -> str:
        """sha256 in hexadecimal: of the file, or of the lines "sha256  name" of its shards by name."""
        hashes = [hash_file(path) for path in self.weights]
        if len(hashes) == 1:
            return hashes[0]
        lines = (f"{digest}  {path.name}\n" for digest, path in zip(hashes, self.weights, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`, every file that is needed there with its content.

    Raises BuildError for what is no folder, another kind of folder or another model, a file that is missing, a link
    to nothing or a pointer instead of a file, and an index that is not one.
    """
    if not folder.is_dir():
        raise BuildError(f"{folder}: {_describe_no_folder(folder)}")
    names = _list(folder)
    if what := recognise(names):
        raise BuildError(f"{folder}: {what}")
    needed = needed_files(names)
    for name in needed:
        check_content(folder / name)
    if CONFIG in names:
        check_model(read_json(folder / CONFIG), str(folder))
    elif inner := find_inner(folder, names):
        raise BuildError(f"{folder}: {inner}")
    if missing := missing_files(names):
        raise BuildError(f"{folder}: {describe_absence(missing, names)}")
    if WEIGHTS in needed:
        return Checkpoint(folder=folder, weights=(folder / WEIGHTS,))
    shards = tuple(folder / name for name in read_shards(folder / INDEX))
    for shard in shards:
        if not os.path.lexists(shard):
            raise BuildError(f"{folder}: {INDEX} names {shard.name}, which is missing; fetch or copy it too")
        check_content(shard)
    return Checkpoint(folder=folder, weights=shards)


def needed_files(names: Collection[str]) -> list[str]:
    """Those among a folder's `names` that an export reads, the weights last; an index stands for its shards.

    One file of weights goes before an index beside it, as with transformers.
    """
    weights = next(([name] for name in (WEIGHTS, INDEX) if name in names), [])
    return [name for name in (CONFIG, TOKENIZER, PROCESSOR, PREPROCESSOR) if name in names] + weights


def missing_files(names: Collection[str]) -> list[Missing]:
    """What a folder with these files lacks, each as the forms that it may have, the official one first."""
    return [forms for forms in _FORMS if not any(name in names for name in forms)]


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


def _describe_no_folder(path: Path) -> str:
    if path.is_file():
        what = recognise([path.name]) or describe_absence([(WEIGHTS,)], [path.name]) if path.name != WEIGHTS else ""
        return f"a file, wanted the folder of a checkpoint{f'; {what}' if what else ''}"
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there"
    return "no such checkpoint folder"


def _list(folder: Path) -> list[str]:
    """The files under a folder, links to nothing among them, as names relative to it; the folder's own come first."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        inner = Path(root).relative_to(folder)
        names += [(inner / name).as_posix() for name in sorted(files)]
        folders[:] = sorted(folders) if len(inner.parts) + 1 < _DEPTH else []
        if len(names) > _MOST_LISTED:
            break
    return names

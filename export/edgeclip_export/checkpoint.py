"""A checkpoint on disk: its small JSON files, and its tensors read strictly from safetensors.

Pickled weights are never opened (they can run code), nor is any code a checkpoint names. Bringing a
checkpoint here from the Hub is `edgeclip_export.hub`'s work.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeclip.errors import BuildError

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
PREPROCESSOR = "preprocessor_config.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER, PREPROCESSOR)

_DTYPES = {"F16", "BF16", "F32"}
_LISTED = 3  # names shown before "and n more"


def require_files(folder: Path) -> None:
    """BuildError unless `folder` holds the four files of a checkpoint."""
    if not folder.is_dir():
        raise BuildError(f"{folder}: no such checkpoint folder")
    missing = [name for name in FILES if not (folder / name).is_file()]
    if WEIGHTS in missing and (found := _other_weights(folder)):
        raise BuildError(f"{folder}: has {found}, but only {WEIGHTS} is read; pickle files can run code")
    if missing:
        raise BuildError(f"{folder}: not a checkpoint, it has no {', '.join(missing)}")


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file of the checkpoint."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BuildError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise BuildError(f"{path}: wanted a JSON object")
    return document


@contextmanager
def open_tensors(
    path: Path, shapes: Mapping[str, Sequence[int]], ignored_suffixes: tuple[str, ...] = ()
) -> Iterator[Callable[[str], Tensor]]:
    """Check a safetensors file against a table of shapes, then read its tensors as fp32 by name.

    BuildError for a file that is no whole safetensors file, and for a tensor that is missing, extra,
    of another shape, or neither F16, BF16 nor F32. Every tensor read is a fresh copy, checked to be
    finite.
    """
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise BuildError(f"{path}: not a whole safetensors file ({error})") from error
    with file as tensors:
        names = {name for name in tensors.keys() if not name.endswith(ignored_suffixes)}  # noqa: SIM118
        if missing := [name for name in shapes if name not in names]:
            raise BuildError(f"{path}: {_listed(missing)} missing")
        if extra := sorted(names - set(shapes)):
            raise BuildError(f"{path}: {_listed(extra)} not part of a checkpoint with this config.json")
        for name, wanted in shapes.items():
            entry = tensors.get_slice(name)
            if (found := tuple(entry.get_shape())) != tuple(wanted):
                raise BuildError(f"{path}: {name} has shape {found}, config.json wants {tuple(wanted)}")
            if (dtype := entry.get_dtype()) not in _DTYPES:
                raise BuildError(f"{path}: {name} is {dtype}, wanted {', '.join(sorted(_DTYPES))}")

        def read(name: str) -> Tensor:
            tensor: Tensor = tensors.get_tensor(name).to(torch.float32, copy=True)
            # A sum is not finite when one term is not, and costs no mask of the tensor's size.
            if not torch.isfinite(tensor.sum(dtype=torch.float64)):
                raise BuildError(f"{path}: {name} holds NaN or infinity")
            return tensor

        yield read


def hash_file(path: Path) -> str:
    """The file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _other_weights(folder: Path) -> str:
    patterns = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.safetensors")
    return ", ".join(sorted(path.name for pattern in patterns for path in folder.glob(pattern))[:_LISTED])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more

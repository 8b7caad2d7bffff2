"""Tensors in safetensors files, one or the shards of a model, read by the names they were saved under."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import INDEX, Checkpoint, list_names, read_shards
from edgeclip_export.towers.weights import Table

_DTYPES = {"F16", "BF16", "F32"}
_AT_ONCE = 1 << 22  # numbers
_READ_OF_MAPPING = 64 << 20  # bytes; opening a file with the adapters of jina-embeddings-v4 takes milliseconds


@dataclass(frozen=True, slots=True)
class Tensors:
    """Open files, and in which of them each tensor lies."""

    files: Mapping[Path, Any]
    places: Mapping[str, Path]
    _mapped: dict[Path, tuple[Any, int]] = field(default_factory=dict)

    def check(self, name: str, shape: Sequence[int]) -> None:
        """BuildError for a tensor of another shape than config.json wants, or neither F16, BF16 nor F32."""
        path = self.places[name]
        entry = self.files[path].get_slice(name)
        if (found := tuple(entry.get_shape())) != tuple(shape):
            raise BuildError(f"{path}: {name} has shape {found}, config.json wants {tuple(shape)}")
        if (dtype := entry.get_dtype()) not in _DTYPES:
            raise BuildError(f"{path}: {name} is {dtype}, wanted {', '.join(sorted(_DTYPES))}")

    def read(self, name: str) -> Tensor:
        """A fresh copy as fp32; BuildError for one that is not finite."""
        return self._widen(name, self._map(name))

    def table(self, name: str) -> Table:
        """A large table, which is read when it is asked for."""

        def pieces() -> Iterator[Tensor]:
            rows, width = self._map(name).shape
            step = max(1, _AT_ONCE // width)
            for start in range(0, rows, step):
                yield self._widen(name, self._map(name)[start : start + step])

        return Table(mapped=lambda: self._map(name), pieces=pieces)

    def _map(self, name: str) -> Tensor:
        """The tensor as it is stored, mapped from the file.

        What was read of a mapping stays in memory as long as the mapping is there: it is replaced after some reading.
        """
        path = self.places[name]
        file, left = self._mapped.get(path) or (safe_open(path, framework="pt"), _READ_OF_MAPPING)
        tensor: Tensor = file.get_tensor(name)
        left -= tensor.nbytes
        if left > 0:
            self._mapped[path] = file, left
        else:
            self._mapped.pop(path, None)
        return tensor

    def _widen(self, name: str, stored: Tensor) -> Tensor:
        tensor = stored.to(torch.float32, copy=True)
        # A sum is not finite when one term is not, and costs no mask of the tensor's size. In fp32 the sum of finite
        # numbers may not be finite either; that in fp64 takes ten times as long, and torch copies what it sums.
        if not torch.isfinite(tensor.sum()):
            sums = (part.sum(dtype=torch.float64) for part in torch.split(tensor.flatten(), _AT_ONCE))
            if not all(torch.isfinite(total) for total in sums):
                raise BuildError(f"{self.places[name]}: {name} holds NaN or infinity")
        return tensor


@contextmanager
def open_tensors(checkpoint: Checkpoint) -> Iterator[Tensors]:
    """Open the checkpoint's weights.

    BuildError for a file that is no whole safetensors file, a tensor that lies in two of them, and an index that
    does not say what they hold.
    """
    with open_files(checkpoint.weights) as tensors:
        if (checkpoint.folder / INDEX).exists():
            _check_index(checkpoint, tensors.places)
        yield tensors


@contextmanager
def open_files(paths: Sequence[Path]) -> Iterator[Tensors]:
    """Open safetensors files; BuildError for one that is not whole, and for a tensor that lies in two of them."""
    with ExitStack() as stack:
        files: dict[Path, Any] = {}
        places: dict[str, Path] = {}
        for path in paths:
            try:
                files[path] = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise BuildError(f"{path}: not a whole safetensors file ({error}); fetch or copy it again") from error
            for name in files[path].keys():  # noqa: SIM118
                if name in places:
                    raise BuildError(f"{path}: {name} lies in {places[name].name} too; save the model again")
                places[name] = path
        yield Tensors(files, places)


def _check_index(checkpoint: Checkpoint, places: Mapping[str, Path]) -> None:
    """That each tensor lies where the index says, and no other is there."""
    index = checkpoint.folder / INDEX
    if checkpoint.weights[0].name not in read_shards(index):
        raise BuildError(
            f"{checkpoint.folder}: holds {checkpoint.weights[0].name} and {INDEX}, which names other files; "
            "remove the one that is not meant"
        )
    said = {name: shard for shard, names in read_shards(index).items() for name in names}
    if wrong := sorted(name for name, shard in said.items() if name not in places or places[name].name != shard):
        raise BuildError(f"{said[wrong[0]]}: has no {list_names(wrong)}, which {index} says; save the model again")
    if unnamed := sorted(places.keys() - said.keys()):
        path = places[unnamed[0]]
        raise BuildError(f"{path}: holds {list_names(unnamed)}, which {INDEX} does not name; save the model again")

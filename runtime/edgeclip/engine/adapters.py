"""Adapters (LoRA) of a bundle: named arrays that a graph takes as inputs besides what a call feeds.

They are fed by value on every device, because onnxruntime's own adapter call does not reach bound runs. A run without
an adapter feeds zeros, which add nothing: that is the base model.
"""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import verify_hash
from edgeclip.errors import BundleError, InputError
from edgeclip.manifest import Manifest

Arrays = Mapping[str, NDArray[Any]]


class Adapters:
    """The adapters of one graph of the bundle in `folder`, each read when it is first used. For use by many threads.

    `wanted` are the shapes of the graph's inputs for adapters, by name; all of them are float32.
    """

    def __init__(
        self, folder: Path, graph: str, manifest: Manifest | None, wanted: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._folder, self._manifest, self._wanted = folder, manifest, wanted
        listed = manifest.adapters if manifest else {}
        self._facts = {name: facts for name, facts in listed.items() if facts.graph == graph}
        self._read: dict[str | None, Arrays] = {}
        self._lock = threading.Lock()

    @property
    def are_wanted(self) -> bool:
        """Whether the graph has inputs for adapters."""
        return bool(self._wanted)

    def get(self, name: str | None) -> Arrays:
        """The arrays of an adapter, zeros for None.

        InputError for an unknown name, BundleError for a damaged file.
        """
        if (found := self._read.get(name)) is not None:
            return found
        with self._lock:
            if name not in self._read:
                self._read[name] = self._load(name)
            return self._read[name]

    def _load(self, name: str | None) -> Arrays:
        if name is None:
            return {array: np.zeros(shape, np.float32) for array, shape in self._wanted.items()}
        if (facts := self._facts.get(name)) is None or self._manifest is None:
            known = ", ".join(map(repr, self._facts)) or "none"
            raise InputError(f"adapter is {name!r}, wanted None or one that the graph has: {known}")
        verify_hash(self._folder, self._manifest.file(facts.file))
        arrays = read_adapter(self._folder / facts.file)
        shapes = {array: values.shape for array, values in arrays.items()}
        if shapes != dict(self._wanted):
            raise BundleError(
                f"{self._folder}: {facts.file} holds other arrays than the graph takes; export the bundle again"
            )
        return arrays


def read_adapter(path: Path) -> Arrays:
    """The arrays of an adapter's file by the names of the graph's inputs, float32; BundleError for a damaged one."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return {name: np.ascontiguousarray(found[name], np.float32) for name in found.files}
    except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
        raise BundleError(f"{path}: cannot be read ({error})") from error

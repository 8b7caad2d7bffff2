"""Adapters in a GPU's memory, for graphs that onnxruntime's own call runs: copied once, and bound in every run.

An adapter of jina-embeddings-v4 has 240 MB, which take some 10 ms over PCIe (by its bandwidth, not measured): more
than the compute of a short text. Graphs that `bound_runs` runs hold their adapters there.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.adapters import Adapters
from edgeclip.engine.ort import import_onnxruntime

Arrays = Mapping[str, NDArray[Any]]


class HeldAdapters:
    """A session's adapters in the memory of a device, as onnxruntime names it: ("cuda", 0). For use by many threads.

    The base model, which has zeros for an adapter, is not run here.
    """

    def __init__(self, session: Any, adapters: Adapters, device: tuple[str, int]) -> None:
        self._session, self._adapters, self._device = session, adapters, device
        self._held: dict[str, Mapping[str, Any]] = {}
        self._lock = threading.Lock()

    def run(self, feed: Arrays, names: Sequence[str], adapter: str, options: Any = None) -> dict[str, NDArray[Any]]:
        """The outputs of these names for a batch. Raises what `Adapters.get` raises, and onnxruntime's errors."""
        binding = self._session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for name, value in self._get(adapter).items():
            binding.bind_ortvalue_input(name, value)
        for name in names:
            binding.bind_output(name)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding, options)
        binding.synchronize_outputs()
        return dict(zip(names, binding.copy_outputs_to_cpu(), strict=True))

    def _get(self, adapter: str) -> Mapping[str, Any]:
        with self._lock:
            if adapter not in self._held:
                make = import_onnxruntime().OrtValue.ortvalue_from_numpy
                arrays = self._adapters.get(adapter)
                self._held[adapter] = {name: make(array, *self._device) for name, array in arrays.items()}
            return self._held[adapter]

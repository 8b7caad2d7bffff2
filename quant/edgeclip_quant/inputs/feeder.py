"""Turn a bundle's items into the named arrays that its graphs take, an adapter's weights among them.

The runtime gives a session its adapter by name. Here graphs are run that no runtime opens, with more outputs or
rounded like a GPU's, so an adapter's arrays are fed like any other input.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeclip.engine.adapters import read_adapter
from edgeclip.families import open_family
from edgeclip.families.family import Arrays, Item
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest
from edgeclip_quant.passes.channels import Edit, edit_fed


class Feeder:
    """A bundle's manifest and family, and the feeds of its graphs; `folder` holds its tokenizer and adapters.

    `fed` is what becomes of an adapter's arrays (`edgeclip_quant.passes.rotation`).
    """

    def __init__(self, folder: Path, manifest: Manifest, fed: Mapping[str, Sequence[Edit]] | None = None) -> None:
        self.folder, self.manifest, self._fed = folder, manifest, fed or {}
        self.family = open_family(manifest, self._tokenizer)
        self._adapters: dict[str, Arrays] = {}
        self._opened: TextTokenizer | None = None

    def feed(self, items: Sequence[Item]) -> Arrays:
        """One batch of items that are alike. Without an adapter, the arrays of a graph's adapters are zeros.

        Raises BundleError for an adapter's file that cannot be read.
        """
        first = items[0]
        return {**self.family.feed(items), **self._adapter_arrays(first.graph, first.adapter)}

    def _tokenizer(self) -> TextTokenizer:
        if self._opened is None:
            facts = self.manifest.need_text()
            self._opened = TextTokenizer(self.folder / facts.file, facts)
        return self._opened

    def _adapter_arrays(self, graph: str, adapter: str | None) -> Arrays:
        if adapter is not None:
            return self._read(adapter)
        some = next((name for name, facts in self.manifest.adapters.items() if facts.graph == graph), None)
        return {} if some is None else {name: np.zeros_like(array) for name, array in self._read(some).items()}

    def _read(self, adapter: str) -> Arrays:
        if adapter not in self._adapters:
            arrays = read_adapter(self.folder / self.manifest.adapters[adapter].file)
            self._adapters[adapter] = edit_fed(arrays, self._fed)
        return self._adapters[adapter]

"""Adapters of a bundle: their files, and the arrays that a graph is fed with one of them, or with none."""

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edgeclip.errors import BuildError
from edgeclip.manifest import AdapterFacts
from edgeclip_export.families.family import AdapterPlan, GraphPlan

Array = NDArray[Any]
# The inputs of a graph, by their names.
Feed = Mapping[str, "Array | Later"]
# Makes an adapter's array, by the name of the graph's input, into the one that a graph takes.
Change = Callable[[str, Array], Array]
# Arrays of an adapter that stay in memory: those of one layer. All of jina-embeddings-v4's are 240 MB for a task.
_KEPT = 12


class Later:
    """An array that is read when it is needed: by `read`, or where a function of torch is given it."""

    def __init__(self, read: Callable[[], Array]) -> None:
        self.read = read

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function with the numbers."""
        return function(
            *(torch.from_numpy(one.read()) if isinstance(one, Later) else one for one in args), **kwargs or {}
        )


def write_adapter(name: str, adapter: AdapterPlan, plan: GraphPlan, change: Change, folder: Path) -> AdapterFacts:
    """Write an adapter's arrays by the names of the graph's inputs; BuildError for arrays that do not fit them.

    `change` makes them into those that the graph takes.
    """
    arrays = {key: change(key, _read(name, adapter, plan, key)) for key in _keys(name, adapter, plan)}
    file = f"{name}.adapter.npz"
    np.savez(folder / file, allow_pickle=False, **arrays)
    return AdapterFacts(file=file, graph=adapter.graph, rank=adapter.rank)


def adapter_feed(
    name: str | None, adapters: Mapping[str, AdapterPlan], plan: GraphPlan, change: Change | None = None
) -> Mapping[str, Later]:
    """What a graph that takes adapters is fed besides its own inputs: an adapter's arrays; zeros without one."""

    @lru_cache(maxsize=_KEPT)
    def read(key: str) -> Array:
        if name is None:
            return np.zeros(tuple(plan.examples[key].shape), np.float32)
        array = _read(name, adapters[name], plan, key)
        return array if change is None else change(key, array)

    keys = plan.adapter_inputs if name is None else _keys(name, adapters[name], plan)
    return {key: Later(partial(read, key)) for key in keys}


def _keys(name: str, adapter: AdapterPlan, plan: GraphPlan) -> tuple[str, ...]:
    if set(adapter.arrays) != set(plan.adapter_inputs):
        wrong = ", ".join(sorted(set(adapter.arrays) ^ set(plan.adapter_inputs)))
        raise BuildError(f"the adapter {name} and the {plan.name} graph do not agree on {wrong}")
    return plan.adapter_inputs


def _read(name: str, adapter: AdapterPlan, plan: GraphPlan, key: str) -> Array:
    array, wanted = adapter.arrays[key](), tuple(plan.examples[key].shape)
    if array.shape != wanted:
        raise BuildError(
            f"the adapter {name} has a {key} of shape {array.shape}, the {plan.name} graph takes {wanted}"
        )
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise BuildError(f"the adapter {name} has a {key} that is not finite fp32")
    return array

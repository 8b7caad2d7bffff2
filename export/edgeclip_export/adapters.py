"""Adapters of a bundle: their files, and the arrays that a graph is fed with one of them, or with none."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import BuildError
from edgeclip.manifest import AdapterFacts
from edgeclip_export.families.family import AdapterPlan, Arrays, GraphPlan

Changes = Mapping[str, Callable[[NDArray[Any]], NDArray[Any]]]


def write_adapter(name: str, adapter: AdapterPlan, plan: GraphPlan, changes: Changes, folder: Path) -> AdapterFacts:
    """Write an adapter's arrays by the names of the graph's inputs; BuildError for arrays that do not fit them.

    `changes` are functions that the narrowed graph wants arrays to go through, by their names.
    """
    arrays = adapter.read()
    _check(name, arrays, plan)
    arrays = change(arrays, changes)
    file = f"{name}.adapter.npz"
    np.savez(folder / file, allow_pickle=False, **arrays)
    return AdapterFacts(file=file, graph=adapter.graph, rank=adapter.rank)


def adapter_feed(name: str | None, adapters: Mapping[str, AdapterPlan], plan: GraphPlan) -> Arrays:
    """What a graph that takes adapters is fed besides its own inputs: an adapter's arrays; zeros without one."""
    if not plan.adapter_inputs:
        return {}
    if name is None:
        return {name: np.zeros(tuple(plan.examples[name].shape), np.float32) for name in plan.adapter_inputs}
    arrays = adapters[name].read()
    _check(name, arrays, plan)
    return arrays


def change(arrays: Arrays, changes: Changes) -> Arrays:
    """The arrays as a narrowed graph takes them."""
    return {name: changes[name](array) if name in changes else array for name, array in arrays.items()}


def _check(name: str, arrays: Arrays, plan: GraphPlan) -> None:
    wanted = {key: tuple(plan.examples[key].shape) for key in plan.adapter_inputs}
    found = {key: array.shape for key, array in arrays.items()}
    if found != wanted:
        raise BuildError(f"the adapter {name} has arrays {found}, the {plan.name} graph takes {wanted}")
    for key, array in arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise BuildError(f"the adapter {name} has a {key} that is not finite fp32")

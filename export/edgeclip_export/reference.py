"""The torch towers' answers to the self-test, with the weights of one layer in memory at a time.

A graph is proved by these answers: the same weights, computed by torch's own operators instead of onnxruntime's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgeclip.errors import BuildError
from edgeclip.host.malloc_bounds import trim
from edgeclip_export.adapters import Feed, Later
from edgeclip_export.families.family import GraphPlan, Progress


def answer(plan: GraphPlan, feeds: Sequence[Feed], progress: Progress) -> list[dict[str, NDArray[Any]]]:
    """The tower's outputs by name for each feed, a mapping of the graph's inputs.

    BuildError for an answer that is not finite, and for weights that are not those of the tower.
    """
    with torch.device("meta"):
        tower = plan.build().eval().requires_grad_(False)
    if wrong := tower.state_dict().keys() ^ plan.weights.keys():
        raise BuildError(f"the {plan.name} tower and its weights do not agree on {', '.join(sorted(wrong))}")
    done = 0

    def read(name: str) -> Tensor:
        nonlocal done
        done += 1
        progress(f"reading the {plan.name} tower", done, len(plan.weights))
        weight = plan.weights[name]
        # Rows of bf16 that meet fp32 become fp32, which is exact.
        return weight.read() if weight.table is None else weight.table.mapped()

    names = {id(module): name for name, module in tower.named_modules()}
    layers = tower.layers()
    in_layers = tuple(f"{names[id(layer)]}." for layer in layers)
    _load(tower, [name for name in plan.weights if not name.startswith(in_layers)], read)
    with torch.inference_mode():
        inputs = [[_tensor(feed[name]) for name in plan.examples] for feed in feeds]
        states = [tower.begin(*tensors) for tensors in inputs]
        for layer in layers:
            prefix = f"{names[id(layer)]}."
            _load(tower, [name for name in plan.weights if name.startswith(prefix)], read)
            states = [tower.step(layer, state) for state in states]
            layer.to_empty(device="meta")
            trim()  # malloc keeps what each layer leaves: 0.8 GB of 32 blocks of jina-embeddings-v4
        outputs = [tower.end(state) for state in states]
    answers = [_by_name(plan, output) for output in outputs]
    if not all(np.isfinite(array).all() for found in answers for array in found.values()):
        raise BuildError(
            f"the torch tower of the {plan.name} graph answers the self-test with NaN or infinity; the weights are "
            "not usable"
        )
    return answers


def _tensor(array: NDArray[Any] | Later) -> Any:
    """An input as a tower takes it; what is read later goes to functions of torch alone."""
    return array if isinstance(array, Later) else torch.from_numpy(array)


def _load(tower: nn.Module, names: Sequence[str], read: Callable[[str], Tensor]) -> None:
    """Give the tower these of its weights."""
    tower.load_state_dict({name: read(name) for name in names}, assign=True, strict=False)


def _by_name(plan: GraphPlan, output: Tensor | tuple[Tensor, ...]) -> dict[str, NDArray[Any]]:
    tensors: Mapping[str, Tensor] = dict(
        zip(plan.outputs, output if isinstance(output, tuple) else (output,), strict=True)
    )
    return {name: tensor.numpy() for name, tensor in tensors.items()}

"""What every tower has: a beginning, layers, and an end, so that it can be computed with one layer in memory."""

import abc
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor, nn

State = TypeVar("State")


class Tower(nn.Module, abc.ABC, Generic[State]):
    """A torch module that computes `begin`, then `step` for each of its `layers`, then `end`.

    The exporter traces `forward`, which names the graph's inputs and is `end` of `through`.
    `edgeclip_export.reference` computes layer by layer, with the weights of one layer in memory; parameters that
    belong to no layer are there all the time.
    """

    @abc.abstractmethod
    def layers(self) -> Sequence[nn.Module]:
        """The layers in the order in which they are computed."""

    @abc.abstractmethod
    def begin(self, *inputs: Tensor) -> State:
        """What the first layer takes, of the graph's inputs."""

    @abc.abstractmethod
    def step(self, layer: nn.Module, state: State) -> State:
        """What the next layer takes, of what this layer takes."""

    @abc.abstractmethod
    def end(self, state: State) -> Tensor | tuple[Tensor, ...]:
        """The graph's outputs, of what the last layer gave."""

    def through(self, *inputs: Tensor) -> State:
        """What the last layer gives."""
        state = self.begin(*inputs)
        for layer in self.layers():
            state = self.step(layer, state)
        return state

"""What the export asks of a family of models: plans of its graphs, and the facts that a bundle's manifest holds.

`edgeclip_export.families` lists the families. A family reads a checkpoint, and everything that is written follows
from the plans that it gives: `edgeclip_export.bundle` writes any of them and knows no family.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from edgeclip.manifest import ImageFacts, Modality, PatchFacts, Space, Spaces, TaskFacts, TextFacts
from edgeclip_export.checkpoint import TOKENIZER, Checkpoint
from edgeclip_graph.traits import Traits

if TYPE_CHECKING:  # a checkpoint is recognised without torch
    from torch import Tensor

    from edgeclip_export.towers.tower import Tower
    from edgeclip_export.towers.weights import Weights

Arrays = Mapping[str, NDArray[Any]]
# What is being done, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]
# A file that is needed, in each of the forms that it may have.
Forms = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A known repository on the Hub: the commit that is fetched when none is asked for, and its weights' licence.

    The licence is None where the model card is to say it.
    """

    revision: str
    license: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The files of a checkpoint besides config.json, as names below its folder.

    The tokenizer and each of `needed` must be there in one of its forms; of `optional` those are read that are there.
    `weights` are names that come before the usual ones, model.safetensors and its index.
    """

    weights: Forms = ()
    tokenizer: Forms = (TOKENIZER,)
    needed: tuple[Forms, ...] = ()
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One input of a graph in the self-test: a batch of one by the names of the graph's inputs, without adapter."""

    modality: Modality
    feed: Arrays
    adapter: str | None = None


# The answers of each graph so far, one mapping of outputs for each of its cases.
Answers = Mapping[str, Sequence[Arrays]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPlan:
    """One graph before it is traced.

    `build` makes the tower; it is called where tensors hold nothing. `examples` are the graph's inputs by name, in
    the order in which the tower takes them; `dynamic` names the axes that vary of each that has some, and those of
    an output that do not follow from the inputs'. `outputs` are the outputs' names, in order, and the space of each
    whose rows are vectors. `weights` are by the names of the tower's parameters and buffers. `adapter_inputs` are
    those of the inputs that an adapter's arrays are given by; without an adapter they are zeros. `cases` gives the
    graph's self-test, of what the graphs before it answered.
    """

    name: str
    build: "Callable[[], Tower[Any]]"
    examples: "Mapping[str, Tensor]"
    dynamic: Mapping[str, Mapping[int, str]]
    outputs: Mapping[str, Space | None]
    weights: "Weights"
    traits: Traits
    cases: Callable[[Answers], Sequence[Case]]
    adapter_inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPlan:
    """One adapter: the graph that takes it, its rank, its size, and functions that read its arrays (fp32) one by one,
    by the names of the graph's inputs.
    """

    graph: str
    rank: int
    size_bytes: int
    arrays: Mapping[str, Callable[[], NDArray[Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlan:
    """Everything that a bundle is made of.

    `tokenizer` is the text of tokenizer.json. `selftest` are the arrays of the self-test's file but for the answers:
    texts and tasks, images, and the graphs' inputs. `notes` are sentences on what of the checkpoint was not as in the
    official layout and was understood all the same, `layout` which of its layouts was found.
    """

    graphs: tuple[GraphPlan, ...]
    spaces: Spaces
    text: TextFacts | None
    image: ImageFacts | PatchFacts | None
    tokenizer: str | None
    selftest: Arrays
    layout: str
    notes: tuple[str, ...] = ()
    tasks: Mapping[str, TaskFacts] = field(default_factory=dict)
    task_required: bool = False
    adapters: Mapping[str, AdapterPlan] = field(default_factory=dict)


class Family(Protocol):
    """How the checkpoints of one family are recognised and read. Nothing imports torch before `open` is called."""

    @property
    def name(self) -> str:
        """The family's name in the manifest."""

    @property
    def models(self) -> str:
        """What people call its models, for messages: "jina-clip-v2"."""

    @property
    def repositories(self) -> Mapping[str, Repository]:
        """The family's repositories on the Hub that are known, by their ids."""

    def recognises(self, config: Mapping[str, Any]) -> bool:
        """Whether a parsed config.json is of this family."""

    def check(self, config: Mapping[str, Any], where: str) -> None:
        """BuildError, which names the place `where`, for a relative whose graphs cannot be made."""

    def needs(self, config: Mapping[str, Any]) -> Needs:
        """The files that its checkpoints have besides config.json, weights and tokenizer.json."""

    def tensor_shapes(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of a checkpoint in the official layout with this config.json."""

    def open(self, checkpoint: Checkpoint, task: str | None) -> AbstractContextManager[ModelPlan]:
        """Open a checkpoint's files and plan its bundle; weights are read while it is open.

        `task` names the one task whose adapter is merged. Raises BuildError for a checkpoint that is not as its
        config.json says, and for a task that the model does not have.
        """

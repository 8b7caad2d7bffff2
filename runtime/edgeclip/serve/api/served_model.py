"""What the served model can do, as far as requests depend on it. Everything comes from the bundle's manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from edgeclip.manifest import Manifest, Modality, Spaces, TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The abilities of a bundle. `vocabulary` is the number of its tokenizer's ids, 0 where it takes no texts.

    `tasks` are by name. With `has_adapters` a task changes the model, not only the text, so a task that it does not
    have must be an error and cannot be ignored. `max_length` is in tokens, the opening and closing one included.
    """

    modalities: tuple[Modality, ...]
    spaces: Spaces
    tasks: Mapping[str, TaskFacts]
    is_task_required: bool
    has_adapters: bool
    max_length: int | None
    vocabulary: int

    @classmethod
    def of(cls, manifest: Manifest, *, max_length: int | None, vocabulary: int) -> Self:
        """The abilities that a manifest states; `max_length` is the service's own limit of a text."""
        return cls(
            modalities=manifest.modalities,
            spaces=manifest.spaces,
            tasks=manifest.tasks,
            is_task_required=manifest.task_required,
            has_adapters=bool(manifest.adapters),
            max_length=max_length,
            vocabulary=vocabulary,
        )

    @property
    def dim(self) -> int:
        """The full dimension of a vector."""
        return self.spaces.single.dim

    @property
    def only_dims(self) -> tuple[int, ...] | None:
        """The only dimensions that vectors may be cut to; None where every number up to `dim` is allowed."""
        single = self.spaces.single
        return tuple(sorted({*single.matryoshka_dims, single.dim})) if single.is_strict else None

    def tasks_of(self, modality: Modality) -> tuple[str, ...]:
        """The names of the tasks that inputs of a modality can have."""
        return tuple(name for name, task in self.tasks.items() if modality in task.modalities)

    def task_of(self, task: str | None, modality: Modality) -> str | None:
        """The task of a request's inputs of this modality: None where the task is not for them."""
        return task if task is not None and modality in self.tasks[task].modalities else None

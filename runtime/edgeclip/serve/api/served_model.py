"""The abilities of the served model that requests depend on. All of them come from the bundle's manifest."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from edgeclip.inputs.patches import check_max_pixels
from edgeclip.manifest import Manifest, Modality, PatchFacts, Space, Spaces, TaskFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """The abilities of a bundle. `vocabulary` is the number of its tokenizer's ids, 0 where it takes no texts.

    `tasks` are by name. Without `refuses_other_tasks` a task that Jina's API has and this model does not changes
    nothing, as in Jina's API for jina-clip. `max_length` is in tokens, the opening and closing one included.
    `max_pixels` are those that a larger image is scaled down to; None for a model whose images all get one size.
    """

    modalities: tuple[Modality, ...]
    spaces: Spaces
    tasks: Mapping[str, TaskFacts]
    is_task_required: bool
    refuses_other_tasks: bool
    max_length: int | None
    vocabulary: int
    max_pixels: int | None = None

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        max_length: int | None,
        vocabulary: int,
        max_pixels: int | None = None,
        whole: Manifest | None = None,
    ) -> Self:
        """The abilities that a manifest states; `max_length` and `max_pixels` are the service's own limits.

        `whole` is the manifest of the whole bundle where one modality of it is served: it says what tasks mean.
        """
        return cls(
            modalities=manifest.modalities,
            spaces=manifest.spaces,
            tasks=manifest.tasks,
            is_task_required=manifest.task_required,
            # Where tasks are or were adapters, vectors of another task cannot be compared with those of this one.
            refuses_other_tasks=bool(manifest.adapters)
            or manifest.task_required
            or "image" not in (whole or manifest).modalities,
            max_length=max_length,
            vocabulary=vocabulary,
            max_pixels=_check_max_pixels(max_pixels, manifest),
        )

    @property
    def dim(self) -> int:
        """The full dimension of a single vector."""
        return self.spaces.single.dim

    def dim_of(self, space: Space) -> int:
        """The full dimension of the vectors of a space that the model gives."""
        if space == "single":
            return self.dim
        assert self.spaces.multi is not None
        return self.spaces.multi.dim

    @property
    def only_dims(self) -> tuple[int, ...] | None:
        """The only dimensions that vectors may be cut to; None where every number up to `dim` is allowed."""
        single = self.spaces.single
        return tuple(sorted({*single.matryoshka_dims, single.dim})) if single.is_strict else None

    @property
    def is_task_always_required(self) -> bool:
        """Whether no input of any modality can do without a task."""
        return self.is_task_required and all(map(self.tasks_of, self.modalities))

    def tasks_of(self, modality: Modality) -> tuple[str, ...]:
        """The names of the tasks that inputs of a modality can have."""
        return tuple(name for name, task in self.tasks.items() if modality in task.modalities)

    def task_of(self, task: str | None, modality: Modality) -> str | None:
        """The task of a request's inputs of this modality: None where the task is not for them."""
        return task if task is not None and modality in self.tasks[task].modalities else None


def _check_max_pixels(max_pixels: int | None, manifest: Manifest) -> int | None:
    """The pixels that images are scaled down to; InputError for a limit where the model has none."""
    if max_pixels is None and not isinstance(manifest.image, PatchFacts):
        return None
    return check_max_pixels(max_pixels, manifest.need_patches())

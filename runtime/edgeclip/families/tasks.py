"""Which task a caller means: its prompt, its adapter, and whether the model is right without one."""

from edgeclip.errors import InputError
from edgeclip.manifest import Manifest, Modality, TaskFacts

# Of a bundle that needs no task: no prompt, no adapter.
_NO_TASK = TaskFacts(prompt="", adapter=None, modalities=("text", "image"))


def find_task(manifest: Manifest, task: str | None, modality: Modality) -> TaskFacts:
    """The facts of a task, or of None: no prompt and no adapter.

    InputError for a task that the model does not have for this modality, and for None where it needs one.
    """
    known = manifest.tasks_of(modality)
    if task is None and not (manifest.task_required and known):
        return _NO_TASK
    if isinstance(task, str) and task in known:
        return manifest.tasks[task]
    if task is None:
        raise InputError(f"this model needs a task, one of {', '.join(map(repr, known))}")
    names = ", ".join(map(repr, known)) or f"none, this model has no tasks for {modality}s"
    wanted = "wanted" if manifest.task_required else "wanted None or"
    raise InputError(f"task is {task!r}, {wanted} one that the model knows: {names}")

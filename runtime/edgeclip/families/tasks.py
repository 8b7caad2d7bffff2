"""Which task a caller means: its prompt, its adapter, and whether the model is right without one.

Where the tasks of a model are languages, each is called by FLORES-200's code: eng_Latn, zho_Hans.
"""

import re
from collections.abc import Callable, Collection, Sequence

from edgeclip.errors import InputError
from edgeclip.manifest import Manifest, Modality, TaskFacts

# Of a bundle that needs no task: no prompt, no adapter.
_NO_TASK = TaskFacts(prompt="", adapter=None, modalities=("text", "image"))
# ISO 639-3 with the script of ISO 15924.
_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
# So many names stand in a message.
_MOST_NAMED = 12


def find_task(manifest: Manifest, task: str | None, modality: Modality) -> TaskFacts:
    """The facts of a task, or of None: no prompt and no adapter.

    InputError for a task that the model does not have for this modality, and for None where it needs one.
    """
    known = manifest.tasks_of(modality)
    if task is None and not (manifest.task_required and known):
        return _NO_TASK
    if isinstance(task, str) and task in known:
        return manifest.tasks[task]
    what = ", the code of a text's language" if are_languages(known) else ""
    if task is None:
        raise InputError(f"this model needs a task{what}, one of {list_tasks(known, show=repr)}")
    names = list_tasks(known, task, show=repr) or f"none, this model has no tasks for {modality}s"
    wanted = "wanted" if manifest.task_required else "wanted None or"
    raise InputError(f"task is {task!r}, {wanted} one that the model knows{what}: {names}")


def are_languages(names: Collection[str]) -> bool:
    """Whether these names of tasks are codes of languages."""
    return bool(names) and all(map(_LANGUAGE.fullmatch, names))


def list_tasks(names: Sequence[str], asked: object = None, *, show: Callable[[str], str] = str) -> str:
    """Names of tasks for a message; of many those that begin as the one that was asked for, or the first."""
    if len(names) <= _MOST_NAMED:
        return ", ".join(map(show, names))
    begin = asked.strip().lower() if isinstance(asked, str) else ""
    found = ([name for name in names if begin and name.lower().startswith(begin[:length])] for length in (3, 2))
    some = (next(filter(None, found), None) or names)[:_MOST_NAMED]
    return f"{', '.join(map(show, some))} and {len(names) - len(some)} more (`edgeclip inspect` lists them)"


def needed_task(manifest: Manifest, modality: Modality) -> str | None:
    """A task for inputs whose meaning does not matter: the first of the modality where the model needs one."""
    return next(iter(manifest.tasks_of(modality)), None) if manifest.task_required else None

"""What /v1/models says of the served model."""

from typing import Any

from edgeclip.manifest import Source
from edgeclip.serve.api.request_fields import JINA_TASKS
from edgeclip.serve.api.served_model import ServedModel


def model_entry(name: str, source: Source, model: ServedModel) -> dict[str, Any]:
    """OpenAI's fields of a model, and what edgeclip adds: what it takes, its tasks and its vectors.

    `dimensions` are those that the model was trained to be cut to. `max_length` stands there where it takes texts.
    """
    single, multi = model.spaces.single, model.spaces.multi
    spaces: dict[str, Any] = {
        "single": {
            "dim": single.dim,
            "matryoshka_dims": list(single.matryoshka_dims),
            "is_strict": single.is_strict,
        }
    }
    if multi is not None:
        spaces["multi"] = {"dim": multi.dim}
    ignored = () if model.has_adapters else JINA_TASKS
    entry: dict[str, Any] = {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": source.name.rpartition("/")[0] or "edgeclip",
        "modalities": list(model.modalities),
        "dimensions": list(single.matryoshka_dims),
        "spaces": spaces,
        "tasks": list(model.tasks),
        "task_required": model.is_task_required,
        "task_details": {
            task: {"prompt": facts.prompt, "adapter": facts.adapter, "modalities": list(facts.modalities)}
            for task, facts in model.tasks.items()
        },
        "tasks_without_instruction": [task for task in ignored if task not in model.tasks],
    }
    if model.max_length is not None:
        entry["max_length"] = model.max_length
    return entry

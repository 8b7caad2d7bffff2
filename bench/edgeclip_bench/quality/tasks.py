"""Choose the task of each text and image of an evaluation or of an mteb benchmark, by the kind of data.

A model whose tasks choose adapters is wrong for most data without one, so each kind of data has the task that mteb
gives jina-embeddings-v3 and jina-embeddings-v4 on it. A model whose tasks only put a prompt before a text, as
jina-clip-v2's, is judged as its authors did: without, unless the user asks for a task.
"""

from collections.abc import Mapping

from edgeclip.manifest import Manifest, Modality

QUERY, DOCUMENT, PAIR, CLASS = "retrieval.query", "retrieval.passage", "text-matching", "classification"
CODE, CODE_DOCUMENT = "code.query", "code.passage"
# By mteb's types of tasks; retrieval has queries and documents.
_OF_MTEB: Mapping[str, str] = {
    "STS": PAIR,
    "BitextMining": PAIR,
    "Summarization": PAIR,
    "Classification": CLASS,
    "MultilabelClassification": CLASS,
    "PairClassification": CLASS,
    "Clustering": "separation",
    "Reranking": "separation",
    "DocumentUnderstanding": QUERY,  # pages, which have no prompt: texts beside them have that of queries too
}


def chooses_adapters(manifest: Manifest) -> bool:
    """Say whether a task of this model is more than a prompt before a text: it chooses an adapter, or chose one."""
    return manifest.task_required or any(task.adapter is not None for task in manifest.tasks.values())


def default_task(manifest: Manifest, name: str, modality: Modality = "text") -> str | None:
    """The task of that name where tasks choose adapters and the model has it for the modality; else None."""
    return name if chooses_adapters(manifest) and name in manifest.tasks_of(modality) else None


def document_task(manifest: Manifest, query_task: str | None, modality: Modality = "text") -> str | None:
    """The task of what queries with that task find: "code.passage" for "code.query", "text-matching" for itself."""
    asked = query_task or QUERY
    return default_task(manifest, f"{asked.removesuffix('.query')}.passage", modality) or default_task(
        manifest, asked, modality
    )


def mteb_task(
    manifest: Manifest, kind: str, prompt_type: str | None, modality: Modality = "text", *, is_code: bool = False
) -> str | None:
    """The task of an input in an mteb task of that type; `prompt_type` is "query", "document" or None.

    A model that needs a task and lacks the type's own has that of pairs, which treats all inputs alike. Where mteb's
    task `is_code`, a model that has tasks of code uses them, whatever the type.
    """
    if is_code:
        is_passage = prompt_type == "document" and kind not in _OF_MTEB
        if own := default_task(manifest, CODE_DOCUMENT if is_passage else CODE, modality):
            return own
    if name := _OF_MTEB.get(kind):
        own = default_task(manifest, name, modality)
        return own or (default_task(manifest, PAIR, modality) if manifest.task_required else None)
    return default_task(manifest, DOCUMENT if prompt_type == "document" else QUERY, modality)

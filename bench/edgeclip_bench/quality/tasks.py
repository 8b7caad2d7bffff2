"""Choose the task of each text of an evaluation or of an mteb benchmark, by the kind of data.

A model whose tasks choose adapters is wrong for most data without one, so each kind of data has the task that mteb
gives jina-embeddings-v3 on it. A model whose tasks only put a prompt before a text, as jina-clip-v2's, is judged as
its authors did: without, unless the user asks for a task.
"""

from collections.abc import Mapping

from edgeclip.manifest import Manifest

QUERY, DOCUMENT, PAIR, CLASS = "retrieval.query", "retrieval.passage", "text-matching", "classification"
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
}


def chooses_adapters(manifest: Manifest) -> bool:
    """Say whether a task of this model is more than a prompt before a text."""
    return any(task.adapter is not None for task in manifest.tasks.values())


def default_task(manifest: Manifest, name: str) -> str | None:
    """The task of that name where tasks choose adapters and the model has it; else None."""
    return name if chooses_adapters(manifest) and name in manifest.tasks_of("text") else None


def document_task(manifest: Manifest, query_task: str | None) -> str | None:
    """The task of documents that are searched by queries with that task; None for no task."""
    return default_task(manifest, DOCUMENT if query_task in (None, QUERY) else query_task or DOCUMENT)


def mteb_task(manifest: Manifest, kind: str, prompt_type: str | None) -> str | None:
    """The task of a text in an mteb task of that type; `prompt_type` is "query", "document" or None."""
    if name := _OF_MTEB.get(kind):
        return default_task(manifest, name)
    return default_task(manifest, DOCUMENT if prompt_type == "document" else QUERY)

"""Tasks of mteb's own kinds on data made here, and the scores that an Encoder's vectors give in each, by hand."""

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import spearmanr

from edgeclip import Encoder

Vectors = NDArray[np.float32]

WORDS = ["the", "cat", "beach", "sunset", "query", "image", "over", "large", "night", "dog", "blue", "for", "1", "5"]


def make_texts(count: int, seed: int) -> list[str]:
    """Texts of 1 to 14 words, no two alike."""
    draw = np.random.default_rng(seed)
    return [
        f"{' '.join(draw.choice(WORDS, draw.integers(1, 15)))} {'cat ' * index}".strip() for index in range(count)
    ]


def make_images(count: int, seed: int) -> list[Image.Image]:
    """Noise of many sizes, in colour, in grey and with alpha."""
    draw = np.random.default_rng(seed)
    modes = ("RGB", "L", "RGBA")
    shapes = draw.integers(20, 90, (count, 2))
    pictures = [Image.fromarray(draw.integers(0, 256, (*shape, 3), dtype=np.uint8)) for shape in shapes]
    return [picture.convert(modes[index % 3]) for index, picture in enumerate(pictures)]


FIRST, SECOND = make_texts(23, 1), make_texts(23, 2)
GRADES = np.random.default_rng(3).uniform(0, 5, 23).tolist()
QUERIES, BODIES, TITLES = make_texts(9, 4), make_texts(41, 5), make_texts(41, 6)
IMAGES, LABELS, CLASSES = make_images(17, 7), make_texts(4, 8), [index % 4 for index in range(17)]
CAPTIONS = make_texts(17, 9)


def make_tasks(mteb: ModuleType) -> dict[str, Any]:
    """Five small tasks by name. mteb is imported here alone, once its caller has said where it may keep files."""
    from datasets import Dataset
    from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
    from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification

    def facts(name: str, kind: str, score: str, category: str) -> Any:
        letters = {"t": "text", "i": "image"}
        return mteb.TaskMetadata(
            name=name,
            description="made in memory",
            type=kind,
            category=category,
            modalities=[word for letter, word in letters.items() if letter in category],
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score=score,
            dataset={"path": "none", "revision": "none"},
        )

    def split(**columns: Any) -> dict[str, Dataset]:
        return {"test": Dataset.from_dict(columns)}

    def search(queries: dict[str, Any], corpus: dict[str, Any]) -> Any:
        found = {
            "queries": Dataset.from_dict({"id": names("q", queries), **queries}),
            "corpus": Dataset.from_dict({"id": names("d", corpus), **corpus}),
        }
        found["relevant_docs"] = relevance(len(found["queries"]), len(found["corpus"]))
        return {"default": {"test": found | {"top_ranked": None}}}

    class Loaded:
        dataset: Any
        data_loaded = True  # so mteb neither loads nor unloads it

    class Similarity(Loaded, AbsTaskSTS):
        metadata = facts("Similarity", "STS", "cosine_spearman", "t2t")
        min_score, max_score = 0, 5
        dataset = split(sentence1=FIRST, sentence2=SECOND, score=GRADES)

    class Texts(Loaded, AbsTaskRetrieval):
        metadata = facts("Texts", "Retrieval", "ndcg_at_10", "t2t")
        dataset = search({"text": QUERIES}, {"title": TITLES, "text": BODIES})

    class Pictures(Loaded, AbsTaskRetrieval):
        metadata = facts("Pictures", "Any2AnyRetrieval", "ndcg_at_10", "t2i")
        dataset = search({"text": QUERIES}, {"image": IMAGES})

    class Pages(Loaded, AbsTaskRetrieval):
        metadata = facts("Pages", "Any2AnyRetrieval", "ndcg_at_10", "i2it")
        dataset = search({"image": IMAGES[:5]}, {"image": IMAGES, "text": CAPTIONS})

    class Kinds(Loaded, AbsTaskZeroShotClassification):
        metadata = facts("Kinds", "ZeroShotClassification", "accuracy", "i2t")
        dataset = split(image=IMAGES, label=CLASSES)

        def get_candidate_labels(self) -> list[str]:
            return LABELS

    return {task.metadata.name: task() for task in (Similarity, Texts, Pictures, Pages, Kinds)}


def names(letter: str, columns: dict[str, Any]) -> list[str]:
    return [f"{letter}{index}" for index in range(len(next(iter(columns.values()))))]


def relevance(queries: int, documents: int) -> dict[str, dict[str, int]]:
    """Three graded documents for every query."""
    draw = np.random.default_rng(10)
    return {
        f"q{query}": {
            f"d{document}": int(draw.integers(1, 4)) for document in draw.choice(documents, 3, replace=False)
        }
        for query in range(queries)
    }


def unit(vectors: Vectors) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def ndcg_at_10(cosines: NDArray[np.float64]) -> float:
    """Järvelin and Kekäläinen 2002, with linear gains as trec_eval has them; to five decimals, as mteb gives it."""
    discount = 1 / np.log2(np.arange(2, 12))
    values = []
    for query, grades in enumerate(relevance(*cosines.shape).values()):
        gains = np.array([grades.get(f"d{document}", 0) for document in np.argsort(-cosines[query])[:10]])
        ideal = np.array(sorted(grades.values(), reverse=True))
        values.append((gains * discount).sum() / (ideal * discount[: len(ideal)]).sum())
    return round(float(np.mean(values)), 5)


def by_hand(encoder: Encoder, dim: int | None = None, query_task: str | None = None) -> dict[str, float]:
    """Every task's main score from the vectors alone."""

    def texts(inputs: list[str], task: str | None = None) -> NDArray[np.float64]:
        return unit(encoder.encode_text(inputs, task=task, truncate_dim=dim))

    images = unit(encoder.encode_image(IMAGES, truncate_dim=dim))
    queries = texts(QUERIES, query_task)
    documents = texts([f"{title} {body}" for title, body in zip(TITLES, BODIES, strict=True)])
    kinds = (images @ texts(LABELS).T).argmax(1)
    return {
        "Similarity": float(spearmanr(GRADES, (texts(FIRST) * texts(SECOND)).sum(1)).statistic),
        "Texts": ndcg_at_10(queries @ documents.T),
        "Pictures": ndcg_at_10(queries @ images.T),
        "Pages": ndcg_at_10(images[:5] @ unit((texts(CAPTIONS) + images).astype(np.float32)).T),
        "Kinds": float((kinds == CLASSES).mean()),
    }

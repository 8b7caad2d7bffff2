"""Small evaluation data made by hand, and bundles that answer a little differently."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from edgeclip.manifest import Manifest
from edgeclip_bench.quality.datasets import Caption, ClassificationData, ImageTextData, StsData, TextRetrievalData
from edgeclip_bench.quality.embeddings import Counts
from edgeclip_bench.quality.evaluate import BundleIdentity, Evaluation
from edgeclip_bench.quality.scores import DataScores, Score
from edgeclip_bench.quality.searches import Direction
from tests.scenes.damage import reseal

PICTURES = 12
LANGUAGES = ("en", "zh", "ar")
_WORDS = {"en": "picture {} of {}", "zh": "图片 {} 之 {}", "ar": "صورة {} من {}"}


def draw_images(folder: Path, count: int = PICTURES, side: int = 20) -> tuple[Path, ...]:
    """PNG files of noise, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = tuple(folder / f"{index:04d}.png" for index in range(count))
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side + 8, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def image_text(folder: Path) -> ImageTextData:
    """Two English captions an image; a Chinese one for every other; an Arabic one for the first four.

    The last image has no caption at all: texts search it, it searches none.
    """
    images = draw_images(folder)
    captions = []
    for index in range(len(images) - 1):
        spoken = ["en", "en", *(["zh"] if index % 2 else []), *(["ar"] if index < 4 else [])]
        captions += [
            Caption(text=_WORDS[language].format(index, place), image=index, language=language)
            for place, language in enumerate(spoken)
        ]
    return ImageTextData(name="pictures", images=images, captions=tuple(captions))


def text_retrieval() -> TextRetrievalData:
    """Queries 0 to 6, of which 5 has no right document, 6 was never judged; one document is not there."""
    grades = [(query, document, 1 + query % 2) for query in range(5) for document in (query, 3 * query + 7)]
    return TextRetrievalData(
        name="documents",
        corpus_ids=tuple(f"d{index}" for index in range(30)),
        corpus=[f"document {index} says {index * index}" for index in range(30)],
        query_ids=tuple(f"q{index}" for index in range(7)),
        queries=tuple(f"where is {index}" for index in range(7)),
        grades=(*grades, (0, 9, 0), (5, 3, 0), (2, 30, 2)),
    )


def sts() -> StsData:
    """Pairs, of which the first is equal."""
    return StsData(
        name="pairs",
        first=("one", "two dogs", "three", "four houses", "five", "six", "seven"),
        second=("one", "two cats", "a tree", "houses", "fife", "sechs", "all alone"),
        scores=(5.0, 3.0, 1.0, 4.0, 2.5, 2.5, 0.0),
        language="en",
    )


def classification(folder: Path) -> ClassificationData:
    """Images of seven classes, with two prompts each; one class has a brace in its name."""
    return ClassificationData(
        name="things",
        images=draw_images(folder),
        labels=tuple(index % 7 for index in range(PICTURES)),
        classes=("a cat", "a dog", "an {egg}", "a house", "a tree", "a hat", "a car"),
        templates=("{}", "a photo of {}"),
    )


def perturbed(bundle: Path, out: Path, *graphs: str, strength: float = 0.05) -> Path:
    """A copy whose weights are a little off, with a manifest that fits it."""
    shutil.copytree(bundle, out)
    draw = np.random.default_rng(0)
    for graph in graphs:
        path = out / f"{Manifest.read(bundle).graphs[graph].file}_data"
        weights = np.frombuffer(path.read_bytes(), np.float32).copy()
        path.write_bytes((weights * (1 + strength * draw.standard_normal(len(weights)))).astype(np.float32).tobytes())
    reseal(out)
    return out


def made_evaluation(
    *,
    name: str = "xtd10",
    languages: tuple[str, ...] = ("de", "en", "zh"),
    dims: tuple[int, ...] = (64, 256, 1024),
    directions: tuple[Direction | None, ...] = ("text_to_image", "image_to_text"),
    bundle: str = "bundles/jina-clip-v2-int8",
) -> Evaluation:
    """Figures that rise with the dim and from language to language; R@5 has published ones."""
    scores = [
        _made_score(metric, direction, language, dim, value=0.4 + 0.2 * place - 4 / dim)
        for dim in dims
        for direction in directions
        for metric, place in (("recall@1", 0), ("recall@5", 1))
        for language in (None, *(languages if len(languages) > 1 else ()))
    ]
    data = DataScores(
        name=name,
        label=name,
        kind="image-text retrieval",
        sizes={"images": 1000, "captions": 3000},
        languages=languages,
        task=None,
        item_task=None,
        embedded=Counts(inputs=4000, cached=3000, computed=900, repeated=100, cut=2),
        scores=tuple(scores),
    )
    return Evaluation(
        bundle=BundleIdentity(
            family="jina_clip",
            name=bundle,
            source="jinaai/jina-clip-v2",
            revision="abc",
            checkpoint_sha256="0" * 64,
            target="cpu",
            precision={"text": "int8", "vision": "fp32"},
            max_length=8192,
            files={},
        ),
        device="cpu",
        versions={"edgeclip": "0.1.0", "onnxruntime": "1.31.1"},
        machine={"processor": "a processor", "threads": 2},
        dims=dims,
        data=(data,),
    )


def _made_score(metric: str, direction: Direction | None, language: str | None, dim: int, *, value: float) -> Score:
    value += sum(map(ord, language)) % 13 / 100 if language else 0.045
    published = 0.6 if (metric, dim, direction) == ("recall@5", 1024, "text_to_image") else None
    return Score(
        metric=metric,
        direction=direction,
        language=language,
        is_overall=language is None,
        dim=dim,
        value=value,
        low=value - 0.02,
        high=value + 0.01,
        samples=1000 if language else 3000,
        kept=1 - 4 / dim,
        published=published,
        published_source="https://example.org/paper table 1" if published else None,
        difference=value - published if published else None,
    )

"""Judge page retrieval that is computed wrong on purpose: nDCG must see that it is worse.

Each is a mistake that ports of jina-embeddings-v4 make. The small trained document model is exported right, and then
run with one thing wrong at a time; all are judged by the same questions for the same pages.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder, MultiVectors
from edgeclip.engine.adapters import Adapters
from edgeclip.families import jina_embeddings_v4 as family
from edgeclip.families.family import Item
from edgeclip.inputs import patches
from edgeclip.inputs.patches import Grid
from edgeclip.manifest import PatchFacts
from edgeclip_bench.demo.pages import CHECKPOINT
from edgeclip_bench.demo.pages.dataset import PAGES, WrittenPage, write_pages
from edgeclip_bench.quality.damage import RIGHT, add_damage_arguments, save_damages
from edgeclip_bench.quality.metrics import ndcg_at, top_k
from edgeclip_export import export_checkpoint

_QUERY, _PASSAGE = "retrieval.query", "retrieval.passage"
_Array = NDArray[Any]


def _wrong_adapter(change: Callable[[str, _Array], _Array]) -> AbstractContextManager[object]:
    """Adapters whose arrays are changed by their names."""
    load = Adapters._load

    def wrong(adapters: Adapters, name: str | None) -> Mapping[str, _Array]:
        return {array: change(array, values) for array, values in load(adapters, name).items()}

    return patch.object(Adapters, "_load", wrong)


def _wrong_pooling(mask: Callable[[_Array, _Array], _Array]) -> AbstractContextManager[object]:
    """Images whose pooled tokens are chosen from the mask and the places of image features."""
    follow = family.JinaEmbeddingsV4.follow

    def wrong(self: family.JinaEmbeddingsV4, item: Item, outputs: Mapping[str, _Array]) -> Item | None:
        found = follow(self, item, outputs)
        if found is None:
            return None
        pooled = mask(found.arrays["pool_mask"], found.arrays["image_places"])
        return replace(found, arrays={**found.arrays, "pool_mask": pooled})

    return patch.object(family.JinaEmbeddingsV4, "follow", wrong)


def _flat_positions(grid: Grid, facts: PatchFacts, count: int) -> _Array:
    return np.tile(np.arange(count), (3, 1))


def _one_window(grid: Grid, facts: PatchFacts) -> tuple[_Array, _Array]:
    places = np.arange(grid.rows * grid.columns)
    return places[None], places


@contextmanager
def _raster_order() -> Iterator[None]:
    """Patches row by row of the image, where those of a token belong together."""
    cut = patches.cut_patches

    def wrong(*arguments: Any, **options: Any) -> tuple[_Array, Grid]:
        found, grid = cut(*arguments, **options)
        facts = arguments[1]
        positions = patches.patch_positions(grid, facts)
        order = np.lexsort((positions[:, 1], positions[:, 0]))
        return np.ascontiguousarray(found[order]), grid

    with patch.object(family, "cut_patches", wrong):
        yield


def _bilinear(pixels: _Array, size: tuple[int, int]) -> _Array:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


_windows = patches.group_windows
# What is wrong, and the task that questions are embedded by.
DAMAGES: Mapping[str, tuple[Callable[[], AbstractContextManager[object]], str]] = {
    "no adapter": (lambda: _wrong_adapter(lambda name, values: np.zeros_like(values)), _QUERY),
    "the adapters' scale ignored": (
        lambda: _wrong_adapter(lambda name, values: values / 2 if name.endswith("_b") else values),
        _QUERY,
    ),
    "no adapter at the projector": (
        lambda: _wrong_adapter(lambda name, values: values * (not name.startswith("lora_projector"))),
        _QUERY,
    ),
    "questions with the prompt of passages": (nullcontext, _PASSAGE),
    "positions of images as of texts": (lambda: patch.object(family, "_image_positions", _flat_positions), _QUERY),
    "patches in raster order": (_raster_order, _QUERY),
    "every block sees the whole image": (lambda: patch.object(family, "group_windows", _one_window), _QUERY),
    "windows of half the side": (
        lambda: patch.object(
            family,
            "group_windows",
            lambda grid, facts: _windows(grid, replace(facts, window_px=facts.window_px // 2)),
        ),
        _QUERY,
    ),
    "the whole prompt pooled": (lambda: _wrong_pooling(lambda mask, places: np.ones_like(mask)), _QUERY),
    "image tokens alone pooled": (
        lambda: _wrong_pooling(lambda mask, places: (places >= 0).astype(np.float32)),
        _QUERY,
    ),
    "bilinear resizing": (lambda: patch.object(patches, "resize_like_torch", _bilinear), _QUERY),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PageNdcg:
    """nDCG@5 of all questions, by single vectors and by multi vectors."""

    single: float
    multi: float


def judge_page_damages(
    bundle: Path, written: Sequence[WrittenPage], names: Sequence[str] = tuple(DAMAGES)
) -> dict[str, PageNdcg]:
    """The right computation and the named damages."""
    found = {}
    for name in (RIGHT, *names):
        wrong, task = (nullcontext, _QUERY) if name == RIGHT else DAMAGES[name]
        with wrong(), Encoder.open(bundle, device="cpu") as encoder:
            found[name] = judge_pages(encoder, written, task=task)
    return found


def judge_pages(encoder: Encoder, written: Sequence[WrittenPage], *, task: str = _QUERY) -> PageNdcg:
    """nDCG@5 of every page's question in every language; `task` is that of questions."""
    files = [one.file for one in written]
    texts = [text for one in written for text in one.texts.values()]
    grades = [
        {place: 1 for place, other in enumerate(written) if one.question.is_answered_by(other.page)}
        for one in written
        for _ in one.texts
    ]
    pages = MultiVectors.of(encoder.encode_image_multivector(files, task=_PASSAGE))
    scores = MultiVectors.of(encoder.encode_text_multivector(texts, task=task)).maxsim(pages)
    single, _ = top_k(encoder.encode_text(texts, task=task), encoder.encode_image(files, task=_PASSAGE), 5)
    multi = np.argsort(-scores, axis=1, kind="stable")[:, :5]
    return PageNdcg(single=float(ndcg_at(single, grades, 5).mean()), multi=float(ndcg_at(multi, grades, 5).mean()))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_damage_arguments(parser, "pages", PAGES)


def run(options: argparse.Namespace) -> int:
    """Judge every damage and write the figures."""

    def judge(folder: Path) -> dict[str, Any]:
        written = write_pages(folder / "pages", pages=options.pages, seed=options.seed)
        export_checkpoint(CHECKPOINT, folder / "bundle")
        found = judge_page_damages(folder / "bundle", written)
        return {name: {"single": round(one.single, 4), "multi": round(one.multi, 4)} for name, one in found.items()}

    return save_damages(options, __name__, "pages", "ndcg@5", judge)

"""The whole way on the small trained model: export, pictures nobody trained on, recall, a search, timings.

`edgeclip demo` shows what this finds. Everything is what a user does with the real model: the checkpoint has
jina-clip-v2's layout, the pictures are files, the quality is `edgeclip eval`'s.
"""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeclip import Encoder, Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.contact_sheet import Hit, Search, draw_contact_sheet
from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.evaluate import Evaluation, evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_export import export_checkpoint
from edgeclip_export.demo import CHECKPOINT
from edgeclip_export.demo.captions import captions
from edgeclip_export.demo.dataset import FAMILY, IMAGES, write_dataset
from edgeclip_export.demo.scenes import Scene

SHEET = "search.png"
_NAMES = {
    "en": "English",
    "zh": "Chinese",
    "ar": "Arabic",
    "hi": "Hindi",
    "ru": "Russian",
    "de": "German",
    "ja": "Japanese",
}
_FOUND = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A caption as a query, in which language, and the picture's place among what it found, from 1."""

    language: str
    text: str
    place: int
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What the demo found, and how long each stage took in seconds."""

    manifest: Manifest
    evaluation: Evaluation
    questions: tuple[Question, ...]
    sheet: Path
    seconds: dict[str, float]


def run_demo(folder: Path, *, threads: int | None = None, images: int = IMAGES, seed: int = 0) -> Demo:
    """Go the whole way in `folder`, which keeps the bundle, the pictures and the contact sheet.

    `images` pictures of combinations of shape, colour and side that are in no training picture, in families
    that differ in one attribute. Raises what export, evaluation and Encoder.open raise.
    """
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        seconds[stage] = time.perf_counter() - started

    def bar(stage: str) -> ProgressBar:
        return ProgressBar(stage, 1, is_shown=is_wanted(None))

    bundle, pictures = folder / "bundle", folder / "pictures"
    with timed("export"), bar("export") as shown:
        manifest = export_checkpoint(CHECKPOINT, bundle, progress=shown.show)
    with timed(f"draw {images} pictures"), bar("drawing pictures") as shown:
        scenes = write_dataset(pictures, images=images, family=FAMILY, seed=seed, progress=shown.show)
    (data,) = open_data(pictures)
    assert isinstance(data, ImageTextData)
    with timed("open the bundle"):
        encoder = Encoder.open(bundle, threads=threads)
    with encoder:
        with timed(f"recall over {len(data.captions)} captions and {images} pictures"):
            evaluation = evaluate(encoder, [data], cache=None)
        with timed("search"):
            questions, searches = _search(encoder, data, scenes)
    sheet = folder / SHEET
    with timed("lay out what was found"):
        note = f"{images} pictures of combinations that training never showed; the one that was meant has a frame"
        draw_contact_sheet(searches, title="edgeclip: text to image", note=note).save(sheet)
    return Demo(manifest=manifest, evaluation=evaluation, questions=questions, sheet=sheet, seconds=seconds)


def _search(
    encoder: Encoder, data: ImageTextData, scenes: list[Scene]
) -> tuple[tuple[Question, ...], tuple[Search, ...]]:
    """A caption of a picture in each of `_NAMES`, against all pictures."""
    pictures = encoder.encode_image(data.images, progress=False)  # (N, D)
    questions, searches = [], []
    for number, (language, name) in enumerate(_NAMES.items()):
        meant = (2 * number + 1) * len(scenes) // (2 * len(_NAMES))
        text = captions(scenes[meant], language)[0]
        started = time.perf_counter()
        cosines = pictures @ encoder.encode_text(text)  # (N,)
        latency_ms = (time.perf_counter() - started) * 1000
        best = np.argsort(-cosines, kind="stable")
        place = int(np.flatnonzero(best == meant)[0]) + 1
        questions.append(Question(language=language, text=text, place=place, latency_ms=latency_ms))
        hits = tuple(
            Hit(image=data.images[index], cosine=float(cosines[index]), is_right=index == meant)
            for index in best[:_FOUND]
        )
        searches.append(Search(asked=f"asked in {name}", label=captions(scenes[meant], "en")[0], hits=hits))
    return tuple(questions), tuple(searches)

"""The demo on the small trained model: export, int8, recall on pictures it was not trained on, a search, timings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.paired_timing import take_turns
from edgeclip_bench.demo import CHECKPOINT
from edgeclip_bench.demo.captions import captions
from edgeclip_bench.demo.contact_sheet import Hit, Search, draw_contact_sheet
from edgeclip_bench.demo.dataset import FAMILY, IMAGES, write_dataset
from edgeclip_bench.demo.scenes import Scene
from edgeclip_bench.demo.stages import Figures, Progress, check_families, compare_bundles, stage
from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.evaluate import open_embedder
from edgeclip_quant.budget import Budget

PICTURES, SHEET = "pictures", "search.png"
LANGUAGES = {
    "en": "English",
    "zh": "Chinese",
    "ar": "Arabic",
    "hi": "Hindi",
    "ru": "Russian",
    "de": "German",
    "ja": "Japanese",
}
_CALIBRATION_IMAGES = 100
_FOUND = 5
_TIMED = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A bundle's answer to a query: the rank, from 1, of the right picture, and the median time to find it."""

    place: int
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A caption as a query, its language, and the answers of fp32 and, where there is such a bundle, of int8."""

    language: str
    text: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The demo's results."""

    figures: Figures
    questions: tuple[Question, ...]
    sheet: Path


def run_demo(
    folder: Path,
    *,
    threads: int | None = None,
    images: int = IMAGES,
    seed: int = 0,
    budget: Budget | None = None,
) -> Demo:
    """Run all stages in `folder`, which keeps the bundles, the pictures and the contact sheet.

    There are `images` pictures of combinations of shape, colour and side that are in no training picture; int8 is
    calibrated on others. `budget` None is int8's own. Raises InputError for `images` that are no whole families.
    """
    check_families(images, FAMILY, "images")

    def draw(pictures: Path, others: Path, progress: Progress) -> list[Scene]:
        write = partial(write_dataset, seed=seed, progress=progress)
        scenes = write(pictures, images=images, family=FAMILY)
        write(others, split="validation", images=_CALIBRATION_IMAGES, family=1)
        return scenes

    with compare_bundles(
        folder,
        CHECKPOINT,
        draw,
        inputs=PICTURES,
        drawing=f"{images} pictures, and {_CALIBRATION_IMAGES} others",
        evaluating=f"recall over {images} pictures and their captions",
        threads=threads,
        budget=budget,
    ) as found:
        (data,) = found.data
        assert isinstance(data, ImageTextData)
        with stage(found.figures.seconds, "search"):
            questions, searches = _search(found.encoders, data, found.drawn, found.cache)
    sheet = folder / SHEET
    with stage(found.figures.seconds, "lay out what was found"):
        note = f"{images} pictures of combinations that training never showed; the one that was meant has a frame"
        title = f"edgeclip: text to image, {found.figures.precisions[-1]}"
        draw_contact_sheet(searches, title=title, note=note).save(sheet)
    return Demo(figures=found.figures, questions=questions, sheet=sheet)


def _search(
    encoders: Sequence[Encoder], data: ImageTextData, scenes: Sequence[Scene], cache: Path
) -> tuple[tuple[Question, ...], tuple[Search, ...]]:
    """Search all pictures with a caption in each of `LANGUAGES`; the last bundle's hits are those that are shown.

    The evaluation embedded the pictures, and its cache has their vectors.
    """
    pictures = []  # (N, D) of each bundle
    for encoder in encoders:
        with open_embedder(encoder, cache=cache) as embedder:
            pictures.append(embedder.images(data.images))
    questions, searches = [], []
    for number, (language, name) in enumerate(LANGUAGES.items()):
        meant = (2 * number + 1) * len(scenes) // (2 * len(LANGUAGES))
        text = captions(scenes[meant], language)[0]
        answers = []
        for encoder, vectors in zip(encoders, pictures, strict=True):
            cosines, latency_ms = _ask(encoder, vectors, text)
            best = np.argsort(-cosines, kind="stable")
            place = int(np.flatnonzero(best == meant)[0]) + 1
            answers.append(Answer(place=place, latency_ms=latency_ms))
        questions.append(Question(language=language, text=text, answers=tuple(answers)))
        hits = tuple(
            Hit(image=data.images[index], cosine=float(cosines[index]), is_right=index == meant)
            for index in best[:_FOUND]
        )
        searches.append(Search(asked=f"asked in {name}", label=captions(scenes[meant], "en")[0], hits=hits))
    return tuple(questions), tuple(searches)


def _ask(encoder: Encoder, pictures: NDArray[np.float32], text: str) -> tuple[NDArray[np.float32], float]:
    """The cosines (N,) of a query to all pictures, and the median milliseconds that it took."""

    def ask() -> NDArray[np.float32]:
        cosines: NDArray[np.float32] = pictures @ encoder.encode_text(text)  # (N,)
        return cosines

    times = take_turns({"": ask}, _TIMED, is_alone=False)[""]
    return ask(), float(np.median(times)) * 1000

"""The demo on the small trained model: export, int8, recall on pictures it was not trained on, a search, timings.

Every step is what a user does with the real model: the checkpoint has jina-clip-v2's layout, the pictures are files,
int8 comes from `edgeclip quantize --calibrate` and the quality from `edgeclip eval --against`.
"""

import contextlib
import functools
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder, Manifest
from edgeclip.engine.paired_timing import take_turns
from edgeclip.errors import BuildError, InputError
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.demo import CHECKPOINT
from edgeclip_bench.demo.captions import captions
from edgeclip_bench.demo.contact_sheet import Hit, Search, draw_contact_sheet
from edgeclip_bench.demo.dataset import FAMILY, IMAGES, write_dataset
from edgeclip_bench.demo.scenes import Scene
from edgeclip_bench.quality.against import Comparison, compare
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.evaluate import Evaluation, evaluate, open_embedder
from edgeclip_bench.quality.layouts import open_data
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle
from edgeclip_quant.budget import Budget
from edgeclip_quant.inputs.made_up import Samples

BUNDLE, INT8, PICTURES, CALIBRATION, SHEET = "bundle", "int8", "pictures", "calibration", "search.png"
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
class Smaller:
    """The int8 bundle, and its figures beside the fp32 one's on the pictures."""

    manifest: Manifest
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """The demo's results, and how long each stage took in seconds.

    `manifest` and `evaluation` are of fp32. `int8` is None where quantisation refused to write a bundle that lost
    more than its budget: then `refusal` says why.
    """

    manifest: Manifest
    evaluation: Evaluation
    int8: Smaller | None
    refusal: BuildError | None
    questions: tuple[Question, ...]
    sheet: Path
    seconds: dict[str, float]


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
    if images < 1 or images % FAMILY:
        raise InputError(f"{images} images: wanted whole families of {FAMILY}, so {FAMILY}, {2 * FAMILY}, ...")
    seconds: dict[str, float] = {}
    timed = functools.partial(stage_timer, seconds)
    bundle, pictures, others = folder / BUNDLE, folder / PICTURES, folder / CALIBRATION
    with timed("export"), progress_bar("export") as shown:
        manifest = export_checkpoint(CHECKPOINT, bundle, progress=shown.show)
    with (
        timed(f"draw {images} pictures, and {_CALIBRATION_IMAGES} others"),
        progress_bar("drawing pictures") as shown,
    ):
        scenes = write_dataset(pictures, images=images, family=FAMILY, seed=seed, progress=shown.show)
        write_dataset(
            others, split="validation", images=_CALIBRATION_IMAGES, family=1, seed=seed, progress=shown.show
        )
    (data,) = open_data(pictures)
    assert isinstance(data, ImageTextData)
    with timed("quantise to int8, calibrated on the others"), progress_bar("quantise") as shown:
        smaller, refusal = quantise(bundle, folder / INT8, read_samples(others, bundle, manifest), budget, shown)
    # What recall has embedded, the search need not embed again.
    with contextlib.ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeclip-demo-vectors-")))
        opened = [bundle, folder / INT8] if smaller else [bundle]
        encoders = [stack.enter_context(Encoder.open(one, threads=threads)) for one in opened]
        int8: Smaller | None = None
        with timed(f"recall over {len(data.captions)} captions and {images} pictures, of each bundle"):
            if smaller:
                comparison = compare(encoders[1], encoders[0], [data], cache=cache)
                evaluation, int8 = comparison.reference, Smaller(manifest=smaller, comparison=comparison)
            else:
                evaluation = evaluate(encoders[0], [data], cache=cache)
        with timed("search"):
            questions, searches = _search(encoders, data, scenes, cache)
    sheet = folder / SHEET
    with timed("lay out what was found"):
        note = f"{images} pictures of combinations that training never showed; the one that was meant has a frame"
        precision = "int8" if smaller else "fp32"
        draw_contact_sheet(searches, title=f"edgeclip: text to image, {precision}", note=note).save(sheet)
    return Demo(
        manifest=manifest,
        evaluation=evaluation,
        int8=int8,
        refusal=refusal,
        questions=questions,
        sheet=sheet,
        seconds=seconds,
    )


@contextlib.contextmanager
def stage_timer(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Note under the stage's name how long it takes."""
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def progress_bar(stage: str) -> ProgressBar:
    """A bar for the progress of a stage."""
    return ProgressBar(stage, 1, is_shown=is_wanted(None))


def quantise(
    bundle: Path, out: Path, samples: Samples, budget: Budget | None, shown: ProgressBar
) -> tuple[Manifest | None, BuildError | None]:
    """Make the int8 bundle; where it loses more than the budget allows, the error that says so instead."""
    try:
        return quantize_bundle(bundle, out, to="int8", samples=samples, budget=budget, progress=shown.show), None
    except BuildError as error:
        return None, error


def _search(
    encoders: Sequence[Encoder], data: ImageTextData, scenes: Sequence[Scene], cache: Path
) -> tuple[tuple[Question, ...], tuple[Search, ...]]:
    """Search all pictures with a caption in each of `LANGUAGES`; the last bundle's hits are those that are shown."""
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

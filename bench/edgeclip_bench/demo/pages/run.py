"""`edgeclip demo --pages`: export, int8, nDCG of pages that training never showed, and a picture of what was found.

Every step is what a user does with the real model: the checkpoint has jina-embeddings-v4's layout, pages are files,
int8 comes from `edgeclip quantize --calibrate` and the quality from `edgeclip eval --against`.
"""

import functools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder, Manifest, MultiVectors
from edgeclip.errors import BuildError, InputError
from edgeclip_bench.demo.dataset import CAPTIONS
from edgeclip_bench.demo.pages import CHECKPOINT
from edgeclip_bench.demo.pages.dataset import CORPUS, FAMILY, PAGES, QRELS, QUERIES, WrittenPage, write_pages
from edgeclip_bench.demo.pages.heat_map import Finding, Heat, draw_findings, heat_of
from edgeclip_bench.demo.run import BUNDLE, CALIBRATION, INT8, Smaller, progress_bar, quantise, stage_timer
from edgeclip_bench.quality.against import compare
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_bench.quality.evaluate import Evaluation, evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_export import export_checkpoint
from edgeclip_quant.budget import Budget

TEST, SHEET = "pages", "found.png"
QUERY, PASSAGE = "retrieval.query", "retrieval.passage"
POOLED = (2, 4)
# Shown in the picture, in scripts that its fonts have.
LANGUAGES = {"en": "English", "de": "German", "ru": "Russian", "el": "Greek"}
_CALIBRATION_PAGES = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Hottest:
    """How often the heat map is right: on `right` of `pages` answers the hottest token holds what was asked for.

    `by_chance` is the share of all image tokens that hold it.
    """

    pages: int
    right: int
    by_chance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PagesDemo:
    """The demo's results, and how long each stage took in seconds.

    `manifest` and `evaluation` are of fp32. `int8` is None where quantisation refused to write a bundle that lost
    more than its budget: then `refusal` says why.
    """

    manifest: Manifest
    evaluation: Evaluation
    int8: Smaller | None
    refusal: BuildError | None
    hottest: Hottest
    sheet: Path
    seconds: dict[str, float]


def run_pages_demo(
    folder: Path,
    *,
    threads: int | None = None,
    pages: int = PAGES,
    seed: int = 0,
    budget: Budget | None = None,
) -> PagesDemo:
    """Run all stages in `folder`, which keeps the bundles, the pages and the picture.

    There are `pages` pages with facts that are on no page of training; int8 is calibrated on others. `budget` None is
    int8's own. Raises InputError for `pages` that are no whole families.
    """
    if pages < 1 or pages % FAMILY:
        raise InputError(f"{pages} pages: wanted whole families of {FAMILY}, so {FAMILY}, {2 * FAMILY}, ...")
    seconds: dict[str, float] = {}
    stage = functools.partial(stage_timer, seconds)
    bundle, int8, calibration = folder / BUNDLE, folder / INT8, folder / CALIBRATION
    with stage("export"), progress_bar("export") as shown:
        manifest = export_checkpoint(CHECKPOINT, bundle, progress=shown.show)
    with stage(f"draw {pages} pages, and {_CALIBRATION_PAGES} others"), progress_bar("drawing pages") as shown:
        written = write_pages(folder / TEST, pages=pages, seed=seed, progress=shown.show)
        write_calibration(calibration, seed)
    with stage("quantise to int8, calibrated on the others"), progress_bar("quantise") as shown:
        smaller, refusal = quantise(bundle, int8, read_samples(calibration, bundle, manifest), budget, shown)
    data = open_data(folder / TEST)
    compared: Smaller | None = None
    with (
        tempfile.TemporaryDirectory(prefix="edgeclip-demo-vectors-") as cache,
        stage(f"nDCG over {pages} pages, of each bundle"),
        Encoder.open(bundle, threads=threads) as whole,
    ):
        if smaller:
            with Encoder.open(int8, threads=threads) as small:
                comparison = compare(small, whole, data, pooled=POOLED, cache=Path(cache))
            evaluation, compared = comparison.reference, Smaller(manifest=smaller, comparison=comparison)
        else:
            evaluation = evaluate(whole, data, pooled=POOLED, cache=Path(cache))
    with stage("search"), Encoder.open(int8 if smaller else bundle, threads=threads) as encoder:
        found = encoder.encode_image_multivector([one.file for one in written], task=PASSAGE)
        vectors = MultiVectors.of(found, dim=manifest.need_multi().dim)
        findings = find(encoder, written, vectors, range(pages), "en")
        pictured = []
        for place, language in enumerate(LANGUAGES):
            index = (2 * place + 1) * pages // (2 * len(LANGUAGES))
            pictured += find(encoder, written, vectors, [index], language)
    sheet = folder / SHEET
    with stage("draw what was found"):
        note = "the page found first, framed if it answers; red is where its image tokens match the question's"
        title = f"edgeclip: question to page, {'int8' if smaller else 'fp32'}"
        draw_findings(pictured, title=title, note=note).save(sheet)
    return PagesDemo(
        manifest=manifest,
        evaluation=evaluation,
        int8=compared,
        refusal=refusal,
        hottest=_judge_heat(findings),
        sheet=sheet,
        seconds=seconds,
    )


def write_calibration(folder: Path, seed: int) -> None:
    """Write other pages with their questions as captions, as `edgeclip quantize --calibrate` reads them."""
    written = write_pages(folder, split="validation", pages=_CALIBRATION_PAGES, seed=seed)
    with (folder / CAPTIONS).open("x", encoding="utf-8") as lines:
        for one in written:
            captions = {"image": one.file.name, "captions": one.texts}
            lines.write(json.dumps(captions, ensure_ascii=False) + "\n")
    for name in (CORPUS, QUERIES, QRELS):  # else the folder would be two data sets
        (folder / name).unlink()


def find(
    encoder: Encoder, written: Sequence[WrittenPage], pages: MultiVectors, asked: Sequence[int], language: str
) -> list[Finding]:
    """Search `pages`, the multi vectors of what was written, with the questions of the pages `asked`."""
    ones = [written[index] for index in asked]
    questions = encoder.encode_text_multivector([one.texts[language] for one in ones], task=QUERY)
    findings = []
    for one, question, scores in zip(ones, questions, questions.maxsim(pages), strict=True):
        best = int(scores.argmax())
        found = written[best]
        with Image.open(found.file) as file:
            heat = heat_of(question, pages[best], encoder.manifest, file.size)
        is_right = one.question.is_answered_by(found.page)
        findings.append(
            Finding(
                asked=f"asked in {LANGUAGES[language]}",
                question=one.texts[language],
                page=found.file,
                is_right=is_right,
                heat=heat,
                wanted=_wanted(one, found, heat) if is_right else None,
            )
        )
    return findings


def _wanted(asked: WrittenPage, found: WrittenPage, heat: Heat) -> NDArray[np.bool_]:
    """The image tokens (rows, columns) that hold the heading or a fact that was asked for."""
    rows, columns = heat.shape
    wanted = np.zeros(heat.shape, np.bool_)
    for mark in found.marks:
        if mark.fact is None or mark.fact in asked.question.facts:
            wanted[int(mark.y * rows), int(mark.x * columns)] = True
    return wanted


def _judge_heat(findings: Sequence[Finding]) -> Hottest:
    judged = [(one.heat, one.wanted) for one in findings if one.wanted is not None]
    return Hottest(
        pages=len(judged),
        right=sum(bool(wanted.flat[heat.argmax()]) for heat, wanted in judged),
        by_chance=float(np.mean([wanted.mean() for _, wanted in judged])) if judged else 0.0,
    )

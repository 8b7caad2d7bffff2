"""`edgeclip demo --pages`: export, int8, nDCG of pages that training never showed, a picture of what was found."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder, MultiVectors
from edgeclip_bench.demo.dataset import CAPTIONS, write_lines
from edgeclip_bench.demo.pages import CHECKPOINT
from edgeclip_bench.demo.pages.dataset import CORPUS, FAMILY, PAGES, QRELS, QUERIES, WrittenPage, write_pages
from edgeclip_bench.demo.pages.heat_map import Finding, Heat, draw_findings, heat_of
from edgeclip_bench.demo.stages import Figures, Progress, check_families, compare_bundles, stage
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
    """The demo's results."""

    figures: Figures
    hottest: Hottest
    sheet: Path


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
    check_families(pages, FAMILY, "pages")

    def draw(test: Path, others: Path, progress: Progress) -> list[WrittenPage]:
        written = write_pages(test, pages=pages, seed=seed, progress=progress)
        write_calibration(others, seed)
        return written

    with compare_bundles(
        folder,
        CHECKPOINT,
        draw,
        inputs=TEST,
        drawing=f"{pages} pages, and {_CALIBRATION_PAGES} others",
        evaluating=f"nDCG over {pages} pages",
        threads=threads,
        budget=budget,
        pooled=POOLED,
    ) as found:
        written, encoder = found.drawn, found.encoders[-1]
        with stage(found.figures.seconds, "search"):
            files = [one.file for one in written]
            vectors = MultiVectors.of(encoder.encode_image_multivector(files, task=PASSAGE))
            findings = find(encoder, written, vectors, range(pages), "en")
            pictured = []
            for place, language in enumerate(LANGUAGES):
                index = (2 * place + 1) * pages // (2 * len(LANGUAGES))
                pictured += find(encoder, written, vectors, [index], language)
    sheet = folder / SHEET
    with stage(found.figures.seconds, "draw what was found"):
        note = "the page found first, framed if it answers; red is where its image tokens match the question's"
        title = f"edgeclip: question to page, {found.figures.precisions[-1]}"
        draw_findings(pictured, title=title, note=note).save(sheet)
    return PagesDemo(figures=found.figures, hottest=_judge_heat(findings), sheet=sheet)


def write_calibration(folder: Path, seed: int) -> None:
    """Write other pages with their questions as captions, as `edgeclip quantize --calibrate` reads them."""
    written = write_pages(folder, split="validation", pages=_CALIBRATION_PAGES, seed=seed)
    write_lines(folder / CAPTIONS, ({"image": one.file.name, "captions": one.texts} for one in written))
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

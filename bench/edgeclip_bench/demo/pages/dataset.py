"""Write pages as files: corpus.jsonl, queries.jsonl in eight languages, qrels.jsonl, as `edgeclip eval` reads them.

The form is that of ViDoRe and Jina-VDR, with JSON lines instead of parquet and PNG files in images/.
"""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from edgeclip_bench.demo.dataset import add_drawing_arguments, new_data_set, write_lines
from edgeclip_bench.demo.families import SPLITS, Split
from edgeclip_bench.demo.pages.batches import GRIDS
from edgeclip_bench.demo.pages.contents import MAX_FAMILY, Page, draw_pages
from edgeclip_bench.demo.pages.drawing import Mark, draw_page
from edgeclip_bench.demo.pages.questions import LANGUAGES, Question, ask, word

CORPUS, QUERIES, QRELS = "corpus.jsonl", "queries.jsonl", "qrels.jsonl"
PAGES = 240
FAMILY = 12
_CELL_PX = (36, 64)  # larger than an image token, so pages are resized


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenPage:
    """A page of a data set, where things are on it, its file, and a question that it answers with its wordings."""

    page: Page
    marks: tuple[Mark, ...]
    file: Path
    question: Question
    texts: Mapping[str, str]


def write_pages(
    out: Path,
    *,
    split: Split = "test",
    pages: int = PAGES,
    family: int = FAMILY,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[WrittenPage]:
    """Write a data set with a question in each language for every page; return the pages in order.

    Pages are larger than the model sees them. Every page with the facts of a question is one of its answers. The same
    arguments give the same files. BuildError for arguments that cannot be, and an `out` that exists or cannot be
    written.
    """
    with new_data_set(out, count=pages, family=family, most=MAX_FAMILY, seed=seed, what="pages"):
        (out / "images").mkdir()
        return _write(out, split, pages, family, seed, progress)


def _write(
    out: Path, split: Split, count: int, family: int, seed: int, progress: Callable[[str, int, int], None]
) -> list[WrittenPage]:
    draw = np.random.default_rng((seed, 0, SPLITS.index(split)))
    source = draw_pages(split, draw, family=family)
    written = []
    for index in range(count):
        page = next(source)
        columns, rows = GRIDS[int(draw.integers(len(GRIDS)))]
        drawn = draw_page(page, draw, columns=columns, rows=rows, cell_px=int(draw.integers(*_CELL_PX)))
        file = out / "images" / f"{index:05}.png"
        Image.fromarray(drawn.pixels).save(file, compress_level=1)
        question = ask(page, draw)
        texts = {language: word(question, language, draw) for language in LANGUAGES}
        written.append(WrittenPage(page=page, marks=drawn.marks, file=file, question=question, texts=texts))
        progress("drawing pages", index + 1, count)
    write_lines(out / CORPUS, ({"corpus-id": one.file.stem, "image": one.file.name} for one in written))
    queries, qrels = [], []
    for one in written:
        answers = [other.file.stem for other in written if one.question.is_answered_by(other.page)]
        for language, text in one.texts.items():
            name = f"{one.file.stem}-{language}"
            queries.append({"query-id": name, "query": text, "language": language})
            qrels += [{"query-id": name, "corpus-id": answer, "score": 1} for answer in answers]
    write_lines(out / QUERIES, queries)
    write_lines(out / QRELS, qrels)
    return written


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_drawing_arguments(parser, "pages", count=PAGES, family=FAMILY)


def run(options: argparse.Namespace) -> int:
    """Write a data set."""
    write_pages(options.out, split=options.split, pages=options.pages, family=options.family, seed=options.seed)
    return 0

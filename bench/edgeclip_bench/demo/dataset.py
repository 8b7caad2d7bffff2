"""Write scenes as files: pictures and a captions.jsonl in every language, as `edgeclip eval` reads them."""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from edgeclip.errors import BuildError
from edgeclip_bench.demo.captions import LANGUAGES, caption
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.families import SPLITS, Split
from edgeclip_bench.demo.scenes import MAX_FAMILY, Scene, draw_scenes

CAPTIONS = "captions.jsonl"
IMAGES = 500
# Pictures in one family: a vector that finds its picture among the first five separates it from three quarters.
FAMILY = 20
_SHORT_SIDE_PX = (116, 256)
_MAX_ASPECT = 1.6


def write_dataset(
    out: Path,
    *,
    split: Split = "test",
    images: int = IMAGES,
    family: int = FAMILY,
    seed: int = 0,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[Scene]:
    """Write PNG files and captions.jsonl, with one caption per language for each; return the scenes in order.

    Pictures are larger than the model's input and seldom square, so resizing and cropping count. The same arguments
    give the same files. BuildError for arguments that cannot be, and an `out` that exists or cannot be written.
    """
    with new_data_set(out, count=images, family=family, most=MAX_FAMILY, seed=seed, what="images"):
        return _write(out, split, images, family, seed, progress)


@contextlib.contextmanager
def new_data_set(out: Path, *, count: int, family: int, most: int, seed: int, what: str) -> Iterator[None]:
    """Make the folder `out` for `count` drawn pictures or pages, in families of which one has at most `most`."""
    if count < 1 or not 1 <= family <= most or count % family:
        raise BuildError(f"{count} {what} are no whole families of {family}, of which one has at most {most}")
    if seed < 0:
        raise BuildError(f"seed is {seed}, wanted one from 0")
    try:
        out.mkdir(parents=True)
        yield
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror or error})") from error


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Write a new file of JSON lines."""
    with path.open("x", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _write(
    out: Path, split: Split, images: int, family: int, seed: int, progress: Callable[[str, int, int], None]
) -> list[Scene]:
    draw = np.random.default_rng((seed, 0, SPLITS.index(split)))
    source = draw_scenes(split, draw, family=family)
    scenes = [next(source) for _ in range(images)]
    rows = []
    for index, scene in enumerate(scenes):
        name = f"{index:05}.png"
        side = int(draw.integers(_SHORT_SIDE_PX[0], _SHORT_SIDE_PX[1] + 1))
        long = round(side * float(draw.uniform(1, _MAX_ASPECT)))
        width, height = (long, side) if draw.random() < 0.7 else (side, long)
        pixels = draw_picture(scene, draw, side_px=side, width_px=width, height_px=height)
        Image.fromarray(pixels).save(out / name, compress_level=1)
        rows.append({"image": name, "captions": {lang: [caption(scene, lang, draw)] for lang in LANGUAGES}})
        progress("drawing pictures", index + 1, images)
    write_lines(out / CAPTIONS, rows)
    return scenes


def add_drawing_arguments(parser: argparse.ArgumentParser, what: str, *, count: int, family: int) -> None:
    """Declare the arguments of a case that writes `count` drawn pictures or pages."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--split", choices=SPLITS, default="test", help="which combinations (test)")
    parser.add_argument(f"--{what}", type=int, default=count, help=f"how many ({count})")
    parser.add_argument("--family", type=int, default=family, help=f"how many differ in one attribute ({family})")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (0)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_drawing_arguments(parser, "images", count=IMAGES, family=FAMILY)


def run(options: argparse.Namespace) -> int:
    """Write a data set."""
    write_dataset(options.out, split=options.split, images=options.images, family=options.family, seed=options.seed)
    return 0

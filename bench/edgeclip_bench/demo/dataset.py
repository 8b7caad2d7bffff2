"""Write scenes as files: pictures and a captions.jsonl in every language, as `edgeclip eval` reads them."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from edgeclip.errors import BuildError
from edgeclip_bench.demo.captions import LANGUAGES, caption
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.scenes import MAX_FAMILY, SPLITS, Scene, Split, draw_scenes

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
    if images < 1 or not 1 <= family <= MAX_FAMILY or images % family:
        raise BuildError(f"{images} images are no whole families of {family}, of which one has at most {MAX_FAMILY}")
    if seed < 0:
        raise BuildError(f"seed is {seed}, wanted one from 0")
    try:
        out.mkdir(parents=True)
        return _write(out, split, images, family, seed, progress)
    except OSError as error:
        raise BuildError(f"{out}: cannot be written ({error.strerror or error})") from error


def _write(
    out: Path, split: Split, images: int, family: int, seed: int, progress: Callable[[str, int, int], None]
) -> list[Scene]:
    draw = np.random.default_rng((seed, 0, SPLITS.index(split)))
    source = draw_scenes(split, draw, family=family)
    scenes = [next(source) for _ in range(images)]
    with (out / CAPTIONS).open("x", encoding="utf-8") as lines:
        for index, scene in enumerate(scenes):
            name = f"{index:05}.png"
            side = int(draw.integers(_SHORT_SIDE_PX[0], _SHORT_SIDE_PX[1] + 1))
            long = round(side * float(draw.uniform(1, _MAX_ASPECT)))
            width, height = (long, side) if draw.random() < 0.7 else (side, long)
            pixels = draw_picture(scene, draw, side_px=side, width_px=width, height_px=height)
            Image.fromarray(pixels).save(out / name, compress_level=1)
            captions = {language: [caption(scene, language, draw)] for language in LANGUAGES}
            lines.write(json.dumps({"image": name, "captions": captions}, ensure_ascii=False) + "\n")
            progress("drawing pictures", index + 1, images)
    return scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder")
    parser.add_argument("--split", choices=get_args(Split), default="test", help="which combinations (test)")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"how many ({IMAGES})")
    parser.add_argument("--family", type=int, default=FAMILY, help=f"how many differ in one attribute ({FAMILY})")
    parser.add_argument("--seed", type=int, default=0, help="of the scenes (0)")


def run(options: argparse.Namespace) -> int:
    """Write a data set."""
    write_dataset(options.out, split=options.split, images=options.images, family=options.family, seed=options.seed)
    return 0

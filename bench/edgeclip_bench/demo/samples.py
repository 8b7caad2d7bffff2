"""Draw the sample pictures of the page that `edgeclip serve` shows, and hold its example texts.

The pictures are drawn once and kept as files in runtime/edgeclip/serve/web. The scenes are chosen by hand: every
shape, colour and background is shown, and half of them are combinations that the small model never saw in training.
The project drew them, so its own licence covers them.
"""

import argparse
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.scenes import Background, Group, Relation, Scene

_SIDE_PX = 256


def _scene(first: str, relation: Relation, second: str, background: Background) -> Scene:
    return Scene(first=_group(first), relation=relation, second=_group(second), background=background)


def _group(words: str) -> Group:
    count, *kinds = words.split()
    look: dict[str, Any] = dict(zip(("size", "texture", "colour", "shape"), kinds, strict=True))
    return Group(count=int(count), **look)


# By the name of the file, without its suffix.
SAMPLES: dict[str, Scene] = {
    "stars": _scene("3 small plain yellow star", "left_of", "1 large striped blue circle", "pink"),
    "hearts": _scene("2 large plain red heart", "above", "3 small dotted white ring", "turquoise"),
    "moon": _scene("1 large plain yellow crescent", "above", "3 large dotted green triangle", "grey"),
    "crosses": _scene("2 small striped purple cross", "right_of", "1 large plain white square", "turquoise"),
    "circles": _scene("3 large dotted orange circle", "below", "1 small plain black star", "grey"),
    "rings": _scene("1 large striped red ring", "left_of", "2 large plain yellow square", "brown"),
    "triangles": _scene("2 large plain black triangle", "left_of", "3 small plain red heart", "pink"),
    "squares": _scene("3 small dotted blue square", "above", "2 large striped orange star", "brown"),
    "white-star": _scene("1 large plain white star", "right_of", "3 small plain purple circle", "brown"),
    "purple-heart": _scene("1 large dotted purple heart", "below", "2 small plain green cross", "grey"),
    "blue-moons": _scene("2 large plain blue crescent", "right_of", "1 large plain orange heart", "pink"),
    "green-rings": _scene("3 large plain green ring", "above", "1 large striped black cross", "turquoise"),
}
# What the page offers to ask: the language, and the sample whose plainest caption it is.
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("en", "stars"),
    ("de", "hearts"),
    ("zh", "moon"),
    ("ar", "white-star"),
    ("hi", "blue-moons"),
)


def draw_sample(name: str) -> bytes:
    """The PNG file of a sample: a square picture without noise, the same each time."""
    draw = np.random.default_rng(list(SAMPLES).index(name))
    pixels = draw_picture(SAMPLES[name], draw, side_px=_SIDE_PX, width_px=_SIDE_PX, height_px=_SIDE_PX, is_clean=True)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, metavar="OUT", help="a folder that is there, as runtime/edgeclip/serve/web")


def run(options: argparse.Namespace) -> int:
    """Write the files into the folder that is named."""
    for name in SAMPLES:
        (options.out / f"sample-{name}.png").write_bytes(draw_sample(name))
    return 0

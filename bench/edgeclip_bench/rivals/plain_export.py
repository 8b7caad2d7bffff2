"""`edgeclip bench plain-export`: short for `edgeclip bench rivals --rivals plain`, with more shapes of texts."""

import argparse
from pathlib import Path

from edgeclip_bench.rivals import run as rivals
from edgeclip_bench.rivals.recipes import PLAIN

run = rivals.run
SHAPES: rivals.Shapes = ((1, 8, 40), (1, 16, 40), (1, 64, 20), (1, 512, 8), (16, 16, 8), (64, 16, 8))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    rivals.add_common_arguments(parser)
    parser.add_argument(
        "--plain", type=Path, dest="work", help="keep the plain graphs in this folder, or take them from it"
    )
    parser.set_defaults(rivals=PLAIN, smaller=[], prepare=False, shapes=SHAPES)

"""`edgeclip export-triton`: a bundle to a Triton Inference Server model repository."""

import argparse
import sys
from pathlib import Path

from edgeclip.bundle.files import open_manifest
from edgeclip.bundle.staging import check_place
from edgeclip.cli.arguments import add_bundle
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import format_bytes
from edgeclip.triton import export_triton, model_name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    parser.add_argument("out", metavar="OUT", type=Path, help="the repository to write; must not exist")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of each graph on the CPU (one per core)")


def run(options: argparse.Namespace) -> None:
    """Write the repository; an error says why not, and leaves nothing."""
    manifest = open_manifest(options.bundle)
    size, models = manifest.weight_bytes, " and ".join(map(model_name, manifest.graphs))
    check_place(options.out, size)  # before gigabytes are hashed
    with ProgressBar("hashing", size, is_shown=is_wanted(None)) as bar:
        export_triton(options.bundle, options.out, threads=options.threads or 0, progress=bar.advance)
    print(f"{options.out}: {models}, {format_bytes(size)}; see its README.md", file=sys.stderr)

"""`edgeclip export-triton`: a bundle to a Triton Inference Server model repository."""

import argparse
import sys

from edgeclip.bundle.files import open_manifest
from edgeclip.bundle.staging import check_place
from edgeclip.cli.format import format_bytes
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.triton import export_triton


def run(options: argparse.Namespace) -> None:
    """Write the repository; an error says why not, and leaves nothing."""
    size = open_manifest(options.bundle).weight_bytes
    check_place(options.out, size)  # before gigabytes are hashed
    with ProgressBar("hashing", size, is_shown=is_wanted(None)) as bar:
        export_triton(options.bundle, options.out, threads=options.threads or 0, progress=bar.advance)
    print(f"{options.out}: text_model and vision_model, {format_bytes(size)}; see its README.md", file=sys.stderr)

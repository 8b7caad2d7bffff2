"""`edgeclip export`: a checkpoint to a bundle."""

import argparse
import sys

from edgeclip.cli.format import format_bytes
from edgeclip.cli.loading import load_extra
from edgeclip.progress import ProgressBar, is_wanted


def run(options: argparse.Namespace) -> None:
    """Export, then say in one line what was written."""
    exporter = load_extra("edgeclip_export", "export")
    with ProgressBar("export", 1, is_shown=is_wanted(None)) as bar:
        manifest = exporter.export_checkpoint(
            options.checkpoint,
            options.out,
            target=options.target,
            revision=options.revision,
            progress=bar.show,
        )
    worst = max(measured.largest_difference for measured in manifest.measured)
    print(
        f"{options.out}: {format_bytes(manifest.weight_bytes)} for {manifest.target}, within {worst:.0e} of "
        f"the checkpoint; licence of the weights: {manifest.source.license or 'unknown'}",
        file=sys.stderr,
    )

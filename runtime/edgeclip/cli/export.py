"""`edgeclip export`: a checkpoint to a bundle."""

import argparse
import sys
from pathlib import Path

from edgeclip.host.installation import needs_extra
from edgeclip.manifest import TARGETS
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import format_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or a Hub id as jinaai/jina-clip-v2")
    parser.add_argument("out", metavar="OUT", type=Path, help="the bundle to write; must not exist")
    parser.add_argument("--target", choices=TARGETS, default="cpu", help="what the graphs are shaped for (cpu)")
    parser.add_argument(
        "--to",
        choices=("fp32", "int8", "int4"),
        default="fp32",
        help="write the graphs for cpu with fewer bits at once, without calibration (fp32)",
    )
    parser.add_argument("--revision", help="a commit, branch or tag of the Hub id")
    parser.add_argument(
        "--task", help="merge this task's adapter, for a bundle of this task alone (default: all tasks)"
    )


def run(options: argparse.Namespace) -> None:
    """Export, then say in one line what was written."""
    with needs_extra("export"):
        from edgeclip_export import export_checkpoint
    narrow = None
    if options.to != "fp32":
        with needs_extra("quant"):
            from edgeclip_quant import narrow_without_data
        narrow = narrow_without_data(options.to)
    layout = ""
    with ProgressBar("export", 1, is_shown=is_wanted(None)) as bar:

        def report(what: str, done: int, total: int) -> None:
            nonlocal layout
            if what.startswith("found "):
                layout = what
            if what.startswith("needs "):
                print(f"{options.out}: {what}", file=sys.stderr)
            bar.show(what, done, total)

        manifest = export_checkpoint(
            options.checkpoint,
            options.out,
            target=options.target,
            revision=options.revision,
            task=options.task,
            narrow=narrow,
            progress=report,
        )
    if options.to == "fp32":
        closeness = f"within {max(one.largest_difference for one in manifest.measured):.0e} of the checkpoint"
    else:
        worst = min(one.worst_cosine for one in manifest.measured if one.space == "single")
        closeness = f"as {options.to}, with a worst cosine of {worst:.5f} to the checkpoint"
    print(
        f"{options.out}: {layout}; {format_bytes(manifest.weight_bytes)} for {manifest.target}, {closeness}; licence "
        f"of the weights: {manifest.source.license or 'unknown'}",
        file=sys.stderr,
    )

"""Measure a family at full size, from nothing: what `make bench` runs and docs/figures.md quotes.

Draws a checkpoint of random weights, exports it for the CPU and quantises it to int8, each in a process of its own
(time and peak memory). jina-clip's bundle is then compared with its plain export, which other families do not have.
jina-clip-v2 needs 10 GB of disk, 8 GB of memory and a quarter of an hour on two cores.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from edgeclip.manifest import Manifest
from edgeclip_bench.families.random_checkpoint import LAYOUTS, write_checkpoint
from edgeclip_bench.latency.build_cost import describe, measure_build
from edgeclip_bench.measure.documents import make_document, save
from edgeclip_bench.measure.report_table import render_tables
from edgeclip_bench.rivals import plain_export
from edgeclip_bench.rivals.recipes import PLAIN
from edgeclip_bench.rivals.report import rival_tables
from edgeclip_bench.rivals.run import FAMILY, open_bundles, run_rivals


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("results", type=Path, help="the folder for the JSON")
    parser.add_argument("--family", choices=LAYOUTS, default="jina_clip", help="whose layout (jina_clip)")
    parser.add_argument("--work", type=Path, help="keep checkpoint, bundle and plain graphs here, or take them")


def run(options: argparse.Namespace) -> int:
    """Run all of it and leave the JSON in the results folder."""
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        checkpoint, bundle = work / "checkpoint", work / "bundle"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, LAYOUTS[options.family].full_config())
        _build(options.results / "export_full_size.json", "export", checkpoint, bundle)
        _build(options.results / "quantize_full_size.json", "quantize", bundle, work / "int8", "--to", "int8")
        if Manifest.read(bundle).family == FAMILY:
            entries = open_bundles(checkpoint, [bundle])
            report = run_rivals([PLAIN], checkpoint, entries, work / "plain", shapes=plain_export.SHAPES)
            print(render_tables(list(rival_tables(report))))
            save(report, options.results / "cpu_full_size.json")
    return 0


def _build(result: Path, verb: str, source: Path, out: Path, *options: str) -> None:
    """Write a bundle that is not there yet, and the JSON of its cost."""
    if not out.exists():
        cost = measure_build(verb, source, out, *options)
        print(cost, file=sys.stderr)
        save(make_document(__name__, describe(source, cost)), result)

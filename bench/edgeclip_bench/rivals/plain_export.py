"""A bundle beside the plain export of the same checkpoint, in one run on one machine.

The plain export is one of the rivals. Here it is the only one, texts have more shapes, and the memory that the
longest text takes is measured too.
"""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.engine.devices import usable_cpus
from edgeclip.tables import format_bytes
from edgeclip_bench.measure.documents import add_out, save
from edgeclip_bench.measure.report_table import render_tables
from edgeclip_bench.rivals.contenders import Resident, measure_resident
from edgeclip_bench.rivals.recipes import PLAIN
from edgeclip_bench.rivals.report import rival_tables
from edgeclip_bench.rivals.run import Entry, bundle_contender, open_bundles, run_rivals

# (batch, tokens, rounds)
_SHAPES = ((1, 8, 40), (1, 16, 40), (1, 64, 20), (1, 512, 8), (16, 16, 8), (64, 16, 8))
# Any id but those of special tokens.
_TOKEN = 7


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="the bundle of that checkpoint, for the CPU")
    parser.add_argument("--rounds", type=int, default=1, help="multiplies the rounds of every case (1)")
    parser.add_argument("--plain", type=Path, help="keep the plain graphs in this folder, or take them from it")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print the tables, write the JSON."""
    report = compare(options.checkpoint, options.bundle, plain=options.plain, rounds=options.rounds)
    print(render_tables(list(rival_tables(report))))
    for name, found in report["longest_text"].items():
        peak = format_bytes(found["peak_above_loaded_bytes"])
        print(f"\n{name}: a text of {found['tokens']} tokens takes {peak} more while it computes")
    save(report, options.out)
    return 0


def compare(checkpoint: Path, bundle: Path, *, plain: Path | None, rounds: int) -> dict[str, Any]:
    """The document of both. The plain graphs are kept in `plain` or taken from there; None: a temporary folder."""
    (entry,) = open_bundles(checkpoint, [bundle])
    report = run_rivals([PLAIN], checkpoint, [entry], plain, rounds=rounds, shapes=_SHAPES)
    longest: dict[str, Any] = {}
    if entry.manifest.text:
        tokens = entry.manifest.text.max_length
        longest[entry.name] = {"tokens": tokens, **asdict(weigh_text(entry, tokens))}
    return {**report, "longest_text": longest}


def weigh_text(entry: Entry, tokens: int) -> Resident:
    """The memory that a bundle's text graph takes for one text of so many tokens."""
    ids = np.full((1, tokens), _TOKEN, dtype=np.int64)
    return measure_resident(bundle_contender(entry, "text"), ids, usable_cpus())

"""`edgeclip prepack`: weights packed for this machine, kept in the cache folder until they are removed."""

import argparse
import dataclasses
import json
import sys

from edgeclip.cli.arguments import add_bundle, add_json
from edgeclip.engine.devices import usable_cpus
from edgeclip.engine.prepack.packing import pack_bundle, remove_packings
from edgeclip.manifest import MODALITIES
from edgeclip.tables import format_bytes, format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    parser.add_argument("--remove", action="store_true", help="remove what was kept of this bundle")
    parser.add_argument("--modality", choices=MODALITIES, help="pack the graphs of these inputs alone")
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Pack or remove, and print what was done."""
    if options.remove:
        freed = remove_packings(options.bundle)
        print(json.dumps({"freed_bytes": freed}) if options.json else f"{format_bytes(freed)} removed")
        return
    print("edgeclip: hashing, packing and comparing every graph", file=sys.stderr)
    packings = pack_bundle(options.bundle, usable_cpus(), options.modality)
    if options.json:
        found = [{**dataclasses.asdict(one), "folder": str(one.folder) if one.folder else None} for one in packings]
        print(json.dumps({"bundle": str(options.bundle), "graphs": found}))
        return
    rows = [
        (one.graph, format_bytes(one.shared_bytes), format_bytes(one.size_bytes), str(one.folder))
        if one.folder
        else (one.graph, "-", "-", "nothing to keep: its weights are shared as they are, or cannot be")
        for one in packings
    ]
    print(format_table(("graph", "shared by processes", "on disk", "where"), rows))

"""Arguments that several verbs of the command line have in common, each worded once."""

import argparse
from pathlib import Path

from edgeclip.engine.devices import DEVICES


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """BUNDLE, the folder that a verb works on."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the folder of a bundle")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """--recursive and --skip-broken, for a verb that reads a folder of images."""
    parser.add_argument("--recursive", action="store_true", help="the images in the folder's subfolders too")
    parser.add_argument(
        "--skip-broken", action="store_true", help="go on after an image that cannot be read; exit 1 at the end"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """--device and --threads, for a verb that opens a bundle."""
    parser.add_argument("--device", default="auto", help=f"{DEVICES} (auto)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads (all that may be used; 1 where graphs are tiny)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json, for a verb that prints a table."""
    parser.add_argument("--json", action="store_true", help="JSON instead of a table")

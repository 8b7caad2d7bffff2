"""`edgeclip demo`: the whole way on the small trained model that ships with the package."""

import argparse
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeclip.cli.format import format_bytes, format_table
from edgeclip.cli.loading import load_extra
from edgeclip.errors import InputError

_DIRECTIONS = {"text_to_image": "text to image", "image_to_text": "image to text"}
_METRIC = "recall@5"


def run(options: argparse.Namespace) -> None:
    """Go the whole way in a temporary folder, or in the one to keep, and leave the contact sheet."""
    _check_sheet(options.sheet)
    demo = load_extra("edgeclip_bench.demo", "bench")
    with _folder(options.keep) as folder:
        found = demo.run_demo(folder, threads=options.threads)
        _copy(found.sheet, options.sheet)
    _print(found)
    print(f"\n{options.sheet}: what the questions found, as pictures", file=sys.stderr)
    if options.keep:
        print(
            f"{options.keep}: bundle and pictures; try `edgeclip eval {options.keep}/bundle {options.keep}/pictures`",
            file=sys.stderr,
        )


def _print(found: Any) -> None:
    manifest, evaluation = found.manifest, found.evaluation
    (data,) = evaluation.data
    print(
        f"A small model of jina-clip-v2's kind, trained on drawn scenes: "
        f"{manifest.text.parameters + manifest.vision.parameters:,} parameters, "
        f"a bundle of {format_bytes(manifest.weight_bytes)}, running on {evaluation.device}.\n"
        f"{data.sizes['images']} pictures of combinations that training never showed, in families that differ in one "
        f"attribute,\nand {data.sizes['captions']} captions in {len(data.languages)} languages.\n"
    )
    recall = {(one.direction, one.language, one.dim): one.value for one in data.scores if one.metric == _METRIC}
    dims = sorted(evaluation.dims, reverse=True)
    for direction, title in _DIRECTIONS.items():
        rows = [
            (language or "all", *(f"{recall[direction, language, dim]:.3f}" for dim in dims))
            for language in (*data.languages, None)
        ]
        print(format_table((f"{_METRIC}, {title}", *(f"{dim} dims" for dim in dims)), rows), end="\n\n")
    rows = [(one.text, one.language, str(one.place), f"{one.latency_ms:.1f}") for one in found.questions]
    print(format_table(("asked", "language", "place of what was meant", "ms"), rows), end="\n\n")
    stages = [(stage, f"{seconds:.2f}") for stage, seconds in found.seconds.items()]
    print(format_table(("where the time went", "seconds"), stages))


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="edgeclip-demo-") as folder:
            yield Path(folder)
        return
    try:
        keep.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--keep {keep}: cannot be made ({error.strerror})") from error
    yield keep


def _check_sheet(sheet: Path) -> None:
    if sheet.is_dir():
        raise InputError(f"--sheet {sheet}: is a folder")
    if not sheet.parent.is_dir():
        raise InputError(f"--sheet {sheet}: there is no folder {sheet.parent}")


def _copy(source: Path, sheet: Path) -> None:
    try:
        shutil.copyfile(source, sheet)
    except OSError as error:
        raise InputError(f"--sheet {sheet}: cannot be written ({error.strerror})") from error

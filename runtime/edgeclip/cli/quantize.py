"""`edgeclip quantize`: a bundle to a smaller bundle that is proved against it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from edgeclip.bundle import open_manifest
from edgeclip.cli.format import format_bytes
from edgeclip.cli.loading import load_extra
from edgeclip.errors import InputError
from edgeclip.images import IMAGE_SUFFIXES
from edgeclip.jina_clip import preprocess_image
from edgeclip.manifest import Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tokenization import TextTokenizer


def run(options: argparse.Namespace) -> None:
    """Quantise, then say in one line what was written and what it cost."""
    quantizer = load_extra("edgeclip_quant", "quant")
    source = open_manifest(options.bundle)
    samples = _read_samples(options.calibrate, options.bundle, source) if options.calibrate else None
    with ProgressBar("quantise", 1, is_shown=is_wanted(None)) as bar:
        manifest = quantizer.quantize_bundle(
            options.bundle, options.out, samples=samples, worst_cosine=options.worst_cosine, progress=bar.show
        )
    proved = manifest.measured[-2:]
    cosines = ", ".join(f"{one.tower} {one.worst_cosine:.4f}" for one in proved)
    print(
        f"{options.out}: {format_bytes(manifest.weight_bytes)}, was {format_bytes(source.weight_bytes)}; "
        f"worst cosine on {proved[0].data}: {cosines}",
        file=sys.stderr,
    )


def _read_samples(folder: Path, bundle: Path, manifest: Manifest) -> Any:
    """The images of a folder, and the lines of its .txt files as texts."""
    sampling = load_extra("edgeclip_quant.samples", "quant")
    try:
        paths = sorted(folder.iterdir())
        lines = [
            line
            for path in paths
            if path.suffix == ".txt"
            for line in path.read_text(encoding="utf-8-sig").splitlines()
            if line.strip()
        ]
    except OSError as error:
        raise InputError(f"--calibrate {folder}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--calibrate {folder}: a .txt is not UTF-8 ({error.reason})") from error
    images = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(lines) < 2 or len(images) < 2:
        raise InputError(
            f"--calibrate {folder}: {len(images)} images and {len(lines)} lines in .txt files, "
            "wanted 2 of each or more"
        )
    rows, _ = TextTokenizer(bundle / manifest.tokenizer.file, manifest.tokenizer).encode(lines, None)
    return sampling.Samples(
        name=folder.name,
        text=tuple(row[None] for row in rows),
        vision=tuple(preprocess_image(str(path), manifest.image, label=str(path))[None] for path in images),
    )

"""`edgeclip demo`: checkpoint, export, embeddings, similarities, and where the time went.

Until a small trained model ships with the package, the checkpoint is tiny and its weights are random:
the way is the real one, the similarities mean nothing, and the demo says so.
"""

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip.cli.format import format_bytes, format_table
from edgeclip.cli.loading import load_extra
from edgeclip.encoder import Encoder
from edgeclip.errors import InputError
from edgeclip.progress import ProgressBar, is_wanted

_TEXTS = ("a red circle", "ein blaues Quadrat", "三角形 verde", "دائرة حمراء")
_SIDE_PX = 160


def run(options: argparse.Namespace) -> None:
    """Go the whole way in a temporary folder, or in the one to keep."""
    exporter = load_extra("edgeclip_export", "export")
    checkpoints = load_extra("edgeclip_bench.checkpoint", "bench")
    times: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        times[stage] = time.perf_counter() - started

    with _folder(options.keep) as folder:
        with timed("make a checkpoint"):
            checkpoints.write_checkpoint(folder / "checkpoint", checkpoints.tiny_config())
        with timed("export"), ProgressBar("export", 1, is_shown=is_wanted(None)) as bar:
            manifest = exporter.export_checkpoint(folder / "checkpoint", folder / "bundle", progress=bar.show)
        with timed("draw pictures"):
            pictures = _draw(folder / "pictures")
        with timed("open the bundle"):
            encoder = Encoder.open(folder / "bundle", threads=options.threads)
        with encoder:
            with timed(f"embed {len(_TEXTS)} texts"):
                texts = encoder.encode_text(_TEXTS)
            with timed(f"embed {len(pictures)} images"):
                images = encoder.encode_image(pictures)
            device = encoder.device
    parameters = manifest.text.parameters + manifest.vision.parameters
    print("A tiny checkpoint of random weights: the similarities below mean nothing.")
    print(f"{parameters:,} parameters, bundle of {format_bytes(manifest.weight_bytes)}, running on {device}\n")
    names = [path.name for path in pictures]
    rows = [
        (text, *(f"{similarity:+.3f}" for similarity in row))
        for text, row in zip(_TEXTS, texts @ images.T, strict=True)
    ]
    print(format_table(("cosine similarity", *names), rows))
    print()
    print(format_table(("where the time went", "seconds"), [(stage, f"{s:.3f}") for stage, s in times.items()]))
    if options.keep:
        print(f"\ncheckpoint, bundle and pictures are in {options.keep}", file=sys.stderr)


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


def _draw(folder: Path) -> list[Path]:
    """Three small pictures as PNG files."""
    from PIL import Image

    y, x = np.mgrid[0:_SIDE_PX, 0:_SIDE_PX] - _SIDE_PX // 2
    shapes: dict[str, tuple[NDArray[np.bool_], tuple[int, int, int]]] = {
        "circle.png": (x**2 + y**2 < 50**2, (220, 30, 40)),
        "square.png": ((abs(x) < 45) & (abs(y) < 45), (40, 70, 210)),
        "triangle.png": ((y > -40) & (y < 45) & (abs(x) < (y + 40) / 2), (40, 160, 70)),
    }
    folder.mkdir()
    for name, (inside, colour) in shapes.items():
        pixels = np.where(inside[..., None], np.array(colour), np.array((245, 245, 240))).astype(np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return [folder / name for name in shapes]

"""A folder of photos beside its pixels: what reading, decoding and resizing add to the graph's own time.

JPEG files of 1 to 2 megapixels are made, noise scaled up so that they compress as photos do. Three measurements take
turns: the vision graph on pixels that were made beforehand; `encode_image` on the paths, which decodes the next image
while one computes; and `encode_image` on each path by itself. The ratios are to the first, round by round.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip import Encoder
from edgeclip.engine.paired_timing import take_turns
from edgeclip.families.tasks import needed_task
from edgeclip.tables import format_table
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

# Sizes of cameras' small pictures, 1.0 to 1.9 megapixels.
_SIZES = ((1200, 900), (1600, 1200), (1500, 1000), (1000, 1000))
_GRAIN = 4
_PURE = "pixels made beforehand"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    with (
        tempfile.TemporaryDirectory() as scratch,
        Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder,
    ):
        encoder.manifest.check_modality("image")
        encoder.keep_features(0)  # the same photos are run in every round
        figures = measure(encoder, write_photos(Path(scratch), options.images), rounds=options.rounds)
    report = make_document(__name__, {"bundle": options.bundle.name, **figures})
    save(report, options.out)
    rows = [
        (way, f"{found['images_per_s']:.2f}", f"{found['ratio_median']:.3f}") for way, found in report["ways"].items()
    ]
    print(format_table(("way", "images/s", "time to pixels'"), rows))
    return 0


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write `count` JPEG files."""
    draw = np.random.default_rng(0)
    paths = [folder / f"{index}.jpg" for index in range(count)]
    for index, path in enumerate(paths):
        path.write_bytes(encode_file(made_up_picture(_SIZES[index % len(_SIZES)], draw, blotch_px=_GRAIN)))
    return paths


def measure(encoder: Encoder, paths: Sequence[Path], *, rounds: int) -> dict[str, Any]:
    """The figures of the three measurements on the same files."""
    task = needed_task(encoder.manifest, "image")
    items = [encoder.prepare_image(path, task=task) for path in paths]
    ways: dict[str, Callable[[], Any]] = {
        _PURE: lambda: [encoder.run_items([one]) for one in items],
        "files, the next decoded meanwhile": lambda: encoder.encode_image(paths, task=task, progress=False),
        "files, one after another": lambda: [encoder.encode_image(path, task=task) for path in paths],
    }
    encoder.run_items(items[:1])
    seconds = take_turns(ways, rounds, is_alone=False)
    return {
        "device": encoder.device,
        "precision": encoder.manifest.first_graph("image").precision,
        "images": len(paths),
        "file_bytes": sum(path.stat().st_size for path in paths),
        "rounds": rounds,
        "ways": {
            way: {
                "seconds": times.tolist(),
                "images_per_s": len(paths) / float(np.median(times)),
                "ratio_median": float(np.median(np.divide(times, seconds[_PURE]))),
            }
            for way, times in seconds.items()
        },
    }

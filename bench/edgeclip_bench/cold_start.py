"""From nothing to the first vector: how long a process that has just been started takes to answer.

    python -m edgeclip_bench.cold_start BUNDLE [--device cpu] [--rounds 7] [--out FILE.json]

Every round is a process of its own, once for a text and once for an image, and counts from the moment that its parent
starts it: Python itself, `import edgeclip`, `Encoder.open`, the first vector, and, to compare, the second. A round
before the first reads the files, so what is measured is with a warm page cache; a disk has its own speed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip.cli.format import format_table
from edgeclip.manifest import TOWERS, Manifest, TowerName
from edgeclip_bench.machine import machine

BENCHMARK = "edgeclip_bench.cold_start"
STEPS = ("python", "import", "open", "first_vector")
TEXT = "a red bicycle on the road by the sea"
PHOTO_PX = (1200, 800)

# Moments are CLOCK_MONOTONIC's, which processes share.
_PROGRAM = """if True:
    import json, sys, time
    moments = [time.monotonic()]
    from edgeclip import Encoder
    moments.append(time.monotonic())
    folder, device, tower, what = sys.argv[1:]
    encoder = Encoder.open(folder, device=device)
    moments.append(time.monotonic())
    encode = encoder.encode_text if tower == "text" else encoder.encode_image
    for _ in range(2):
        assert encode(what).any()
        moments.append(time.monotonic())
    print(json.dumps(moments))
"""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m edgeclip_bench.cold_start", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="processes for each tower (7)")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(arguments)
    report = measure(options.bundle, device=options.device, rounds=options.rounds)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rows = [
        (tower, *(f"{found['median_ms'][step]:.0f}" for step in ROWS)) for tower, found in report["towers"].items()
    ]
    print(format_table(("median ms", *(step.replace("_", " ") for step in ROWS)), rows))
    return 0


ROWS = (*STEPS, "total", "second_vector")


def measure(bundle: Path, *, device: str, rounds: int) -> dict[str, Any]:
    """The JSON document; raises subprocess.CalledProcessError when a process fails, its words on stderr."""
    manifest = Manifest.read(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        inputs: dict[TowerName, str] = {"text": TEXT, "vision": str(_photo(Path(scratch) / "photo.jpg"))}
        towers = {}
        for tower in TOWERS:
            found = [start(bundle, device, tower, inputs[tower]) for _ in range(rounds + 1)][1:]
            towers[tower] = {
                "precision": manifest.tower(tower).precision,
                "median_ms": {step: float(np.median([one[step] for one in found])) for step in ROWS},
                "slowest_total_ms": max(one["total"] for one in found),
                "rounds": found,
            }
    return {
        "benchmark": BENCHMARK,
        "machine": machine(),
        "bundle": bundle.name,
        "device": device,
        "tokenizer_bytes": manifest.file(manifest.tokenizer.file).size_bytes,
        "rounds": rounds,
        "towers": towers,
    }


def start(bundle: Path, device: str, tower: TowerName, what: str) -> Mapping[str, float]:
    """One process: milliseconds of every step, of all of them up to the first vector, and of the second vector."""
    command = [sys.executable, "-c", _PROGRAM, str(bundle), device, tower, what]
    begun = time.monotonic()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return split(begun, json.loads(done.stdout))


def split(begun: float, moments: Sequence[float]) -> Mapping[str, float]:
    """Milliseconds between the moments, in seconds, of a process that was started at `begun`."""
    ends = np.array([begun, *moments])
    *steps, second = (float(step) for step in np.diff(ends) * 1000)
    return {**dict(zip(STEPS, steps, strict=True)), "total": float(sum(steps)), "second_vector": second}


def _photo(path: Path) -> Path:
    from PIL import Image

    width, height = PHOTO_PX
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(PHOTO_PX, Image.Resampling.BILINEAR).save(path, quality=90)
    return path


if __name__ == "__main__":
    raise SystemExit(main())

"""Cold start: the time from the start of a process to its first vector.

Every round is a process of its own, once for a text and once for an image. It counts from the moment that its parent
starts it: Python itself, `import edgeclip`, `Encoder.open`, the first vector, and, for comparison, the second. A
round before the first reads the files, so the page cache is warm in what is measured.

Then it measures the memory of a second process that no other shares (USS), beside a first that has the bundle open.
With --prepacked all of it is measured once more, in turn, from weights that `edgeclip prepack` puts there first.
"""

import argparse
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from edgeclip.families.tasks import needed_task
from edgeclip.manifest import Manifest, Modality
from edgeclip.tables import format_table
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

STEPS = ("python", "import", "open", "first_vector")
TEXT = "a red bicycle on the road by the sea"
PHOTO_PX = (1200, 800)
Given = tuple[Modality, str, str]  # and its task ("" for none), and the input

# Moments are CLOCK_MONOTONIC's, which processes share. It holds what it has opened until its stdin ends.
_PROGRAM = """if True:
    import json, sys, time
    moments = [time.monotonic()]
    from edgeclip import Encoder
    moments.append(time.monotonic())
    folder, device, *inputs = sys.argv[1:]
    encoder = Encoder.open(folder, device=device)
    encoder.keep_features(0)
    moments.append(time.monotonic())
    for modality, task, what in zip(inputs[::3], inputs[1::3], inputs[2::3], strict=True):
        encode = encoder.encode_text if modality == "text" else encoder.encode_image
        for _ in range(2):
            assert encode(what, task=task or None).any()
            moments.append(time.monotonic())
    print(json.dumps(moments), flush=True)
    sys.stdin.read()
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=7, help="processes for each modality (7)")
    parser.add_argument("--prepacked", type=Path, metavar="DIR", help="also with packed weights, which stay in DIR")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    report = measure(options.bundle, device=options.device, rounds=options.rounds, prepacked=options.prepacked)
    save(report, options.out)
    rows = [
        (f"{modality}, {way}", *(f"{found['median_ms'][step]:.0f}" for step in ROWS))
        for way, one in report["ways"].items()
        for modality, found in one["modalities"].items()
    ]
    print(format_table(("median ms", *(step.replace("_", " ") for step in ROWS)), rows))
    for way, one in report["ways"].items():
        print(f"{way}: a second process has {one['second_process']['own_bytes'] / 1e6:.0f} MB of its own")
    return 0


ROWS = (*STEPS, "total", "second_vector")


def measure(bundle: Path, *, device: str, rounds: int, prepacked: Path | None = None) -> dict[str, Any]:
    """The JSON document; raises subprocess.CalledProcessError when a process fails, with its output on stderr."""
    manifest = Manifest.read(bundle)
    with tempfile.TemporaryDirectory() as scratch:
        caches = {"bundle": Path(scratch) / "nothing packed"} | ({"prepacked": prepacked} if prepacked else {})
        if prepacked:
            command = [sys.executable, "-m", "edgeclip", "prepack", str(bundle)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=_environment(prepacked))
        photo = Path(scratch) / "photo.jpg"
        photo.write_bytes(encode_file(made_up_picture(PHOTO_PX, np.random.default_rng(0))))
        what = {"text": TEXT, "image": str(photo)}
        inputs: dict[Modality, Given] = {
            modality: (modality, needed_task(manifest, modality) or "", what[modality])
            for modality in manifest.modalities
        }
        ways: dict[str, dict[str, Any]] = {way: {"modalities": {}} for way in caches}
        for modality, given in inputs.items():
            turns = [
                {way: start(bundle, device, given, cache) for way, cache in caches.items()} for _ in range(rounds + 1)
            ][1:]
            for way in caches:
                found = [turn[way] for turn in turns]
                ways[way]["modalities"][modality] = {
                    "precision": manifest.first_graph(modality).precision,
                    "median_ms": {step: float(np.median([one[step] for one in found])) for step in ROWS},
                    "slowest_total_ms": max(one["total"] for one in found),
                    "rounds": found,
                }
        for way, cache in caches.items():
            ways[way]["second_process"] = second_process(bundle, device, inputs.values(), cache)
    return make_document(
        __name__,
        {
            "bundle": bundle.name,
            "device": device,
            "tokenizer_bytes": manifest.file(manifest.text.file).size_bytes if manifest.text else None,
            "rounds": rounds,
            "ways": ways,
        },
    )


def start(bundle: Path, device: str, given: Given, cache: Path) -> Mapping[str, float]:
    """The milliseconds of every step of a process that looks for packed weights in the folder `cache`."""
    command = [sys.executable, "-c", _PROGRAM, str(bundle), device, *given]
    environment, pipe = _environment(cache), subprocess.PIPE
    begun = time.monotonic()
    done = subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=pipe, env=environment)
    return split(begun, json.loads(done.stdout))


def second_process(bundle: Path, device: str, inputs: Iterable[Given], cache: Path) -> dict[str, int]:
    """The bytes of a process beside another that has the same bundle open: all, and what only it holds."""
    command = [sys.executable, "-c", _PROGRAM, str(bundle), device, *itertools.chain(*inputs)]
    environment, pipe = _environment(cache), subprocess.PIPE
    with contextlib.ExitStack() as running:
        for _ in range(2):
            process = running.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment))
            assert process.stdout is not None
            if not process.stdout.readline():
                raise subprocess.CalledProcessError(process.wait(), command)
        memory = psutil.Process(process.pid).memory_full_info()
    return {"resident_bytes": int(memory.rss), "own_bytes": int(memory.uss)}


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache.resolve())}


def split(begun: float, moments: Sequence[float]) -> Mapping[str, float]:
    """Milliseconds between the moments (in seconds) of a process that was started at `begun`."""
    ends = np.array([begun, *moments])
    *steps, second = (float(step) for step in np.diff(ends) * 1000)
    return {**dict(zip(STEPS, steps, strict=True)), "total": float(sum(steps)), "second_vector": second}

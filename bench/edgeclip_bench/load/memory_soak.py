"""Does memory stay flat? Random texts and images for minutes, resident memory every second, and a verdict.

Texts have 2 to 512 tokens, as many between 2 and 4 as between 256 and 512, and go 1 to 16 at a time; images are files
of 32 to 4000 pixels a side in five formats, 1 to 4 at a time. With --to-the-limit one call in a hundred has a text
that the model must cut. The memory that malloc and Pillow keep is bounded (`edgeclip.host.malloc_bounds`), as in a
process that decodes for long, and the JSON says how; --unbounded leaves the defaults.

A minute is too short in any case: what decoding large images leaves in each thread's heap levels off after some
hundred calls (a tiny bundle gained 51 MB in a minute, 0 in four).
"""

import argparse
import math
import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeclip import Encoder, TruncationWarning
from edgeclip.families.tasks import needed_task
from edgeclip.host.malloc_bounds import bound_memory
from edgeclip_bench.load.memory_trend import WINDOWS, describe_trend, grows, judge_memory
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.pictures import encode_file, made_up_picture
from edgeclip_bench.measure.resident_memory import gpu_bytes, peak_bytes, reset_peak, resident_bytes

TOKENS = (2, 512)
SIDES_PX = (32, 4000)
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 16, 4
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
FILES = 40
# Each is a token, or a few of a tokenizer with few pieces: then texts are longer than drawn.
_WORDS = ("a", "red", "bicycle", "on", "the", "road", "in", "rain", "by", "sea")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--clients", type=int, default=1, help="threads that call the one Encoder at once (1)")
    parser.add_argument("--largest-px", type=int, default=SIDES_PX[1], help="the longest side of an image (4000)")
    parser.add_argument("--to-the-limit", action="store_true", help="now and then a text of the model's limit")
    parser.add_argument("--unbounded", action="store_true", help="leave malloc and Pillow as they come")
    parser.add_argument("--seed", type=int, default=0)
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Soak, print the verdict, write the JSON; 1 when memory grows. In a process of its own memory is bounded."""
    bounds = bound_memory(os.environ) if options.is_own_process and not options.unbounded else ()
    names = ("seconds", "device", "threads", "clients", "largest_px", "to_the_limit", "seed")
    report = soak(options.bundle, **{name: getattr(options, name) for name in names})
    report["bounds"] = {bound.variable: bound.value for bound in bounds}
    save(report, options.out)
    counts = report["counts"]
    print(f"{counts['texts']} texts, {counts['images']} images on {report['device']}")
    for name in ("resident_memory", "gpu_memory"):
        if report[name]:
            print(describe_trend(name.replace("_", " "), report[name]))
    print(f"resident memory: at most {report['peak_bytes'] / 1e6:.0f} MB")
    return status(report)


def status(report: Mapping[str, Any]) -> int:
    """The exit status: 1 when memory grows; on a GPU that of the GPU counts."""
    return int(grows(report["gpu_memory"] or report["resident_memory"]))


def soak(
    bundle: Path,
    *,
    seconds: float,
    device: str = "auto",
    threads: int | None = None,
    clients: int = 1,
    largest_px: int = SIDES_PX[1],
    to_the_limit: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Encode for `seconds` and return the JSON document; raises what encoding raised."""
    counts = Counter(calls=0, texts=0, images=0)
    failures: list[BaseException] = []
    resident: list[tuple[float, int]] = []
    gpu: list[tuple[float, int]] = []
    with Encoder.open(bundle, device=device, threads=threads) as encoder, warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        facts = encoder.manifest
        files = list(make_files(FILES, largest_px, seed)) if facts.image else []
        limit = facts.text.max_length if facts.text and to_the_limit else None
        reset_peak()
        started = time.monotonic()
        end = started + seconds

        def call_until_the_end(client: int) -> None:
            random = np.random.default_rng((seed, client))
            try:
                while time.monotonic() < end and not failures:
                    _call(encoder, random, files, limit, counts)
            except BaseException as error:
                failures.append(error)

        callers = [threading.Thread(target=call_until_the_end, args=(client,)) for client in range(clients)]
        for caller in callers:
            caller.start()
        card = _card_of(encoder.device)
        while any(caller.is_alive() for caller in callers):
            ran_s = time.monotonic() - started
            resident.append((ran_s, resident_bytes()))
            if card is not None and (used := gpu_bytes(card)) is not None:
                gpu.append((ran_s, used))
            time.sleep(min(1.0, seconds / (10 * WINDOWS)))
        ran_on, peak = encoder.device, peak_bytes()
    if failures:
        raise failures[0]
    return make_document(
        __name__,
        {
            "bundle": bundle.name,
            "device": ran_on,
            "clients": clients,
            "seconds": seconds,
            "to_the_limit": to_the_limit,
            "counts": dict(counts),
            "peak_bytes": peak,
            "resident_memory": judge_memory(resident),
            "gpu_memory": judge_memory(gpu) if gpu else None,
        },
    )


def _card_of(device: str) -> int | None:
    """The index of the graphics card that a device is, None for the CPU."""
    kind, _, index = device.partition(":")
    return int(index) if kind in ("cuda", "tensorrt") else None


def make_files(count: int, largest_px: int, seed: int) -> Iterator[bytes]:
    """Write image files; their sides are drawn evenly on a logarithmic scale."""
    random = np.random.default_rng(seed)
    for index in range(count):
        width, height = (log_uniform(random, SIDES_PX[0], largest_px) for _ in range(2))
        yield encode_file(made_up_picture((width, height), random), FORMATS[index % len(FORMATS)])


def log_uniform(random: np.random.Generator, least: int, most: int) -> int:
    """A whole number from least to most, as likely below as above their geometric mean."""
    return min(most, int(math.exp(random.uniform(math.log(least), math.log(most + 1)))))


def _call(
    encoder: Encoder, random: np.random.Generator, files: Sequence[bytes], limit: int | None, counts: Counter[str]
) -> None:
    has_texts = encoder.manifest.text is not None
    if has_texts and (not files or random.random() < 0.5):
        lengths = [log_uniform(random, *TOKENS) for _ in range(random.integers(1, TEXTS_AT_ONCE + 1))]
        if limit and random.random() < 0.02:
            lengths = [limit]
        texts = [" ".join(random.choice(_WORDS, max(0, length - 2))) for length in lengths]
        encoder.encode_text(texts, task=needed_task(encoder.manifest, "text"), progress=False)
        counts["texts"] += len(lengths)
    else:
        images = [files[index] for index in random.integers(len(files), size=random.integers(1, IMAGES_AT_ONCE + 1))]
        encoder.encode_image(images, task=needed_task(encoder.manifest, "image"), progress=False)
        counts["images"] += len(images)
    counts["calls"] += 1

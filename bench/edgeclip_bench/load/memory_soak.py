"""Does memory stay flat? Random texts and images for minutes, resident memory every second, and a verdict.

    edgeclip bench memory-soak BUNDLE [--seconds 600] [--device auto] [--clients 1] [--to-the-limit]
    [--unbounded]
        [--out F.json]

Texts have 2 to 512 tokens, as many between 2 and 4 as between 256 and 512, and go 1 to 16 at a time; images are files
of 32 to 4000 pixels a side in five formats, 1 to 4 at a time. With --to-the-limit one call in a hundred has a text
that the model must cut. The first fifth is warm-up: every buffer and every kernel has been used then.

The memory that malloc and Pillow keep is bounded (`edgeclip.host.malloc_bounds`), as in a process that decodes for
long, and the JSON says how; --unbounded leaves the defaults.

The verdict comes from the rest, cut into windows: a line through their medians, and the interval that holds its slope
with 95 % certainty. Medians, because a text of 8192 tokens takes 100 MB while it computes, and how many such moments
a window has is chance; the peak is reported too. Memory "grows" when the interval is above zero and the gain is large
enough to matter, is "flat" when it could not have gained that much, and otherwise "unclear": run it longer. A minute
is too short in any case: what decoding large images leaves in each thread's heap levels off after some hundred calls
(a tiny bundle gained 51 MB in a minute, 0 in four).
"""

import argparse
import io
import json
import math
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from scipy.stats import linregress, t

from edgeclip import Encoder, TruncationWarning
from edgeclip.host.malloc_bounds import bound_memory
from edgeclip_bench.measure.machine_facts import machine
from edgeclip_bench.measure.resident_memory import gpu_bytes, peak_bytes, reset_peak, resident_bytes

BENCHMARK = "edgeclip_bench.load.memory_soak"
TOKENS = (2, 512)
SIDES_PX = (32, 4000)
TEXTS_AT_ONCE, IMAGES_AT_ONCE = 16, 4
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
FILES = 40
WARM_UP_SHARE = 0.2
WINDOWS = 12
# A gain over the run that is called growth: a share of what is held, and no less than so much.
WORTH_NAMING, WORTH_NAMING_BYTES = 0.02, 10e6
CERTAINTY = 0.95
# Each is a token, or a few of a tokenizer with few pieces: then texts are longer than drawn.
_WORDS = ("a", "red", "bicycle", "on", "the", "road", "in", "rain", "by", "sea")

Verdict = Literal["flat", "grows", "unclear"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """A line through memory after warm-up: bytes gained from its first to its last second, and the interval."""

    seconds: float
    held_bytes: float
    gained_bytes: float
    least_gained_bytes: float
    most_gained_bytes: float
    verdict: Verdict


@dataclass(slots=True, kw_only=True)
class Counts:
    """The numbers of texts and images that were encoded."""

    calls: int = 0
    texts: int = 0
    images: int = 0


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
    parser.add_argument("--out", type=Path, help="write the JSON here")


def run(options: argparse.Namespace) -> int:
    """Soak, print the verdict, write the JSON; 1 when memory grows. In a process of its own memory is bounded."""
    bounds = bound_memory(os.environ) if options.is_own_process and not options.unbounded else ()
    report = soak(
        options.bundle,
        seconds=options.seconds,
        device=options.device,
        threads=options.threads,
        clients=options.clients,
        largest_px=options.largest_px,
        to_the_limit=options.to_the_limit,
        seed=options.seed,
    )
    report["bounds"] = {bound.variable: bound.value for bound in bounds}
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    trend, counts = report["trend"], report["counts"]
    print(
        f"{trend['verdict']}: {trend['gained_bytes'] / 1e6:+.1f} MB "
        f"({trend['least_gained_bytes'] / 1e6:+.1f} to {trend['most_gained_bytes'] / 1e6:+.1f}) in "
        f"{trend['seconds']:.0f} s on {trend['held_bytes'] / 1e6:.0f} MB, at most "
        f"{report['peak_bytes'] / 1e6:.0f} MB; "
        f"{counts['texts']} texts, {counts['images']} images on {report['device']}"
    )
    return int(trend["verdict"] == "grows")


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
    files = list(make_files(FILES, largest_px, seed))
    counts = Counts()
    samples: list[tuple[float, int]] = []
    failures: list[BaseException] = []
    with Encoder.open(bundle, device=device, threads=threads) as encoder:
        reset_peak()
        started = time.monotonic()
        end = started + seconds
        limit = encoder.manifest.tokenizer.max_length if to_the_limit else None

        def call_until_the_end(client: int) -> None:
            random = np.random.default_rng((seed, client))
            try:
                while time.monotonic() < end and not failures:
                    _call(encoder, random, files, limit, counts)
            except BaseException as error:
                failures.append(error)

        callers = [threading.Thread(target=call_until_the_end, args=(client,)) for client in range(clients)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            for caller in callers:
                caller.start()
            held = _gpu_memory(encoder.device) or resident_bytes
            interval = min(1.0, seconds / (10 * WINDOWS))
            while any(caller.is_alive() for caller in callers):
                samples.append((time.monotonic() - started, held()))
                time.sleep(interval)
            for caller in callers:
                caller.join()
        ran_on, peak = encoder.device, peak_bytes()
    if failures:
        raise failures[0]
    return {
        "benchmark": BENCHMARK,
        "machine": machine(),
        "bundle": bundle.name,
        "device": ran_on,
        "clients": clients,
        "seconds": seconds,
        "to_the_limit": to_the_limit,
        "measured": "GPU memory" if _gpu_memory(ran_on) else "resident memory",
        "counts": asdict(counts),
        "peak_bytes": peak,
        "trend": asdict(find_trend(samples)),
        "samples": [[round(second, 1), held] for second, held in samples],
    }


def find_trend(samples: Sequence[tuple[float, int]]) -> Trend:
    """The line through (second, bytes) after the warm-up, and the verdict.

    Samples a second apart depend on one another too much to count as independent: the line goes through the medians
    of WINDOWS windows, by ordinary least squares, with Student's interval for its slope.
    """
    first, last = samples[0][0], samples[-1][0]
    begin = first + WARM_UP_SHARE * (last - first)
    kept = np.array([sample for sample in samples if sample[0] >= begin], dtype=np.float64)  # (N, 2)
    if len(kept) < 2 * WINDOWS:
        raise ValueError(f"{len(kept)} samples after the warm-up, wanted {2 * WINDOWS} or more: run it longer")
    middles = np.array([np.median(window, axis=0) for window in np.array_split(kept, WINDOWS)])  # (WINDOWS, 2)
    line = linregress(middles[:, 0], middles[:, 1])
    seconds = float(kept[-1, 0] - kept[0, 0])
    margin = float(t.ppf((1 + CERTAINTY) / 2, WINDOWS - 2) * line.stderr)
    held = float(np.median(kept[:, 1]))
    least, most = (float(line.slope + sign * margin) * seconds for sign in (-1, 1))
    worth_naming = max(WORTH_NAMING * held, WORTH_NAMING_BYTES)
    gained = float(line.slope) * seconds
    verdict: Verdict = "unclear"
    if most < worth_naming:
        verdict = "flat"
    elif least > 0 and gained > worth_naming:
        verdict = "grows"
    return Trend(
        seconds=seconds,
        held_bytes=held,
        gained_bytes=gained,
        least_gained_bytes=least,
        most_gained_bytes=most,
        verdict=verdict,
    )


def make_files(count: int, largest_px: int, seed: int) -> Iterator[bytes]:
    """Write image files; their sides are drawn evenly on a logarithmic scale."""
    from PIL import Image

    random = np.random.default_rng(seed)
    for index in range(count):
        width, height = (log_uniform(random, SIDES_PX[0], largest_px) for _ in range(2))
        coarse = random.integers(0, 256, (max(1, height // 16), max(1, width // 16), 3), dtype=np.uint8)
        file = io.BytesIO()
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)
        picture.save(file, FORMATS[index % len(FORMATS)])
        yield file.getvalue()


def log_uniform(random: np.random.Generator, least: int, most: int) -> int:
    """A whole number from least to most, as likely below as above their geometric mean."""
    return min(most, int(math.exp(random.uniform(math.log(least), math.log(most + 1)))))


def _call(
    encoder: Encoder, random: np.random.Generator, files: Sequence[bytes], limit: int | None, counts: Counts
) -> None:
    if random.random() < 0.5:
        lengths = [log_uniform(random, *TOKENS) for _ in range(random.integers(1, TEXTS_AT_ONCE + 1))]
        if limit and random.random() < 0.02:
            lengths = [limit]
        encoder.encode_text([_text(random, length) for length in lengths], progress=False)
        counts.texts += len(lengths)
    else:
        images = [files[index] for index in random.integers(len(files), size=random.integers(1, IMAGES_AT_ONCE + 1))]
        encoder.encode_image(images, progress=False)
        counts.images += len(images)
    counts.calls += 1


def _text(random: np.random.Generator, tokens: int) -> str:
    return " ".join(random.choice(_WORDS, max(0, tokens - 2)))


def _gpu_memory(device: str) -> Callable[[], int] | None:
    """A function that reads the GPU memory in use; None on another device, or without nvidia-smi."""
    kind, _, index = device.partition(":")
    if kind not in ("cuda", "tensorrt") or gpu_bytes(int(index)) is None:
        return None
    return lambda: gpu_bytes(int(index)) or 0

"""`edgeclip check`: every byte of a bundle, and its self-test on this device."""

import argparse
import dataclasses
import json
import time

from edgeclip.bundle import verify_hashes
from edgeclip.cli.format import format_bytes, format_table
from edgeclip.encoder import Encoder
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.selftest import run_selftest


def run(options: argparse.Namespace) -> None:
    """Check, and print what was found; an error says what is wrong."""
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        manifest = encoder.manifest
        with ProgressBar("hashing", manifest.weight_bytes, is_shown=is_wanted(None)) as bar:
            verify_hashes(options.bundle, manifest, bar.advance)
        started = time.perf_counter()
        results = run_selftest(encoder, options.bundle)
        elapsed_s = time.perf_counter() - started
        device = encoder.device
    if options.json:
        found = {
            "bundle": str(options.bundle),
            "files": len(manifest.files),
            "bytes": manifest.weight_bytes,
            "device": device,
            "selftest": [dataclasses.asdict(result) for result in results],
            "selftest_s": round(elapsed_s, 3),
        }
        print(json.dumps(found))
        return
    print(f"{len(manifest.files)} files, {format_bytes(manifest.weight_bytes)}: every sha256 as exported")
    print(f"self-test on {device} in {elapsed_s:.1f} s, against the fp32 checkpoint:")
    rows = [
        (result.tower, str(result.samples), f"{result.worst_cosine:.7f}", f"{result.largest_difference:.1e}")
        for result in results
    ]
    print(format_table(("tower", "samples", "worst cosine", "largest difference"), rows))

"""`edgeclip check`: every byte of a bundle, its self-test and its proof on this device."""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence

from edgeclip.bundle.files import verify_hashes
from edgeclip.bundle.selftest import Repeated, repeat_proof, run_selftest
from edgeclip.cli.arguments import add_bundle, add_device, add_json
from edgeclip.encoder import Encoder
from edgeclip.engine.prepack.packing import find_packings
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import describe_vectors, format_bytes, format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    add_device(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Check, and print what was found; an error says what is wrong."""
    with Encoder.open(
        options.bundle,
        device=options.device,
        threads=options.threads,
        selftest=False,  # it is run below
    ) as encoder:
        manifest, device = encoder.manifest, encoder.device
        with ProgressBar("hashing", manifest.weight_bytes, is_shown=is_wanted(None)) as bar:
            verify_hashes(options.bundle, manifest, bar.advance)
        packings = find_packings(options.bundle) if device == "cpu" else []
        for _, packed in packings:
            packed.verify()
        started = time.perf_counter()
        selftest = run_selftest(manifest, encoder.ask, options.bundle, device=device)
        between = time.perf_counter()
        proof = repeat_proof(manifest, encoder.run_graph, options.bundle, device=device)
        selftest_s, proof_s = between - started, time.perf_counter() - between
    if options.json:
        found = {
            "bundle": str(options.bundle),
            "files": len(manifest.files),
            "bytes": manifest.weight_bytes,
            "device": device,
            "prepacked": [graph for graph, _ in packings],
            "selftest": [dataclasses.asdict(result) for result in selftest],
            "selftest_s": round(selftest_s, 3),
            "proof": [dataclasses.asdict(result) for result in proof],
            "proof_s": round(proof_s, 3),
        }
        print(json.dumps(found))
        return
    print(f"{len(manifest.files)} files, {format_bytes(manifest.weight_bytes)}: every sha256 as exported")
    for graph, packed in packings:
        print(f"{graph}: packed weights of this machine, {format_bytes(packed.size_bytes)}: every sha256 as written")
    _print(f"self-test on {device} in {selftest_s:.1f} s", selftest)
    if proof:
        _print(f"proof on {device} in {proof_s:.1f} s", proof)


def _print(title: str, results: Sequence[Repeated]) -> None:
    print(f"{title}, against the {results[0].against}:")
    rows = [
        (
            describe_vectors(result.modality, result.space),
            str(result.samples),
            "-" if result.recorded_cosine is None else f"{result.recorded_cosine:.7f}",
            f"{result.worst_cosine:.7f}",
            f"{result.largest_difference:.1e}",
        )
        for result in results
    ]
    header = ("modality", "samples", "worst cosine, recorded", "here", "largest difference")
    print(format_table(header, rows))

"""Measure everything at full size, from nothing: what `make bench` runs and docs/figures.md quotes.

    edgeclip bench full-size RESULTS [--work DIR]

Draws a checkpoint of 865 M random weights, exports it for the CPU and quantises it to int8, each in a process of its
own (time and peak memory are measured), and compares the bundle with the plain export
(`edgeclip_bench.rivals.plain_export`). `edgeclip_bench.rivals.run` compares the int8 bundle with other tools'. Needs
10 GB of disk, 8 GB of memory and about a quarter of an hour on two cores.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from edgeclip.manifest import Measurement, Target
from edgeclip_bench.families.random_checkpoint import full_config, write_checkpoint
from edgeclip_bench.measure.documents import make_document, save
from edgeclip_bench.measure.report_table import render_tables
from edgeclip_bench.measure.resident_memory import peak_bytes
from edgeclip_bench.rivals import plain_export
from edgeclip_bench.rivals.report import rival_tables
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle

BENCHMARK = "edgeclip_bench.latency.full_size"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportCost:
    """The cost of an export, measured in a process that did nothing else."""

    target: Target
    seconds: float
    peak_resident_bytes: int
    largest_difference: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantisationCost:
    """The cost of int8, measured in a process that did nothing else, and the figures of its proof."""

    seconds: float
    peak_resident_bytes: int
    size_bytes: int
    measured: tuple[Measurement, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("results", type=Path, help="the folder for the JSON")
    parser.add_argument("--work", type=Path, help="keep checkpoint, bundle and plain graphs here, or take them")


def run(options: argparse.Namespace) -> int:
    """Run all of it and leave the JSON in the results folder."""
    options.results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = options.work or Path(scratch)
        checkpoint, bundle = work / "checkpoint", work / "bundle"
        if not checkpoint.exists():
            write_checkpoint(checkpoint, full_config())
        if not bundle.exists():
            cost = measure_export(checkpoint, bundle, "cpu")
            print(f"export: {cost.seconds:.0f} s, {cost.peak_resident_bytes / 1e9:.2f} GB at most", file=sys.stderr)
            save(make_document(BENCHMARK, {"export": asdict(cost)}), options.results / "export_full_size.json")
        smaller = work / "int8"
        if not smaller.exists():
            quantised = measure_quantisation(bundle, smaller)
            peak = f"{quantised.peak_resident_bytes / 1e9:.2f} GB at most"
            print(f"int8: {quantised.seconds:.0f} s, {peak}, {quantised.size_bytes / 1e6:.0f} MB", file=sys.stderr)
            save(make_document(BENCHMARK, {"int8": asdict(quantised)}), options.results / "quantize_full_size.json")
        report = plain_export.compare(checkpoint, bundle, plain=work / "plain", rounds=1)
        print(render_tables(list(rival_tables(report))))
        save(report, options.results / "cpu_full_size.json")
    return 0


def measure_export(checkpoint: Path, out: Path, target: Target) -> ExportCost:
    """Export in a fresh process; its peak is the process's own, from start to end."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_export, checkpoint, out, target).result()


def measure_quantisation(bundle: Path, out: Path) -> QuantisationCost:
    """Quantise to int8 in a fresh process, calibrated on made-up inputs."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_quantise, bundle, out).result()


def _export(checkpoint: Path, out: Path, target: Target) -> ExportCost:
    started = time.perf_counter()
    manifest = export_checkpoint(checkpoint, out, target=target)
    return ExportCost(
        target=target,
        seconds=time.perf_counter() - started,
        peak_resident_bytes=peak_bytes(),
        largest_difference=max(measured.largest_difference for measured in manifest.measured),
    )


def _quantise(bundle: Path, out: Path) -> QuantisationCost:
    started = time.perf_counter()
    manifest = quantize_bundle(bundle, out)
    return QuantisationCost(
        seconds=time.perf_counter() - started,
        peak_resident_bytes=peak_bytes(),
        size_bytes=manifest.weight_bytes,
        measured=manifest.measured,
    )

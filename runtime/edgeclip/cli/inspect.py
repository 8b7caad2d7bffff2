"""`edgeclip inspect`: what a bundle says about itself."""

import argparse
from collections.abc import Sequence

from edgeclip.bundle.files import open_manifest
from edgeclip.cli.arguments import add_bundle, add_json
from edgeclip.manifest import TOWERS, Measurement
from edgeclip.tables import format_bytes, format_table

_SEARCHES = {"text": "images with texts", "vision": "texts with images"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line takes."""
    add_bundle(parser)
    add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Print the manifest, whole as JSON or the gist as tables."""
    manifest = open_manifest(options.bundle)
    if options.json:
        print(manifest.to_json(), end="")
        return
    source = manifest.source
    revision = f" at {source.revision}" if source.revision else ""
    print(f"{manifest.family} from {source.name}{revision}, licence {source.license or 'not stated'}")
    print(f"for {manifest.target}, opset {manifest.opset}, {manifest.embedding_dim} dimensions, trained to be cut to")
    print("  " + ", ".join(map(str, manifest.matryoshka_dims)))
    image, tokenizer = manifest.image, manifest.tokenizer
    print(f"images: {image.resize_mode} side to {image.size_px} px, {image.interpolation}")
    print(f"texts: up to {tokenizer.max_length} tokens; tasks: {', '.join(tokenizer.instructions) or 'none'}")
    print()
    towers = []
    for name in TOWERS:
        facts = manifest.tower(name)
        kernels = (
            ", ".join(f"{count} {kernel}" for kernel, count in facts.kernels.items() if count) or facts.precision
        )
        operators = str(sum(facts.operators.values()))
        towers.append((name, facts.precision, f"{facts.parameters:,}", operators, kernels))
    print(format_table(("tower", "precision", "parameters", "operators", "linear layers"), towers))
    print()
    print(format_table(("file", "size"), [(file.name, format_bytes(file.size_bytes)) for file in manifest.files]))
    print()
    names = sorted(set(manifest.text.operators) | set(manifest.vision.operators))
    counts = [(name, *(str(manifest.tower(tower).operators.get(name, 0)) for tower in TOWERS)) for name in names]
    print(format_table(("operator", *TOWERS), counts))
    print()
    _print_measured(manifest.measured)


def _print_measured(measured: Sequence[Measurement]) -> None:
    """Closeness, then what was searched, then what was timed; a table without rows is left out."""
    closeness = [
        (
            one.tower,
            one.against,
            one.data,
            str(one.samples),
            f"{one.worst_cosine:.6f}",
            f"{one.p1_cosine:.6f}",
            f"{one.mean_cosine:.6f}",
            "-" if one.sqnr_db is None else f"{one.sqnr_db:.1f}",
            f"{one.largest_difference:.1e}",
        )
        for one in measured
    ]
    figures = ("worst cosine", "1st percentile", "mean", "SQNR dB", "largest difference")
    print(format_table(("measured", "against", "on", "samples", *figures), closeness))
    searches = [
        (
            _SEARCHES[one.tower],
            one.data,
            found.truth,
            str(found.queries),
            found.metric,
            f"{found.recall:.1%}",
            f"{found.reference:.1%}",
            f"{found.points:+.2f} ({found.low:+.2f} to {found.high:+.2f})",
        )
        for one in measured
        if (found := one.retrieval)
    ]
    if searches:
        change = ("metric", "found", "by the source", "points, 95 %")
        print(f"\n{format_table(('searched', 'on', 'wanted', 'queries', *change), searches)}")
    ratios = [
        (
            one.tower,
            format_bytes(one.weight_bytes),
            f"{one.size_ratio:.3f}",
            "-" if one.latency_ratio is None else f"{one.latency_ratio:.3f}",
            one.latency_input or "-",
            str(one.latency_samples or "-"),
            one.machine or "-",
        )
        for one in measured
        if one.size_ratio is not None
    ]
    if ratios:
        timed = ("time / source", "on", "samples", "machine")
        print(f"\n{format_table(('tower', 'size', 'size / source', *timed), ratios)}")

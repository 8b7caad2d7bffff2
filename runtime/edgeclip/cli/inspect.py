"""`edgeclip inspect`: what a bundle says about itself."""

import argparse
from collections.abc import Mapping

from edgeclip.bundle.files import open_manifest
from edgeclip.cli.arguments import add_bundle, add_json
from edgeclip.engine.advice import advise_here, is_guarded
from edgeclip.engine.products import probe_products
from edgeclip.errors import MissingExtraError
from edgeclip.families.tasks import are_languages
from edgeclip.manifest import ImageFacts, Manifest, Modality
from edgeclip.tables import describe_vectors, format_bytes, format_table


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
    _print_model(manifest)
    print()
    graphs = []
    for name, facts in manifest.graphs.items():
        kernels = (
            ", ".join(f"{count} {kernel}" for kernel, count in facts.kernels.items() if count) or facts.precision
        )
        operators = str(sum(facts.operators.values()))
        graphs.append((name, facts.precision, f"{facts.parameters:,}", operators, kernels))
    print(format_table(("graph", "precision", "parameters", "operators", "linear layers"), graphs))
    print()
    if manifest.tasks and not are_languages(manifest.tasks):
        tasks = [
            (name, task.prompt, task.adapter or "-", ", ".join(task.modalities))
            for name, task in manifest.tasks.items()
        ]
        print(format_table(("task", "prompt", "adapter", "for"), tasks))
        print()
    print(format_table(("file", "size"), [(file.name, format_bytes(file.size_bytes)) for file in manifest.files]))
    print()
    names = sorted({name for facts in manifest.graphs.values() for name in facts.operators})
    counts = [(name, *(str(facts.operators.get(name, 0)) for facts in manifest.graphs.values())) for name in names]
    print(format_table(("operator", *manifest.graphs), counts))
    print()
    _print_measured(manifest)
    if manifest.target == "cpu":
        _print_advice(manifest)


def _print_model(manifest: Manifest) -> None:
    """What the model is, and what it takes and gives."""
    source, space = manifest.source, manifest.spaces.single
    revision = f" at {source.revision}" if source.revision else ""
    print(f"{manifest.family} from {source.name}{revision}, licence {source.license or 'not stated'}")
    strict = ", and to nothing else" if space.is_strict else ""
    print(f"for {manifest.target}, opset {manifest.opset}, {space.dim} dimensions, trained to be cut to")
    print("  " + ", ".join(map(str, space.matryoshka_dims)) + strict)
    if multi := manifest.spaces.multi:
        print(f"multi vectors: {multi.dim} dimensions for each token")
    if isinstance(image := manifest.image, ImageFacts):
        print(f"images: {image.resize_mode} side to {image.size_px} px, {image.interpolation}")
    elif image:
        limit = f"{image.max_pixels // image.token_px**2} tokens of {image.token_px} x {image.token_px} px"
        print(f"images: any size, {image.interpolation}, up to {limit} unless a call says otherwise")
    if text := manifest.text:
        needed = ", one of which is required" if manifest.task_required else ""
        print(f"texts: up to {text.max_length} tokens; tasks: {', '.join(manifest.tasks) or 'none'}{needed}")


def _print_advice(manifest: Manifest) -> None:
    """Which bundle of this model to run on this machine; nothing without onnxruntime, which decides it."""
    try:
        advice, products = advise_here(), probe_products()
    except MissingExtraError:
        return
    print(";\n  ".join((f"\nthis machine should run {advice.choice}:\n  {advice.why}", *advice.exceptions)))
    if is_guarded(manifest, products):
        print("  the integer products of this bundle are guarded against overflow here, which costs time")


def _print_measured(manifest: Manifest) -> None:
    """Closeness, then what was searched, then what was timed; a table without rows is left out."""
    measured = manifest.measured
    # Where the bundle takes no images, texts are searched with texts.
    searches_of: Mapping[Modality, str] = {
        "text": "images with texts" if manifest.image else "texts with texts",
        "image": "texts with images",
    }
    closeness = [
        (
            describe_vectors(one.modality, one.space),
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
            searches_of[one.modality],
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
            one.modality,
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
        print(f"\n{format_table(('modality', 'size', 'size / source', *timed), ratios)}")

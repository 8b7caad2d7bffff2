"""`edgeclip inspect`: what a bundle says about itself."""

import argparse

from edgeclip.bundle import open_manifest
from edgeclip.cli.format import format_bytes, format_table
from edgeclip.manifest import TOWERS


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
    towers = [
        (name, facts.precision, f"{facts.parameters:,}", str(sum(facts.operators.values())))
        for name, facts in ((name, manifest.tower(name)) for name in TOWERS)
    ]
    print(format_table(("tower", "precision", "parameters", "operators"), towers))
    print()
    print(format_table(("file", "size"), [(file.name, format_bytes(file.size_bytes)) for file in manifest.files]))
    print()
    names = sorted(set(manifest.text.operators) | set(manifest.vision.operators))
    counts = [(name, *(str(manifest.tower(tower).operators.get(name, 0)) for tower in TOWERS)) for name in names]
    print(format_table(("operator", *TOWERS), counts))
    print()
    measured = [
        (m.tower, m.against, m.data, str(m.samples), f"{m.worst_cosine:.7f}", f"{m.largest_difference:.1e}")
        for m in manifest.measured
    ]
    header = ("measured", "against", "on", "samples", "worst cosine", "largest difference")
    print(format_table(header, measured))

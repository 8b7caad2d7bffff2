"""Exports that are broken on purpose: what an evaluation must see.

    python -m edgeclip_bench.quality.damage OUT.json

Each has a mistake that was made with real exports: rotary positions lost, the adapter not merged, images squashed
instead of cropped. The small trained model is exported right and wrong, and all are judged on the
same pictures. A quality figure that stays up here would be worth nothing elsewhere.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
from safetensors.numpy import load_file, save_file

from edgeclip import Manifest
from edgeclip.manifest import MANIFEST_NAME, TOWERS
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.machine import machine
from edgeclip_bench.quality.evaluate import DataScores, evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_export import export_checkpoint
from edgeclip_export.checkpoint import WEIGHTS, hash_file
from edgeclip_export.demo import CHECKPOINT
from edgeclip_export.demo.dataset import write_dataset
from edgeclip_export.demo.layout import MATRYOSHKA_DIMS

ROTARY = "RotaryEmbedding"
METRICS = ("recall@1", "recall@5")
# The last is one the model was not trained for: there truncation must cost something.
DIMS = (*MATRYOSHKA_DIMS, 8)


def without_adapter(out: Path) -> None:
    """The model exported as if its LoRA were not there."""
    checkpoint = out.with_name(f"{out.name}-checkpoint")
    shutil.copytree(CHECKPOINT, checkpoint)
    tensors = load_file(checkpoint / WEIGHTS)
    for name in tensors:
        if name.endswith("lora_B"):
            tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, checkpoint / WEIGHTS, metadata={"format": "pt"})
    export_checkpoint(checkpoint, out)


def without_rotary(out: Path) -> None:
    """The model exported with positions that turn nothing: every angle 0."""
    export_checkpoint(CHECKPOINT, out)
    manifest = Manifest.read(out)
    for tower in TOWERS:
        path = out / manifest.tower(tower).file
        model = ir.load(path)
        ir.external_data.load_to_model(model)
        turned = [node for node in model.graph.all_nodes() if node.op_type == ROTARY]
        if not turned:
            raise ValueError(f"{path}: no {ROTARY} to break")
        for node in turned:
            for index, angle in ((2, np.ones), (3, np.zeros)):  # cos and sin tables
                table = node.inputs[index]
                assert table is not None
                assert table.const_value is not None
                table.const_value = ir.tensor(angle(table.const_value.shape.numpy(), np.float32), name=table.name)
        ir.save(model, path, external_data=f"{path.name}_data")
    _sign(out, manifest)


def with_squashed_images(out: Path) -> None:
    """The model exported with images resized to a square instead of resized and cropped."""
    export_checkpoint(CHECKPOINT, out)
    manifest = Manifest.read(out)
    _sign(out, replace(manifest, image=replace(manifest.image, resize_mode="squash")))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "as it should be": lambda out: export_checkpoint(CHECKPOINT, out),
    "no rotary positions": without_rotary,
    "adapter left out": without_adapter,
    "images squashed": with_squashed_images,
}


def judge_damages(folder: Path, *, images: int, seed: int) -> dict[str, DataScores]:
    """Every export of `DAMAGES`, made in `folder`, on one set of test pictures."""
    write_dataset(folder / "pictures", images=images, seed=seed)
    data = open_data(folder / "pictures")
    found = {}
    with ProgressBar("damaged exports", len(DAMAGES), is_shown=is_wanted(None)) as bar:
        for number, (name, make) in enumerate(DAMAGES.items()):
            make(folder / f"bundle-{number}")
            (found[name],) = evaluate(
                folder / f"bundle-{number}", data, truncate_dims=DIMS, cache=None, progress=False
            ).data
            bar.advance()
    return found


def _sign(out: Path, manifest: Manifest) -> None:
    """The manifest again, with the files' hashes as they now are."""
    files = tuple(
        replace(file, size_bytes=(out / file.name).stat().st_size, sha256=hash_file(out / file.name))
        for file in manifest.files
    )
    (out / MANIFEST_NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def overall(found: DataScores, *, metric: str = "recall@5", dim: int | None = None) -> dict[str, float]:
    """The figure over all languages in both directions, at full width unless `dim` says otherwise."""
    dim = dim or max(score.dim for score in found.scores)
    return {
        str(score.direction): score.value
        for score in found.scores
        if score.is_overall and score.metric == metric and score.dim == dim
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge every damage and write the figures where the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m edgeclip_bench.quality.damage", description=__doc__.split("\n")[0]
    )
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument("--images", type=int, default=500, help="how many test pictures (500)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (0)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="edgeclip-damage-") as folder:
        found = judge_damages(Path(folder), images=options.images, seed=options.seed)
    figures = {name: {metric: overall(scores, metric=metric) for metric in METRICS} for name, scores in found.items()}
    for dim in sorted(DIMS)[:-1]:
        figures[f"cut to {dim} dimensions"] = {
            metric: overall(found["as it should be"], metric=metric, dim=dim) for metric in METRICS
        }
    for name, recall in figures.items():
        print(name, recall, file=sys.stderr)
    document = {"machine": machine(), "images": options.images, "seed": options.seed, "recall": figures}
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Judge exports that are broken on purpose: an evaluation must see that they are worse.

Each has a mistake that was made with real exports. The small trained model is exported right and wrong, and all are
judged on the same pictures. A quality figure that stays up here would be worth nothing elsewhere.
"""

import argparse
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from PIL import Image
from safetensors.numpy import load_file, save_file

from edgeclip import Manifest
from edgeclip.bundle.staging import file_facts
from edgeclip.manifest import MANIFEST_NAME
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.demo import CHECKPOINT
from edgeclip_bench.demo.dataset import CAPTIONS, IMAGES, write_dataset
from edgeclip_bench.demo.layout import MATRYOSHKA_DIMS
from edgeclip_bench.measure.documents import make_document, save
from edgeclip_bench.quality.against import CheckpointWarning, Difference, compare
from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.scores import DataScores
from edgeclip_export import export_checkpoint
from edgeclip_export.checkpoint import WEIGHTS

ROTARY = "RotaryEmbedding"
RIGHT = "as it should be"
METRICS = ("recall@1", "recall@5")
# The last is one the model was not trained for: there truncation must cost something.
DIMS = (*MATRYOSHKA_DIMS, 8)


def without_adapter(_: Path, out: Path) -> None:
    """The model exported as if its LoRA were not there."""
    checkpoint = out.with_name(f"{out.name}-checkpoint")
    shutil.copytree(CHECKPOINT, checkpoint)
    tensors = load_file(checkpoint / WEIGHTS)
    for name in tensors:
        if name.endswith("lora_B"):
            tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, checkpoint / WEIGHTS, metadata={"format": "pt"})
    export_checkpoint(checkpoint, out)


def without_rotary(right: Path, out: Path, graph: str) -> None:
    """The right export with one graph's positions turning nothing: every angle 0."""
    shutil.copytree(right, out)
    manifest = Manifest.read(out)
    path = out / manifest.graphs[graph].file
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


def with_squashed_images(right: Path, out: Path) -> None:
    """The right export with images resized to a square instead of resized and cropped."""
    shutil.copytree(right, out)
    manifest = Manifest.read(out)
    _sign(out, replace(manifest, image=replace(manifest.need_image(), resize_mode="squash")))


def crop_at_corner(pictures: Path, out: Path) -> None:
    """The pictures cut to a square from their upper left corner, so that no centre crop is left to do."""
    out.mkdir()
    shutil.copyfile(pictures / CAPTIONS, out / CAPTIONS)
    for path in pictures.glob("*.png"):
        with Image.open(path) as picture:
            side = min(picture.size)
            picture.crop((0, 0, side, side)).save(out / path.name)


# The vision graph has absolute positions besides, and scenes like these need no others: recall does not see this one
# for sure. The proof that every export carries does: its vectors are up to 0.08 away from the checkpoint's.
FAINT = "no rotary positions, vision"
# Each is called with the right export, which the first one makes, and with where its own is to be.
BUNDLES: dict[str, Callable[[Path, Path], object]] = {
    RIGHT: lambda _, out: export_checkpoint(CHECKPOINT, out),
    "no rotary positions, text": lambda right, out: without_rotary(right, out, "text"),
    FAINT: lambda right, out: without_rotary(right, out, "vision"),
    "adapter left out": without_adapter,
    "images squashed": with_squashed_images,
}
CORNER = "images cropped at the corner"
DAMAGES = (*(name for name in BUNDLES if name != RIGHT), CORNER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """An export's figures at full width, and what it lost to the right one on the same queries, if they are."""

    scores: DataScores
    losses: tuple[Difference, ...]


def judge_damages(folder: Path, *, images: int, seed: int) -> dict[str, Judgement]:
    """The right export and all of `DAMAGES`, made in `folder`, on one set of test pictures."""
    write_dataset(folder / "pictures", images=images, seed=seed)
    crop_at_corner(folder / "pictures", folder / "corner")
    found = {}
    right = folder / "bundle-0"
    with ProgressBar("damaged exports", len(BUNDLES) + 1, is_shown=is_wanted(None)) as bar:
        for number, (name, make) in enumerate(BUNDLES.items()):
            bundle = folder / f"bundle-{number}"
            make(right, bundle)
            found[name] = _judge(bundle, right, folder / "pictures", folder / "cache")
            bar.advance()
        (scores,) = evaluate(right, open_data(folder / "corner"), truncate_dims=DIMS, cache=None, progress=False).data
        found[CORNER] = Judgement(scores=scores, losses=())
    return found


def _judge(bundle: Path, right: Path, pictures: Path, cache: Path) -> Judgement:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # without its adapter it is another one, as is meant
        compared = compare(bundle, right, open_data(pictures), truncate_dims=DIMS, cache=cache, progress=False)
    full = max(compared.evaluation.dims)
    return Judgement(
        scores=compared.evaluation.data[0],
        losses=tuple(
            one for one in compared.differences if one.is_overall and one.dim == full and one.metric in METRICS
        ),
    )


def _sign(out: Path, manifest: Manifest) -> None:
    """The manifest again, with the files' hashes as they now are."""
    (out / MANIFEST_NAME).unlink()
    files = file_facts(out, lambda what, done, total: None)
    (out / MANIFEST_NAME).write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def overall(found: DataScores, *, metric: str = "recall@5", dim: int | None = None) -> dict[str, float]:
    """The figure over all languages in both directions, at full width unless `dim` says otherwise."""
    dim = dim or max(score.dim for score in found.scores)
    return {
        str(score.direction): score.value
        for score in found.scores
        if score.is_overall and score.metric == metric and score.dim == dim
    }


def add_damage_arguments(parser: argparse.ArgumentParser, what: str, count: int) -> None:
    """Declare the arguments of a case that judges damages on `count` pictures or pages."""
    parser.add_argument("out", type=Path, metavar="OUT.json")
    parser.add_argument(f"--{what}", type=int, default=count, help=f"how many test {what} ({count})")
    parser.add_argument("--seed", type=int, default=0, help=f"of the {what} (0)")


def save_damages(
    options: argparse.Namespace, benchmark: str, what: str, metric: str, judge: Callable[[Path], dict[str, Any]]
) -> int:
    """Judge every damage in a temporary folder, print the figures of each, and write the document."""
    if not options.out.parent.is_dir():
        options.usage_error(f"{options.out}: there is no folder {options.out.parent}")
    with tempfile.TemporaryDirectory(prefix="edgeclip-damage-") as folder:
        figures = judge(Path(folder))
    for name, values in figures.items():
        print(name, values, file=sys.stderr)
    facts = {what: getattr(options, what), "seed": options.seed}
    save(make_document(benchmark, {**facts, metric: figures}), options.out)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add_damage_arguments(parser, "images", IMAGES)


def run(options: argparse.Namespace) -> int:
    """Judge every damage and write the figures."""
    return save_damages(
        options,
        __name__,
        "images",
        "recall",
        lambda folder: _figures(judge_damages(folder, images=options.images, seed=options.seed)),
    )


def _figures(found: dict[str, Judgement]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        name: {
            **{metric: overall(one.scores, metric=metric) for metric in METRICS},
            "points lost, paired": [
                {
                    "metric": loss.metric,
                    "direction": loss.direction,
                    "points": round(-loss.points, 2),
                    "at least": round(-loss.high, 2),
                }
                for loss in one.losses
                if name != RIGHT
            ],
        }
        for name, one in found.items()
    }
    for dim in sorted(DIMS)[:-1]:
        figures[f"cut to {dim} dimensions"] = {
            metric: overall(found[RIGHT].scores, metric=metric, dim=dim) for metric in METRICS
        }
    return figures

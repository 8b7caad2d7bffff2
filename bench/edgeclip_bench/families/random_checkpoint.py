"""Write random-weight checkpoints in a model's official layout.

Of parameters jina_clip (jina-clip-v2) has 865 M, in 1.73 GB as fp16, jina_clip_v1 223 M, jina_embeddings_v4 3.8 G,
nllb_clip 507 M and nllb_clip_large 1.2 G; with --tiny a checkpoint has a few hundred kB.

Latency and memory do not depend on the weights' values, so a machine can be judged before anything is downloaded. The
similarities of such a checkpoint mean nothing. Weights are drawn so that activations keep about unit variance through
the towers, with adapters that are not zero. No tensor is in memory as a whole.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from math import prod, sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeclip_bench.families import jina_clip, jina_clip_v1, jina_embeddings_v3, jina_embeddings_v4, nllb_clip
from edgeclip_bench.families.layout import Config, Layout, Shapes, write_json
from edgeclip_bench.families.tensor_stream import write_tensors
from edgeclip_export.families import find_family
from edgeclip_export.families.jina_clip.bert_text import is_bert

LAYOUTS: Mapping[str, Layout] = {
    "jina_clip": jina_clip.LAYOUT,
    "jina_clip_v1": jina_clip_v1.LAYOUT,
    "jina_embeddings_v3": jina_embeddings_v3.LAYOUT,
    "jina_embeddings_v4": jina_embeddings_v4.LAYOUT,
    "nllb_clip": nllb_clip.LAYOUT,
    "nllb_clip_large": nllb_clip.LARGE,
}
_PIECE = 1 << 22  # numbers drawn at once


def write_checkpoint(out: Path, config: Config, *, seed: int = 0, dtype: str | None = None) -> None:
    """Write a checkpoint with this config.json into `out`; weights are of the official type if none is named."""
    layout = LAYOUTS["jina_clip_v1" if is_bert(config) else find_family(config).name]
    out.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)
    for name, shapes in layout.files(config).items():
        (out / name).parent.mkdir(exist_ok=True)
        write_tensors(out / name, shapes, dtype or layout.dtype, _random_weights(shapes, draw))
    layout.write_others(out, config)
    write_json(out / layout.config_file, config)


def _random_weights(shapes: Shapes, draw: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    """Yield the numbers of the tensors, one after the other and in pieces; towers keep about unit variance."""
    for name, shape in shapes.items():
        center, spread = _distribution(name, shape)
        for start in range(0, count := prod(shape), _PIECE):
            values = draw.standard_normal(min(_PIECE, count - start), dtype=np.float32)
            yield center + np.float32(spread) * values


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[np.float32, float]:
    """The mean and the standard deviation of a tensor's numbers."""
    zero, one = np.float32(0), np.float32(1)
    if "lora_A" in name or "lora_B" in name:
        return zero, 0.05
    if len(shape) == 1 and name.endswith(".weight"):  # a norm's scale
        return one, 0.1
    if len(shape) < 2 or name.endswith(("cls_token", "pos_embed")):
        return zero, 0.1
    return zero, 1.0 if "embeddings" in name or "embed_tokens" in name else 1.0 / sqrt(prod(shape[1:]))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--family", choices=LAYOUTS, default="jina_clip", help="whose layout (jina_clip)")
    parser.add_argument("--tiny", action="store_true", help="small numbers instead of the official ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")


def run(options: argparse.Namespace) -> int:
    """Write a checkpoint."""
    if options.out.exists():
        options.usage_error(f"{options.out} exists already")
    layout = LAYOUTS[options.family]
    config = layout.tiny_config() if options.tiny else layout.full_config()
    write_checkpoint(options.out, config, seed=options.seed)
    print(f"{options.out}: random weights; their similarities mean nothing", file=sys.stderr)
    return 0

"""Write random-weight checkpoints in a model's official layout.

    edgeclip bench random-checkpoint OUT            jina-clip-v2, full size: 865 M parameters, 1.73 GB as fp16
    edgeclip bench random-checkpoint OUT --tiny     the same layout, a few hundred kB
    edgeclip bench random-checkpoint OUT --family jina_embeddings_v3

Latency and memory do not depend on the weights' values, so a machine can be judged before anything is downloaded. The
similarities of such a checkpoint mean nothing. Weights are drawn so that activations keep about unit variance through
the towers, with an adapter that is not zero.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from edgeclip_bench.families import jina_embeddings_v3
from edgeclip_bench.families.xlmr_tokenizer import SPECIALS, xlmr_tokenizer
from edgeclip_export import tensor_shapes
from edgeclip_export.families.jina_clip.documents import config_document, preprocessor_document

Config = dict[str, Any]


def full_config() -> Config:
    """The official config.json's values."""
    return config_document(
        width=1024,
        text_layers=24,
        vision_layers=24,
        head_width=64,
        text_mlp=4096,
        vocab_size=250002,
        image_size=512,
        matryoshka_dims=[32, 64, 128, 256, 512, 768, 1024],
    )


def tiny_config() -> Config:
    """The same towers with small numbers: two layers, 64 wide, 56 px."""
    return config_document(
        width=64,
        text_layers=2,
        vision_layers=2,
        head_width=16,
        text_mlp=160,
        vocab_size=2000,
        image_size=56,
        matryoshka_dims=[16, 32, 64],
    )


# The functions that give each family's config.json, at full size and tiny.
CONFIGS: Mapping[str, tuple[Callable[[], Config], Callable[[], Config]]] = {
    "jina_clip": (full_config, tiny_config),
    "jina_embeddings_v3": (jina_embeddings_v3.full_config, jina_embeddings_v3.tiny_config),
}


def write_checkpoint(out: Path, config: Config, *, seed: int = 0, dtype: str = "float16") -> None:
    """Write config.json, model.safetensors and tokenizer.json into `out`; for images preprocessor_config.json too."""
    out.mkdir(parents=True, exist_ok=True)
    shapes = tensor_shapes(config)
    weights = {name: array.astype(dtype) for name, array in random_weights(shapes, seed)}
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    text = config["text_config"]["hf_model_config_kwargs"] if "text_config" in config else config
    synthetic_tokenizer(text["vocab_size"]).save(str(out / "tokenizer.json"))
    if "vision_config" in config:
        preprocessor = preprocessor_document(config["vision_config"]["image_size"])
        (out / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=2) + "\n")
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def random_weights(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield each tensor, drawn so that a tower keeps about unit variance, one at a time."""
    draw = np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = draw.standard_normal(shape, dtype=np.float32)
        if name.endswith("lora_A") or name.endswith("lora_B"):
            values *= 0.05
        elif len(shape) == 1 and name.endswith(".weight"):  # a norm's scale
            values = 1.0 + 0.1 * values
        elif len(shape) < 2 or name.endswith(("cls_token", "pos_embed")):
            values *= 0.1
        elif "embeddings" not in name:
            values /= np.sqrt(np.prod(shape[1:]))
        yield name, values


def synthetic_tokenizer(vocab_size: int) -> Tokenizer:
    """The tokenizer over made-up pieces: every character of many scripts, then syllables."""
    pieces = itertools.islice(_pieces(), vocab_size - 1 - len(SPECIALS))
    return xlmr_tokenizer((piece, -4.0 - np.log1p(rank)) for rank, piece in enumerate(pieces))


def _pieces() -> Iterator[str]:
    """Yield pieces without end: word starts and characters first, then longer and longer syllables."""
    latin = "abcdefghijklmnopqrstuvwxyz"
    yield from ["▁", ",", ".", "!", "?", "-", "'", ":", *"0123456789"]
    yield from [f"▁{letter}" for letter in latin]
    yield from latin
    ranges = ((0x41, 0x5B), (0xE0, 0x180), (0x3B1, 0x3CA), (0x430, 0x450), (0x5D0, 0x5EB), (0x627, 0x64B))
    more_ranges = (
        (0x905, 0x93A),
        (0xE01, 0xE2F),
        (0x3041, 0x3097),
        (0x30A1, 0x30FB),
        (0x4E00, 0x9FA6),
        (0xAC00, 0xD7A4),
    )
    syllables = [consonant + vowel for consonant in "bcdfghklmnprstvwz" for vowel in "aeiou"]
    words = [first + second for first in syllables for second in syllables]
    yield from syllables
    yield from [chr(point) for start, stop in (*ranges, *more_ranges) for point in range(start, stop)]
    yield from [f"▁{word}" for word in [*syllables, *words]]
    for word in words:
        for syllable in syllables:
            yield f"▁{word}{syllable}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("out", type=Path, help="the folder to write; must not exist")
    parser.add_argument("--family", choices=CONFIGS, default="jina_clip", help="whose layout (jina_clip)")
    parser.add_argument("--tiny", action="store_true", help="small numbers instead of the official ones")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights (default 0)")


def run(options: argparse.Namespace) -> int:
    """Write a checkpoint."""
    if options.out.exists():
        options.usage_error(f"{options.out} exists already")
    write_checkpoint(options.out, CONFIGS[options.family][options.tiny](), seed=options.seed)
    print(f"{options.out}: random weights; their similarities mean nothing", file=sys.stderr)
    return 0

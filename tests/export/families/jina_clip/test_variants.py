"""Other shapes of the same architecture: exported and run, each equals the plain torch towers.

The plain towers (`edgeclip_bench.rivals.plain_towers`) share no arithmetic with the exported ones and agree with the
reference on the goldens (`test_towers`).
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip import Encoder
from edgeclip.inputs.square import normalize_pixels, preprocess_image
from edgeclip.manifest import Target
from edgeclip_bench.families.jina_clip import tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.rivals.plain_towers import load_plain_text, load_plain_vision
from edgeclip_export import export_checkpoint
from tests.export.families.jina_clip.test_parity import largest_difference, run_graph

# Both sides are fp32 and sum in different orders. Measured: 4e-7.
AGREEMENT = 5e-6


def variant(**changes: Any) -> dict[str, Any]:
    """The tiny configuration with settings replaced, wherever they stand."""
    config = copy.deepcopy(tiny_config())
    sections = (
        config,
        config["text_config"],
        config["text_config"]["hf_model_config_kwargs"],
        config["vision_config"],
    )
    for name, value in changes.items():
        for section in sections:
            if name in section:
                section[name] = value
    return config


VARIANTS = {
    "wider text heads": variant(num_attention_heads=2),
    "three layers of vision, one of text": variant(num_hidden_layers=1, layers=3),
    "one layer of vision": variant(layers=1),
    "heads of 32": variant(head_width=32),
    "rank 7, alpha 3": variant(lora_rank=7, lora_alpha=3),
    "two adapters, the second one on": variant(
        lora_adaptations=["retrieval.passage", "retrieval.query"], default_lora_task="retrieval.query"
    ),
    "no rope interpolation": variant(intp_freq=False, pt_hw_seq_len=4),
    "pixels left over at the edge": variant(image_size=75, pt_hw_seq_len=7),
    "patch of 8": variant(patch_size=8, image_size=40),
    "another MLP": variant(mlp_ratio=3.1, intermediate_size=96),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_equals_the_plain_towers(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", VARIANTS[name], dtype="float32")
    check(tmp_path / "checkpoint", tmp_path / "bundle")


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
@pytest.mark.parametrize("name", ["no rope interpolation", "two adapters, the second one on", "one layer of vision"])
def test_a_variant_equals_the_plain_towers_for_every_target(tmp_path: Path, target: Target, name: str) -> None:
    write_checkpoint(tmp_path / "checkpoint", VARIANTS[name], dtype="float32")
    check(tmp_path / "checkpoint", tmp_path / "bundle", target)


def test_equal_tensors_are_no_trouble(tmp_path: Path) -> None:
    """The exporter merges small constants that are equal: biases of zero, say, as a fresh model has them."""
    write_checkpoint(
        tmp_path / "checkpoint",
        variant(
            width=16,
            head_width=16,
            hidden_size=16,
            num_attention_heads=1,
            intermediate_size=16,
            matryoshka_dimensions=[16],
            embed_dim=16,
        ),
        dtype="float32",
    )
    path = tmp_path / "checkpoint" / "model.safetensors"
    weights = load_file(path)
    for name, tensor in weights.items():
        if name.endswith("bias") or "out_proj" in name:
            tensor.zero_()
    save_file(weights, path)
    check(tmp_path / "checkpoint", tmp_path / "bundle")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_checkpoints_are_merged_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, tiny_config(), dtype="float32")
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    check(folder, tmp_path / "bundle")


def test_saved_rope_tables_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_checkpoint(folder, tiny_config())
    weights = load_file(folder / "model.safetensors")
    weights["vision_model.rope.freqs_cos"] = torch.full((16, 16), 2.4e26)
    save_file(weights, folder / "model.safetensors")
    check(folder, tmp_path / "bundle")


def check(checkpoint: Path, bundle: Path, target: Target = "cpu") -> None:
    """Export, run and compare ids with padding inside and behind, and images that are not square."""
    export_checkpoint(checkpoint, bundle, target=target)
    draw = np.random.default_rng(3)
    padded, many = draw.integers(4, 150, (3, 19)), draw.integers(4, 150, (3, 61))
    padded[:, 0], padded[1, 12:], padded[2, 5] = 0, 1, 1
    text = load_plain_text(checkpoint)
    for ids in (padded, many, many[:1, :9]):
        wanted = text(torch.from_numpy(ids)).numpy()
        assert largest_difference(run_graph(bundle / "text.onnx", ids), wanted) <= AGREEMENT
    with Encoder.open(bundle, device="cpu") as encoder:
        images = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((90, 61), (40, 133))]
        facts = encoder.manifest.image
        pixels = np.stack([normalize_pixels(preprocess_image(image, facts), facts) for image in images])
        wanted = load_plain_vision(checkpoint)(torch.from_numpy(pixels)).numpy()
        assert largest_difference(encoder.encode_image(images), wanted) <= AGREEMENT

"""The torch towers: un-normalised features equal the reference's, and every known mistake is seen.

The vision goldens are normalised float pixels; the tower takes pixels between 0 and 255, so they are
brought back to that scale first.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeclip_bench.rivals.plain_towers import load_plain_text, load_plain_vision
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_clip import fold
from edgeclip_export.families.jina_clip.config import JinaClipConfig, parse_config
from edgeclip_export.families.jina_clip.vision_tower import VisionTower
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from edgeclip_export.towers import xlmr_fold
from edgeclip_export.towers.xlmr import XlmrTower
from tests.conftest import CHECKPOINT, GOLDEN

# The golden README's bound on un-normalised features. Measured: 2e-6 for texts, 3.5e-6 for images; the
# smallest real mistake, tanh instead of erf in GELU, is 8e-4.
FEATURES = 2e-5
SMALLEST_MISTAKE = 2e-4

TEXT = np.load(GOLDEN / "text.npz")
VISION = np.load(GOLDEN / "vision.npz")
PREPROCESSOR = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())
MEAN, STD = (np.array(PREPROCESSOR[name])[:, None, None] for name in ("mean", "std"))
CONFIG = parse_config(read_json(CHECKPOINT / "config.json"))

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def text_weights() -> Weights:
    return fold_text(CONFIG)


@pytest.fixture(scope="module")
def vision_weights() -> Weights:
    return fold_vision(CONFIG)


@pytest.mark.parametrize("batch", ["mixed", "nopad", "single", "interior_pad", "long"])
def test_text_features_equal_the_reference(text_weights: Weights, batch: str) -> None:
    assert text_difference(CONFIG, text_weights, batch) <= FEATURES


def test_image_features_equal_the_reference(vision_weights: Weights) -> None:
    assert vision_difference(CONFIG, vision_weights) <= FEATURES


def test_a_row_of_padding_alone_is_nan_as_in_the_reference(text_weights: Weights) -> None:
    tower = make(text_tower(CONFIG), text_weights)
    found = tower.features(torch.tensor([[0, 5, 2], [1, 1, 1]]))
    assert torch.isnan(found[1]).all()
    assert torch.isfinite(found[0]).all()


def test_the_plain_towers_agree_with_the_reference_and_so_are_an_oracle() -> None:
    ids = torch.from_numpy(TEXT["mixed.input_ids"])
    text = load_plain_text(CHECKPOINT).features(ids).numpy()
    assert np.abs(text - TEXT["mixed.features"]).max() <= FEATURES
    vision = load_plain_vision(CHECKPOINT).features(torch.from_numpy(VISION["pixel_values"])).numpy()
    assert np.abs(vision - VISION["features"]).max() <= FEATURES


def test_leaving_lora_out_is_seen_and_is_the_golden_negative_control() -> None:
    lora = replace(CONFIG.text.lora, alpha=1e-30)
    config = replace(CONFIG, text=replace(CONFIG.text, lora=lora))
    weights = fold_text(config)
    assert text_difference(config, weights, "mixed") > SMALLEST_MISTAKE
    found = make(text_tower(config), weights).features(torch.from_numpy(TEXT["mixed.input_ids"])).numpy()
    assert np.abs(found - TEXT["nolora.mixed.features"]).max() <= FEATURES


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda text: replace(text, rotary_base=10000.0), id="theta 10000"),
        pytest.param(lambda text: replace(text, layer_norm_eps=1e-12), id="LayerNorm eps 1e-12"),
        pytest.param(lambda text: replace(text, lora=replace(text.lora, alpha=1.0)), id="v3's LoRA alpha"),
        pytest.param(lambda text: replace(text, pad_id=-1), id="padding not masked"),
    ],
)
def test_a_wrong_text_setting_is_seen(mistake: Callable) -> None:
    config = replace(CONFIG, text=mistake(CONFIG.text))
    assert text_difference(config, fold_text(config), "mixed") > SMALLEST_MISTAKE


def test_tanh_gelu_is_seen(text_weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    erf = nn.functional.gelu
    monkeypatch.setattr(nn.functional, "gelu", lambda x: erf(x, approximate="tanh"))
    assert text_difference(CONFIG, text_weights, "mixed") > SMALLEST_MISTAKE


def test_no_embedding_lora_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlmr_fold, "read_table", lambda name, base, adapter: base(name))
    assert text_difference(CONFIG, fold_text(CONFIG), "mixed") > SMALLEST_MISTAKE


@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda vision: replace(vision, rope_grid=4), id="no rope interpolation"),
        pytest.param(lambda vision: replace(vision, layer_norm_eps=1e-5), id="LayerNorm eps 1e-5"),
        pytest.param(lambda vision: replace(vision, rotary_base=20000.0), id="theta 20000"),
    ],
)
def test_a_wrong_vision_setting_is_seen(mistake: Callable) -> None:
    config = replace(CONFIG, vision=mistake(CONFIG.vision))
    assert vision_difference(config, fold_vision(config)) > SMALLEST_MISTAKE


@pytest.mark.parametrize("name", ["position", "cos", "blocks.0.mlp.gate_up.weight", "patch"])
def test_a_wrong_vision_weight_is_seen(vision_weights: Weights, name: str) -> None:
    """No absolute positions, no rotation, gate and up swapped, rows of a patch read column by column."""
    wrong = {
        "position": lambda w: torch.cat((w[:1], w[1:].mean(0, keepdim=True).expand_as(w[1:]))),
        "cos": lambda w: torch.ones_like(w),
        "blocks.0.mlp.gate_up.weight": lambda w: w.roll(w.shape[1] // 2, dims=1),
        "patch": lambda w: w.view(14, 14, 3, -1).transpose(0, 1).reshape(w.shape),
    }[name]
    weights = vision_weights | {name: wrong(vision_weights[name])}
    assert vision_difference(CONFIG, weights) > SMALLEST_MISTAKE


def fold_text(config: JinaClipConfig) -> Weights:
    with open_weights(open_checkpoint(CHECKPOINT).checkpoint, config) as weights:
        return {name: weight.read() for name, weight in fold.fold_text(config.text, weights.read).items()}


def fold_vision(config: JinaClipConfig) -> Weights:
    with open_weights(open_checkpoint(CHECKPOINT).checkpoint, config) as weights:
        folded = fold.fold_vision(config.vision, PREPROCESSOR["mean"], PREPROCESSOR["std"], weights.read)
        return {name: weight.read() for name, weight in folded.items()}


def text_tower(config: JinaClipConfig) -> XlmrTower:
    return XlmrTower(config.text, masked_id=config.text.pad_id)


def make(tower: nn.Module, weights: Weights) -> nn.Module:
    tower.load_state_dict(weights, assign=True)
    return tower.eval().requires_grad_(False)


def text_difference(config: JinaClipConfig, weights: Weights, batch: str) -> float:
    tower = make(text_tower(config), weights)
    found = tower.features(torch.from_numpy(TEXT[f"{batch}.input_ids"])).numpy()
    return float(np.abs(found - TEXT[f"{batch}.features"]).max())


def vision_difference(config: JinaClipConfig, weights: Weights) -> float:
    pixels = ((VISION["pixel_values"].astype(np.float64) * STD + MEAN) * 255).transpose(0, 2, 3, 1)
    tower = make(VisionTower(config.vision), weights)
    found = tower.features(torch.from_numpy(pixels.astype(np.float32))).numpy()
    return float(np.abs(found - VISION["features"]).max())

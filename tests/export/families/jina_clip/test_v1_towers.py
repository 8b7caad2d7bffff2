"""jina-clip-v1's torch towers: features equal the reference's, and a mistake gives its mistaken answer."""

import ast
import copy
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgeclip.errors import BuildError
from edgeclip_bench.families.jina_clip_v1 import full_config
from edgeclip_bench.rivals.plain_towers import load_plain_text, load_plain_vision
from edgeclip_export import tensor_shapes
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_clip.config import JinaClipConfig, parse_config
from edgeclip_export.families.jina_clip.fold import fold_text, fold_vision, text_tower
from edgeclip_export.families.jina_clip.vision_tower import VisionTower
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from edgeclip_export.towers.alibi_bert_layout import AlibiBertConfig
from tests.scenes.v1_goldens import BATCHES, CHECKPOINT, CONTROLS, FEATURES, TEXT, V1, VISION

DOCUMENT = json.loads((CHECKPOINT / "config.json").read_text())
CONFIG = parse_config(DOCUMENT)
PREPROCESSOR = read_json(CHECKPOINT / "preprocessor_config.json")
MEAN, STD = (np.array(PREPROCESSOR[name])[:, None, None] for name in ("mean", "std"))
# Measured: the smallest mistake, eps 1e-5 for 1e-6 in the vision tower, moves a feature by 4.2e-5.
SMALLEST_MISTAKE = 4e-5

Weights = dict[str, torch.Tensor]


def weights_of(config: JinaClipConfig) -> tuple[Weights, Weights]:
    with open_weights(open_checkpoint(CHECKPOINT).checkpoint, CONFIG) as opened:
        text = fold_text(config.text, opened.read)
        vision = fold_vision(config.vision, PREPROCESSOR["mean"], PREPROCESSOR["std"], opened.read)
        return {n: w.read() for n, w in text.items()}, {n: w.read() for n, w in vision.items()}


def text_features(config: JinaClipConfig, weights: Weights, batch: str) -> np.ndarray:
    tower = text_tower(config.text)
    tower.load_state_dict(weights, assign=True)
    return tower.eval().requires_grad_(False).features(torch.from_numpy(TEXT[f"{batch}.input_ids"])).numpy()


def vision_features(config: JinaClipConfig, weights: Weights) -> np.ndarray:
    pixels = ((VISION["pixel_values"].astype(np.float64) * STD + MEAN) * 255).transpose(0, 2, 3, 1)
    tower = VisionTower(config.vision)
    tower.load_state_dict(weights, assign=True)
    return tower.eval().requires_grad_(False).features(torch.from_numpy(pixels.astype(np.float32))).numpy()


def difference(found: np.ndarray, wanted: np.ndarray) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max())


@pytest.mark.parametrize("batch", BATCHES)
def test_text_features_equal_the_reference(batch: str) -> None:
    assert difference(text_features(CONFIG, weights_of(CONFIG)[0], batch), TEXT[f"{batch}.features"]) <= FEATURES


def test_image_features_equal_the_reference() -> None:
    assert difference(vision_features(CONFIG, weights_of(CONFIG)[1]), VISION["features"]) <= FEATURES


def test_the_plain_towers_agree_with_the_reference() -> None:
    for batch in BATCHES:
        text = load_plain_text(CHECKPOINT).features(torch.from_numpy(TEXT[f"{batch}.input_ids"])).numpy()
        assert difference(text, TEXT[f"{batch}.features"]) <= FEATURES
    vision = load_plain_vision(CHECKPOINT).features(torch.from_numpy(VISION["pixel_values"])).numpy()
    assert difference(vision, VISION["features"]) <= FEATURES


def slopes(change: Callable[[AlibiBertConfig], tuple[float, ...]]) -> Callable[[pytest.MonkeyPatch, Weights], None]:
    def patch(patches: pytest.MonkeyPatch, weights: Weights) -> None:
        changed = change(CONFIG.text)
        patches.setattr(AlibiBertConfig, "slopes", property(lambda config: changed))

    return patch


def swap_gate(patches: pytest.MonkeyPatch, weights: Weights) -> None:
    for name in [name for name in weights if name.endswith("gate_up.weight")]:
        weights[name] = weights[name].roll(weights[name].shape[1] // 2, dims=1)


def tanh(patches: pytest.MonkeyPatch, weights: Weights) -> None:
    erf = nn.functional.gelu
    patches.setattr(nn.functional, "gelu", lambda x: erf(x, approximate="tanh"))


def no_type_row(patches: pytest.MonkeyPatch, weights: Weights) -> None:
    with open_weights(open_checkpoint(CHECKPOINT).checkpoint, CONFIG) as opened:
        weights["tokens"] = opened.read("text_model.transformer.embeddings.word_embeddings.weight")


# The text controls that are a mistake in the slopes, the weights or an operator.
TEXT_MISTAKES = {
    "no_alibi": slopes(lambda text: (0.0,) * text.heads),
    "power_of_two_slopes": slopes(lambda text: tuple(2 ** (-8 * (k + 1) / text.heads) for k in range(text.heads))),
    "alibi_scaled": slopes(lambda text: tuple(slope / text.head_width**0.5 for slope in text.slopes)),
    "gate_value_swapped": swap_gate,
    "tanh_gelu": tanh,
    "no_type_row": no_type_row,
}


@pytest.mark.parametrize("mistake", TEXT_MISTAKES)
def test_a_mistake_in_texts_is_the_negative_control(mistake: str) -> None:
    """So the control is what its name says, and the tower's part that it tests is the one that is tested."""
    weights = weights_of(CONFIG)[0]
    with pytest.MonkeyPatch.context() as patches:
        TEXT_MISTAKES[mistake](patches, weights)
        found = text_features(CONFIG, weights, "mixed")
    assert difference(found, TEXT["mixed.features"]) > SMALLEST_MISTAKE
    assert difference(found, CONTROLS[f"mixed.text.{mistake}"]) <= FEATURES


def test_a_wrong_eps_is_the_negative_control() -> None:
    config = replace(CONFIG, text=replace(CONFIG.text, layer_norm_eps=1e-12))
    found = text_features(config, weights_of(config)[0], "mixed")
    assert difference(found, TEXT["mixed.features"]) > SMALLEST_MISTAKE
    assert difference(found, CONTROLS["mixed.text.eps1e-12"]) <= FEATURES


@pytest.mark.parametrize("control", CONTROLS.files)
def test_every_control_is_seen(control: str) -> None:
    text, vision = weights_of(CONFIG)
    found = text_features(CONFIG, text, "mixed") if ".text." in control else vision_features(CONFIG, vision)
    assert difference(found, CONTROLS[control]) > SMALLEST_MISTAKE


@pytest.mark.parametrize(
    ("change", "control"),
    [
        (lambda vision: replace(vision, rope_grid=16, rope_interpolates=True), "vision.rope_interpolated_16"),
        (lambda vision: replace(vision, layer_norm_eps=1e-5), None),
    ],
)
def test_a_wrong_vision_setting_is_seen(change: Callable, control: str | None) -> None:
    config = replace(CONFIG, vision=change(CONFIG.vision))
    found = vision_features(config, weights_of(config)[1])
    assert difference(found, VISION["features"]) > SMALLEST_MISTAKE
    if control:
        assert difference(found, CONTROLS[control]) <= FEATURES


@pytest.mark.parametrize(
    ("heads", "wanted"),
    [
        (8, [2.0**-k for k in range(1, 9)]),
        (12, [*(2.0**-k for k in range(1, 9)), 2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]),
        (1, [2.0**-8]),
        (3, [2.0**-4, 2.0**-8, 2.0**-2]),
        (5, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1]),
    ],
)
def test_slopes_for_any_number_of_heads(heads: int, wanted: list[float]) -> None:
    config = replace(CONFIG.text, heads=heads, width=heads * 4)
    assert config.slopes == pytest.approx(wanted, rel=1e-15)


def test_the_official_395_tensors_and_numbers_are_known() -> None:
    """Names and shapes against the published list; the text tower's numbers are not in config.json."""
    lines = (V1 / "state_dict_keys.tsv").read_text().splitlines()
    official = {name: ast.literal_eval(shape) for name, shape in (line.split("\t") for line in lines)}
    assert tensor_shapes(full_config()) == official
    assert (len(official), sum(int(np.prod(shape)) for shape in official.values())) == (395, 222_647_041)
    config = parse_config(full_config())
    text, vision = config.text, config.vision
    assert (text.width, text.layers, text.heads, text.mlp_width, text.vocab_size) == (768, 12, 12, 3072, 30528)
    assert (text.layer_norm_eps, text.max_tokens, text.pad_id, text.token_types) == (1e-12, 8192, 0, 2)
    assert (vision.grid, vision.mlp_width, vision.heads, vision.rope_interpolates) == (14, 2048, 12, False)
    assert config.matryoshka_dims == (768,)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("mlp_type", "geglu", "mlp_type 'geglu'; only 'glu'"),
        ("use_qk_norm", True, "use_qk_norm True; only False"),
        ("position_embedding_type", "absolute", "position_embedding_type 'absolute'; only 'alibi'"),
        ("num_attention_heads", 5, "does not split into 5 heads"),
        ("layer_norm_eps", 0, "positive number as layer_norm_eps"),
    ],
)
def test_a_text_tower_of_other_arithmetic_is_refused(place: str, value: object, said: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["text_config"]["hf_model_config_kwargs"][place] = value
    with pytest.raises(BuildError, match=said):
        parse_config(document)


@pytest.mark.parametrize("base", ["jinaai/jina-bert-v2-base-en-flash", "/models/jina-bert-flash-implementation"])
def test_each_name_of_the_base_is_v1(base: str) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["text_config"]["hf_model_name_or_path"] = base
    assert parse_config(document) == CONFIG


def test_positions_that_are_not_stretched_need_no_grid() -> None:
    """The official pt_hw_seq_len is not known; without stretching only the grid itself is possible."""
    document = copy.deepcopy(DOCUMENT)
    del document["vision_config"]["pt_hw_seq_len"]
    assert parse_config(document) == CONFIG
    document["vision_config"]["pt_hw_seq_len"] = 16
    with pytest.raises(BuildError, match=r"pt_hw_seq_len \(16\) must equal the patch grid \(5\)"):
        parse_config(document)

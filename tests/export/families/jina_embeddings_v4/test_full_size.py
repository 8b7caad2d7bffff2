"""By its shapes, jina-embeddings-v4 of the official sizes as int4, with one task merged, takes 2.6 GB on the disk.

Towers of few blocks are traced at their full width without weights; what one block more adds counts for all others.
"""

import math
from dataclasses import replace
from functools import cache

import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgeclip_bench.families.jina_embeddings_v4 import config_document, full_config
from edgeclip_export import export_checkpoint
from edgeclip_export.families.family import GraphPlan
from edgeclip_export.families.jina_embeddings_v4.config import JinaEmbeddingsV4Config, parse_config
from edgeclip_export.families.jina_embeddings_v4.tensors import tensor_shapes
from edgeclip_export.opening import open_checkpoint
from edgeclip_export.towers.decoder import DecoderTower
from edgeclip_export.towers.decoder_fold import fold_decoder
from edgeclip_export.towers.window_vision import WindowVisionTower
from edgeclip_export.towers.window_vision_fold import fold_window_vision
from edgeclip_export.tracing import trace
from edgeclip_graph.narrowing import NarrowedTrace
from edgeclip_graph.passes import lower
from edgeclip_quant import data_free, narrow_without_data
from tests.scenes.v4_golden import CHECKPOINT, MEAN, STD

MOST_BYTES = 2.6e9
# The official tokenizer.json takes 11.4 MB, the graphs and the self-test some hundred kB each.
OTHER_BYTES = 15e6


def with_blocks(blocks: int) -> JinaEmbeddingsV4Config:
    """The official sizes with few blocks."""
    text, vision = {"num_hidden_layers": blocks}, {"depth": blocks, "fullatt_block_indexes": [1]}
    return parse_config(
        config_document(text=text, vision=vision, first_special=151_643, multi_dim=128, dims=(128, 2048))
    )


def plans(config: JinaEmbeddingsV4Config) -> tuple[GraphPlan, GraphPlan]:
    """The graphs of a checkpoint of zeros with this configuration and no adapters."""
    shapes = tensor_shapes(config)

    def read(name: str) -> Tensor:
        return torch.zeros(()).expand(shapes[name]).clone()

    opened = open_checkpoint(CHECKPOINT)
    with opened.family.open(opened.checkpoint, "retrieval") as model:
        vision, text = model.graphs
    features = torch.zeros(2, 4, config.decoder.width)
    text = replace(
        text,
        build=lambda: DecoderTower(config.decoder),
        weights=fold_decoder(config.decoder, read, None),
        examples={**text.examples, "image_features": features},
    )
    vision = replace(
        vision,
        build=lambda: WindowVisionTower(config.vision),
        weights=fold_window_vision(config.vision, MEAN, STD, read),
    )
    return vision, text


@cache
def narrowed(graph: int, blocks: int) -> NarrowedTrace:
    """A graph as `export --to int4` writes it at the first attempt."""
    plan = plans(with_blocks(blocks))[graph]
    plain = lower(trace(plan), "cpu", plan.name, plan.traits, layers="divided")
    return narrow_without_data("int4")(plain, plan.name, is_followed=graph == 0, attempt=0)


def weight_bytes(model: ir.Model) -> int:
    """The bytes of all constants, none of which is computed."""
    size = 0
    for value in model.graph.initializers.values():
        assert value.const_value is not None
        size += math.ceil(value.const_value.dtype.itemsize * math.prod(value.const_value.shape.numpy()))
    return size


@pytest.fixture(autouse=True)
def _unturned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turning channels reads weights, and changes no shape."""
    monkeypatch.setattr(data_free, "turn_channels", lambda model: (model, {}))


def test_both_graphs_take_26_gb() -> None:
    """Of nine blocks of the decoder the third has q, k and o in 8 bits, of 36 the third to the ninth."""
    full = parse_config(full_config())
    assert (full.decoder.layers, full.vision.layers) == (36, 32)
    vision, more_vision = (weight_bytes(narrowed(0, blocks).model) for blocks in (2, 3))
    two, three, nine = (weight_bytes(narrowed(1, blocks).model) for blocks in (2, 3, 9))
    late = three - two
    early = nine - two - 6 * late
    sizes = vision + 30 * (more_vision - vision), two + 7 * early + 27 * late
    assert sum(sizes) + OTHER_BYTES <= MOST_BYTES, sizes
    assert sum(sizes) > 2.4e9  # nothing was forgotten


def test_all_but_the_first_two_blocks_have_4_bits() -> None:
    """And q, k and o 8 bits in the first quarter, v everywhere; gate, up and down are of four parts each."""
    two, three, nine = (narrowed(1, blocks).kernels for blocks in (2, 3, 9))
    assert two == {"int8 per row": 2 * (4 + 3 * 4) + 1}
    assert three == {"int4 blocks": 3 + 3 * 4, "int8 per row": two["int8 per row"] + 1}
    assert nine["int4 blocks"] == 7 * 3 * 4 + 6 * 3


def test_the_size_by_shapes_is_that_of_the_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Of the golden checkpoint, whose weights can be written."""
    out = tmp_path_factory.mktemp("size") / "int4"
    export_checkpoint(CHECKPOINT, out, narrow=narrow_without_data("int4"), task="retrieval")
    for name in ("text", "vision"):
        model = ir.load(out / f"{name}.onnx")
        written = (out / f"{name}.onnx_data").stat().st_size
        assert written * 0.9 <= weight_bytes(model) <= written + (out / f"{name}.onnx").stat().st_size

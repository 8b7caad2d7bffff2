"""865 M random parameters: `make test-full-size`. Minutes, 9 GB of disk, 8 GB of memory.

One checkpoint is drawn, exported for the CPU and held against the plain towers; its graphs are counted
and its long text is weighed.
"""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgeclip import Encoder, Manifest
from edgeclip.engine.devices import usable_cpus
from edgeclip_bench.families.jina_clip import full_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.latency.build_cost import BuildCost, measure_build
from edgeclip_bench.rivals.plain_towers import load_plain_text
from edgeclip_bench.rivals.run import Entry, weigh_longest_text
from edgeclip_graph.census import count_operators
from edgeclip_quant import quantize_bundle
from tests.export.families.jina_clip.test_parity import largest_difference

pytestmark = pytest.mark.full_size

EXPORT_BYTES, EXPORT_S = 8e9, 180
QUANTISE_BYTES, QUANTISE_S = 10e9, 600
# One byte for each of 865 M parameters, a tokenizer of 17 MB, what stays fp32.
INT8_BYTES, INT4_BYTES = 900e6, 500e6
LONG_TEXT_BYTES = 1.5e9
# Unit vectors of 1024 dimensions. Measured: 2e-7.
PARITY = 5e-6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "checkpoint"
    write_checkpoint(folder, full_config())
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path) -> tuple[Path, BuildCost]:
    out = checkpoint.parent / "bundle"
    return out, measure_build("export", checkpoint, out)


def test_the_export_keeps_its_bounds(exported: tuple[Path, BuildCost]) -> None:
    _, cost = exported
    assert cost.peak_resident_bytes <= EXPORT_BYTES
    assert cost.seconds <= EXPORT_S
    assert all(one.largest_difference <= PARITY for one in cost.measured)


def test_the_graphs_have_one_op_for_each_kernel(exported: tuple[Path, BuildCost]) -> None:
    bundle, _ = exported
    text, vision = (count_operators(ir.load(bundle / f"{graph}.onnx")) for graph in ("text", "vision"))
    assert text["com.microsoft.FusedMatMul"] == 2 * 4 * 24  # the two ways of `passes.choice`
    assert text["com.microsoft.RotaryEmbedding"] == 2 * 48
    assert text["com.microsoft.MultiHeadAttention"] == 2 * 24
    assert vision["MatMul"] == 4 * 24 + 2
    assert vision["com.microsoft.MultiHeadAttention"] == 24
    assert vision["com.microsoft.RotaryEmbedding"] == 47
    assert vision["com.microsoft.QuickGelu"] == 24


def test_texts_equal_the_plain_tower(checkpoint: Path, exported: tuple[Path, BuildCost]) -> None:
    tower = load_plain_text(checkpoint)
    with Encoder.open(exported[0], device="cpu") as encoder:
        texts = ["a red bicycle", "<pad> ein rotes Fahrrad", "word " * 700]
        found = encoder.encode_text(texts)
        rows = [item.arrays["input_ids"] for item in encoder.prepare_texts(texts).items]
    with torch.inference_mode():
        wanted = np.concatenate([tower(torch.from_numpy(row)[None]).numpy() for row in rows])
    assert largest_difference(found, wanted) <= PARITY


def test_one_text_of_8192_tokens_stays_within_its_memory(exported: tuple[Path, BuildCost]) -> None:
    bundle, _ = exported
    entry = Entry(name="bundle", folder=bundle, manifest=Manifest.read(bundle))
    (memory,) = weigh_longest_text(entry, usable_cpus()).values()
    assert memory["tokens"] == 8192 and memory["peak_above_loaded_bytes"] <= LONG_TEXT_BYTES


def test_int8_keeps_its_bounds(exported: tuple[Path, BuildCost]) -> None:
    bundle, _ = exported
    cost = measure_build("quantize", bundle, bundle.parent / "int8", "--to", "int8")
    assert cost.peak_resident_bytes <= QUANTISE_BYTES
    assert cost.seconds <= QUANTISE_S
    assert cost.written_bytes <= INT8_BYTES
    assert all(one.worst_cosine >= 0.995 for one in cost.measured)


def test_int4_is_small(exported: tuple[Path, BuildCost]) -> None:
    bundle, _ = exported
    manifest = quantize_bundle(bundle, bundle.parent / "int4", to="int4")
    assert manifest.weight_bytes <= INT4_BYTES
    assert {kernel for graph in manifest.graphs.values() for kernel in graph.kernels} == {"int4 blocks"}

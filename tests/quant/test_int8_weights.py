"""No int8 weight is -128, in any recipe and family.

arm64 without dotprod (Cortex-A53, A72) makes an unsigned input of 0 a -128 and adds pairs of products in 16 bits:
two of -128 * -128 wrap around, two of -128 * -127 do not (`edgeclip.engine.products`).
"""

from pathlib import Path
from typing import get_args

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip import Manifest
from edgeclip_graph.linear import linear_layers
from edgeclip_quant import quantize_bundle
from edgeclip_quant.kernels import Kernel, Plan, ReplaceLayers, quantize_columns
from edgeclip_quant.passes.integer_layers import plain_graph
from edgeclip_quant.passes.token_table import NarrowTable, token_tables
from edgeclip_quant.recipes import COMPARED, for_cpu
from tests.scenes.small_families import FAMILIES, small_bundle

LEAST = -127
# Kernels whose weights are no int8: floats, and blocks, which are unsigned and multiplied in another way.
NO_INT8 = {"fp32", "int8 blocks", "int4 blocks"}
INT8_KERNELS: list[Kernel] = [kernel for kernel in get_args(Kernel) if kernel not in NO_INT8]


def least_int8(model: ir.Model) -> list[int]:
    """The least level of every int8 array in a graph."""
    found = [value.const_value for value in model.graph.initializers.values()]
    return [int(one.numpy().min()) for one in found if one is not None and one.dtype == ir.DataType.INT8]


@pytest.mark.parametrize("kernel", INT8_KERNELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_kernel_writes_the_lowest_level(family: str, kernel: Kernel, shared: Path) -> None:
    folder = small_bundle(family, shared)
    for name, facts in Manifest.read(folder).graphs.items():
        model = plain_graph(name, folder / facts.file)
        layers = [layer.name for layer in linear_layers(model.graph)]
        model = ReplaceLayers({name: Plan(kernel=kernel, largest=1.0) for name in layers}, separates=True)(
            model
        ).model
        if token_tables(model.graph):
            model = NarrowTable(8)(model).model
        found = least_int8(model)
        assert len(found) >= len(layers) and min(found) >= LEAST


def test_every_recipe_writes_its_weights_by_these_kernels() -> None:
    recipes = [for_cpu(one, cpu) for one in COMPARED for cpu in ("vnni", "avx2")]
    used = {kernel for one in recipes for kernel in (*one.kernels, *one.finer_kernels)}
    assert used <= {*INT8_KERNELS, *NO_INT8} and used >= set(INT8_KERNELS)


def test_nor_does_int8_for_tensorrt(bundles: dict[str, Path], tmp_path: Path) -> None:
    quantize_bundle(bundles["tensorrt"], tmp_path / "int8", to="int8")
    for facts in Manifest.read(tmp_path / "int8").graphs.values():
        found = least_int8(ir.load(tmp_path / "int8" / facts.file))
        assert len(found) >= facts.kernels["int8 static"] and min(found) >= LEAST


@pytest.mark.parametrize("size", [1e4, 1.0, 1e-36, 1e-42])
def test_whatever_the_weights_are(size: float) -> None:
    """Subnormal ones too, whose scale is not exact; neighbours of one sign never have more than 128 together."""
    draw = np.random.default_rng(0)
    for rows in (1, 2, 3, 64, 65):
        for power in (1, 5):
            weight = (size * draw.standard_normal((rows, 40)) ** power).astype(np.float32)
            for in_pairs in (False, True):
                levels, scales = quantize_columns(weight, in_pairs=in_pairs)
                assert levels.min() >= LEAST and (scales > 0).all()
                even = np.concatenate([levels, np.zeros((rows % 2, 40), np.int8)]).astype(int).reshape(-1, 2, 40)
                if in_pairs:
                    assert max(np.maximum(sign * even, 0).sum(axis=1).max() for sign in (1, -1)) <= 128

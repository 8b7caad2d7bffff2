"""The OpenVINO provider for real, where its wheel is installed: standard graphs run wholly there, as on the CPU."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from edgeclip import Encoder
from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.errors import DeviceError
from edgeclip.manifest import Target
from edgeclip_quant import quantize_bundle
from tests.conftest import DATA

pytestmark = pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs onnxruntime-openvino"
)
# Measured: 1e-7 of texts, 5e-7 of images; bf16 would be 1e-3.
SAME = 5e-6
# A value at the edge of two levels may fall the other way. Measured: 0.9999995; of a table unpacked wrongly, 0.57.
SAME_LEVELS = 0.9999


def test_the_same_vectors_as_on_the_cpu(bundles: dict[Target, Path]) -> None:
    texts, images = ["a red bicycle", "海滩上美丽", ""], sorted(DATA.glob("images/rgb_*.png"))[:2]
    with Encoder.open(bundles["tensorrt"], device="openvino", threads=1) as found:
        assert found.device == "openvino:CPU"
        with Encoder.open(bundles["tensorrt"], device="cpu", threads=1) as wanted:
            assert np.abs(found.encode_text(texts) - wanted.encode_text(texts)).max() <= SAME
            assert np.abs(found.encode_image(images) - wanted.encode_image(images)).max() <= SAME


def test_an_int8_token_table_is_unpacked_as_on_the_cpu(bundles: dict[Target, Path], tmp_path: Path) -> None:
    """OpenVINO divides integers as float32, so a word of the table must be one."""
    quantize_bundle(bundles["tensorrt"], tmp_path / "int8", cpu="auto")
    texts = ["a red bicycle", "海滩上美丽", ""]
    with (
        Encoder.open(tmp_path / "int8", device="openvino", threads=1) as found,
        Encoder.open(tmp_path / "int8", device="cpu", threads=1) as wanted,
    ):
        assert (found.encode_text(texts) * wanted.encode_text(texts)).sum(axis=1).min() >= SAME_LEVELS


def test_fused_operators_are_not_left_to_the_cpu(bundles: dict[Target, Path]) -> None:
    with pytest.raises(
        DeviceError, match=r"does not run \d+ of the \d+ nodes of the vision graph .*MultiHeadAttention"
    ):
        open_graph(
            GraphToOpen(
                path=bundles["cpu"] / "vision.onnx", graph="vision", device=Device(kind="openvino"), threads=1
            )
        )


def test_a_unit_that_is_not_there(bundles: dict[Target, Path]) -> None:
    if any(unit.startswith("GPU") for unit in onnxruntime.capi._pybind_state.get_available_openvino_device_ids()):
        pytest.skip("an OpenVINO GPU is here")
    with pytest.raises(DeviceError, match="openvino:GPU asked for, but OpenVINO finds only"):
        Encoder.open(bundles["tensorrt"], device="openvino:GPU")

"""An int8 bundle answers nearly as its source does, whatever the batch and the outliers, or it is not written."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from edgeclip import BuildError, Encoder, Manifest
from edgeclip.manifest import TOWERS, Target
from edgeclip.selftest import run_selftest
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle
from edgeclip_quant.kernels import quantize_columns, quantized_product, replace_layer
from edgeclip_quant.linear import linear_layers
from edgeclip_quant.plain import MakePlain
from edgeclip_quant.smoothing import smoothing_factors
from edgeclip_quant.table import quantize_rows
from tests.command import Captured, refusal, run
from tests.conftest import CHECKPOINT

TEXTS = [
    "a red circle",
    "zwei",
    "",
    "ein langer Satz mit vielen Worten und noch einigen mehr davon",
    "<pad> three",
    "x y z",
]
# Worst cosine of the golden bundle's int8; measured 0.9994.
WORST_COSINE = 0.995
# A row alone and among others: the same rounding, sums in another order.
COMPANY = 1e-5


@pytest.fixture(scope="module")
def int8(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden bundle as int8."""
    out = tmp_path_factory.mktemp("int8") / "bundle"
    quantize_bundle(bundle, out)
    return out


def cosines(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> NDArray[np.float64]:
    return (found.astype(np.float64) * wanted).sum(axis=1)


def pictures(count: int, seed: int = 5) -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(seed)
    return [draw.integers(0, 256, (70 + 9 * index, 90, 3), dtype=np.uint8) for index in range(count)]


def encode(bundle: Path, texts: Sequence[str] = TEXTS, images: int = 4) -> tuple[NDArray[np.float32], ...]:
    with Encoder.open(bundle, device="cpu") as encoder:
        return encoder.encode_text(texts), encoder.encode_image(pictures(images))


def test_it_is_smaller_says_so_and_answers_nearly_alike(bundle: Path, int8: Path) -> None:
    source, manifest = Manifest.read(bundle), Manifest.read(int8)
    assert {manifest.tower(name).precision for name in TOWERS} == {"int8"}
    # Four bytes become one and a share of a scale; of the golden model's few, the patch embedding stays as it is.
    for name in TOWERS:
        weights, parameters = f"{manifest.tower(name).file}_data", manifest.tower(name).parameters
        assert source.file(weights).size_bytes - manifest.file(weights).size_bytes > 2.2 * parameters
    for found, wanted in zip(encode(int8), encode(bundle), strict=True):
        assert cosines(found, wanted).min() >= WORST_COSINE
        assert (found != wanted).any()
    proved = [one for one in manifest.measured if one.against == "fp32 bundle"]
    assert [one.tower for one in proved] == list(TOWERS)
    assert all(1 > one.worst_cosine >= 0.99 and one.samples >= 8 for one in proved)
    with Encoder.open(int8, device="cpu") as encoder:
        assert all(result.worst_cosine > 0.99 for result in run_selftest(encoder, int8))


def test_every_linear_layer_and_the_table_are_integers(bundle: Path, int8: Path) -> None:
    source, manifest = Manifest.read(bundle), Manifest.read(int8)
    for name in TOWERS:
        operators = manifest.tower(name).operators
        plain = MakePlain()(ir.load(bundle / source.tower(name).file)).model
        assert operators["com.microsoft.MatMulIntegerToFloat"] == len(linear_layers(plain.graph)) > 0
    table = ir.load(int8 / manifest.text.file).graph.initializers["tokens_int8"]
    assert table.dtype == ir.DataType.INT8


def test_the_source_is_not_touched(bundle: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    quantize_bundle(bundle, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_vector_does_not_depend_on_its_company(int8: Path) -> None:
    texts = ["one two three", "one two four", "red blue <pad>", "one two three"]
    with Encoder.open(int8, device="cpu") as encoder:
        together, alone = encoder.encode_text(texts), np.stack([encoder.encode_text(text) for text in texts])
        assert np.abs(together - alone).max() <= COMPANY
        images = pictures(3)
        together = encoder.encode_image(images, batch_size=3)
        alone = np.stack([encoder.encode_image(image) for image in images])
        assert np.abs(together - alone).max() <= COMPANY


def test_the_plain_graph_computes_what_the_chosen_one_did(bundle: Path, tmp_path: Path) -> None:
    """With padding, without, and with more rows than the choice's limit."""
    path = bundle / Manifest.read(bundle).text.file
    plain = MakePlain()(ir.load(path)).model
    ir.save(plain, tmp_path / "plain.onnx", external_data="plain.data")
    sessions = [
        onnxruntime.InferenceSession(one, providers=["CPUExecutionProvider"])
        for one in (path, tmp_path / "plain.onnx")
    ]
    draw = np.random.default_rng(0)
    for shape in ((1, 5), (3, 7), (2, 90)):
        for is_padded in (False, True):
            ids = draw.integers(4, 60, shape)
            if is_padded:
                ids[0, -2:] = 1
            wanted, found = (session.run(None, {"input_ids": ids})[0] for session in sessions)
            assert np.abs(found - wanted).max() < 1e-6, (shape, is_padded)


@pytest.mark.parametrize(
    "factors", [None, np.array([0.5, 4.0, 1.0, 0.01, 30.0], np.float32)], ids=["plain", "smoothed"]
)
def test_a_layer_computes_what_numpy_does(factors: NDArray[np.float32] | None) -> None:
    draw = np.random.default_rng(1)
    weight, bias = draw.standard_normal((5, 3)).astype(np.float32), draw.standard_normal(3).astype(np.float32)
    rows = np.concatenate((draw.standard_normal((6, 5)) * [1, 9, 1, 0.1, 50], np.zeros((1, 5)))).astype(np.float32)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", 5]))
    graph = ir.Graph([x], [], nodes=[], opset_imports={"": 23}, name="layer")
    values = []
    for name, array in (("weight", weight), ("bias", bias)):
        value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
        value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(array.shape)
        graph.register_initializer(value)
        values.append(value)
    matmul = ir.node("MatMul", [x, values[0]])
    add = ir.node("Add", [matmul.outputs[0], values[1]])
    add.outputs[0].name, add.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph.extend([matmul, add])
    graph.outputs.append(add.outputs[0])
    (layer,) = linear_layers(graph)
    replace_layer(graph, layer, factors)
    graph.outputs[0].name = "y"
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    found = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": rows})[0]
    wanted = (
        quantized_product(rows, weight)
        if factors is None
        else quantized_product(rows / factors, weight * factors[:, None])
    ) + bias
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.abs(found - (rows @ weight + bias)).max() < 0.03 * np.abs(rows @ weight).max()


def test_rounding_is_symmetric_and_to_the_nearest() -> None:
    weight = np.array([[1.0, 0.0], [-2.0, 0.0], [0.5, 0.0]], np.float32)
    levels, scales = quantize_columns(weight)
    assert levels.tolist() == [[64, 0], [-127, 0], [32, 0]]
    assert scales.tolist() == pytest.approx([2 / 127, 1.0])
    rows, row_scales = quantize_rows(weight)
    assert rows.tolist() == [[127, 0], [-127, 0], [127, 0]]
    assert row_scales[:, 0].tolist() == pytest.approx([1 / 127, 2 / 127, 0.5 / 127])


def test_smoothing_factors_leave_the_product_and_even_out_the_channels() -> None:
    draw = np.random.default_rng(2)
    rows, weight = draw.standard_normal((50, 16)).astype(np.float32), draw.standard_normal((16, 8)).astype(np.float32)
    rows[:, 3] *= 80
    rows[:, 5] = 0
    factors = smoothing_factors(np.abs(rows).max(axis=0), weight)
    assert (factors > 0).all() and np.isfinite(factors).all() and factors[5] == 1
    exact, smoothed = rows @ weight, quantized_product(rows / factors, weight * factors[:, None])
    error = np.linalg.norm(smoothed - exact) / np.linalg.norm(exact)
    assert error < np.linalg.norm(quantized_product(rows, weight) - exact) / np.linalg.norm(exact)
    np.testing.assert_allclose((rows / factors) @ (weight * factors[:, None]), exact, rtol=1e-4, atol=1e-3)


def with_outliers(out: Path, factor: float) -> Path:
    """The golden checkpoint with channels of its vision norms larger and the weights behind them smaller."""
    shutil.copytree(CHECKPOINT, out)
    tensors = {name: array.astype(np.float32) for name, array in load_file(out / "model.safetensors").items()}
    for name in [name for name in tensors if name.endswith("norm1.weight") and "vision" in name]:
        block = name.removesuffix("norm1.weight")
        for norm, following in (
            ("norm1", ("attn.q_proj", "attn.k_proj", "attn.v_proj")),
            ("norm2", ("mlp.w1", "mlp.w2")),
        ):
            for channel in (3, 17, 40):
                for part in ("weight", "bias"):
                    tensors[f"{block}{norm}.{part}"][channel] *= factor
                for layer in following:
                    tensors[f"{block}{layer}.weight"][:, channel] /= factor
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_outlier_channels_cost_nothing_because_they_are_smoothed(
    tmp_path: Path, bundle: Path, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fp32 answers are what they were, int8 without smoothing falls, int8 with it does not."""
    source = tmp_path / "source"
    export_checkpoint(with_outliers(tmp_path / "checkpoint", factor), source)
    _, wanted = encode(source)
    assert np.abs(wanted - encode(bundle)[1]).max() < 1e-4
    quantize_bundle(source, tmp_path / "smoothed")
    monkeypatch.setattr("edgeclip_quant.quantize._WORTH_SMOOTHING", 0.0)
    monkeypatch.setattr("edgeclip_quant.quantize._MAX_ERROR", 10.0)
    quantize_bundle(source, tmp_path / "naive", worst_cosine=-1.0)
    smoothed, naive = (cosines(encode(tmp_path / name)[1], wanted).min() for name in ("smoothed", "naive"))
    assert smoothed >= WORST_COSINE
    assert naive < smoothed - 0.005


def test_what_lost_too_much_is_not_written(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"the text tower as int8 has a worst cosine of 0\.99\d\d .*wanted 0\.99999; layers"
    ):
        quantize_bundle(bundle, tmp_path / "out", worst_cosine=0.99999)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["cuda", "tensorrt"])
def test_another_target_is_refused(bundles: dict[Target, Path], target: Target, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=f"is fp32/fp32 for {target}; int8 is made of an fp32 bundle for cpu"):
        quantize_bundle(bundles[target], tmp_path / "out")


@pytest.mark.parametrize("name", ["vision_model.onnx_data", "text_model.onnx", "tokenizer.json", "selftest.npz"])
def test_a_damaged_source_is_refused(copied_bundle: Path, tmp_path: Path, name: str) -> None:
    """Else it would be signed anew, and agree with itself in every proof."""
    content = bytearray((copied_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied_bundle / name).write_bytes(content)
    with pytest.raises(BuildError, match=f"{name} is not what was exported"):
        quantize_bundle(copied_bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_int8_of_int8_and_a_taken_name_are_refused(int8: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is int8/int8 for cpu"):
        quantize_bundle(int8, tmp_path / "out")
    with pytest.raises(BuildError, match="exists already"):
        quantize_bundle(bundle, int8)


def test_the_command_calibrates_on_a_folder(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    data = tmp_path / "photos"
    data.mkdir()
    (data / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    for index, picture in enumerate(pictures(4)):
        Image.fromarray(picture).save(data / f"{index}.png")
    status, out, err = run("quantize", bundle, tmp_path / "out", "--to", "int8", "--calibrate", data, capsys=capsys)
    assert (status, out) == (0, "")
    assert "worst cosine on photos: text 0.99" in err
    measured = Manifest.read(tmp_path / "out").measured[-1]
    assert (measured.data, measured.samples) == ("photos", 2)


def test_a_folder_without_enough_is_refused(bundle: Path, tmp_path: Path, capsys: Captured) -> None:
    message = refusal("quantize", bundle, tmp_path / "out", "--to", "int8", "--calibrate", tmp_path, capsys=capsys)
    assert message == f"--calibrate {tmp_path}: 0 images and 0 lines in .txt files, wanted 2 of each or more"
    missing = tmp_path / "missing"
    message = refusal("quantize", bundle, tmp_path / "out", "--to", "int8", "--calibrate", missing, capsys=capsys)
    assert message == f"--calibrate {missing}: cannot be read (No such file or directory)"

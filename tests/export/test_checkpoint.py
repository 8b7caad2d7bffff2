"""Reading a checkpoint is strict: what is not as config.json says is refused by its name, in one line."""

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgeclip.errors import BuildError
from edgeclip_bench.families.jina_clip import full_config, tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_export import tensor_shapes
from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.weights import open_weights
from edgeclip_export.opening import open_checkpoint
from tests.conftest import DATA

NORM = "vision_model.norm.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "checkpoint", tiny_config())
    return tmp_path / "checkpoint"


def test_the_official_999_tensors_are_known_by_name_and_shape() -> None:
    """Against the list made by running the official code with the real configuration."""
    lines = (DATA / "state_dict_keys.tsv").read_text().splitlines()
    official = {name: ast.literal_eval(shape) for name, shape in (line.split("\t") for line in lines)}
    assert len(official) == 999
    assert tensor_shapes(full_config()) == official


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(NORM), f"{NORM} missing"),
        (lambda w: w.update({"vision_model.head.weight": torch.zeros(2)}), "vision_model.head.weight not part of"),
        (lambda w: w.update({NORM: torch.ones(65)}), rf"{NORM} has shape \(65,\), config.json wants \(64,\)"),
        (lambda w: w.update({NORM: torch.ones(64, dtype=torch.float64)}), f"{NORM} is F64, wanted BF16, F16, F32"),
        (lambda w: [w.pop(name) for name in list(w)[:9]], "and 6 more missing"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(folder: Path, change, message: str) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BuildError, match=message) as caught, opened(folder):
        pass
    assert "\n" not in str(caught.value)


def test_a_tensor_with_nan_is_named_when_it_is_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[NORM][3] = float("nan")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(BuildError, match=f"{NORM} holds NaN"), opened(folder) as weights:
        weights.read(NORM)


@pytest.mark.parametrize("kept", [7, 1000, -1])
def test_a_truncated_file_is_refused(folder: Path, kept: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(BuildError, match="not a whole safetensors file") as caught, opened(folder):
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_dtype_comes_as_fresh_fp32(folder: Path, dtype: torch.dtype) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with opened(folder) as found:
        first = found.read(NORM)
        assert first.dtype == torch.float32
        first.zero_()
        assert torch.equal(found.read(NORM), weights[NORM].float())


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_json_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(BuildError, match="config.json"):
        read_json(tmp_path / "config.json")


def opened(folder: Path):
    return open_weights(open_checkpoint(folder).checkpoint, parse_config(read_json(folder / "config.json")))

"""Checkpoints of random weights have the official layout of their family, and are written without being held."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from edgeclip_bench.families.jina_embeddings_v4 import full_config, tiny_config
from edgeclip_bench.families.random_checkpoint import LAYOUTS, write_checkpoint
from edgeclip_bench.families.tensor_stream import write_tensors
from edgeclip_export import tensor_shapes
from edgeclip_export.families.jina_embeddings_v4.adapters import FILE
from edgeclip_export.families.jina_embeddings_v4.tokenizer import read_tokenizer
from edgeclip_export.opening import open_checkpoint

# What is in memory besides pieces of 4 million numbers: drawn, scaled and narrowed.
PIECES_BYTES = 80 << 20


def read(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of every tensor of a file."""
    with safe_open(path, framework="np") as file:
        names = file.keys()
        return {name: (file.get_slice(name).get_dtype(), tuple(file.get_slice(name).get_shape())) for name in names}


@pytest.fixture(scope="module")
def v4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v4") / "checkpoint"
    write_checkpoint(folder, tiny_config())
    return folder


def test_two_bf16_shards_and_their_index_hold_every_tensor(v4: Path) -> None:
    index = json.loads((v4 / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    found = {shard: read(v4 / shard) for shard in shards}
    assert len(shards) == 2
    assert {name: shard for shard, tensors in found.items() for name in tensors} == index["weight_map"]
    tensors = {name: fact for held in found.values() for name, fact in held.items()}
    assert tensors == {name: ("BF16", shape) for name, shape in tensor_shapes(tiny_config()).items()}
    assert 0 < index["metadata"]["total_size"] < sum((v4 / shard).stat().st_size for shard in shards)


def test_one_file_holds_the_adapters_of_all_tasks(v4: Path) -> None:
    assert [path.relative_to(v4).as_posix() for path in open_checkpoint(v4).checkpoint.adapters] == [FILE]
    assert len(read(v4 / FILE)) == 2 * 3 * (2 * 7 + 1)  # factors, tasks, linear layers


def test_the_full_size_is_the_released_models() -> None:
    files = LAYOUTS["jina_embeddings_v4"].files(full_config())
    first, second, adapters = ([np.prod(shape, dtype=np.int64) for shape in files[name].values()] for name in files)
    assert len(first) + len(second) == 826
    assert len(adapters) == 1518
    assert sum(first) + sum(second) == 3_754_885_248
    assert 4.9e9 < 2 * sum(first) < 5.1e9


def test_the_tokenizer_is_the_same_from_each_of_its_files(v4: Path, tmp_path: Path) -> None:
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((v4 / name).read_bytes())
    text = "Total revenue in 2023?\n<|image_pad|> Äpfel"
    one, other = (Tokenizer.from_str(read_tokenizer(folder)).encode(text).ids for folder in (v4, tmp_path))
    assert one == other
    assert Tokenizer.from_str(read_tokenizer(v4)).decode(one, skip_special_tokens=False) == text


@pytest.mark.parametrize("family", LAYOUTS)
def test_the_same_seed_gives_the_same_files(family: str, tmp_path: Path) -> None:
    config = LAYOUTS[family].tiny_config()
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        write_checkpoint(tmp_path / name, config, seed=seed)
    names = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors")]
    assert names
    for name in names:
        one, same, other = ((tmp_path / seed / name).read_bytes() for seed in ("one", "same", "other"))
        assert one == same != other


def test_no_tensor_is_held(tmp_path: Path) -> None:
    shapes = {"small": (3,), "large": (8000, 8000)}
    pieces = (np.ones(size, np.float32) for size in (3, *[4_000_000] * 16))
    tracemalloc.start()
    try:
        write_tensors(tmp_path / "file.safetensors", shapes, "bfloat16", pieces)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < PIECES_BYTES < 2 * 8000 * 8000
    assert read(tmp_path / "file.safetensors") == {name: ("BF16", shape) for name, shape in shapes.items()}


def test_numbers_that_are_missing_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="8 bytes of tensors, their shapes want 12"):
        write_tensors(tmp_path / "file.safetensors", {"a": (3,)}, "float32", [np.zeros(2, np.float32)])

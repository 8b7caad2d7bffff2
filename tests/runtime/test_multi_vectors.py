"""MultiVectors: MaxSim equals the published definition, files come back as they were, pooling equals Ward's method.

`tests/data/multi_vectors/maxsim_golden.npz` holds 6 queries, 10 documents and their scores: those of the exact
definition, and those of implementations that pad with zeros.
"""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import InputError, MultiVectors, multi_vectors

GOLDEN = Path(__file__).parents[1] / "data" / "multi_vectors" / "maxsim_golden.npz"
# Scores are sums of up to 12 products; 4.8e-7 was measured (x86, OpenBLAS).
SAME = 2e-6


def unit(draw: np.random.Generator, rows: int, dim: int = 16) -> NDArray[np.float32]:
    found = draw.standard_normal((rows, dim)).astype(np.float32)
    lengths: NDArray[np.float32] = np.linalg.norm(found, axis=1, keepdims=True)
    return found / lengths


@pytest.fixture(scope="module")
def golden() -> dict[str, NDArray[np.float32]]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


@pytest.fixture
def queries(golden: dict[str, NDArray[np.float32]]) -> MultiVectors:
    return MultiVectors.of(golden[f"query.{index}"] for index in range(6))


@pytest.fixture
def documents(golden: dict[str, NDArray[np.float32]]) -> MultiVectors:
    return MultiVectors.of(golden[f"doc.{index}"] for index in range(10))


@pytest.mark.parametrize(("query_rows", "document_rows"), [(512, 8192), (1, 1), (4, 7), (12, 64)])
def test_maxsim_equals_the_golden_scores(
    golden: dict[str, NDArray[np.float32]],
    queries: MultiVectors,
    documents: MultiVectors,
    query_rows: int,
    document_rows: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the size of the blocks: a matrix may be larger than a block, or share one with others."""
    monkeypatch.setattr(multi_vectors, "_QUERY_ROWS", query_rows)
    monkeypatch.setattr(multi_vectors, "_DOCUMENT_ROWS", document_rows)
    scores = queries.maxsim(documents)
    assert scores.dtype == np.float32
    assert np.abs(scores - golden["scores_unpadded"]).max() <= SAME
    assert np.abs(scores - golden["scores_padded_batch128"]).max() > 1  # the golden shows a leak of padding


def test_maxsim_holds_little_beside_its_result() -> None:
    """2048 rows against 32,000 are 262 MB of products; `maxsim` holds less than a tenth of that at a time."""
    draw = np.random.default_rng(5)
    some = MultiVectors(unit(draw, 2048, 8), np.arange(0, 2049, 32))
    many = MultiVectors(unit(draw, 32_000, 8), np.arange(0, 32_001, 16))
    tracemalloc.start()
    try:
        scores = some.maxsim(many)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 24 << 20
    wanted = (some[7] @ many[1234].T).max(axis=1).sum()
    assert abs(scores[7, 1234] - wanted) <= 1e-5


def test_a_sequence_of_matrices() -> None:
    draw = np.random.default_rng(6)
    matrices = [unit(draw, rows) for rows in (3, 1, 5, 2)]
    found = MultiVectors.of(matrices)
    assert len(found) == 4 and found.dim == 16
    assert found.starts.tolist() == [0, 3, 4, 9, 11] and found.lengths.tolist() == [3, 1, 5, 2]
    for one, wanted in zip(found, matrices, strict=True):
        np.testing.assert_array_equal(one, wanted)
    np.testing.assert_array_equal(found[-1], matrices[3])
    np.testing.assert_array_equal(found[1:3].rows, np.concatenate(matrices[1:3]))
    np.testing.assert_array_equal(found[::-2].rows, np.concatenate([matrices[3], matrices[1]]))
    assert len(found[4:]) == len(found[3:1]) == 0 and found[4:].dim == 16
    assert np.shares_memory(found[1:3].rows, found.rows) and np.shares_memory(found[2], found.rows)
    with pytest.raises(IndexError):
        found[4]


def test_no_texts_have_no_scores(documents: MultiVectors) -> None:
    none = MultiVectors.of([], dim=16)
    assert none.maxsim(documents).shape == (0, 10) and documents.maxsim(none).shape == (10, 0)
    assert len(none.pooled(3)) == 0


def test_a_saved_file_gives_the_same_bits(tmp_path: Path, documents: MultiVectors) -> None:
    path = tmp_path / "pages"
    documents.save(path)
    found = MultiVectors.load(path)
    np.testing.assert_array_equal(found.rows, documents.rows)
    np.testing.assert_array_equal(found.starts, documents.starts)
    assert [file.name for file in tmp_path.iterdir()] == ["pages"]


def test_rows_can_stay_on_the_disk(tmp_path: Path, queries: MultiVectors, documents: MultiVectors) -> None:
    path = tmp_path / "pages.npz"
    documents.save(path)
    found = MultiVectors.load(path, is_mapped=True)
    assert isinstance(found.rows.base, np.memmap) and not found.rows.flags.writeable
    np.testing.assert_array_equal(found.rows, documents.rows)
    np.testing.assert_array_equal(queries.maxsim(found), queries.maxsim(documents))
    np.testing.assert_array_equal(found[2:5].rows, documents[2:5].rows)
    MultiVectors.of([], dim=16).save(path)
    assert len(MultiVectors.load(path, is_mapped=True)) == 0
    np.savez_compressed(path, rows=documents.rows, starts=documents.starts)
    assert len(MultiVectors.load(path)) == 10
    with pytest.raises(InputError, match="its rows are compressed"):
        MultiVectors.load(path, is_mapped=True)


def test_damaged_files_are_one_clear_line(tmp_path: Path, documents: MultiVectors) -> None:
    path = tmp_path / "pages.npz"
    documents.save(path)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    np.savez(tmp_path / "other.npz", rows=documents.rows)
    np.savez(tmp_path / "torn.npz", rows=documents.rows, starts=documents.starts[:-1])
    damaged = (b"", b"text", whole[: len(whole) // 2], bytes(flipped))
    for content in (*damaged, (tmp_path / "other.npz").read_bytes(), (tmp_path / "torn.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(
            InputError, match=r"pages\.npz: no multi vectors, or damaged \(.*\); save them again"
        ) as e:
            MultiVectors.load(path)
        assert "\n" not in str(e.value)
    with pytest.raises(InputError, match="no such file"):
        MultiVectors.load(tmp_path / "absent.npz")
    with pytest.raises(InputError, match="cannot be written"):
        documents.save(tmp_path / "absent" / "pages.npz")


def test_what_is_no_multi_vectors_is_refused(documents: MultiVectors) -> None:
    rows = np.ones((4, 16), np.float32)
    for refused, message in (
        ([rows[0]], r"multi vectors 0: found a \(16,\) array of float32.*vector\[None\]"),
        ([rows, rows[:0]], "multi vectors 1: found no vectors"),
        ([rows, rows[:, :8]], "multi vectors 1 have 8 dimensions, wanted 16"),
        ([rows.astype(np.int64)], "of int64, wanted floats"),
        (["text"], "wanted floats"),
    ):
        with pytest.raises(InputError, match=message):
            MultiVectors.of(refused)
    for starts in ([0, 3], [1, 4], [0, 2, 2, 4], [0, 3, 2, 4], [[0, 4]], [0.0, 4.0], []):
        with pytest.raises(InputError, match="starts"):
            MultiVectors(rows, starts)
    with pytest.raises(InputError, match="rows: found a"):
        MultiVectors(rows[0], [0, 1])
    with pytest.raises(InputError, match="16 dimensions with vectors of 8"):
        documents.maxsim(MultiVectors.of([rows[:, :8]]))
    with pytest.raises(InputError, match=r"found ndarray; see MultiVectors\.of"):
        documents.maxsim(rows)  # type: ignore[arg-type]


def test_pooling_merges_equal_rows_first() -> None:
    draw = np.random.default_rng(8)
    apart = unit(draw, 20)
    found = MultiVectors.of([np.tile(apart, (3, 1))]).pooled(3)
    np.testing.assert_allclose(found.rows, apart, atol=1e-6)
    assert found.pooled(1) is found
    for factor in (0, -1, 2.0, True, None):
        with pytest.raises(InputError, match="factor is"):
            found.pooled(factor)  # type: ignore[arg-type]

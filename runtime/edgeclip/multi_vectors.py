"""Multi vectors: for each text or image a matrix with a vector per token, and the score that compares two of them.

The score of a query and a document is MaxSim, the late interaction of ColBERT (Khattab and Zaharia, 2020,
https://arxiv.org/abs/2004.12832): for each vector of the query the largest dot product with any vector of the
document, summed over the query's vectors. Every vector counts, those of prompts and markers too, and nothing is
padded: implementations that pad documents with zeros give a negative best product as 0.
"""

import contextlib
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeclip.errors import InputError

# Rows of one matrix product: 512 x 8192 products are 16 MB, which is the most that `maxsim` holds beside its result.
# Fewer documents are compared with more queries at once, because BLAS is slow at small products: 500 queries of 20
# tokens and a page of 768 took 0.4 s in parts of 512 rows and take 0.05 s so (two busy cores, November 2026).
_QUERY_ROWS, _DOCUMENT_ROWS = 512, 8192
_SHORTEST = 1e-12


class MultiVectors(Sequence[NDArray[np.float32]]):
    """Matrices (T, dim) float32 with a row per token, one for each text or image, in one block of memory.

    `rows` (sum of T, dim) holds the rows of all of them, and those of the i-th are `rows[starts[i] : starts[i + 1]]`;
    `starts` (N + 1,) int64. Each has one row or more. It is a sequence: an index gives a matrix, a slice gives
    MultiVectors; both share the memory.
    """

    __slots__ = ("_rows", "_starts")

    def __init__(self, rows: ArrayLike, starts: ArrayLike) -> None:
        """Raises InputError for rows that are no float matrix, and for starts that do not divide them."""
        self._rows = _check_rows(rows)
        self._starts = _check_starts(starts, len(self._rows))

    @classmethod
    def of(cls, matrices: Iterable[ArrayLike], *, dim: int | None = None) -> Self:
        """Copies of matrices (T, dim), in their order; `dim` says the dimension where there may be no matrix.

        Raises InputError for one that is not a float matrix with a row or more, or has another dimension.
        """
        checked = [_check_matrix(matrix, f"multi vectors {index}") for index, matrix in enumerate(matrices)]
        wanted = dim if dim is not None else checked[0].shape[1] if checked else 0
        for index, matrix in enumerate(checked):
            if matrix.shape[1] != wanted:
                raise InputError(f"multi vectors {index} have {matrix.shape[1]} dimensions, wanted {wanted}")
        rows = np.concatenate(checked) if checked else np.empty((0, wanted), np.float32)
        return cls(rows, np.cumsum([0, *map(len, checked)]))

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, is_mapped: bool = False) -> Self:
        """Read a file of `save`; InputError for one that is missing, damaged, or something else.

        With `is_mapped` the rows stay on the disk and are read as they are used, so `maxsim` searches more pages than
        there is memory; a damaged row is not noticed then, and the file must not be changed meanwhile.
        """
        try:
            if is_mapped:
                return cls(*_map_file(path))
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as found:
                return cls(found["rows"], found["starts"])
        except FileNotFoundError as error:
            raise InputError(f"{os.fspath(path)}: no such file") from error
        except MemoryError:
            raise
        except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
            reason = " ".join(str(error).split())[:200]
            message = f"{os.fspath(path)}: no multi vectors, or damaged ({reason}); save them again"
            raise InputError(message) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an .npz file with the arrays `rows` and `starts`, under exactly this name when it is whole."""
        final = Path(path)
        partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.savez(file, rows=self._rows, starts=self._starts)
            partial.replace(final)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise InputError(f"{final}: cannot be written ({error.strerror or error})") from error
            raise

    @property
    def rows(self) -> NDArray[np.float32]:
        """The rows of all matrices, (sum of T, dim)."""
        return self._rows

    @property
    def starts(self) -> NDArray[np.int64]:
        """The first row of each matrix, and after them the number of rows: (N + 1,)."""
        return self._starts

    @property
    def dim(self) -> int:
        """The dimension of every vector."""
        return int(self._rows.shape[1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of vectors of each matrix, (N,)."""
        return np.diff(self._starts)

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> "MultiVectors": ...
    def __getitem__(self, index: int | slice) -> "NDArray[np.float32] | MultiVectors":
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            if step != 1:
                return MultiVectors.of([self[one] for one in range(first, last, step)], dim=self.dim)
            starts = self._starts[first : max(first, last) + 1]
            return MultiVectors(self._rows[starts[0] : starts[-1]], starts - starts[0])
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"index {index} of {len(self)} multi vectors")
        return self._rows[self._starts[place] : self._starts[place + 1]]

    def __repr__(self) -> str:
        return f"MultiVectors({len(self)} of {len(self._rows)} vectors together, {self.dim} dimensions)"

    def maxsim(self, other: "MultiVectors") -> NDArray[np.float32]:
        """The score of each of these, as a query, with each of `other`, as a document: (N, M) float32.

        Score (i, j) is the sum over the rows q of query i of the largest q . d of the rows d of document j, computed
        in float32 and summed in float64. The scores of different queries are not comparable. It holds 20 MB beside
        the result, however many vectors there are. InputError where the dimensions differ.
        """
        if not isinstance(other, MultiVectors):
            raise InputError(f"maxsim compares with MultiVectors, found {type(other).__name__}; see MultiVectors.of")
        if self.dim != other.dim and len(self) and len(other):
            raise InputError(f"maxsim of vectors of {self.dim} dimensions with vectors of {other.dim}")
        scores = np.zeros((len(self), len(other)), np.float32)
        for documents in _blocks(other.starts, _DOCUMENT_ROWS):
            rows = int(other.starts[documents.stop] - other.starts[documents.start])
            for queries in _blocks(self.starts, _QUERY_ROWS * max(1, _DOCUMENT_ROWS // rows)):
                scores[queries, documents] = _block_scores(self[queries], other[documents])
        return scores

    def pooled(self, factor: int) -> "MultiVectors":
        """Each matrix of T rows as one of max(1, T // factor) rows, in which similar vectors are merged.

        The rows of a matrix are clustered by Ward's method, and each cluster becomes the mean of its rows,
        normalised; the order is that of the clusters' first rows. This is for documents; queries are compared as they
        are. Hierarchical token pooling (Clavié, Chaffin and Adams, 2024, https://arxiv.org/abs/2409.14683) loses
        little up to a factor of 3. InputError unless `factor` is an int of 1 or more.
        """
        if type(factor) is not int or factor < 1:
            raise InputError(f"factor is {factor!r}, wanted an int of 1 or more")
        if factor == 1:
            return self
        return MultiVectors.of((_pool(rows, max(1, len(rows) // factor)) for rows in self), dim=self.dim)


def _map_file(path: str | os.PathLike[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The rows of a file of `save`, mapped, and its starts, read; ValueError for rows in another form.

    A member of a zip file that is not compressed lies in one piece, behind a header of 30 bytes that ends with the
    lengths of the name and of the extra field that follow it.
    """
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        with archive.open("starts.npy") as member:
            starts = np.lib.format.read_array(member)
        found = archive.getinfo("rows.npy")
        if found.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its rows are compressed, so they cannot be mapped")
        file.seek(found.header_offset + 26)
        name_bytes, extra_bytes = np.frombuffer(file.read(4), "<u2").tolist()
        file.seek(found.header_offset + 30 + name_bytes + extra_bytes)
        version = np.lib.format.read_magic(file)
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
        if version != (1, 0) or is_fortran or dtype != np.float32:
            raise ValueError("its rows are no plain float32")
        if not shape[0]:
            return np.empty(shape, np.float32), starts
        return np.memmap(path, np.float32, "r", file.tell(), shape), starts


def _check_rows(rows: ArrayLike) -> NDArray[np.float32]:
    found = np.asarray(rows)
    if found.ndim != 2 or found.dtype.kind != "f":
        raise InputError(f"rows: found a {found.shape} array of {found.dtype}, wanted floats (sum of tokens, dim)")
    return np.ascontiguousarray(found, np.float32)  # no copy of what is such an array, as of a file that is mapped


def _check_matrix(matrix: ArrayLike, label: str) -> NDArray[np.float32]:
    found = np.asarray(matrix)
    if found.ndim != 2 or found.dtype.kind != "f":
        advice = "; one vector is a matrix of one row, vector[None]" if found.ndim == 1 else ""
        raise InputError(
            f"{label}: found a {found.shape} array of {found.dtype}, wanted floats (tokens, dim){advice}"
        )
    if not len(found):
        raise InputError(f"{label}: found no vectors, wanted one or more; leave empty texts and images out")
    return found.astype(np.float32, copy=False)


def _check_starts(starts: ArrayLike, rows: int) -> NDArray[np.int64]:
    found = np.asarray(starts)
    if found.ndim != 1 or not len(found) or found.dtype.kind not in "iu":
        raise InputError(f"starts: found a {found.shape} array of {found.dtype}, wanted ints (N + 1,)")
    checked = found.astype(np.int64)
    if checked[0] != 0 or checked[-1] != rows or (np.diff(checked) < 1).any():
        raise InputError(f"starts must rise from 0 to the number of rows, {rows}, and leave none of them empty")
    return checked


def _blocks(starts: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Divide matrices into runs of at most `most` rows together; a larger one forms a run alone."""
    first = 0
    while first < len(starts) - 1:
        last = int(np.searchsorted(starts, starts[first] + most, side="right")) - 1
        yield slice(first, max(last, first + 1))
        first = max(last, first + 1)


def _pieces(vectors: MultiVectors, most: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """The rows of a run, and where its matrices begin among them; one large matrix in several pieces."""
    if len(vectors) > 1:
        yield vectors.rows, vectors.starts[:-1]
        return
    for first in range(0, len(vectors.rows), most):
        yield vectors.rows[first : first + most], np.zeros(1, np.int64)


def _block_scores(queries: MultiVectors, documents: MultiVectors) -> NDArray[np.float64]:
    """The scores of a run of queries with a run of documents, each of few rows or only one: (N, M)."""
    scores = np.zeros((len(queries), len(documents)))
    for query_rows, query_starts in _pieces(queries, _QUERY_ROWS):
        best: NDArray[np.float32] | None = None  # (rows of the queries, M)
        for rows, starts in _pieces(documents, _DOCUMENT_ROWS):
            found = np.maximum.reduceat(query_rows @ rows.T, starts, axis=1)
            best = found if best is None else np.maximum(best, found)
        if best is not None:
            scores += np.add.reduceat(best, query_starts, axis=0, dtype=np.float64)
    return scores


def _pool(rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """The normalised means of `count` clusters of rows, in the order of the clusters' first rows."""
    labels = _ward_labels(rows, count)
    order = np.argsort(labels, kind="stable")
    firsts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sums = np.add.reduceat(rows[order], firsts, axis=0, dtype=np.float64)
    means: NDArray[np.float64] = sums / np.linalg.norm(sums, axis=1, keepdims=True).clip(min=_SHORTEST)
    return means.astype(np.float32)


def _ward_labels(rows: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """For each row the first row of its cluster, when Ward's method has merged the rows into `count` clusters.

    The nearest-neighbour chain (Müllner, 2011, https://arxiv.org/abs/1109.2378) on the clusters' means: it finds all
    merges in time that grows with the square of the number of rows, and holds no matrix of distances.
    """
    means = rows.astype(np.float64)
    squares = np.einsum("td,td->t", means, means)
    sizes = np.ones(len(rows))
    members = np.arange(len(rows))  # a row of each cluster
    alive = len(rows)
    chain: list[int] = []
    costs: list[float] = []  # of each link of the chain; they fall
    merges: list[tuple[float, int, int]] = []
    while alive > 1:
        last = chain[-1] if chain else 0
        if not chain:
            chain.append(0)
        cost = squares[:alive] + squares[last] - 2 * (means[:alive] @ means[last])
        cost *= sizes[:alive] * sizes[last] / (sizes[:alive] + sizes[last])
        cost[last] = np.inf
        nearest = int(cost.argmin())
        if nearest not in chain and (not costs or cost[nearest] < costs[-1]):
            chain.append(nearest)
            costs.append(float(cost[nearest]))
            continue
        one, other = sorted((chain.pop(), chain.pop()))
        merges.append((costs.pop(), int(members[one]), int(members[other])))
        if costs:
            costs.pop()
        means[one] = (sizes[one] * means[one] + sizes[other] * means[other]) / (sizes[one] + sizes[other])
        squares[one] = means[one] @ means[one]
        sizes[one] += sizes[other]
        alive -= 1  # the last cluster takes the place of the one that is gone
        for array in (means, squares, sizes, members):
            array[other] = array[alive]
        chain = [other if place == alive else place for place in chain]
    merges.sort(key=lambda merge: merge[0])
    return _join(len(rows), [(one, other) for _, one, other in merges[: len(rows) - count]])


def _join(count: int, pairs: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """For each of `count` things the first of those that the pairs connect it with."""
    first = list(range(count))

    def find(one: int) -> int:
        while first[one] != one:
            first[one] = first[first[one]]
            one = first[one]
        return one

    for one, other in pairs:
        low, high = sorted((find(one), find(other)))
        first[high] = low
    return np.array([find(one) for one in range(count)], np.int64)

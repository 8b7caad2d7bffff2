"""How many inputs go to a tower at once, and which.

On the CPU, texts of one length share a batch: nothing is padded, so no mask is computed, and a text's
vector depends on its company by no more than the order of a sum. Batches of equal texts are cut by a
budget of tokens, which bounds the memory whatever batch_size says; a bigger batch is not faster once the
GEMMs have rows enough.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import TowerName

# Texts of 16 tokens at full size on two cores: 574 tokens a second with 256 at once, 595 with 1024
# (bench/results/cpu_full_size.json).
TOKEN_BUDGET = 1024
# One image is 1297 tokens, so a batch of them gains nothing and costs memory.
IMAGES_AT_ONCE = 1
# Nor is more of them than this quicker anywhere, whatever batch_size says: 32 are 41504 rows, and all that a TensorRT
# profile and a GPU's slot hold.
MOST_IMAGES_AT_ONCE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBatch:
    """Which texts, and their ids (B, T)."""

    indices: tuple[int, ...]
    input_ids: NDArray[np.int64]


def texts_at_once(length: int) -> int:
    """How many texts of `length` tokens a CPU is given at once: as many as fit TOKEN_BUDGET, at least one."""
    return max(1, TOKEN_BUDGET // length)


def plan_texts(
    rows: Sequence[NDArray[np.int64]],
    pad_id: int,
    batch_size: int | None,
    *,
    at_once: Callable[[int], int] = texts_at_once,
) -> Iterator[TextBatch]:
    """Batches of rows of one length, the longest first so that a lack of memory shows at once.

    A batch has at most `batch_size` rows and, of a length, at most at_once(length).
    A text with a literal padding token needs a mask and goes with its like, so that no other text
    pays for it.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault((len(row), bool((row == pad_id).any())), []).append(index)
    for (length, _), members in sorted(groups.items(), reverse=True):
        size = min(batch_size or len(members), at_once(length))
        for start in range(0, len(members), size):
            indices = tuple(members[start : start + size])
            yield TextBatch(indices=indices, input_ids=np.stack([rows[index] for index in indices]))


def plan_images(count: int, batch_size: int | None, *, at_once: int = IMAGES_AT_ONCE) -> Iterator[range]:
    """Consecutive indices, at most batch_size at once, or `at_once` where nobody said."""
    size = min(batch_size or at_once, MOST_IMAGES_AT_ONCE)
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def is_oversized(tower: TowerName, shape: tuple[int, ...]) -> bool:
    """Whether a batch is larger than those planned here by default: a long text, or what somebody else formed.

    `shape` is (B, T) of ids or (B, S, S, 3) of pixels. The memory that such a one takes is given back after it.
    """
    if tower == "text":
        return math.prod(shape) > TOKEN_BUDGET
    return shape[0] > IMAGES_AT_ONCE

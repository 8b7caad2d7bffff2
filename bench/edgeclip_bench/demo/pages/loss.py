"""The losses that the page model is trained with: of single vectors, cut to every dimension, and of multi vectors."""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from edgeclip_bench.demo.loss import contrast, cut
from edgeclip_bench.demo.pages.batches import ALL_LABELS, Readings, Told
from edgeclip_bench.demo.pages.contents import MAX_VALUE, TOPICS

_LESSON_SCALE = 20.0


def single_loss(first: Tensor, second: Tensor, answers: Tensor, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """The mean of `contrast` over the dimensions: cut, then normalised, as a user does (arXiv:2205.13147)."""
    total = first.new_zeros(())
    for dim in dims:
        a, b = cut(dim, first, second)
        total = total + contrast(scale * a @ b.T, answers)
    return total / len(dims)


def nothing_found(scores: Tensor) -> Tensor:
    """How far softmax over each row of scores (N, M) is from choosing by chance: 0 where all scores are equal."""
    return (scores.logsumexp(dim=1) - scores.mean(dim=1)).mean() - math.log(scores.shape[1])


def maxsim(queries: Tensor, pages: Tensor) -> Tensor:
    """The sum over a query's tokens of the largest product with a page's: (Q, T, E), (P, S, E) -> (Q, P).

    Rows of zeros are no tokens; a page has none of them.
    """
    count, length, _ = queries.shape
    products = queries.flatten(0, 1) @ pages.flatten(0, 1).T  # (Q*T, P*S)
    return products.view(count, length, len(pages), -1).amax(dim=3).sum(dim=1)


def multi_loss(queries: Tensor, pages: Tensor, tokens: Tensor, answers: Tensor, scale: Tensor) -> Tensor:
    """`contrast` of MaxSim's mean over a query's `tokens` (Q,): late interaction (Khattab 2020, arXiv:2004.12832)."""
    return contrast(scale * maxsim(queries, pages) / tokens[:, None], answers)


def reading_loss(scores: Tensor, readings: Readings) -> Tensor:
    """Cross entropy of what stands at image tokens, from scores (B*M, classes) of all of them.

    It is there for training alone: reading is learnt from where things stand much faster than from what is found.
    """
    here = scores[readings.places].split((len(TOPICS), len(ALL_LABELS), max(MAX_VALUE.values())), dim=1)
    wanted = (readings.topics, readings.labels, readings.values)
    return sum((F.cross_entropy(*pair) for pair in zip(here, wanted, strict=True)), scores.new_zeros(()))


def single_lesson(vectors: Tensor, told: Told, prototypes: Tensor, dims: Sequence[int]) -> Tensor:
    """How far single vectors (B, W) are from the prototypes (all particulars, W) of all that their inputs hold."""
    total = vectors.new_zeros(())
    for dim in dims:
        a, b = cut(dim, vectors, prototypes)
        shares = (_LESSON_SCALE * a @ b.T).log_softmax(dim=1)
        total = total - (shares * told.held).sum(dim=1).div(told.held.sum(dim=1)).mean()
    return total / len(dims)


def multi_lesson(vectors: Tensor, told: Told, prototypes: Tensor) -> Tensor:
    """How far vectors of tokens (B, T, E) are from the prototype (all particulars, E) of what each tells."""
    here = vectors.flatten(0, 1)[told.places]
    return F.cross_entropy(_LESSON_SCALE * here @ F.normalize(prototypes, dim=1).T, told.particulars)

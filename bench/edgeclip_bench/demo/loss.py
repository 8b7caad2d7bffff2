"""The loss that the small model is trained with, and the parts of it that the page model's losses have too."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_TEXT_TO_TEXT = 0.5  # what two captions of a picture weigh beside a picture and its caption


def matryoshka_loss(images: Tensor, first: Tensor, second: Tensor, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """The mean of `contrast` over the dimensions, and over three pairs of views of one scene.

    The inputs are (B, D) each: the pictures, their captions in one language, and their captions in another. Row i of
    all three belongs together. Cut, then normalised, as a user does (Kusupati et al. 2022, arXiv:2205.13147).
    """
    total = images.new_zeros(())
    for dim in dims:
        i, a, b = cut(dim, images, first, second)
        total = total + contrast(scale * i @ a.T) + contrast(scale * i @ b.T)
        total = total + _TEXT_TO_TEXT * contrast(scale * a @ b.T)
    return total / ((2 + _TEXT_TO_TEXT) * len(dims))


def cut(dim: int, *vectors: Tensor) -> tuple[Tensor, ...]:
    """Each of the vectors (N, W) cut to its first `dim` and normalised again."""
    return tuple(F.normalize(rows[:, :dim], dim=1) for rows in vectors)


def contrast(scores: Tensor, answers: Tensor | None = None) -> Tensor:
    """InfoNCE in both directions of scores (B, B), own on the diagonal (arXiv:2103.00020).

    `answers` (B, B) is True where another one is right too: such a one is no negative.
    """
    own = torch.arange(len(scores))
    if answers is not None:
        scores = scores.masked_fill(answers & ~torch.eye(len(scores), dtype=torch.bool), -torch.inf)
    return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2

"""The loss that the small model is trained with."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

_TEXT_TO_TEXT = 0.5  # what two captions of a picture weigh beside a picture and its caption


def matryoshka_loss(images: Tensor, first: Tensor, second: Tensor, scale: Tensor, dims: Sequence[int]) -> Tensor:
    """The mean of `contrastive_loss` over the dimensions, and over three pairs of views of one scene.

    The inputs are (B, D) each: the pictures, their captions in one language, and their captions in another. Row i of
    all three belongs together. Cut, then normalised, as a user does (Kusupati et al. 2022, arXiv:2205.13147).
    """
    total = images.new_zeros(())
    for dim in dims:
        i, a, b = (F.normalize(vectors[:, :dim], dim=1) for vectors in (images, first, second))
        total = total + contrastive_loss(i, a, scale) + contrastive_loss(i, b, scale)
        total = total + _TEXT_TO_TEXT * contrastive_loss(a, b, scale)
    return total / ((2 + _TEXT_TO_TEXT) * len(dims))


def contrastive_loss(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """InfoNCE in both directions of unit rows (B, D), the other rows as negatives (arXiv:2103.00020)."""
    logits = scale * a @ b.T
    own = torch.arange(len(a))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

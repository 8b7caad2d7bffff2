"""The loss is what a loop in fp64 gives, and a match costs less than a mismatch."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from edgeclip_bench.demo.loss import contrast, matryoshka_loss

# Of losses around 3, fp32 against a loop in fp64. Measured: 2e-7.
LOSS_TOLERANCE = 2e-6


def unit_rows(*shape: int, seed: int) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


def loop_contrastive(a: NDArray[np.float64], b: NDArray[np.float64], scale: float) -> float:
    """-log of the share of the own one, of each row among all columns and of each column among all rows."""
    total = 0.0
    for own in range(len(a)):
        of_row = [np.exp(scale * sum(a[own] * b[other])) for other in range(len(b))]
        of_column = [np.exp(scale * sum(a[other] * b[own])) for other in range(len(a))]
        total -= np.log(of_row[own] / sum(of_row)) + np.log(of_column[own] / sum(of_column))
    return total / (2 * len(a))


def loop_matryoshka(views: tuple[Tensor, Tensor, Tensor], scale: float, dims: tuple[int, ...]) -> float:
    """Two captions of a picture count half as much as a picture and its caption."""
    losses = []
    for dim in dims:
        images, first, second = (view.double().numpy()[:, :dim] for view in views)
        images, first, second = (
            np.array([row / np.sqrt(sum(row * row)) for row in view]) for view in (images, first, second)
        )
        pairs = (((images, first), 1.0), ((images, second), 1.0), ((first, second), 0.5))
        losses.append(sum(weight * loop_contrastive(*pair, scale) for pair, weight in pairs) / 2.5)
    return float(np.mean(losses))


@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("dims", [(16,), (4, 16), (2, 3, 8)])
def test_the_loss_is_what_a_loop_in_fp64_gives(dims: tuple[int, ...], scale: float) -> None:
    views = unit_rows(5, 16, seed=1), unit_rows(5, 16, seed=2), unit_rows(5, 16, seed=3)
    found = matryoshka_loss(*views, torch.tensor(scale), dims).item()
    assert found == pytest.approx(loop_matryoshka(views, scale, dims), abs=LOSS_TOLERANCE)


def test_the_loss_looks_at_the_dims_alone() -> None:
    images, first, second = unit_rows(5, 16, seed=1), unit_rows(5, 16, seed=2), unit_rows(5, 16, seed=3)
    scale = torch.tensor(10.0)
    cut = torch.cat((images[:, :8], torch.randn(5, 8)), dim=1)
    assert matryoshka_loss(images, first, second, scale, (4, 8)) == matryoshka_loss(cut, first, second, scale, (4, 8))
    assert matryoshka_loss(images, first, second, scale, (8, 9)) != matryoshka_loss(cut, first, second, scale, (8, 9))


def test_a_match_costs_less_than_a_mismatch() -> None:
    rows, scale = unit_rows(8, 16, seed=1), torch.tensor(10.0)
    matched = matryoshka_loss(rows, rows, rows, scale, (4, 16))
    assert matched < 0.5
    for views in ((rows.roll(1, 0), rows, rows), (rows, rows.roll(1, 0), rows), (rows, rows, rows.roll(1, 0))):
        assert matryoshka_loss(*views, scale, (4, 16)) > matched + 1


def test_nothing_known_costs_the_logarithm_of_the_batch() -> None:
    alike = torch.ones(8, 16) / 4
    assert contrast(10 * alike @ alike.T).item() == pytest.approx(np.log(8), abs=LOSS_TOLERANCE)

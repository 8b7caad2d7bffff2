"""Multi vectors are pooled by the clusters that scipy finds."""

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage

from edgeclip import MultiVectors
from tests.runtime.test_multi_vectors import unit


@pytest.mark.parametrize("factor", [2, 3, 7])
def test_pooling_equals_wards_method(factor: int) -> None:
    """The clusters are those that scipy's linkage gives, and each row is a cluster's normalised mean."""
    draw = np.random.default_rng(7)
    wide = unit(draw, 90, 128)
    wide[60:] = wide[:30] + 0.4 * wide[60:]
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    found = MultiVectors.of([wide, wide[:5], wide[:1]]).pooled(factor)
    assert found.lengths.tolist() == [90 // factor, max(1, 5 // factor), 1]
    for matrix, pooled in zip((wide, wide[:5]), found, strict=False):
        labels = fcluster(linkage(matrix.astype(np.float64), "ward"), len(pooled), "maxclust")
        in_order = dict.fromkeys(labels.tolist())  # by the first row of each cluster
        means = np.stack([matrix[labels == label].mean(axis=0) for label in in_order])
        np.testing.assert_allclose(pooled, means / np.linalg.norm(means, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(found[2], wide[:1], atol=1e-6)

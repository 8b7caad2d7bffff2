"""What a tower's metrics conclude about its pace."""

import time

from edgeclip.manifest import TOWERS
from edgeclip.serve.metrics import Metrics, TowerMetrics


def vision() -> TowerMetrics:
    metrics = Metrics(version="0", model="m", device="cpu", precisions=["fp32"] * len(TOWERS))
    return metrics.towers["vision"]


def test_the_best_pace_is_the_quickest_batchs() -> None:
    tower = vision()
    for size, compute_s in ((1, 30.0), (4, 2.0), (4, 8.0)):
        assert tower.best_pace(60) is None  # the first may have loaded the tower
        tower.batch(size, [0.0] * size, compute_s)
    assert tower.best_pace(60) == 0.5


def test_an_old_pace_is_none() -> None:
    """Else whoever is refused by it could never show that it is over."""
    tower = vision()
    tower.batch(16, [0.0] * 16, 160.0)
    time.sleep(0.02)
    assert tower.best_pace(0.01) is None
    assert tower.best_pace(60) == 10.0

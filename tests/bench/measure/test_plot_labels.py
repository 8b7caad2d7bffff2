"""Labels stand near their dots, clear of all dots and of each other, or where they cover least."""

import itertools
import math

from edgeclip_bench.measure.plot_labels import place_labels


def boxes(middles: list[tuple[float, float]], sizes: list[tuple[float, float]]) -> list[tuple[float, ...]]:
    return [(x - w / 2, y - h / 2, x + w / 2, y + h / 2) for (x, y), (w, h) in zip(middles, sizes, strict=True)]


def is_clear(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]


def test_labels_are_clear_of_dots_and_each_other() -> None:
    """Of a cluster, of twins in one place, and of those in the corners."""
    places = [(50.0, 50.0), (50.0, 50.0), (53.0, 50.0), (58.0, 51.0), (0.0, 0.0), (200.0, 100.0), (200.0, 99.0)]
    sizes = [(30.0, 10.0)] * len(places)
    middles = place_labels(places, sizes, (0, 0, 200, 100), [8.0] * len(places))
    labels = boxes(middles, sizes)
    for one, other in itertools.combinations(labels, 2):
        assert is_clear(one, other)
    for label, dot in itertools.product(labels, boxes(places, [(8.0, 8.0)] * len(places))):
        assert is_clear(label, dot)
    assert all(box[0] >= 0 and box[1] >= 0 and box[2] <= 200 and box[3] <= 100 for box in labels)
    assert all(math.dist(place, middle) < 60 for place, middle in zip(places, middles, strict=True))


def test_a_label_without_room_stands_where_it_covers_least() -> None:
    (middle,) = place_labels([(5.0, 5.0)], [(50.0, 50.0)], (0, 0, 10, 10), [8.0])
    assert all(math.isfinite(coordinate) for coordinate in middle)

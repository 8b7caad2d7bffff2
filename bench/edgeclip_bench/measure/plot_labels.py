"""Place the labels of a plot near their dots, without overlaps where there is room."""

import math
from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def place_labels(dots: Sequence[Point], sizes: Sequence[Point], box: Box, widths: Sequence[float]) -> list[Point]:
    """The middles of labels (width, height) near their dots, clear of all dots and of each other where there is room.

    `widths` are the dots', `box` (left, bottom, right, top) holds the labels. Where nothing is clear, one overlaps
    least.
    """
    taken = [_around(middle, width, width) for middle, width in zip(dots, widths, strict=True)]
    placed = []
    for (x, y), (width, height), dot in zip(dots, sizes, widths, strict=True):
        best, least = (x, y), math.inf
        for distance in (1, 4, 8, 14, 20, 28, 36):
            for turn in range(16):
                angle = math.pi * (0.5 + turn / 8)  # above first
                middle = (
                    x + math.cos(angle) * (width / 2 + dot / 2 + distance),
                    y + math.sin(angle) * (height / 2 + dot / 2 + distance),
                )
                label = _around(middle, width, height)
                outside = sum(
                    max(0.0, it)
                    for it in (box[0] - label[0], box[1] - label[1], label[2] - box[2], label[3] - box[3])
                )
                overlap = sum(_overlap(label, other) for other in taken) + 100 * outside
                if overlap < least:
                    best, least = middle, overlap
            if least == 0:
                break
        taken.append(_around(best, width, height))
        placed.append(best)
    return placed


def _around(middle: Point, width: float, height: float) -> Box:
    x, y = middle
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _overlap(one: Box, other: Box) -> float:
    """The area that both boxes cover."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)

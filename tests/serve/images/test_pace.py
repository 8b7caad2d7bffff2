"""How long images take follows from what each costs in its graphs, not from how many they are."""

from dataclasses import dataclass

import pytest

from edgeclip.families.family import Item
from edgeclip.serve.images.pace import ImageLoad, ImagePace


@dataclass
class Paced:
    """A graph of a known pace."""

    seconds_per_cost: float | None
    best: float | None

    def best_pace(self, within_s: float) -> float | None:
        return self.best


def page(patches: int, tokens: int) -> Item:
    return Item(graph="vision", arrays={}, tokens=patches, next_tokens=tokens, alike=None)


def test_a_page_costs_in_both_graphs() -> None:
    pace = ImagePace([Paced(0.002, 0.001), Paced(0.01, 0.005)])
    assert pace.each_s is None
    pace.note(page(1000, 260))
    assert pace.each_s == pytest.approx(2.0 + 2.6)
    assert pace.best_seconds((2000, 520), 60) == pytest.approx(2.0 + 2.6)
    pace.note(page(100, 26))  # the mean follows the newer ones
    assert pace.each_s == pytest.approx((2.0 + 2.6) * (1 - 0.2 * 0.9))


def test_an_image_of_one_size_costs_one() -> None:
    pace = ImagePace([Paced(3.0, 2.0)])
    pace.note(page(1, 0))
    assert pace.each_s == 3.0
    assert pace.best_seconds(ImageLoad(4).costs, 60) == 8.0


def test_nothing_is_known_before_a_batch_has_run() -> None:
    pace = ImagePace([Paced(None, None), Paced(0.01, 0.01)])
    pace.note(page(1000, 260))
    assert pace.each_s is None
    assert ImagePace([]).each_s is None


def test_a_request_costs_what_its_opened_images_do_and_the_least_for_the_others() -> None:
    load = ImageLoad(3)
    assert load.costs == (3, 0)
    load.add(page(1000, 260))
    assert load.costs == (1002, 260)
    load.add(page(4, 14))
    load.add(page(1, 0))
    assert load.costs == (1005, 274)

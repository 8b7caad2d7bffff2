"""Training never shows a combination that is kept back, families differ in one attribute, no picture comes twice."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice, product
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import BuildError
from edgeclip_bench.demo.families import SPLITS, Split
from edgeclip_bench.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_COUNT,
    MAX_FAMILY,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Colour,
    Group,
    Relation,
    Scene,
    Shape,
    change_one,
    draw_scenes,
    split_of,
)

Combination = tuple[Shape, Colour, Relation]

OPPOSITE: dict[Relation, Relation] = {
    "left_of": "right_of",
    "right_of": "left_of",
    "above": "below",
    "below": "above",
}
FACTS: dict[str, Sequence[Any]] = {
    "count": range(1, MAX_COUNT + 1),
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}
ALL: list[Combination] = list(product(SHAPES, COLOURS, RELATIONS))
MANY = 6000

each_split = pytest.mark.parametrize("split", SPLITS)


def scene_of(first: Combination, shape: Shape, colour: Colour) -> Scene:
    """A group on its side, and another one on the other."""
    one = Group(count=1, size="small", texture="plain", colour=first[1], shape=first[0])
    other = Group(count=2, size="large", texture="dotted", colour=colour, shape=shape)
    return Scene(first=one, relation=first[2], second=other, background="grey")


def combinations(scene: Scene) -> set[Combination]:
    """What is on which side: the second group is where the first is not."""
    first, second = scene.first, scene.second
    return {
        (first.shape, first.colour, scene.relation),
        (second.shape, second.colour, OPPOSITE[scene.relation]),
    }


def draw(split: Split, count: int, *, family: int, seed: int = 0) -> list[Scene]:
    return list(islice(draw_scenes(split, np.random.default_rng(seed), family=family), count))


def kept() -> dict[Split, set[Combination]]:
    """Whose picture is never a training one, whatever is beside it; and of those, whose always is a test one."""
    found: dict[Split, set[Combination]] = {split: set() for split in SPLITS}
    for combination in ALL:
        splits = {split_of(scene_of(combination, *other)) for other in product(SHAPES, COLOURS)}
        found["train" if "train" in splits else "validation" if splits > {"test"} else "test"].add(combination)
    return found


def attributes(scene: Scene) -> dict[str, Any]:
    """All twelve by name."""
    groups = {"first": scene.first, "second": scene.second}
    named = {f"{which} {name}": value for which, group in groups.items() for name, value in asdict(group).items()}
    return named | {"relation": scene.relation, "background": scene.background}


def changed(scene: Scene, other: Scene) -> list[str]:
    before, after = attributes(scene), attributes(other)
    return [name for name in before if before[name] != after[name]]


def neighbours(scene: Scene) -> list[Scene]:
    """Every scene that differs in one attribute."""
    changes: list[dict[str, Any]] = [{"relation": relation} for relation in RELATIONS]
    changes += [{"background": background} for background in BACKGROUNDS]
    for name, values in FACTS.items():
        for value in values:
            changes += [{which: replace(getattr(scene, which), **{name: value})} for which in ("first", "second")]
    others = (replace(scene, **change) for change in changes)
    return [other for other in others if other != scene]


def families(scenes: list[Scene], size: int) -> Iterator[list[Scene]]:
    return (scenes[start : start + size] for start in range(0, len(scenes), size))


def test_an_eighth_is_kept_for_test_and_an_eighth_for_validation() -> None:
    assert {split: len(members) for split, members in kept().items()} == {"train": 192, "validation": 32, "test": 32}


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)], ids=["shape in colour", "shape on side", "colour on side"])
def test_every_two_are_trained_together(pair: tuple[int, int]) -> None:
    """So a test picture asks for what is known apart, only not together."""
    one, other = pair
    trained = {(combination[one], combination[other]) for combination in kept()["train"]}
    assert trained == {(combination[one], combination[other]) for combination in ALL}


def test_training_scenes_show_all_of_theirs_and_nothing_that_is_kept() -> None:
    shown = {combination for scene in draw("train", MANY, family=4) for combination in combinations(scene)}
    assert shown == kept()["train"]


def test_a_validation_scene_shows_what_is_kept_for_validation_and_nothing_of_test() -> None:
    apart = kept()
    for scene in draw("validation", MANY // 3, family=4):
        assert combinations(scene) & apart["validation"]
        assert not combinations(scene) & apart["test"]


def test_a_test_scene_shows_what_is_kept_for_test() -> None:
    apart = kept()
    scenes = draw("test", MANY // 3, family=4)
    assert all(combinations(scene) & apart["test"] for scene in scenes)
    assert {one for scene in scenes for one in combinations(scene)} >= apart["test"]


@each_split
def test_a_family_differs_from_its_first_in_one_attribute(split: Split) -> None:
    """Each of the twelve is what differs, some time; and every member is of the split."""
    differing: Counter[str] = Counter()
    scenes = draw(split, 240, family=6)
    for first, *others in families(scenes, 6):
        for other in others:
            names = changed(first, other)
            assert len(names) == 1
            differing.update(names)
    assert set(differing) == set(attributes(scenes[0]))
    assert {split_of(scene) for scene in scenes} == {split}


def test_a_change_reaches_every_neighbour_and_nothing_else() -> None:
    draw = np.random.default_rng(1)
    scene = scene_of(("star", "red", "left_of"), "ring", "blue")
    assert {change_one(scene, draw) for _ in range(3000)} == set(neighbours(scene))


@each_split
def test_the_largest_family_is_found_among_neighbours(split: Split) -> None:
    """With some to spare, else drawing it would never end. Measured: 25 of 44 at least."""
    for scene in draw(split, 200, family=1):
        own = {other.canonical() for other in neighbours(scene) if split_of(other) == split} - {scene.canonical()}
        assert len(own) > MAX_FAMILY + 3
    assert len(draw(split, MAX_FAMILY, family=MAX_FAMILY)) == MAX_FAMILY


@pytest.mark.parametrize("family", [-1, 0, MAX_FAMILY + 1])
def test_a_family_of_none_or_of_too_many_is_refused(family: int) -> None:
    with pytest.raises(BuildError, match=f"a family of {family}: wanted 1 to {MAX_FAMILY}"):
        draw("train", 1, family=family)


def test_no_picture_comes_twice_however_it_is_told() -> None:
    """So many, in such families, that without care some would: of 10 million pictures, and of one's 44 neighbours."""
    scenes = draw("train", 4 * MANY, family=4)
    assert len({scene.canonical() for scene in scenes}) == len(scenes)


def test_first_scenes_take_every_value_alike() -> None:
    """Told without families: a split may thin shapes and colours out by its sixteenths, nothing else."""
    scenes = draw("train", MANY, family=1)
    counts: dict[str, Counter[Any]] = {}
    for scene in scenes:
        for name, value in attributes(scene).items():
            counts.setdefault(name, Counter())[value] += 1
    for name, values in counts.items():
        even = len(scenes) / len(values)
        assert all(0.85 * even < count < 1.15 * even for count in values.values()), name


def test_turned_is_the_same_picture_from_the_other_side() -> None:
    for scene in draw("train", 200, family=4):
        turned = scene.turned()
        assert (turned.first, turned.second) == (scene.second, scene.first)
        assert (turned.relation, turned.background) == (OPPOSITE[scene.relation], scene.background)
        assert turned != scene == turned.turned()


def test_both_tellings_of_a_picture_have_one_canonical_scene() -> None:
    for scene in draw("train", 200, family=4):
        canonical = scene.canonical()
        assert canonical == scene.turned().canonical() == canonical.canonical()
        assert canonical in (scene, scene.turned())
        assert split_of(canonical) == split_of(scene) == split_of(scene.turned())


@each_split
def test_a_seed_gives_the_same_scenes(split: Split) -> None:
    assert draw(split, 40, family=4) == draw(split, 40, family=4)
    assert draw(split, 40, family=4) != draw(split, 40, family=4, seed=1)

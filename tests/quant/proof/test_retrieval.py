"""Searches before and after: what counts as found, and how sure a change is."""

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip_quant.proof.retrieval import (
    CAPTIONS,
    DOCUMENTS,
    FIRST_ANSWERS,
    Vectors,
    paired_interval,
    retrieval_changes,
)

Array = NDArray[np.float32]


def one_hot(places: list[int], width: int = 8) -> Array:
    return np.eye(width, dtype=np.float32)[places]


def vectors(text: Array, vision: Array) -> Vectors:
    return {"text": text.astype(np.float32), "image": vision.astype(np.float32)}


def scores(similarity: list[list[float]]) -> Vectors:
    """Texts and images with these cosines (T, I): each image an axis, and one axis more for the rest of a length."""
    wanted = np.array(similarity)
    rest = np.sqrt(1 - (wanted**2).sum(axis=1, keepdims=True))
    return vectors(np.hstack((wanted, rest)), np.eye(wanted.shape[1], wanted.shape[1] + 1))


def found(source: Vectors, narrowed: Vectors, pairs: list[int] | None) -> list[tuple[int, float, float, float]]:
    changes = [change for change in retrieval_changes(source, narrowed, pairs).values() if change is not None]
    assert len(changes) == 2
    return [(one.queries, one.reference, one.recall, one.points) for one in changes]


def test_an_image_is_found_up_to_the_fifth_place() -> None:
    """Of six images, text 0 wants the fifth nearest, text 1 the sixth."""
    row = [0.5, 0.4, 0.3, 0.25, 0.2, 0.1]
    both = scores([row] * 6)
    to_image, to_text = retrieval_changes(both, both, [4, 5, 0, 1, 2, 3]).values()
    assert to_image is not None and to_text is not None
    assert (to_image.metric, to_image.truth) == ("recall@5", CAPTIONS)
    assert to_image.reference == to_image.recall == pytest.approx(5 / 6)
    # All texts are alike: each image has five wrong texts as near as its own.
    assert to_text.reference == to_text.recall == 0


def test_what_was_lost_and_what_was_gained_are_told_apart() -> None:
    far, near = [0.3, 0.3, 0.3, 0.3, 0.3, 0.0], [0.0, 0.1, 0.1, 0.1, 0.1, 0.6]
    before, after = scores([near, near, near, far, far, far]), scores([near, far, far, near, far, far])
    change = retrieval_changes(before, after, [5] * 6)["text"]
    assert change is not None
    assert (change.queries, change.reference, change.recall) == (6, 0.5, pytest.approx(1 / 3))
    assert change.points == pytest.approx(-100 / 6)
    assert (change.low, change.high) == tuple(100 * end for end in paired_interval(1, 2, 6))


def test_of_an_image_with_several_texts_any_is_right_and_one_without_is_not_asked_for() -> None:
    text, vision = one_hot([0, 1, 1, 1, 1, 1, 1, 2]), one_hot([0, 1, 2, 3, 4, 5, 6])
    both = vectors(text, vision)
    # Image 0 has texts 0 and 7, of which one is far away; 3 to 6 have none.
    assert found(both, both, [0, 1, 1, 1, 1, 1, 1, 0])[1] == (2, 1.0, 1.0, 0.0)


def test_without_pairs_the_sources_first_answer_must_stay_among_five() -> None:
    before = scores([[0.5, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]] * 7)
    fourth = [0.3, 0.4, 0.4, 0.4, 0.0, 0.0, 0.0]
    sixth = [0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.0]
    after = scores([fourth] * 3 + [sixth] * 4)
    change = retrieval_changes(before, after)["text"]
    assert change is not None
    assert (change.truth, change.queries) == (FIRST_ANSWERS, 7)
    assert (change.reference, change.recall) == (1.0, pytest.approx(3 / 7))


@pytest.mark.parametrize("pairs", [None, list(range(8))], ids=["first answers", "captions"])
@pytest.mark.parametrize(
    "row", [np.linspace(-1, 1, 8), np.zeros(8), np.full(8, np.nan)], ids=["alike", "zero", "NaN"]
)
def test_a_tower_that_answers_everything_alike_finds_nothing(row: Array, pairs: list[int] | None) -> None:
    """Searches among its answers find nothing; searches with them find the same five, or none."""
    alike, good = np.tile(row, (8, 1)), one_hot(list(range(8)))
    for text, vision, most in ((alike, good, (5 / 8, 0)), (good, alike, (0, 5 / 8)), (alike, alike, (0, 0))):
        for (_, reference, recall, _), bound in zip(
            found(vectors(good, good), vectors(text, vision), pairs), most, strict=True
        ):
            assert reference == 1 and recall <= bound


def test_a_last_bit_is_no_difference() -> None:
    """A matrix product sums the same row in other orders, by where it stands."""
    draw = np.random.default_rng(5)
    alike = np.tile(draw.standard_normal(1024), (37, 1))
    both = vectors(alike, draw.standard_normal((37, 1024)))
    to_text = retrieval_changes(both, both, list(range(37)))["image"]
    assert to_text is not None and to_text.recall == 0


def test_lengths_do_not_count() -> None:
    draw = np.random.default_rng(1)
    text, vision = draw.standard_normal((20, 16)), draw.standard_normal((15, 16))
    source = vectors(text, vision)
    longer = vectors(text * draw.uniform(0.1, 9, (20, 1)), vision * draw.uniform(0.1, 9, (15, 1)))
    for _, reference, recall, points in found(source, longer, None):
        assert (reference, recall, points) == (1, 1, 0)


def test_more_queries_than_a_block_are_the_same_as_one_by_one() -> None:
    draw = np.random.default_rng(2)
    text, vision = draw.standard_normal((700, 6)), draw.standard_normal((300, 6))
    noise = draw.standard_normal((700, 6)) * 0.4
    pairs = draw.integers(0, 300, 700)
    source, narrowed = vectors(text, vision), vectors(text + noise, vision)
    to_image, to_text = retrieval_changes(source, narrowed, pairs.tolist()).values()
    assert to_image is not None and to_text is not None
    for change, queries in ((to_image, text), (to_image, text + noise)):
        unit, among = (array / np.linalg.norm(array, axis=1, keepdims=True) for array in (queries, vision))
        order = np.argsort(-(unit.astype(np.float32) @ among.astype(np.float32).T), axis=1)[:, :5]
        recall = np.mean([image in row for image, row in zip(pairs, order, strict=True)])
        assert recall in (pytest.approx(change.reference, abs=2e-3), pytest.approx(change.recall, abs=2e-3))
    assert to_text.queries == len(set(pairs.tolist()))


@pytest.mark.parametrize(
    ("texts", "images", "has"), [(9, 5, (False, True)), (5, 9, (True, False)), (6, 6, (True, True))]
)
def test_among_five_everything_is_found_so_it_says_nothing(texts: int, images: int, has: tuple[bool, bool]) -> None:
    draw = np.random.default_rng(3)
    both = vectors(draw.standard_normal((texts, 4)), draw.standard_normal((images, 4)))
    for pairs in (None, [0] * texts):
        changes = retrieval_changes(both, both, pairs)
        assert tuple(change is not None for change in changes.values()) == has


def test_nothing_to_search_is_no_change() -> None:
    none = vectors(np.zeros((0, 4)), np.ones((7, 4)))
    assert retrieval_changes(none, none) == {"text": None, "image": None}


@pytest.mark.parametrize("pairs", [[0, 1], [0, 1, 7], [0, 1, -1], [[0], [1], [2]]])
def test_pairs_that_do_not_fit(pairs: list[int]) -> None:
    both = vectors(np.ones((3, 4)), np.ones((7, 4)))
    with pytest.raises(InputError, match="of 3 texts and 7 images, wanted an image for each text"):
        retrieval_changes(both, both, pairs)


def test_queries_search_the_documents_alone() -> None:
    """Texts 0 to 6 are documents. Queries lie near each other, and are no candidates; one finds its own no more."""
    documents = one_hot(list(range(7)))
    queries = documents[[3, 4, 5]] + 0.9 * one_hot([7, 7, 7])
    lost = queries.copy()
    lost[1] = documents[:4].sum(axis=0) + documents[5:].sum(axis=0)  # any but its own
    before, after = ({"text": np.concatenate((documents, some))} for some in (queries, lost))
    change = retrieval_changes(before, after, [*range(7), 3, 4, 5])["text"]
    assert change is not None
    assert (change.truth, change.queries, change.reference) == (DOCUMENTS, 3, 1.0)
    assert change.recall == pytest.approx(2 / 3)


def test_texts_without_pairs_search_each_other_and_never_themselves() -> None:
    """Each text's nearest other text must stay among five; were a text its own answer, nothing could be lost."""
    draw = np.random.default_rng(6)
    texts = draw.standard_normal((40, 16)).astype(np.float32)
    same = retrieval_changes({"text": texts}, {"text": texts})["text"]
    assert same is not None and (same.truth, same.queries) == (FIRST_ANSWERS, 40)
    assert (same.reference, same.recall) == (1.0, 1.0)
    other = retrieval_changes({"text": texts}, {"text": draw.standard_normal((40, 16)).astype(np.float32)})["text"]
    assert other is not None and other.recall < 0.5
    assert retrieval_changes({"text": texts[:6]}, {"text": texts[:6]}) == {"text": None}


@pytest.mark.parametrize("pairs", [[0, 0], [0, 1, 3], [0, 1, -1], [1, 2, 2]])
def test_documents_that_are_not_there_or_are_queries(pairs: list[int]) -> None:
    texts = np.ones((3, 4), np.float32)
    with pytest.raises(InputError, match="of 3 texts, wanted a document among them for each"):
        retrieval_changes({"text": texts}, {"text": texts}, pairs)


def test_images_alone_are_not_searched() -> None:
    images = np.eye(8, dtype=np.float32)
    assert retrieval_changes({"image": images}, {"image": images}) == {"image": None}


def test_the_interval_is_the_published_one() -> None:
    """diffpropci.mp(b = 40, c = 20, n = 160, conf.level = 0.95) of R's PropCIs."""
    assert paired_interval(20, 40, 160) == pytest.approx((-0.216017, -0.030896), abs=1e-6)


def test_where_nothing_changed_more_queries_say_more() -> None:
    ends = [paired_interval(0, 0, queries) for queries in (1, 8, 100, 10_000)]
    assert all(low == -high < 0 for low, high in ends)
    widths = [high - low for low, high in ends]
    assert widths == sorted(widths, reverse=True) and widths[-1] < 4e-4
    assert paired_interval(0, 3, 3)[0] == -1  # no share is below 0


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.005), (0.01, 0.02), (0.05, 0.05), (0.0, 0.2)])
@pytest.mark.parametrize("queries", [50, 200, 1000])
def test_the_interval_covers_the_truth(gain: float, loss: float, queries: int) -> None:
    """At least 92 of 100 samples of every kind, 95 being the aim; it is on the safe side where changes are rare."""
    draw = np.random.default_rng(4)
    samples = draw.multinomial(queries, [gain, loss, 1 - gain - loss], size=2000)
    inside = [low <= gain - loss <= high for low, high in (paired_interval(a, b, queries) for a, b, _ in samples)]
    assert np.mean(inside) >= 0.92

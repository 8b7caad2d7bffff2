"""Samples are halved without parting a text from its image, and made up alike every time."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip import Manifest
from edgeclip.errors import BuildError, InputError
from edgeclip.families.family import Item
from edgeclip.manifest import MODALITIES, Modality
from edgeclip_quant.inputs.made_up import Samples, made_up_samples, padded_pair, queries_and_documents, text_item
from edgeclip_quant.proof.retrieval import retrieval_changes
from tests.scenes.graph_feeds import made_up, open_feeder


def numbered(texts: int, images: int, pairs: tuple[int, ...] | None = None) -> Samples:
    """Each input is its own number."""

    def item(graph: str, number: int) -> Item:
        return Item(graph=graph, arrays={}, tokens=number, alike=None)

    return Samples(
        name="numbers",
        text=tuple(item("text", number) for number in range(texts)),
        image=tuple(item("vision", number) for number in range(images)),
        pairs=pairs,
    )


def numbers(samples: Samples) -> tuple[list[int], list[int]]:
    return [item.tokens for item in samples.text], [item.tokens for item in samples.image]


def test_without_pairs_texts_and_images_alternate() -> None:
    first, second = numbered(5, 4).halves()
    assert numbers(first) == ([0, 2, 4], [0, 2]) and numbers(second) == ([1, 3], [1, 3])
    assert first.pairs is None is second.pairs
    assert first.name == second.name == "numbers"
    assert first.of("text") is first.text and first.of("image") is first.image


@pytest.mark.parametrize(
    "pairs",
    [
        (0, 1, 2, 3, 4),
        (0, 0, 0, 1, 2, 2, 3, 4),
        (4, 3, 2, 1, 0),
        (3, 3, 0, 1),
        (2, 0, 1, 1, 4, 3, 2, 0, 0),
    ],
)
def test_a_text_still_describes_its_image_in_either_half(pairs: tuple[int, ...]) -> None:
    whole = numbered(len(pairs), 5, pairs)
    seen: list[int] = []
    for half, images in zip(whole.halves(), ([0, 2, 4], [1, 3]), strict=True):
        texts, pictures = numbers(half)
        assert pictures == images
        assert half.pairs is not None and len(half.pairs) == len(texts)
        for text, image in zip(texts, half.pairs, strict=True):
            assert pictures[image] == pairs[text]
        seen += texts
    assert sorted(seen) == list(range(len(pairs)))  # every text is in one


def test_no_half_has_a_pair_that_retrieval_refuses() -> None:
    draw = np.random.default_rng(0)
    pairs = tuple(int(image) for image in draw.integers(0, 20, 60))
    for half in numbered(60, 20, pairs).halves():
        vectors: dict[Modality, NDArray[np.float32]] = {
            "text": draw.standard_normal((len(half.text), 8)).astype(np.float32),
            "image": draw.standard_normal((len(half.image), 8)).astype(np.float32),
        }
        retrieval_changes(vectors, vectors, half.pairs)
        with pytest.raises(InputError, match="wanted an image for each text"):
            retrieval_changes(vectors, vectors, pairs)


def test_made_up_samples_are_the_same_every_time(bundle: Path) -> None:
    once, again, other = (made_up(bundle, texts=9, images=5, seed=seed) for seed in (0, 0, 1))
    for one, two in zip((*once.text, *once.image), (*again.text, *again.image), strict=True):
        np.testing.assert_equal(dict(one.arrays), dict(two.arrays))
    for modality in MODALITIES:
        same = [
            all(np.array_equal(one.arrays[name], two.arrays[name]) for name in one.arrays)
            for one, two in zip(once.of(modality), other.of(modality), strict=True)
        ]
        assert not all(same)
    assert once.pairs is None and once.name == "made-up inputs"


def test_made_up_samples_are_what_the_graphs_take(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    facts = manifest.need_text()
    samples = made_up(bundle, texts=200, images=6)
    rows = [item.arrays["input_ids"] for item in samples.text]
    pictures = [item.arrays["pixel_values"] for item in samples.image]
    size = Tokenizer.from_file(str(bundle / facts.file)).get_vocab_size()
    lengths = {len(row) for row in rows}
    assert min(lengths) < 8 and 50 < max(lengths) < 70
    inner = np.concatenate([row[1:-1] for row in rows])
    for row in rows:
        assert row.ndim == 1 and row.dtype == np.int64
        assert (row[0], row[-1]) == (facts.bos_id, facts.eos_id)
    assert not np.isin(inner, [facts.pad_id, facts.bos_id, facts.eos_id]).any()  # nothing is masked
    assert inner.min() >= 0 and inner.max() < size and len(set(inner.tolist())) > size // 2
    side = manifest.need_image().size_px
    assert {pixels.shape for pixels in pictures} == {(side, side, 3)}
    assert {pixels.dtype for pixels in pictures} == {np.dtype(np.uint8)}
    assert min(pixels.std() for pixels in pictures) > 20


def test_a_padded_pair_is_the_shortest_and_the_longest_text(bundle: Path) -> None:
    feeder = open_feeder(bundle)
    texts = tuple(text_item(feeder, np.arange(10, 10 + length), None) for length in (4, 2, 7, 3))
    (pair,) = padded_pair(feeder, texts).values()
    np.testing.assert_array_equal(pair, [[10, 11, 1, 1, 1, 1, 1], [10, 11, 12, 13, 14, 15, 16]])
    (pair,) = padded_pair(feeder, texts[:1]).values()
    assert pair.tolist() == [[10, 11, 12, 13]] * 2


def test_a_query_is_a_piece_of_its_document_and_stays_with_it(bundle: Path) -> None:
    samples = queries_and_documents(open_feeder(bundle), np.random.default_rng(0), 20)
    for whole in (samples, *samples.halves()):
        assert whole.pairs is not None
        rows = [item.arrays["input_ids"].tolist() for item in whole.text]
        queries = [index for index, document in enumerate(whole.pairs) if document != index]
        assert len(rows) == 2 * len(queries) == len({tuple(row) for row in rows})
        for query in queries:
            piece, document = rows[query][1:-1], rows[whole.pairs[query]]
            assert 0 < len(piece) < len(document)
            assert any(document[start : start + len(piece)] == piece for start in range(len(document)))


def test_a_bundle_without_a_tokenizer_is_told(copied_bundle: Path) -> None:
    feeder = open_feeder(copied_bundle)
    path = copied_bundle / feeder.manifest.need_text().file
    for content in (b"{", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(
            BuildError, match=r"tokenizer.json: not a tokenizer \(.*\); export or copy the bundle again"
        ):
            made_up_samples(feeder, texts=1, images=1)
